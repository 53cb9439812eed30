"""A job as a picture on the terminal: where it is, what its networks learn, what happened last. Asks nobody."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from limbeck.cli.curves import Curves, followed, sparkline
from limbeck.cli.output import seconds
from limbeck.objects import Event, Job

PHASES = ("preflight", "teach", "distil", "export", "evaluate", "publish")
_CURVE = 24
_BAR = 32


def picture(job: Job, curves: Curves, events: Sequence[Event], elapsed: float, *, keys: str = "") -> RenderableType:
    """`elapsed`: seconds for which it has been watched. `keys`: what keys do, at the bottom."""
    parts: list[RenderableType] = [_title(job), _bar(job, elapsed), _phases(job)]
    if curves:
        parts += [Text(), _curves(job, curves)]
    if events:
        parts += [Text(), *(_event(event) for event in events)]
    why = reason(job)
    if why or keys:
        parts.append(Text())
    parts += [Text(line, style="yellow", overflow="fold") for line in why]
    if keys:
        parts.append(Text(keys, style="dim"))
    return Group(*parts)


def headline(job: Job) -> str:
    """Its phase while it runs; else its status, and what it waits for."""
    where = job.phase if job.status == "running" and job.phase else job.status
    return f"{where}: {job.waiting_reason}" if job.status == "queued" and job.waiting_reason else where


def reason(job: Job) -> list[str]:
    """Why it does not run, and what lets it."""
    if job.status not in {"queued", "pausing", "paused"}:
        return []
    lines = [f"waiting: {job.waiting_reason}"] if job.waiting_reason else []
    return [*lines, f"limbeck jobs resume {job.id} lets it go on"] if job.status == "paused" else lines


def next_step(job: Job) -> list[str]:
    """Commands that follow on how a job ended."""
    match job.status:
        case "succeeded" if job.student_id is not None:
            return [f"limbeck students report {job.student_id}"]
        case "failed":
            return [f"limbeck jobs events {job.id}"]
        case _:
            return []


def said(name: str, value: float) -> str:
    return f"{name.replace('_', ' ')} {value:.4f}"


def _title(job: Job) -> Text:
    title = Text(job.name or "job", style="bold")
    title.append(f"  {job.id}", style="not bold dim")
    if job.attempt > 1:
        title.append(f"  attempt {job.attempt}", style="not bold yellow")
    return title


def _bar(job: Job, elapsed: float) -> Table:
    colour = {"succeeded": "green", "failed": "red", "cancelled": "red", "paused": "yellow"}.get(job.status, "cyan")
    eta = f", {seconds(job.eta_seconds)} left" if job.eta_seconds is not None and not job.ended else ""
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        Text(job.phase if job.status == "running" and job.phase else job.status, style=f"bold {colour}"),
        ProgressBar(total=1.0, completed=job.progress, width=_BAR, pulse=job.status == "queued", complete_style=colour),
        f"{job.progress:4.0%}",
        Text(f"{seconds(elapsed)} here{eta}", style="dim"),
    )
    return bar


def _phases(job: Job) -> Text:
    """`preflight ✓  teach ✓  distil …  export  evaluate  publish`"""
    line = Text()
    here = PHASES.index(job.phase) if job.phase in PHASES else -1
    for place, phase in enumerate(PHASES):
        if job.status == "succeeded" or place < here:
            line.append(f"{phase} ✓  ", style="green")
        elif place == here:
            mark, style = ("✗", "red") if job.ended else ("…", "bold")
            line.append(f"{phase} {mark}  ", style=style)
        else:
            line.append(f"{phase}  ", style="dim")
    return line


def _curves(job: Job, curves: Curves) -> Table:
    """A row for each arm. Each curve has a scale of its own, for losses of different arms are no equals."""
    names = [name for name in followed(job.spec) if any(name in found for found in curves.values())]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", show_edge=False)
    table.add_column("")
    for name in names:
        table.add_column(name.replace("_", " "), no_wrap=True)
        table.add_column("", no_wrap=True)
    for arm, found in curves.items():
        cells: list[Text] = []
        for name in names:
            values = found.get(name, [])
            cells.append(Text(sparkline(values, _CURVE), style="cyan"))
            cells.append(Text(f"{values[-1]:.4f}" if values else ""))
        table.add_row(Text(arm, style="bold"), *cells)
    return table


def _event(event: Event) -> Text:
    line = Text(event.at.astimezone().strftime("%H:%M:%S "), style="dim", overflow="ellipsis", no_wrap=True)
    line.append(f"{event.code}  ", style="not dim bold")
    line.append(event.message, style="not dim")
    return line
