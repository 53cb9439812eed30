"""`limbeck students …`, `limbeck deployments …` and `limbeck predict`"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from limbeck.cli.output import After, AsJson, Limit, console, service, show_fields, show_json, show_table, size
from limbeck.cli.reports import show_counters, show_report
from limbeck.errors import LimbeckError
from limbeck.objects import Deployment, File
from limbeck.predictions import Entity, Label, Span

students = typer.Typer(no_args_is_help=True, help="Published students.")
deployments = typer.Typer(no_args_is_help=True, help="Names that production calls.")

Id = Annotated[str, typer.Argument(metavar="ID", help="A student, st_…", show_default=False)]
Name = Annotated[str, typer.Argument(metavar="NAME", help="A deployment's name.", show_default=False)]
IfMatch = Annotated[int | None, typer.Option("--if-version", help="Only if it is at this version.", show_default=False)]


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


@students.command("delete")
def delete(student: Id, as_json: AsJson = False) -> None:
    """Delete a student that no deployment points at."""
    with service() as client:
        client.students.delete(student)
        show_json({"id": student, "deleted": True}) if as_json else console.print(f"deleted {student}")


# --- deployments ------------------------------------------------------------------------------------------------------


@deployments.command("put")
def put(name: Name, student: Id, if_version: IfMatch = None, as_json: AsJson = False) -> None:
    """Point a deployment at a student."""
    with service() as client:
        _show(client.deployments.put(name, student, if_match=if_version), as_json)


@deployments.command("show")
def show_deployment(name: Name, as_json: AsJson = False) -> None:
    """Show where it points."""
    with service() as client:
        _show(client.deployments.get(name), as_json)


@deployments.command("list")
def list_deployments(limit: Limit = 20, after: After = None, as_json: AsJson = False) -> None:
    """List deployments, newest first."""
    with service() as client:
        found = client.deployments.list(limit=limit, after=after)
        if as_json:
            show_json(found.raw)
            return
        rows = [(item.name, item.student, item.version, item.updated_at) for item in found]
        show_table(("name", "student", "version", "moved"), rows, empty="no deployments", more=found.has_more)


@deployments.command("history")
def history(name: Name, as_json: AsJson = False) -> None:
    """List every move, newest first."""
    with service() as client:
        found = client.deployments.history(name)
        if as_json:
            show_json([change.raw for change in found])
            return
        rows = [(item.version, item.verb, item.student, item.by, item.at, item.reason) for item in found]
        show_table(("version", "verb", "student", "by", "at", "reason"), rows)


@deployments.command("rollback")
def rollback(name: Name, if_version: IfMatch = None, as_json: AsJson = False) -> None:
    """Point back at the student before."""
    with service() as client:
        _show(client.deployments.rollback(name, if_match=if_version), as_json)


@deployments.command("delete")
def delete_deployment(name: Name, if_version: IfMatch = None, as_json: AsJson = False) -> None:
    """Delete a deployment. Its student stays."""
    with service() as client:
        client.deployments.delete(name, if_match=if_version)
        show_json({"name": name, "deleted": True}) if as_json else console.print(f"deleted {name}")


def _show(found: Deployment, as_json: bool) -> None:
    if as_json:
        show_json(found.raw)
        return
    console.print(f"{found.name} → {found.student}  [dim]version {found.version}[/]")


# --- predict ----------------------------------------------------------------------------------------------------------


def predict(
    name: Name,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT…", help="- reads one text a line.", show_default=False)
    ] = None,
    text_pair: Annotated[
        str | None, typer.Option(help="The second text, where the task compares two.", show_default=False)
    ] = None,
    question: Annotated[
        str | None, typer.Option(help="A question, for a task that answers them.", show_default=False)
    ] = None,
    context: Annotated[
        str | None, typer.Option(help="Where its answer may stand; - reads it.", show_default=False)
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(min=1, help="So many labels (default all) or answers (default one) of each.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask a deployment."""
    with service() as client:
        wanted = _inputs(name, texts, text_pair, question, context)
        answers = client.predict(name, wanted, top_k=top_k)
        if as_json:
            show_json(answers.raw)
            return
        for item, found in zip(wanted, answers, strict=True):
            shown = item if isinstance(item, str) else "\n".join(item.values())
            best = "  ".join(_shown(one) for one in found) or "nothing"
            console.print(f"{escape(shown)}\n  [cyan]{best}[/]")


def _inputs(
    name: str, texts: list[str] | None, text_pair: str | None, question: str | None, context: str | None
) -> list[str | Mapping[str, str]]:
    if question is not None or context is not None:
        if question is None or context is None or texts or text_pair is not None:
            raise LimbeckError(
                "give a question with its context and nothing else",
                hint=f'limbeck predict {name} --question "who?" --context "It was me."',
            )
        return [{"question": question, "context": sys.stdin.read() if context == "-" else context}]
    wanted = [line.rstrip("\n") for line in sys.stdin] if texts == ["-"] else texts
    if not wanted:
        raise LimbeckError("give at least one text", hint=f'limbeck predict {name} "what a day"')
    return [text if text_pair is None else {"text": text, "text_pair": text_pair} for text in wanted]


def _shown(found: Label | Entity | Span) -> str:
    match found:
        case Label(label=text) | Span(answer=text):
            return f"{escape(text) or 'no answer'} {found.score:.3f}"
        case Entity():
            return f"{escape(found.word)} ({escape(found.entity_group)}) {found.score:.3f}"
