"""Curves in a line of text: what a metric did, as eight heights of a block."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, pairwise

from limbeck.objects import Point

_BLOCKS = "▁▂▃▄▅▆▇█"
_GAP = "·"
_MAIN = {
    "text-classification": "accuracy",
    "text-regression": "pearson",
    "token-classification": "f1",
    "question-answering": "f1",
}
"""The main metric of each kind of task, which is reported of the validation rows."""

Curves = dict[str, dict[str, list[float]]]
"""The values of each metric in the order of training, by arm and name."""


def followed(spec: Mapping[str, object]) -> tuple[str, str]:
    """The metrics of a job that are followed: its loss, and the main metric of its task on the validation rows."""
    task = spec.get("task")
    kind = task if isinstance(task, Mapping) else {}
    main = "micro_f1" if kind.get("multi_label") else _MAIN.get(str(kind.get("kind")), "accuracy")
    return "loss", f"validation_{main}"


def curves_of(points: Iterable[Point]) -> Curves:
    """Points in any order as one curve for each arm and name, over stages and phases."""
    found: Curves = {}
    for point in sorted(points, key=lambda one: (one.stage, one.phase, one.step)):
        found.setdefault(point.arm, {}).setdefault(point.name, []).append(point.value)
    return found


def sparkline(values: Sequence[float], width: int, scale: tuple[float, float] | None = None) -> str:
    """At most `width` blocks, the lowest for the least value of `scale` (default: of the values themselves).

    More values than blocks are averaged in groups. What is no finite number is a dot.
    """
    if not values or width < 1:
        return ""
    groups = values if len(values) <= width else _grouped(values, width)
    low, high = scale or span([groups]) or (0.0, 0.0)
    return "".join(_block(value, low, high) for value in groups)


def span(curves: Iterable[Sequence[float]]) -> tuple[float, float] | None:
    """The least and the greatest finite value of several curves, by which they can share a scale."""
    finite = [value for value in chain.from_iterable(curves) if math.isfinite(value)]
    return (min(finite), max(finite)) if finite else None


def _grouped(values: Sequence[float], width: int) -> list[float]:
    edges = [round(place * len(values) / width) for place in range(width + 1)]
    return [_mean(values[start:end]) for start, end in pairwise(edges)]


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan


def _block(value: float, low: float, high: float) -> str:
    if not math.isfinite(value):
        return _GAP
    if high <= low:
        return _BLOCKS[3]
    share = min(1.0, max(0.0, (value - low) / (high - low)))
    return _BLOCKS[min(7, int(share * 8))]
