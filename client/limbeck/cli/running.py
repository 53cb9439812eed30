"""`limbeck run`: from a file that a person writes to what came of the job, and what to do with it."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.markup import escape

from limbeck.cli.datafiles import named_files
from limbeck.cli.documents import read_document
from limbeck.cli.jobfile import deployment_name
from limbeck.cli.output import AsJson, complain, console, service, show_json
from limbeck.cli.reports import show_report
from limbeck.cli.submitting import SPEC_HINT, IdempotencyKey, SpecFile, quiet, submitted, tell
from limbeck.cli.watching import follow, show_end
from limbeck.client import Client
from limbeck.errors import LimbeckError
from limbeck.objects import Job

_USAGE = 2
_LONGEST_SAMPLE = 60


def run(
    file: SpecFile,
    watching: Annotated[bool, typer.Option("--watch/--no-watch", help="Follow it until it has ended.")] = True,
    key: IdempotencyKey = None,
    as_json: AsJson = False,
) -> None:
    """Run a job file from start to finish: upload its rows, submit, watch, report.

    Exit codes: 0 it succeeded (with --no-watch: was submitted), 1 it or the service failed, 2 the file is wrong.
    """
    try:
        document = read_document(file, SPEC_HINT)
        named_files(document.value)
    except LimbeckError as error:
        complain(error)
        raise typer.Exit(_USAGE) from None
    with service() as client:
        say = quiet if as_json else tell
        job = submitted(client, document, file, key, say, wrong=_USAGE)
        say(f"submitted {job.id}")
        if not watching:
            show_json(job.raw) if as_json else console.print(f"{job.id}  [dim]limbeck jobs watch {job.id}[/]")
            return
        ended = _ended(client, job, as_json)
        report = client.students.report(ended.student_id) if ended.succeeded and ended.student_id else None
        if as_json:
            show_json({"job": ended.raw, "report": report})
        elif report is not None:
            show_card(client, ended, report)
        else:
            show_end(ended)
        if not ended.succeeded:
            raise typer.Exit(1)


def _ended(client: Client, job: Job, as_json: bool) -> Job:
    if as_json:
        return client.jobs.wait(job)
    try:
        return follow(client, job)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def show_card(client: Client, job: Job, report: Mapping[str, Any]) -> None:
    """What came of a job: arms side by side, the verdict, and the commands that follow on it."""
    console.print(f"\n[bold green]succeeded[/]  {escape(job.name)}  [dim]{job.id}, student {job.student_id}[/]\n")
    show_report(report)
    console.print("\n[bold]next[/]")
    for command, why in next_commands(job, report, _sample(client, job)):
        console.print(f"  {escape(command)}  [dim]# {escape(why)}[/]")


def next_commands(job: Job, report: Mapping[str, Any], sample: str) -> list[tuple[str, str]]:
    """Commands with their reasons. `sample`: an input, as arguments of `limbeck predict` and `limbeck students try`."""
    promote = job.spec.get("promote") or {}
    name = str(promote.get("deployment") or deployment_name(job.name))
    passed = (report.get("gate") or {}).get("passed")
    if promote and passed:
        steps = [(f"limbeck predict {name} {sample}", f"{name} points at this student now")]
    elif promote:
        steps = [
            (f"limbeck students disagreements {job.student_id}", "where it and its teacher differ"),
            (f"limbeck students try {job.student_id} {sample}", "ask both"),
            (f'limbeck deployments put {name} {job.student_id} --override "REASON"', "though the gate does not hold"),
        ]
    else:
        steps = [
            (f"limbeck students try {job.student_id} {sample}", "ask it and its teacher"),
            (f"limbeck deployments put {name} {job.student_id}", "point a name at it that production calls"),
        ]
    return [*steps, (f"limbeck students download {job.student_id}", "its files, for anywhere")]


def _sample(client: Client, job: Job) -> str:
    """The first row's input, short, as arguments of `limbeck predict`."""
    task, dataset = job.spec.get("task") or {}, job.spec.get("dataset") or {}
    if task.get("kind") == "question-answering":
        return '--question "QUESTION" --context "TEXT"'
    try:
        row = client.datasets.rows(str(dataset.get("id") or dataset.get("test")), limit=1)[0]
    except (LimbeckError, IndexError):
        return '"TEXT"'
    value = row.get(str(task.get("text") or task.get("tokens")))
    words = " ".join(value) if isinstance(value, list) else str(value or "TEXT")
    # Only what no shell would take for anything but a text.
    plain = " ".join(re.sub(r"[^\w .,;:?'()-]", "", words).split())
    return f'"{plain[:_LONGEST_SAMPLE].strip() or "TEXT"}"'
