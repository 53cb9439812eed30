"""`limbeck jobs …`"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from limbeck.cli.output import (
    After,
    AsJson,
    Limit,
    complaints,
    console,
    service,
    show_fields,
    show_json,
    show_line,
    show_table,
)
from limbeck.cli.watching import show_end, watch
from limbeck.client import Client
from limbeck.errors import LimbeckError
from limbeck.objects import Event, Job

jobs = typer.Typer(no_args_is_help=True, help="Distillations.")

Id = Annotated[str, typer.Argument(metavar="ID", help="A job, job_…", show_default=False)]
SpecFile = Annotated[
    Path, typer.Argument(metavar="FILE.json", help="A job spec; - reads standard input.", show_default=False)
]


@jobs.command("submit")
def submit(
    file: SpecFile,
    key: Annotated[
        str | None,
        typer.Option("--idempotency-key", help="The same key and spec are the same job.", show_default=False),
    ] = None,
    follow: Annotated[bool, typer.Option("--watch", help="Follow it until it has ended.")] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a job."""
    with service() as client:
        job = client.jobs.submit(_spec(file), idempotency_key=key)
        if not follow:
            show_json(job.raw) if as_json else console.print(f"{job.id}  [dim]limbeck jobs watch {job.id}[/]")
            return
        if not as_json:
            console.print(job.id)
        _watch(client, job, as_json)


@jobs.command("validate")
def validate(file: SpecFile, as_json: AsJson = False) -> None:
    """Say everything that is wrong with a spec, or what it stands for. Creates nothing."""
    with service() as client:
        found = client.jobs.validate(_spec(file))
        if as_json:
            show_json(found.raw)
        elif found.valid:
            console.print("[green]valid[/]")
            show_json(found.resolved_spec)
            show_fields({"estimates": found.estimates, "no estimates": found.estimates_reason})
        else:
            count = len(found.problems)
            complaints.print(f"[bold red]Invalid:[/] {count} {'problem' if count == 1 else 'problems'}")
            for problem in found.problems:
                complaints.print(f"  [bold]{escape(problem.pointer or '/')}[/]  {escape(problem.message)}")
        if not found.valid:
            raise typer.Exit(1)


@jobs.command("list")
def list_jobs(
    status: Annotated[list[str] | None, typer.Option(help="Only these; may be repeated.", show_default=False)] = None,
    name: Annotated[str | None, typer.Option(help="Only with this name.", show_default=False)] = None,
    limit: Limit = 20,
    after: After = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    with service() as client:
        found = client.jobs.list(status=status or None, name=name, limit=limit, after=after)  # type: ignore[arg-type]  # the service checks
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
def follow(job_id: Id, as_json: AsJson = False) -> None:
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


@jobs.command("cancel")
def cancel(job_id: Id, as_json: AsJson = False) -> None:
    """Cancel a job: at once if it waits, within seconds if it runs."""
    with service() as client:
        job = client.jobs.cancel(job_id)
        show_json(job.raw) if as_json else console.print(f"{job.id} is {job.status}")


@jobs.command("delete")
def delete(job_id: Id, as_json: AsJson = False) -> None:
    """Forget a job that has ended. Its student stays."""
    with service() as client:
        client.jobs.delete(job_id)
        show_json({"id": job_id, "deleted": True}) if as_json else console.print(f"deleted {job_id}")


def _spec(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8"))
    except OSError as error:
        raise LimbeckError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise LimbeckError(f"{file} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise LimbeckError(f"{file} does not hold a JSON object", hint="a job spec is an object with task, dataset, …")
    return document


def _watch(client: Client, job: Job, as_json: bool) -> None:
    if as_json:
        # A line for each change; the last one is how it ended.
        job = client.jobs.wait(job, on_update=lambda seen: show_line(seen.raw))
    else:
        try:
            job = watch(client, job)
        except KeyboardInterrupt:
            console.print(f"the job goes on; [bold]limbeck jobs cancel {job.id}[/] ends it")
            raise typer.Exit(130) from None
        show_end(job)
    if not job.succeeded:
        raise typer.Exit(1)


def _show(job: Job, as_json: bool) -> None:
    if as_json:
        show_json(job.raw)
        return
    show_fields(
        {
            "id": job.id,
            "name": job.name,
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
