"""Following a job on the terminal: a picture that lives, or plain lines where there is none (a pipe, a CI log)."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.live import Live
from rich.markup import escape

from limbeck.cli.curves import Curves, curves_of, followed
from limbeck.cli.output import complaints, console, seconds
from limbeck.cli.picture import headline, next_step, picture, said
from limbeck.client import Client
from limbeck.errors import ApiError, LimbeckError, ServiceUnreachable
from limbeck.jobs import PATIENCE
from limbeck.objects import Event, Job

_LOOK_SECONDS = 1.0
_METRICS_SECONDS = 2.0
_LINE_SECONDS = 20.0
_LINE_STEP = 0.1
_POINTS = 60
_EVENTS = 5
LEAVING = "Ctrl-C leaves the view; the job goes on"


@dataclass
class Seen:
    """What has been seen of a job so far."""

    job: Job
    curves: Curves = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    """The last few."""


def watch(client: Client, job: Job, *, tick: Callable[[], None] = lambda: None, keys: str = LEAVING) -> Job:
    """The job once it has ended, shown on the way. `tick` is called about once a second; `keys`: what keys do."""
    began = time.monotonic()
    seen = Seen(job)
    if not console.is_terminal:
        return _follow(client, seen, tick, _Lines(began).show)
    with Live(console=console, refresh_per_second=4) as live:

        def show() -> None:
            below = "" if seen.job.ended else keys
            live.update(picture(seen.job, seen.curves, seen.events, time.monotonic() - began, keys=below))

        return _follow(client, seen, tick, lambda _: show())


def follow(client: Client, job: Job) -> Job:
    """As `watch`, for a job that goes on when the view is left. Raises `KeyboardInterrupt` after it has said so."""
    try:
        return watch(client, job)
    except KeyboardInterrupt:
        complaints.print(f"the job goes on: [bold]limbeck jobs watch {job.id}[/] comes back to it, ", end="")
        complaints.print(f"[bold]limbeck jobs cancel {job.id}[/] ends it")
        raise


def _follow(client: Client, seen: Seen, tick: Callable[[], None], show: Callable[[Seen], None]) -> Job:
    asked = -_METRICS_SECONDS
    heard = time.monotonic()
    looked = False
    while True:
        try:
            if not looked or (time.monotonic() - asked > _METRICS_SECONDS and seen.job.status == "running"):
                asked = time.monotonic()
                _look(client, seen)
                looked = True
            show(seen)
            if seen.job.ended:
                return seen.job
            tick()
            # Answered at once when something has changed; a running job changes with every step that is reported.
            now = client.jobs.changed(seen.job, wait=_LOOK_SECONDS)
        except (ServiceUnreachable, ApiError) as error:
            _bear(error, heard)
            tick()
            time.sleep(_LOOK_SECONDS)
            continue
        heard = time.monotonic()
        if now.version != seen.job.version:
            looked = now.status == seen.job.status
            time.sleep(0.2)
        seen.job = now


def _look(client: Client, seen: Seen) -> None:
    """Its curves and the events since the last look."""
    points = [
        point for name in followed(seen.job.spec) for point in client.jobs.metrics(seen.job, name=name, points=_POINTS)
    ]
    seen.curves = curves_of(points)
    after = seen.events[-1].seq if seen.events else 0
    seen.events = [*seen.events, *client.jobs.events(seen.job, after=after, follow=False)][-_EVENTS:]


def _bear(error: LimbeckError, heard: float) -> None:
    """A service that restarts is waited for; a refusal is not."""
    if isinstance(error, ApiError) and error.status < 500:
        raise error
    if time.monotonic() - heard > PATIENCE:
        raise error


class _Lines:
    """A line when the phase changes, with every tenth of the way, and now and then in between."""

    def __init__(self, began: float) -> None:
        self._began = began
        self._headline = ""
        self._progress = -1.0
        self._said = 0.0
        self._latest: dict[str, dict[str, float]] = {}

    def show(self, seen: Seen) -> None:
        job, words, now = seen.job, headline(seen.job), time.monotonic()
        quiet = now - self._said < _LINE_SECONDS and job.progress - self._progress < _LINE_STEP
        if words == self._headline and quiet:
            return
        self._headline, self._progress, self._said = words, job.progress, now
        eta = f"  {seconds(job.eta_seconds)} left" if job.eta_seconds is not None and not job.ended else ""
        latest = latest_of(seen.curves)
        # Of the arms, those that have moved since the last line.
        values = "  ".join(
            f"{arm}: " + ", ".join(said(name, found[name]) for name in followed(job.spec) if name in found)
            for arm, found in latest.items()
            if found != self._latest.get(arm)
        )
        self._latest = latest
        console.print(
            f"[{now - self._began:6.1f} s] {words:<10} {job.progress:4.0%}{eta}  {values}".rstrip(), markup=False
        )


def latest_of(curves: Curves) -> dict[str, dict[str, float]]:
    """The last value of each metric, by arm."""
    return {arm: {name: values[-1] for name, values in found.items()} for arm, found in curves.items()}


def show_end(job: Job) -> None:
    """How it ended, in a line or two."""
    match job.status:
        case "succeeded":
            console.print(f"[bold green]succeeded[/]  student {job.student_id}")
        case "failed" if job.error is not None:
            pointer = f" at {escape(job.error.pointer)}" if job.error.pointer else ""
            console.print(
                f"[bold red]failed[/]  {escape(job.error.message)} [dim]({escape(job.error.code)}{pointer})[/]"
            )
            if job.error.hint:
                console.print(f"[dim]hint:[/] {escape(job.error.hint)}")
        case status:
            console.print(f"[bold]{status}[/]")
    for step in next_step(job):
        console.print(f"[dim]next:[/] {step}")
