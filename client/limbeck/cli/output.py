"""How commands speak: tables or JSON on standard output; on standard error one readable block where all is not well."""

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from limbeck.client import Client
from limbeck.errors import ApiError, LimbeckError, Problem

# Piped output is read by programs and stored in logs: no column of it is folded to a terminal's width.
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200)
complaints = Console(stderr=True, highlight=False, soft_wrap=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=100, help="At most so many, newest first.")]
After = Annotated[str | None, typer.Option("--after", help="Those after this id.", show_default=False)]


@contextmanager
def telling() -> Iterator[None]:
    """An error inside becomes a block on standard error, and the exit code 1."""
    try:
        yield
    except LimbeckError as error:
        complain(error)
        raise typer.Exit(1) from None


@contextmanager
def service() -> Iterator[Client]:
    """A client of the service that the environment names; errors are told."""
    with telling(), Client() as client:
        yield client


def complain(error: LimbeckError, located: Callable[[Problem], str] = lambda problem: problem.pointer or "/") -> None:
    """Title, each problem with where it is, hint."""
    title = error.title if isinstance(error, ApiError) else "Error"
    problems = error.problems if isinstance(error, ApiError) else ()
    # A single problem is the whole message, so that one of them is enough.
    alone = len(problems) == 1 and error.message.endswith(problems[0].message)
    complaints.print(f"[bold red]{escape(title)}:[/]{'' if alone else f' {escape(error.message)}'}")
    show_problems(problems, located)
    # The service's own hint for what is absent is for those who write requests.
    hint = _advice(error) or error.hint
    if hint:
        complaints.print(f"[dim]hint:[/] {escape(hint)}")
    if isinstance(error, ApiError) and error.request_id and error.status >= 500:
        complaints.print(f"[dim]request id: {escape(error.request_id)}[/]")


def show_problems(problems: Sequence[Problem], located: Callable[[Problem], str]) -> None:
    for problem in problems:
        complaints.print(f"  [bold]{escape(located(problem))}[/]  {escape(problem.message)}")


def _advice(error: LimbeckError) -> str | None:
    """What to do next, as a command."""
    if not isinstance(error, ApiError):
        return None
    match error.status:
        case 404:
            noun = re.match(r"there is no (\w+)", error.message)
            command = _LISTS.get(noun.group(1)) if noun else None
            return f"{command} shows those that there are" if command else None
        case 403 if not error.hint:
            return "limbeck keys create SCOPE… makes another key, with a key that has the scope admin"
        case _:
            return None


_LISTS = {
    "dataset": "limbeck datasets list",
    "teacher": "limbeck teachers list",
    "job": "limbeck jobs list",
    "student": "limbeck students list",
    "deployment": "limbeck deployments list",
    "prediction": "limbeck deployments captures NAME",
    "key": "limbeck keys list",
    "secret": "limbeck secrets list",
    "webhook": "limbeck webhooks list",
    "delivery": "limbeck webhooks deliveries ID",
}


def show_json(document: Any) -> None:
    """JSON for programs: no colours, no wrapping, and one document whatever the terminal."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def show_line(document: Any) -> None:
    """One line of JSON, for streams."""
    sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def show_table(
    headings: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str = "none", more: bool = False
) -> None:
    if not rows:
        console.print(f"[dim]{empty}[/]")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        # An id is there to be copied: the other columns give way.
        table.add_column(
            heading,
            overflow="fold",
            no_wrap=heading in _WHOLE,
            justify="right" if heading in _RIGHT else "left",
        )
    for row in rows:
        table.add_row(*(text(value) for value in row))
    console.print(table)
    if more:
        console.print("[dim]… more: --after with the last id[/]")


_WHOLE = frozenset({"id", "student"})
_RIGHT = frozenset({"rows", "size", "version", "slots", "seq", "step", "value", "score", "progress"})


def show_fields(fields: Mapping[str, object]) -> None:
    """`name  value` lines, without what is absent."""
    width = max((len(name) for name in fields), default=0)
    for name, value in fields.items():
        if value not in (None, "", []):
            console.print(f"[dim]{name:<{width}}[/]  {text(value)}")


def text(value: object) -> str:
    """A value for people, escaped for rich."""
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case datetime():
            return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        case float():
            return f"{value:.4g}"
        case list() | tuple():
            return ", ".join(text(item) for item in value) or "–"
        case dict():
            return escape(json.dumps(value, ensure_ascii=False))
        case _:
            return escape(str(value))


def size(count: int) -> str:
    """Bytes for people: 18.2 MB."""
    number = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def seconds(value: float | None) -> str:
    """A duration for people: 8 s, 3 min 20 s, 2 h 5 min."""
    if value is None:
        return "–"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
