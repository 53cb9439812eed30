"""How commands speak: tables or JSON on standard output; on standard error one readable block where all is not well."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from limbeck.client import Client
from limbeck.errors import ApiError, LimbeckError

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


def json_object(file: Path, hint: str) -> dict[str, Any]:
    """The JSON object in a file; `-` is standard input. `hint` says what kind of object is wanted."""
    try:
        document = json.loads(sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8"))
    except OSError as error:
        raise LimbeckError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise LimbeckError(f"{file} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise LimbeckError(f"{file} does not hold a JSON object", hint=hint)
    return document


def complain(error: LimbeckError) -> None:
    """Title, each problem with its pointer, hint."""
    title = error.title if isinstance(error, ApiError) else "Error"
    complaints.print(f"[bold red]{escape(title)}:[/] {escape(error.message)}")
    if isinstance(error, ApiError):
        for problem in error.problems:
            complaints.print(f"  [bold]{escape(problem.pointer or '/')}[/]  {escape(problem.message)}")
    if error.hint:
        complaints.print(f"[dim]hint:[/] {escape(error.hint)}")
    if isinstance(error, ApiError) and error.request_id and error.status >= 500:
        complaints.print(f"[dim]request id: {escape(error.request_id)}[/]")


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
