"""Several students side by side: their figures, what differs between their specs, which are on the Pareto front.

Pure functions of what the API answers. They know no page.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from app.dashboard import words

Json = Mapping[str, Any]

_SHARES = frozenset({"accuracy", "micro_f1", "macro_f1", "f1", "exact_match"})
"""Metrics that people read as percentages."""


@dataclass(frozen=True)
class Candidate:
    """A job with what came of it, or a student whose job may have been deleted."""

    id: str
    """As it stands in the address."""
    job: Json | None
    student: Json | None
    report: Json
    method: str = ""
    dataset: str = ""

    @property
    def name(self) -> str:
        noun = self.job or self.student or {}
        return str(noun.get("name") or self.id)

    @property
    def metric(self) -> str:
        return str(self.report.get("metric") or "")

    def arm(self, name: str) -> Json:
        return (self.report.get("arms") or {}).get(name) or {}

    def served(self, arm: str = "distilled") -> Json:
        """Figures of an arm at the precision that is served."""
        found = self.arm(arm)
        return (found.get("precisions") or {}).get(found.get("served")) or {}

    def difference(self, name: str) -> Json:
        return (self.report.get("comparisons") or {}).get(name) or {}

    def interval(self, arm: str = "distilled") -> tuple[float | None, float | None]:
        """Of the score: both ends at 95 % for an accuracy, else the lower bound alone."""
        found = self.arm(arm)
        both = found.get("accuracy_interval")
        if self.metric == "accuracy" and both:
            return both[0], both[1]
        return found.get("score_lower_bound"), None


class Cell(NamedTuple):
    text: str
    detail: str = ""
    best: bool = False


class Row(NamedTuple):
    name: str
    cells: list[Cell]


class Difference(NamedTuple):
    """A field of the specs that is not the same in all of them."""

    pointer: str
    values: list[str]
    """Of each; – where there is no such field."""
    differs: list[bool]
    """From the first."""


class Named(NamedTuple):
    """A candidate under a name that no other has."""

    label: str
    candidate: Candidate


# --- the Pareto front -------------------------------------------------------------------------------------------------


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The positions of the points (cost, quality) that no other beats, the cheapest first.

    One point beats another if it costs no more and is no worse, and differs. Equal points are both on the front.
    """
    order = sorted(range(len(points)), key=lambda at: (points[at][0], -points[at][1]))
    front: list[int] = []
    for at in order:
        if not front or points[at][1] > points[front[-1]][1] or points[at] == points[front[-1]]:
            front.append(at)
    return front


def scatter(
    named: Sequence[Named], *, cost: Callable[[Candidate], float | None], x: str, teachers: bool
) -> Json | None:
    """Quality against a cost, with intervals and the front, as the pages' charts are written; None without a point.

    Only students with the metric that most have: another one is another scale.
    """
    metric = _commonest([one.candidate.metric for one in named if one.candidate.metric])
    same = [one for one in named if one.candidate.metric == metric]
    known = [
        (one, price, quality)
        for one in same
        if (price := cost(one.candidate)) is not None
        and (quality := one.candidate.arm("distilled").get("score")) is not None
    ]
    if not known:
        return None
    scale = 100.0 if metric in _SHARES else 1.0
    ends = [one.candidate.interval() for one, _, _ in known]
    students = [
        {
            "name": one.label,
            "student": True,
            "mode": "markers",
            "x": [price],
            "y": [quality * scale],
            "trace": {
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "thickness": 1,
                    "array": [0.0 if high is None else max(0.0, (high - quality) * scale)],
                    "arrayminus": [0.0 if low is None else max(0.0, (quality - low) * scale)],
                }
            },
        }
        for (one, price, quality), (low, high) in zip(known, ends, strict=True)
    ]
    front = pareto_front([(price, quality) for _, price, quality in known])
    line = {
        "name": "Pareto front",
        "arm": "untrained",
        "mode": "lines",
        "x": [known[at][1] for at in front],
        "y": [known[at][2] * scale for at in front],
        "trace": {"hoverinfo": "skip"},
    }
    series: list[Json] = [*students, line]
    if teachers:
        series += _teachers([one for one, _, _ in known], scale)
    unit = f"{metric.replace('_', ' ')}{', %' if scale == 100.0 else ''}"
    return {
        "title": f"{unit} against {x}",
        "x": x,
        "y": unit,
        "hover": "closest",
        "height": 360,
        "series": series,
        "front": [known[at][0].label for at in front],
    }


def _teachers(named: Sequence[Named], scale: float) -> Iterator[dict[str, Any]]:
    found = {
        (one.candidate.served("teacher").get("p50_ms"), one.candidate.arm("teacher").get("score")) for one in named
    }
    points = sorted((price, quality) for price, quality in found if price is not None and quality is not None)
    if points:
        yield {
            "name": "their teachers",
            "arm": "teacher",
            "mode": "markers",
            "x": [price for price, _ in points],
            "y": [quality * scale for _, quality in points],
            "trace": {"marker": {"symbol": "diamond", "size": 10}},
        }


def _commonest(names: Sequence[str]) -> str:
    return max(names, key=names.count) if names else ""


# --- the table --------------------------------------------------------------------------------------------------------


def rows(named: Sequence[Named]) -> Iterator[Row]:
    """The figures, each with a cell for each candidate. The best is marked where they can be compared."""
    them = [one.candidate for one in named]
    metrics = {one.metric for one in them if one.metric}
    one_metric = len(metrics) == 1
    what = next(iter(metrics)).replace("_", " ") if one_metric else "main metric"
    yield Row("Status", [Cell((one.job or {}).get("status") or "job deleted") for one in them])
    yield Row("Verdict", [Cell(str(one.report.get("verdict") or words.NOTHING)) for one in them])
    yield _measured(f"Score ({what})", them, _score("distilled"), best=max if one_metric else None)
    yield _measured("Teacher’s score", them, _score("teacher"))
    yield _measured("Control’s score", them, _score("control"))
    yield _measured("Below its teacher, points", them, _points("drop"), best=min if one_metric else None)
    yield _measured("Gain over control, points", them, _points("gain_over_control"), best=max if one_metric else None)
    yield _measured(
        "Parameters", them, lambda one: _plain(one.arm("distilled").get("parameters"), words.count), best=min
    )
    yield _measured("Size as served", them, lambda one: _plain(bytes_of(one), words.size), best=min)
    for quantile in ("p50", "p95"):
        yield _measured(f"Latency {quantile}", them, _latency(f"{quantile}_ms"), best=min)
    yield Row("Precision", [Cell(str(one.arm("distilled").get("served") or words.NOTHING)) for one in them])
    yield Row("Gate", [_gate(one) for one in them])
    yield Row("Dataset", [Cell(one.dataset or words.NOTHING) for one in them])
    yield Row("Method", [Cell(one.method or words.NOTHING) for one in them])


Measured = tuple[float | None, str, str]
"""What is compared, the text and a detail below it."""


def _measured(
    name: str, them: Sequence[Candidate], of: Callable[[Candidate], Measured], best: Callable[..., float] | None = None
) -> Row:
    found = [of(one) for one in them]
    numbers = [value for value, _, _ in found if value is not None]
    top = best(numbers) if best is not None and len(set(numbers)) > 1 else None
    return Row(name, [Cell(text, detail, value is not None and value == top) for value, text, detail in found])


def _plain(value: float | None, written: Callable[[float | None], str]) -> Measured:
    return value, written(value), ""


def _score(arm: str) -> Callable[[Candidate], Measured]:
    def of(one: Candidate) -> Measured:
        written = words.percent if one.metric in _SHARES else words.number
        value = one.arm(arm).get("score")
        low, high = one.interval(arm)
        if value is None or low is None:
            detail = ""
        elif high is None:
            detail = f"at least {written(low)}"
        else:
            detail = f"{written(low)} to {written(high)}"
        return value, written(value), detail

    return of


def _points(name: str) -> Callable[[Candidate], Measured]:
    def of(one: Candidate) -> Measured:
        found = one.difference(name)
        value, low, high = (found.get(key) for key in ("value", "low", "high"))
        detail = f"{words.points(low)} to {words.points(high)}" if low is not None and high is not None else ""
        return value, words.points(value), detail

    return of


def _latency(key: str) -> Callable[[Candidate], Measured]:
    def of(one: Candidate) -> Measured:
        value = one.served().get(key)
        return value, words.NOTHING if value is None else f"{words.number(value)} ms", ""

    return of


def bytes_of(one: Candidate) -> float | None:
    """Of the file that is loaded at the precision that is served."""
    found: float | None = one.served().get("bytes", one.arm("distilled").get("bytes"))
    return found


def latency_of(one: Candidate) -> float | None:
    """Milliseconds, the median of one thread."""
    found: float | None = one.served().get("p50_ms")
    return found


def _gate(one: Candidate) -> Cell:
    passed = (one.report.get("gate") or {}).get("passed")
    return Cell(words.NOTHING if passed is None else "passed" if passed else "not passed")


# --- specs ------------------------------------------------------------------------------------------------------------


def differences(specs: Sequence[Json | None]) -> list[Difference]:
    """The fields in which resolved specs differ, by JSON pointer. A list of plain values is one value."""
    flat = [dict(_leaves(spec, "")) if spec is not None else {} for spec in specs]
    found = []
    for pointer in dict.fromkeys(pointer for one in flat for pointer in one):
        values = [one.get(pointer, words.NOTHING) for one in flat]
        if not set(values) - {"null", words.NOTHING}:
            continue  # not there, and there with nothing in it, are alike
        if pointer != "/name" and len(set(values)) > 1:
            found.append(Difference(pointer, values, [value != values[0] for value in values]))
    return found


def _leaves(value: Any, pointer: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{pointer}/{str(key).replace('~', '~0').replace('/', '~1')}")
    elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        for position, item in enumerate(value):
            yield from _leaves(item, f"{pointer}/{position}")
    else:
        yield pointer, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def named(candidates: Sequence[Candidate]) -> list[Named]:
    """Each under its name; where two share one, with the end of its id."""
    names = [one.name for one in candidates]
    return [Named(one.name if names.count(one.name) == 1 else f"{one.name} …{one.id[-4:]}", one) for one in candidates]
