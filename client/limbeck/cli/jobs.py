"""`limbeck jobs …`"""

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer
from rich.markup import escape

from limbeck.bundles import Comparison, compare, read_bundle
from limbeck.cli.completion import among, ids, only
from limbeck.cli.documents import read_document
from limbeck.cli.output import (
    After,
    AsJson,
    Limit,
    console,
    service,
    show_fields,
    show_json,
    show_line,
    show_table,
    size,
    text,
)
from limbeck.cli.submitting import SPEC_HINT, IdempotencyKey, SpecFile, checked, quiet, show_invalid, submitted, tell
from limbeck.cli.watching import follow, show_end
from limbeck.client import Client
from limbeck.errors import ApiError
from limbeck.objects import Event, Job, JobStatus

jobs = typer.Typer(no_args_is_help=True, help="Distillations: submit, watch, pause, repeat.")

STATUSES: tuple[JobStatus, ...] = get_args(JobStatus)
_ID = re.compile("job_[0-9a-z]+")
Id = Annotated[str, typer.Argument(metavar="ID", help="A job, job_…", show_default=False, autocompletion=ids("jobs"))]


@jobs.command("submit")
def submit(
    file: SpecFile,
    key: IdempotencyKey = None,
    follow: Annotated[bool, typer.Option("--watch", help="Follow it until it has ended.")] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a job. Rows that it names as a file are uploaded first."""
    with service() as client:
        job = submitted(client, read_document(file, SPEC_HINT), file, key, quiet if as_json else tell)
        if not follow:
            show_json(job.raw) if as_json else console.print(f"{job.id}  [dim]limbeck jobs watch {job.id}[/]")
            return
        if not as_json:
            console.print(job.id)
        _watch(client, job, as_json)


@jobs.command("rerun")
def rerun(
    job: Annotated[str, typer.Argument(metavar="ID|FILE.zip", help="A job, job_…, or a bundle.", show_default=False)],
    key: IdempotencyKey = None,
    follow: Annotated[
        bool, typer.Option("--watch", help="Follow it until it has ended, and compare its student with the first one.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a job's student once more.

    With --watch it exits with 1 if that is not the same, bit for bit.
    """
    with service() as client:
        source = job if _ID.fullmatch(job) else Path(job)
        before = _manifest_of(client, source) if follow else None
        made = client.jobs.rerun(source, idempotency_key=key)
        if not follow:
            show_json(made.raw) if as_json else console.print(f"{made.id}  [dim]limbeck jobs watch {made.id}[/]")
            return
        if not as_json:
            console.print(made.id)
        ended = _watch(client, made, as_json)
        if before is not None and ended.student_id is not None:
            _compare(compare(before, client.students.manifest(ended.student_id)), as_json)


@jobs.command("bundle")
def bundle(
    job_id: Id,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Default: ID.zip.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write an archive with all that is needed to train a job's student again, its rows included."""
    with service() as client:
        path = client.jobs.bundle(job_id, output or Path(f"{job_id}.zip"))
        if as_json:
            show_json({"file": str(path.absolute()), "bytes": path.stat().st_size})
        else:
            console.print(f"{escape(str(path))}  [dim]{size(path.stat().st_size)}[/]")


@jobs.command("validate")
def validate(file: SpecFile, as_json: AsJson = False) -> None:
    """Say everything that is wrong with a spec, or what it stands for. Creates nothing."""
    with service() as client:
        document = read_document(file, SPEC_HINT)
        found = checked(client, document, file)
        if as_json:
            show_json(found.raw)
        elif found.valid:
            console.print("[green]valid[/]")
            if found.resolved_spec is not None:
                show_json(found.resolved_spec)
            show_fields({"estimates": found.estimates, "no estimates": found.estimates_reason})
        else:
            show_invalid(found, document)
        if not found.valid:
            raise typer.Exit(1)


@jobs.command("list")
def list_jobs(
    status: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Only these, of {' '.join(STATUSES)}; may be repeated.",
            show_default=False,
            callback=only(STATUSES),
            autocompletion=among(STATUSES),
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Only with this name.", show_default=False)] = None,
    limit: Limit = 20,
    after: After = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    with service() as client:
        found = client.jobs.list(
            status=cast("list[JobStatus]", status) if status else None, name=name, limit=limit, after=after
        )
        if as_json:
            show_json(found.raw)
            return
        rows = [(job.id, job.name, job.status, job.phase, f"{job.progress:.0%}", job.created_at) for job in found]
        show_table(("id", "name", "status", "phase", "progress", "created"), rows, empty="no jobs", more=found.has_more)


@jobs.command("show")
def show(job_id: Id, as_json: AsJson = False) -> None:
    """Show a job."""
    with service() as client:
        _show(client.jobs.get(job_id), as_json)


@jobs.command("watch")
def watch(job_id: Id, as_json: AsJson = False) -> None:
    """Follow a job until it has ended. Exits with 1 if it did not succeed."""
    with service() as client:
        _watch(client, client.jobs.get(job_id), as_json)


@jobs.command("events")
def events(
    job_id: Id,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    after: Annotated[int, typer.Option(min=0, help="Those after this number.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Show what happened to a job. With --json a line for each event."""
    with service() as client:
        for event in client.jobs.events(job_id, after=after, follow=follow):
            show_line(event.raw) if as_json else _show_event(event)


@jobs.command("metrics")
def metrics(
    job_id: Id,
    name: Annotated[str | None, typer.Option(help="Only this one, such as loss.", show_default=False)] = None,
    points: Annotated[int, typer.Option(min=2, max=10_000, help="Of each series at most so many.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Show series of numbers: losses, scores, speed."""
    with service() as client:
        found = client.jobs.metrics(job_id, name=name, points=points)
        if as_json:
            show_json([point.raw for point in found])
            return
        rows = [(point.name, point.arm, point.stage, point.phase, point.step, point.value) for point in found]
        show_table(("name", "arm", "stage", "phase", "step", "value"), rows, empty="no metrics yet")


@jobs.command("pause")
def pause(job_id: Id, as_json: AsJson = False) -> None:
    """Pause a job: at once if it waits, after its next checkpoint if it runs. No work is lost."""
    with service() as client:
        _moved(client.jobs.pause(job_id), as_json)


@jobs.command("resume")
def resume(job_id: Id, as_json: AsJson = False) -> None:
    """Let a paused job go on from its last checkpoint."""
    with service() as client:
        _moved(client.jobs.resume(job_id), as_json)


@jobs.command("cancel")
def cancel(job_id: Id, as_json: AsJson = False) -> None:
    """Cancel a job: at once if it waits, within seconds if it runs."""
    with service() as client:
        _moved(client.jobs.cancel(job_id), as_json)


@jobs.command("delete")
def delete(job_id: Id, as_json: AsJson = False) -> None:
    """Forget a job that has ended. Its student stays."""
    with service() as client:
        client.jobs.delete(job_id)
        show_json({"id": job_id, "deleted": True}) if as_json else console.print(f"deleted {job_id}")


def _moved(job: Job, as_json: bool) -> None:
    show_json(job.raw) if as_json else console.print(f"{job.id} is {job.status}")


def _watch(client: Client, job: Job, as_json: bool) -> Job:
    if as_json:
        # A line for each change; the last one is how it ended.
        job = client.jobs.wait(job, on_update=lambda seen: show_line(seen.raw))
    else:
        try:
            job = follow(client, job)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        show_end(job)
    if not job.succeeded:
        raise typer.Exit(1)
    return job


def _manifest_of(client: Client, source: str | Path) -> Mapping[str, Any] | None:
    """Of the student that is to come out again; None where the job has none, or has one no more."""
    if isinstance(source, Path):
        return read_bundle(source).manifest
    student = client.jobs.get(source).student_id
    if student is None:
        return None
    try:
        return client.students.manifest(student)
    except ApiError as error:
        if error.status != 404:
            raise
        return None


def _compare(found: Comparison, as_json: bool) -> None:
    if as_json:
        show_line({"object": "comparison", **asdict(found)})
    elif found.same:
        console.print(f"[bold green]the same student, bit for bit[/]  [dim]{found.hash}[/]")
    else:
        console.print(f"[bold red]another student[/]  its hash is {found.hash}, the first one's {found.expected}")
    if not as_json:
        for one in found.differences:
            console.print(f"  [dim]{escape(one.what)}[/]  {text(one.before)} → {text(one.now)}")
    if not found.same:
        raise typer.Exit(1)


def _show(job: Job, as_json: bool) -> None:
    if as_json:
        show_json(job.raw)
        return
    show_fields(
        {
            "id": job.id,
            "name": job.name,
            "repeats": job.rerun_of,
            "status": job.status,
            "phase": job.phase,
            "waiting for": job.waiting_reason,
            "progress": f"{job.progress:.0%}",
            "attempt": job.attempt or None,
            "device": job.device,
            "worker": job.worker,
            "student": job.student_id,
            "created": job.created_at,
            "started": job.started_at,
            "finished": job.finished_at,
            "error": f"{job.error.message} ({job.error.code})" if job.error else None,
            "hint": job.error.hint if job.error else None,
        }
    )


def _show_event(event: Event) -> None:
    at = event.at.astimezone().strftime("%H:%M:%S")
    console.print(f"[dim]{event.seq:>6} {at}[/] [bold]{escape(event.code)}[/]  {escape(event.message)}")
