"""`limbeck students …`"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape

from limbeck.cli.completion import ids
from limbeck.cli.output import (
    After,
    AsJson,
    Limit,
    complaints,
    console,
    service,
    show_fields,
    show_json,
    show_table,
    size,
    telling,
)
from limbeck.cli.reports import show_counters, show_report
from limbeck.client import Client
from limbeck.objects import File
from limbeck.verifying import verify_folder

students = typer.Typer(no_args_is_help=True, help="Published students.")

_ID = re.compile("st_[0-9a-z]+")
_WIDEST = 300
Id = Annotated[
    str, typer.Argument(metavar="ID", help="A student, st_…", show_default=False, autocompletion=ids("students"))
]


@students.command("list")
def list_students(
    name: Annotated[str | None, typer.Option(help="Only with this name.", show_default=False)] = None,
    limit: Limit = 20,
    after: After = None,
    as_json: AsJson = False,
) -> None:
    """List students, newest first."""
    with service() as client:
        found = client.students.list(name=name, limit=limit, after=after)
        if as_json:
            show_json(found.raw)
            return
        rows = [
            (item.id, item.name, size(item.bytes), item.precision, item.gate_passed, item.deployments, item.created_at)
            for item in found
        ]
        headings = ("id", "name", "size", "serves", "gate", "deployments", "created")
        show_table(headings, rows, empty="no students", more=found.has_more)


@students.command("show")
def show(student: Id, as_json: AsJson = False) -> None:
    """Show a student."""
    with service() as client:
        found = client.students.get(student)
        if as_json:
            show_json(found.raw)
            return
        hidden = {"object", "bytes"}
        show_fields(
            {**{key: value for key, value in found.raw.items() if key not in hidden}, "size": size(found.bytes)}
        )


@students.command("report")
def report(student: Id, as_json: AsJson = False) -> None:
    """Show what it proves: teacher, student, control, gate."""
    with service() as client:
        found = client.students.report(student)
        if as_json:
            show_json(found)
            return
        show_report(found)
        show_counters(found)


@students.command("disagreements")
def disagreements(
    student: Id,
    right: Annotated[
        Literal["teacher", "student", "both", "neither"] | None,
        typer.Option(help="Only those that these got right.", show_default=False),
    ] = None,
    truth: Annotated[
        str | None, typer.Option(help="Only those with this label, tag or answer.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="At most so many.")] = 20,
    after: Annotated[int | None, typer.Option("--after", help="Those after this row.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """List the test rows on which it and its teacher differ, the surest first."""
    with service() as client:
        found = client.students.disagreements(student, right=right, truth=truth, after=after, limit=limit)
        if as_json:
            show_json(found.raw)
            return
        rows = [
            (row.row, _input(row.input), *(said(one) for one in (row.truth, row.teacher, row.student)), row.right)
            for row in found
        ]
        show_table(("row", "input", "truth", "teacher", "its student", "right"), rows, empty="no disagreements")
        if found.has_more:
            console.print(f"[dim]… more: --after {found[-1].row}[/]")


@students.command("download")
def download(
    student: Id,
    folder: Annotated[
        Path | None, typer.Argument(help="Default: a folder named by its id.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Copy a student's files here and verify them. Goes on where a download broke."""
    copied: list[dict[str, object]] = []

    def tell(file: File, fetched: bool) -> None:
        copied.append({**file.raw, "fetched": fetched})
        if not as_json:
            console.print(f"{escape(file.path)}  [dim]{size(file.size)}{'' if fetched else ', was here'}[/]")

    with service() as client:
        target = client.students.download(student, folder or Path(student), on_file=tell)
        if as_json:
            show_json({"folder": str(target.absolute()), "files": copied})
        else:
            console.print(f"verified, in {escape(str(target))}")


@students.command("verify")
def verify(
    student: Annotated[
        str, typer.Argument(metavar="ID|FOLDER", help="A student, st_…, or a folder of one.", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Check every file against the manifest: in the service's store, or in a folder here. Exits with 1 if one is wrong.

    What looks like an id is one; write ./st_… for a folder of that name.
    """
    with telling():
        if _ID.fullmatch(student):
            with Client() as client:
                found = client.students.verify(student)
        else:
            found = verify_folder(Path(student))
    if as_json:
        show_json(found.raw)
    elif found.ok:
        console.print(f"[green]ok[/]  {len(found.files)} files  [dim]student {found.hash}[/]")
    else:
        wrong = [file for file in found.files if not file.ok]
        complaints.print(f"[bold red]Damaged:[/] {len(wrong)} of {len(found.files)} files of {escape(student)}")
        for file in wrong:
            complaints.print(f"  [bold]{escape(file.path)}[/]  {escape(file.problem or '')}")
        if found.found_hash != found.hash:
            complaints.print(f"  the student's hash is {found.found_hash}, and should be {found.hash}")
    if not found.ok:
        raise typer.Exit(1)


@students.command("delete")
def delete(student: Id, as_json: AsJson = False) -> None:
    """Delete a student that no deployment points at."""
    with service() as client:
        client.students.delete(student)
        show_json({"id": student, "deleted": True}) if as_json else console.print(f"deleted {student}")


def _input(item: Any) -> str:
    """An input in a cell of a table; long ones are cut."""
    whole = " | ".join(str(part) for part in item.values()) if isinstance(item, dict) else str(item)
    return whole if len(whole) <= _WIDEST else f"{whole[:_WIDEST]}…"


def said(answer: Any) -> str:
    """What was said, or is true, in the shape of the task."""
    match answer:
        case None:
            return "–"
        case {"label": label, "score": float(score)}:
            return f"{label} {score:.3f}"
        case {"label": word} | {"score": word}:
            return str(word)
        case {"answer": text}:
            return str(text) or "no answer"
        case {"labels": list(words)} | {"answers": list(words)} | list(words):
            return " ".join("–" if word is None else str(word) for word in words) or "none"
        case _:
            return str(answer)
