"""Following a job on the terminal: a bar that lives, or plain lines where there is no terminal (a pipe, a CI log)."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from limbeck.cli.output import console, seconds
from limbeck.client import Client
from limbeck.errors import ApiError, LimbeckError, ServiceUnreachable
from limbeck.jobs import PATIENCE
from limbeck.objects import Job, Point

_LOOK_SECONDS = 1.0
_METRICS_SECONDS = 2.0
_LINE_SECONDS = 20.0
_LINE_STEP = 0.1
_MAIN = {
    "text-classification": "accuracy",
    "text-regression": "pearson",
    "token-classification": "f1",
    "question-answering": "f1",
}
"""The main metric of each kind of task, which is reported of the validation rows."""

Latest = dict[str, dict[str, float]]
"""The last value of each metric, by arm."""


def watch(client: Client, job: Job, *, tick: Callable[[], None] = lambda: None) -> Job:
    """The job once it has ended, shown on the way. `tick` is called about once a second."""
    began = time.monotonic()
    if console.is_terminal:
        with Live(_picture(job, {}, 0.0), console=console, refresh_per_second=4, transient=True) as live:
            return _follow(client, job, tick, lambda job, latest: live.update(_picture(job, latest, _since(began))))
    lines = _Lines(began)
    return _follow(client, job, tick, lines.show)


def shown(spec: Mapping[str, Any]) -> tuple[str, str]:
    """The metrics of a job that are followed: its loss, and the main metric of its task on the validation rows."""
    task = spec.get("task") or {}
    main = "micro_f1" if task.get("multi_label") else _MAIN.get(str(task.get("kind")), "accuracy")
    return "loss", f"validation_{main}"


def _follow(client: Client, job: Job, tick: Callable[[], None], show: Callable[[Job, Latest], None]) -> Job:
    latest: Latest = {}
    asked = -_METRICS_SECONDS
    heard = time.monotonic()
    show(job, latest)
    while not job.ended:
        tick()
        try:
            # Answered at once when something has changed; a running job changes with every step that is reported.
            now = client.jobs.changed(job, wait=_LOOK_SECONDS)
            if now.status == "running" and time.monotonic() - asked > _METRICS_SECONDS:
                asked = time.monotonic()
                latest = latest_of(
                    [point for name in shown(job.spec) for point in client.jobs.metrics(job, name=name, points=2)]
                )
        except (ServiceUnreachable, ApiError) as error:
            _bear(error, heard)
            time.sleep(_LOOK_SECONDS)
            continue
        heard = time.monotonic()
        if now.version != job.version:
            time.sleep(0.2)
        job = now
        show(job, latest)
    return job


def _bear(error: LimbeckError, heard: float) -> None:
    """A service that restarts is waited for; a refusal is not."""
    if isinstance(error, ApiError) and error.status < 500:
        raise error
    if time.monotonic() - heard > PATIENCE:
        raise error


def latest_of(points: Sequence[Point]) -> Latest:
    """Of each arm and name the point that was written last: of the last stage, phase and step."""
    newest: dict[tuple[str, str], tuple[int, int, int, float]] = {}
    for point in points:
        at = (point.stage, point.phase, point.step, point.value)
        key = (point.arm, point.name)
        if key not in newest or at[:3] >= newest[key][:3]:
            newest[key] = at
    found: Latest = {}
    for (arm, name), (*_, value) in newest.items():
        found.setdefault(arm, {})[name] = value
    return found


def _since(began: float) -> float:
    return time.monotonic() - began


def _headline(job: Job) -> str:
    where = job.phase if job.status == "running" and job.phase else job.status
    return f"{where}: {job.waiting_reason}" if job.status == "queued" and job.waiting_reason else where


def _picture(job: Job, latest: Latest, elapsed: float) -> RenderableType:
    bar = Table.grid(padding=(0, 1))
    eta = f"{seconds(job.eta_seconds)} left" if job.eta_seconds is not None else ""
    bar.add_row(
        Text(_headline(job), style="bold"),
        ProgressBar(total=1.0, completed=job.progress, width=30, pulse=job.status == "queued"),
        f"{job.progress:4.0%}",
        Text(f"{seconds(elapsed)}  {eta}", style="dim"),
    )
    arms = Table.grid(padding=(0, 2))
    for arm, values in latest.items():
        arms.add_row(
            Text(arm, style="cyan"), *(_said(name, values[name]) for name in shown(job.spec) if name in values)
        )
    return Group(bar, arms)


def _said(name: str, value: float) -> str:
    return f"{name.replace('_', ' ')} {value:.4f}"


class _Lines:
    """A line when the phase changes, with every tenth of the way, and now and then in between."""

    def __init__(self, began: float) -> None:
        self._began = began
        self._headline = ""
        self._progress = -1.0
        self._said = 0.0
        self._latest: Latest = {}

    def show(self, job: Job, latest: Latest) -> None:
        headline = _headline(job)
        now = time.monotonic()
        quiet = now - self._said < _LINE_SECONDS and job.progress - self._progress < _LINE_STEP
        if headline == self._headline and quiet:
            return
        self._headline, self._progress, self._said = headline, job.progress, now
        eta = f"  {seconds(job.eta_seconds)} left" if job.eta_seconds is not None and not job.ended else ""
        # Of the arms, those that have moved since the last line.
        values = "  ".join(
            f"{arm}: " + ", ".join(_said(name, found[name]) for name in shown(job.spec) if name in found)
            for arm, found in latest.items()
            if found != self._latest.get(arm)
        )
        self._latest = latest
        console.print(
            f"[{now - self._began:6.1f} s] {headline:<10} {job.progress:4.0%}{eta}  {values}".rstrip(), markup=False
        )


def show_end(job: Job) -> None:
    """How it ended, in a line or two."""
    match job.status:
        case "succeeded":
            console.print(f"[bold green]succeeded[/]  student {job.student_id}")
        case "failed" if job.error is not None:
            console.print(f"[bold red]failed[/]  {escape(job.error.message)} [dim]({escape(job.error.code)})[/]")
            if job.error.hint:
                console.print(f"[dim]hint:[/] {escape(job.error.hint)}")
        case status:
            console.print(f"[bold]{status}[/]")
