"""`limbeck compare`: jobs and students side by side, in one table, with the best of each column marked."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer
from rich.markup import escape

from limbeck.cli.completion import ids
from limbeck.cli.curves import Curves, curves_of, span, sparkline
from limbeck.cli.output import AsJson, console, service, show_json, show_table, size
from limbeck.cli.reports import METRICS, SHARES, difference, millions, shown_value
from limbeck.client import Client
from limbeck.errors import ApiError, LimbeckError
from limbeck.objects import Job

_POINTS = 200
_CURVE = 40
_BEST = "★"


@dataclass(frozen=True)
class Compared:
    """What is compared of a job or a student. Metrics are as in the report; None where there is nothing to say."""

    id: str
    name: str
    status: str
    job: str
    student: str | None = None
    metric: str | None = None
    helped: str | None = None
    """Whether distilling was the reason: yes, no, not shown, or no control."""
    score: float | None = None
    score_low: float | None = None
    score_high: float | None = None
    teacher: float | None = None
    control: float | None = None
    gain: Mapping[str, Any] | None = None
    """Over the control arm: `value`, `low`, `high`."""
    parameters: int | None = None
    bytes: int | None = None
    p50_ms: float | None = None
    precision: str | None = None
    gate: bool | None = None
    verdict: str | None = None


@dataclass(frozen=True)
class _Column:
    heading: str
    shown: Callable[[Compared], str]
    merit: Callable[[Compared], float | None] | None = None
    """The greater the better; None: no value is better than another."""


def compare(
    given: Annotated[
        list[str],
        typer.Argument(
            metavar="ID…",
            help="Two or more jobs and students, job_… st_…",
            show_default=False,
            autocompletion=ids("jobs", "students"),
        ),
    ],
    metric: Annotated[
        str | None,
        typer.Option(help="Also draw this metric, such as loss or validation_accuracy.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare jobs and students side by side.

    Quality with intervals, what distilling gained, size, latency, gate; the best of each column is marked.
    """
    with service() as client:
        wanted = list(dict.fromkeys(given))
        if len(wanted) < 2:
            raise LimbeckError("give two ids or more", hint="limbeck students list and limbeck jobs list show ids")
        found = [_compared(client, id_) for id_ in wanted]
        curves = _curves(client, found, metric) if metric else {}
        if as_json:
            document: dict[str, Any] = {"object": "list", "data": [asdict(one) for one in found]}
            if metric:
                document |= {"metric": metric, "curves": curves}
            show_json(document)
            return
        show_compared(found)
        if metric:
            _show_curves(metric, curves)


def show_compared(found: Sequence[Compared]) -> None:
    metrics = {one.metric for one in found if one.metric}
    comparable = len(metrics) <= 1
    columns = [column for column in _columns(metrics) if any(column.shown(one) for one in found)]
    marks = [_best(found, column) if comparable else frozenset() for column in columns]
    rows = [
        [f"{shown} {_BEST}" if (shown := column.shown(one)) and place in mark else shown
         for column, mark in zip(columns, marks, strict=True)]
        for place, one in enumerate(found)
    ]  # fmt: skip
    show_table([column.heading for column in columns], rows)
    if any(marks):
        console.print(f"[dim]{_BEST} the best of its column; scores whose intervals overlap may be alike[/]")
    if not comparable:
        console.print(f"[dim]their main metrics differ ({', '.join(sorted(metrics))}): nothing is marked[/]")
    for one in found:
        if one.verdict:
            console.print(f"[bold]{escape(one.id)}[/]  {escape(one.verdict)}")


def _compared(client: Client, id_: str) -> Compared:
    if id_.startswith("st_"):
        student = client.students.get(id_)
        base = Compared(id_, student.name, "published", student.job_id, id_, precision=student.precision)
        return _with_report(base, client.students.report(id_))
    if not id_.startswith("job_"):
        raise LimbeckError(
            f"{id_!r} is neither a job, job_…, nor a student, st_…",
            hint="limbeck jobs list and limbeck students list show ids",
        )
    job = client.jobs.get(id_)
    base = Compared(id_, job.name, _status(job), id_, job.student_id)
    if job.student_id is None:
        return base
    try:
        return _with_report(base, client.students.report(job.student_id))
    except ApiError as error:
        if error.status != 404:
            raise
        return base  # the student was deleted, and the job tells of it no more


def _status(job: Job) -> str:
    return f"{job.phase} {job.progress:.0%}" if job.status == "running" and job.phase else job.status


def _with_report(base: Compared, report: Mapping[str, Any]) -> Compared:
    arms = report.get("arms") or {}
    arm, main = arms.get("distilled") or {}, str(report.get("metric") or "accuracy")
    interval = arm.get("accuracy_interval") if main == "accuracy" else None
    low, high = interval or (arm.get("score_lower_bound"), None)
    gain = (report.get("comparisons") or {}).get("gain_over_control")
    served = arm.get("served")
    return Compared(
        id=base.id,
        name=base.name,
        status=base.status,
        job=base.job,
        student=base.student,
        metric=main,
        helped=helped(gain) if arms.get("control") else "no control",
        score=arm.get(main),
        score_low=low,
        score_high=high,
        teacher=(arms.get("teacher") or {}).get(main),
        control=(arms.get("control") or {}).get(main),
        gain=gain,
        parameters=arm.get("parameters"),
        bytes=arm.get("bytes"),
        p50_ms=((arm.get("precisions") or {}).get(served or "") or {}).get("p50_ms"),
        precision=served or base.precision,
        gate=(report.get("gate") or {}).get("passed"),
        verdict=report.get("verdict"),
    )


def helped(gain: Mapping[str, Any] | None) -> str:
    """What the interval of the gain over the control arm proves."""
    low, high = (gain or {}).get("low"), (gain or {}).get("high")
    if low is None or high is None:
        return "not shown"
    return "yes" if low > 0 else "no" if high < 0 else "not shown"


def _columns(metrics: set[str]) -> list[_Column]:
    main = next(iter(metrics)) if len(metrics) == 1 else "score"
    return [
        _Column("id", lambda one: one.id),
        _Column("name", lambda one: one.name),
        _Column("status", lambda one: "" if one.status == "published" else one.status),
        _Column(METRICS.get(main, main), _score, lambda one: one.score),
        _Column("teacher", lambda one: shown_value(one.metric or "", one.teacher)),
        _Column("control", lambda one: shown_value(one.metric or "", one.control)),
        _Column("gain", lambda one: difference(one.metric or "", one.gain or {}), _gain),
        _Column("helped", lambda one: one.helped or ""),
        _Column("parameters", lambda one: millions(one.parameters), lambda one: _less(one.parameters)),
        _Column("size", lambda one: "" if one.bytes is None else size(one.bytes), lambda one: _less(one.bytes)),
        _Column("p50", lambda one: "" if one.p50_ms is None else f"{one.p50_ms:.2f} ms", lambda one: _less(one.p50_ms)),
        _Column("serves", lambda one: one.precision or ""),
        _Column("gate", lambda one: "" if one.gate is None else "holds" if one.gate else "fails"),
    ]


def _score(one: Compared) -> str:
    words = shown_value(one.metric or "", one.score)
    if not words or one.score_low is None:
        return words
    scale, digits = (100, 1) if one.metric in SHARES else (1, 3)
    low = f"{one.score_low * scale:.{digits}f}"
    return f"{words} [≥ {low}]" if one.score_high is None else f"{words} [{low}, {one.score_high * scale:.{digits}f}]"


def _gain(one: Compared) -> float | None:
    return None if one.gain is None else one.gain.get("value")


def _less(value: float | None) -> float | None:
    return None if value is None else -value


def _best(found: Sequence[Compared], column: _Column) -> frozenset[int]:
    """The places of the best values of a column; none where there is no other value."""
    if column.merit is None:
        return frozenset()
    merits = [column.merit(one) for one in found]
    known = {merit for merit in merits if merit is not None and math.isfinite(merit)}
    if len(known) < 2:
        return frozenset()
    return frozenset(place for place, merit in enumerate(merits) if merit == max(known))


def _curves(client: Client, found: Sequence[Compared], metric: str) -> dict[str, Curves]:
    """Of each job, and of each student's job, by what was asked for. A student outlives its job."""
    jobs = list(dict.fromkeys(one.job for one in found if one.id == one.job or _is_there(client, one.job)))
    series = client.jobs.compare(jobs, metric, points=_POINTS) if jobs else {}
    return {one.id: curves_of(series.get(one.job, ())) for one in found}


def _is_there(client: Client, job: str) -> bool:
    try:
        client.jobs.get(job)
    except ApiError as error:
        if error.status != 404:
            raise
        return False
    return True


def _show_curves(metric: str, curves: Mapping[str, Curves]) -> None:
    rows = [
        (id_, arm, found[metric]) for id_, arms in curves.items() for arm, found in arms.items() if found.get(metric)
    ]
    if not rows:
        console.print(f"[dim]no points of {escape(metric)}; limbeck jobs metrics ID --points 2 shows what there is[/]")
        return
    # Of one arm all curves have one scale; the losses of different arms are no equals.
    scales = {name: span(values for _, arm, values in rows if arm == name) for name in {arm for _, arm, _ in rows}}
    drawn = [
        (id_, arm, sparkline(values, _CURVE, scales[arm]), f"{values[0]:.4f}", f"{values[-1]:.4f}")
        for id_, arm, values in rows
    ]
    console.print()
    show_table(("id", "arm", metric, "first", "last"), drawn)
