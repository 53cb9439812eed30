"""Whether a student may serve: a gate's limits against the bounds that the evaluation computed.

This module compares and puts it into words. The statistics are the worker's, which has a library for them; what is here
is the one closed form that says beforehand whether a test set is large enough, and the look into the report's table of
thresholds.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from models.errors import Invalid
from models.specs import GateSpec

_METRICS: Mapping[str, str] = {"micro_f1": "micro-F1", "pearson": "Pearson correlation", "f1": "F1"}


@dataclass(frozen=True)
class Bounds:
    """What the test rows prove of a student, at `confidence`, and what it costs at the precision that is served."""

    confidence: float
    rows: int
    drop_upper: float
    """Upper end of the one-sided paired interval of (teacher − student) in the task's main metric."""
    agreement_lower: float | None
    """One-sided Clopper-Pearson lower bound of the agreement with the teacher; None where answers are numbers."""
    metric: str = "accuracy"
    """The main metric, by its name in a report."""
    metric_lower: float | None = None
    """One-sided lower bound of the main metric; None in reports that were made before there was one."""
    precision: str | None = None
    """The one that is served: fp32 or int8."""
    p95_ms: float | None = None
    """Of one input on one thread of the worker's host; None where it was not measured."""
    bytes: int | None = None
    """Of the graph that is served."""

    @classmethod
    def of_report(cls, report: Mapping[str, Any]) -> "Bounds":
        """The bounds in a `report.json`. Raises `Invalid` (code `report_unreadable`)."""
        try:
            drop = report["comparisons"]["drop"]
            distilled = report["arms"]["distilled"]
            served = distilled.get("served")
            costs = (distilled.get("precisions") or {}).get(served) or {}
            return cls(
                confidence=drop["confidence"],
                rows=report["rows"]["test"],
                drop_upper=drop["upper_one_sided"],
                agreement_lower=distilled["agreement_lower_bound"],
                metric=report.get("metric", "accuracy"),
                metric_lower=distilled.get("score_lower_bound"),
                precision=served,
                p95_ms=costs.get("p95_ms"),
                bytes=costs.get("bytes"),
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise Invalid("this student's report has no bounds", code="report_unreadable") from error


@dataclass(frozen=True)
class Check:
    """One limit of a gate. `reason` is a sentence with the numbers in it."""

    gate: str
    bound: float | None
    """What the test rows prove, or what was measured; None where the report has nothing of it."""
    limit: float
    passed: bool
    reason: str


@dataclass(frozen=True)
class Decision:
    """Passed if every check did; a gate without limits asks for nothing and passes."""

    passed: bool
    checks: tuple[Check, ...]

    def as_json(self) -> dict[str, Any]:
        return {"passed": self.passed, "checks": [asdict(check) for check in self.checks]}

    @property
    def reason(self) -> str:
        """The sentences of the checks that decided: those that failed, or all."""
        decisive = [check.reason for check in self.checks if not check.passed] or [
            check.reason for check in self.checks
        ]
        return " ".join(decisive) or "The gate has no limits."


def decide(gate: GateSpec, bounds: Bounds) -> Decision:
    """Hold `gate` against `bounds`.

    A bound at a higher confidence than the gate asks for is the stricter one, and serves. One at a lower confidence
    proves less than is asked, and no check passes by it.
    """
    checks = []
    if gate.max_drop is not None:
        checks.append(_max_drop(gate.max_drop, gate, bounds))
    if gate.min_agreement is not None:
        checks.append(_min_agreement(gate.min_agreement, gate, bounds))
    if gate.min_metric is not None:
        checks.append(_min_metric(gate.min_metric, gate, bounds))
    if gate.max_latency_ms is not None:
        checks.append(_max_latency(gate.max_latency_ms, bounds))
    if gate.max_bytes is not None:
        checks.append(_max_bytes(gate.max_bytes, bounds))
    return Decision(all(check.passed for check in checks), tuple(checks))


def decide_by_report(gate: GateSpec, report: Mapping[str, Any]) -> Decision:
    """Hold `gate` against a `report.json`. One without bounds proves nothing, and no check passes by it."""
    try:
        return decide(gate, Bounds.of_report(report))
    except Invalid as error:
        reason = f"{error.message[0].upper()}{error.message[1:]}."
        limits = gate.model_dump(exclude={"confidence"}, exclude_none=True)
        return Decision(not limits, tuple(Check(name, None, limit, False, reason) for name, limit in limits.items()))


def unreachable(gate: GateSpec, rows: int) -> list[str]:
    """Why no student can pass `gate` with so many test rows, however good it is; empty if one can.

    When all of n rows went well, going wrong may still have a rate of up to 1 − α^(1/n) at the confidence 1 − α: the
    Clopper-Pearson bound for 0 of n, and the floor of the worker's paired interval.
    """
    unseen = unseen_rate(rows, gate.confidence)
    sure = f"With {rows:,} test rows and a confidence of {_percent(gate.confidence)}"
    reasons = []
    if gate.max_drop is not None and unseen > gate.max_drop:
        reasons.append(
            f"{sure}, a student that loses nothing can only be shown to lose at most {_percent(unseen)}, and the gate "
            f"allows {_percent(gate.max_drop)}."
        )
    if gate.min_agreement is not None and 1 - unseen < gate.min_agreement:
        reasons.append(
            f"{sure}, a student that always agrees can only be shown to agree on {_percent(1 - unseen)}, and the gate "
            f"asks for {_percent(gate.min_agreement)}."
        )
    if gate.min_metric is not None and 1 - unseen < gate.min_metric:
        reasons.append(
            f"{sure}, a student that is always right can only be shown to reach {_number(1 - unseen)} in the task's "
            f"main metric, and the gate asks for {_number(gate.min_metric)}."
        )
    return reasons


@dataclass(frozen=True)
class Threshold:
    """Where a student's answer stands if its score is at least `value`, and its teacher's is taken otherwise."""

    value: float
    coverage: float
    """The share of the validation rows on which the student's answer stood."""


def threshold_for(report: Mapping[str, Any], measure: Literal["accuracy", "agreement"], target: float) -> Threshold:
    """The lowest threshold at which student and teacher together are shown to reach `target`.

    Each threshold of the report's table has a one-sided lower bound, by the validation rows. Raises `Invalid` (code
    `target_unreachable`), which names the best that there is.
    """
    table = (report.get("cascade") or {}).get("thresholds") or []
    bounded = [row for row in table if row.get(f"{measure}_lower_bound") is not None]
    if not bounded:
        message = f"this student's report has no table of thresholds with a bound of the {measure}"
        raise Invalid(message, code="target_unreachable", hint="give a threshold instead of a target")
    reaching = [row for row in bounded if row[f"{measure}_lower_bound"] >= target]
    if not reaching:
        best = max(bounded, key=lambda row: float(row[f"{measure}_lower_bound"]))
        raise Invalid(
            f"no threshold is shown to reach an {measure} of {_percent(target)}: the best is "
            f"{_percent(best[f'{measure}_lower_bound'])}, at the threshold {best['threshold']:.4g}",
            code="target_unreachable",
        )
    chosen = min(reaching, key=lambda row: float(row["threshold"]))
    return Threshold(float(chosen["threshold"]), float(chosen["coverage"]))


def unseen_rate(rows: int, confidence: float) -> float:
    """The largest rate of an event that `rows` rows without one leave possible at `confidence`; 1 without rows."""
    if rows < 1:
        return 1.0
    rate: float = 1 - (1 - confidence) ** (1 / rows)
    return rate


def _max_drop(limit: float, gate: GateSpec, bounds: Bounds) -> Check:
    upper = bounds.drop_upper
    if bounds.confidence < gate.confidence:
        return Check("max_drop", upper, limit, False, _too_unsure(gate, bounds))
    passed = upper <= limit
    # A share is counted in points of a hundred; a correlation, or an F1, is a number.
    shown = _points if bounds.metric == "accuracy" else _number
    where = f"at most {shown(upper)} below" if upper >= 0 else f"at least {shown(-upper)} above"
    reason = (
        f"At {_percent(bounds.confidence)} confidence the student's {metric_words(bounds.metric)} is {where} its "
        f"teacher's, on {bounds.rows:,} test rows; the gate allows {shown(limit)}."
    )
    return Check("max_drop", upper, limit, passed, reason)


def _min_agreement(limit: float, gate: GateSpec, bounds: Bounds) -> Check:
    lower = bounds.agreement_lower
    if lower is None:
        reason = "The student answers with numbers, which do not agree or disagree; ask for a max_drop instead."
        return Check("min_agreement", None, limit, False, reason)
    if bounds.confidence < gate.confidence:
        return Check("min_agreement", lower, limit, False, _too_unsure(gate, bounds))
    passed = lower >= limit
    reason = (
        f"At {_percent(bounds.confidence)} confidence the student agrees with its teacher on at least "
        f"{_percent(lower)} of inputs, by {bounds.rows:,} test rows; the gate asks for {_percent(limit)}."
    )
    return Check("min_agreement", lower, limit, passed, reason)


def _min_metric(limit: float, gate: GateSpec, bounds: Bounds) -> Check:
    lower, words = bounds.metric_lower, metric_words(bounds.metric)
    if lower is None:
        reason = f"The report has no lower bound of the student's {words}; run its job again to have one."
        return Check("min_metric", None, limit, False, reason)
    if bounds.confidence < gate.confidence:
        return Check("min_metric", lower, limit, False, _too_unsure(gate, bounds))
    shown = _percent if bounds.metric == "accuracy" else _number
    reason = (
        f"At {_percent(bounds.confidence)} confidence the student's {words} is at least {shown(lower)}, by "
        f"{bounds.rows:,} test rows; the gate asks for {shown(limit)}."
    )
    return Check("min_metric", lower, limit, lower >= limit, reason)


def _max_latency(limit: float, bounds: Bounds) -> Check:
    p95 = bounds.p95_ms
    if p95 is None:
        reason = "The report has no latency of the student as it is served; run its job again to have one."
        return Check("max_latency_ms", None, limit, False, reason)
    reason = (
        f"At p95 one input takes the student, served as {bounds.precision}, {p95:.4g} ms on the worker's host; "
        f"the gate allows {limit:.4g} ms."
    )
    return Check("max_latency_ms", p95, limit, p95 <= limit, reason)


def _max_bytes(limit: int, bounds: Bounds) -> Check:
    size = bounds.bytes
    if size is None:
        reason = "The report has no size of the student as it is served; run its job again to have one."
        return Check("max_bytes", None, limit, False, reason)
    reason = f"The student, served as {bounds.precision}, has {size:,} bytes; the gate allows {limit:,}."
    return Check("max_bytes", size, limit, size <= limit, reason)


def _too_unsure(gate: GateSpec, bounds: Bounds) -> str:
    return (
        f"The report's bound holds at {_percent(bounds.confidence)} confidence, and the gate asks for "
        f"{_percent(gate.confidence)}."
    )


def metric_words(metric: str) -> str:
    """A report's name of a metric as it stands in a sentence."""
    return _METRICS.get(metric, metric)


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def _points(share: float) -> str:
    return f"{100 * share:.3g} points"


def _number(value: float) -> str:
    return f"{value:.3g}"
