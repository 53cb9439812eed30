"""What a student is worth: the arms side by side, what was lost and gained, and the report of it.

Everything is paired: every network answers the same labelled test rows. The test rows choose nothing: the precision
that is served was chosen on validation rows. This module asks no network and writes no files: it has what
`worker.measuring` measured, and what each kind of task makes of it. N test rows.

`report.json`:

    metric         the name of the main metric; every arm has its value as `score`, and each metric under its own name
    arms           teacher, distilled, control and untrained, each as `arm` says, or null
    slices         the arms on parts of the test rows, as `worker.slices` says
    cascade        student and teacher together at several thresholds, as `worker.cascade` says, or null
    others         further networks by name, in order, as `arm` says: "teacher 1" of an ensemble, "stage 1" of a chain,
                   "generation 1", "direct"
    constant       the scores of the best constant answer, or null
    comparisons    as `compare` says; `others` has the same names

`docs/report.md` has it field by field.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from models.gates import Bounds, decide, metric_words
from models.host import cores, processor
from models.inputs import Input, as_json
from models.runtime import Precision
from models.specs import GateSpec
from worker.measuring import Choice, Measured
from worker.statistics import (
    CONFIDENCE,
    Interval,
    agreement_bound,
    calibration_error,
    divergence,
    mcnemar,
    metric_bound,
    paired,
    share_interval,
)
from worker.tasks.base import Predictions, Split, TaskKind

_ARMS = ("teacher", "distilled", "control", "untrained")
_NO_DIFFERENCE = "no difference: they answer every test row alike"

Arm = Mapping[str, Any]


# --- one network ------------------------------------------------------------------------------------------------------


def arm(
    kind: TaskKind,
    measured: Mapping[Precision, Measured],
    split: Split,
    labels: Sequence[str],
    *,
    served: Precision = "fp32",
    parameters: tuple[int, int] | None = None,
    teacher: Measured | None = None,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> dict[str, Any]:
    """What the report says of one network: its scores at the `served` precision, its size and its speed at each.

    `parameters`: all, and those outside of embedding tables; None for answers that somebody recorded. `teacher`: with
    whom it should agree, as served; None for the teacher itself. `accuracy_interval`, `recall_interval` of a label and
    `calibration_error` are of texts with labels, agreement of answers that are no numbers, divergence of one label of
    several; else they are null. `score_lower_bound` is of every row as labelled.
    """
    answers = measured[served]
    rows = len(split)
    right = kind.right(answers.predictions, split)
    same = None if teacher is None else kind.same(teacher.predictions, answers.predictions)
    whole = kind.shape == "text" and right is not None
    scores = kind.scores(answers.predictions, split)
    return {
        **scores,
        "score": scores[kind.primary],
        "score_lower_bound": _score_bound(kind, answers.predictions, split, confidence, seed),
        "accuracy_interval": list(share_interval(int(right.sum()), rows)) if whole and right is not None else None,
        "per_class": [_with_interval(kind, row) for row in kind.per_class(answers.predictions, split, labels)],
        "calibration_error": (
            calibration_error(answers.answers.values, right) if _one_label(kind) and right is not None else None
        ),
        "agreement": None if same is None else float(same.mean()),
        "agreement_lower_bound": (
            None if same is None else agreement_bound(int(same.sum()), rows, confidence=confidence)
        ),
        "divergence": (
            divergence(teacher.answers.values, answers.answers.values)
            if teacher is not None and kind.nature == "one_of" and kind.shape != "span"
            else None
        ),
        "parameters": parameters and parameters[0],
        "parameters_without_embeddings": parameters and parameters[1],
        "bytes": answers.bytes,
        "served": served,
        "precisions": {name: _precision(kind, one, measured["fp32"], split) for name, one in measured.items()},
    }


def _score_bound(kind: TaskKind, predictions: Predictions, split: Split, confidence: float, seed: int) -> float:
    """The one-sided lower bound of the main metric: exact for a share of right rows, else by the bootstrap."""
    right = kind.right(predictions, split)
    if kind.primary == "accuracy" and right is not None:
        return agreement_bound(int(right.sum()), len(split), confidence=confidence)
    return metric_bound(kind.statistics(predictions, split), kind.metric, confidence=confidence, seed=seed)


def _with_interval(kind: TaskKind, row: Mapping[str, Any]) -> dict[str, Any]:
    """A label's line with the interval of its recall. Entities of one text are no independent draws, and have none."""
    support = row["support"]
    known = kind.shape == "text" and support > 0
    interval = list(share_interval(round(row["recall"] * support), support)) if known else None
    return {**row, "recall_interval": interval}


def _precision(kind: TaskKind, measured: Measured, fp32: Measured, split: Split) -> dict[str, Any]:
    latency = measured.latency
    same = kind.same(fp32.predictions, measured.predictions)
    score = kind.scores(measured.predictions, split)[kind.primary]
    return {
        "bytes": measured.bytes,
        "score": score,
        **({"accuracy": score} if kind.primary == "accuracy" else {}),
        "agreement_with_fp32": None if same is None else float(same.mean()),
        "p50_ms": latency and latency.p50_ms,
        "p95_ms": latency and latency.p95_ms,
        "p99_ms": latency and latency.p99_ms,
        "texts_per_second": latency and latency.texts_per_second,
    }


def _one_label(kind: TaskKind) -> bool:
    return kind.shape == "text" and kind.nature == "one_of"


# --- comparisons ------------------------------------------------------------------------------------------------------


def compare(
    kind: TaskKind,
    split: Split,
    *,
    teacher: Predictions,
    distilled: Predictions,
    control: Predictions | None,
    distilled_as_control: Predictions | None = None,
    others: Mapping[str, Predictions] | None = None,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> dict[str, Any]:
    """The paired comparisons of predictions in the main metric: what was lost, and what distillation gained.

    `drop` is teacher − distilled, `gain_over_control` distilled − control, and `others` has distilled − other for each
    name. `distilled` is as served, perhaps int8. `distilled_as_control` is at the precision of the control and of the
    others: what rounding costs must not be counted against distillation. None: they are the same. `same_as_control` is
    whether these two answer every row alike, in which case there is nothing to test.
    """
    alike = distilled if distilled_as_control is None else distilled_as_control

    def difference(first: Predictions, second: Predictions) -> Interval:
        one, two = kind.statistics(first, split), kind.statistics(second, split)
        return paired(one, two, kind.metric, confidence=confidence, seed=seed)

    def test(first: Predictions, second: Predictions) -> float | None:
        one, two = kind.right(first, split), kind.right(second, split)
        return None if one is None or two is None else mcnemar(one, two)

    return {
        "confidence": confidence,
        "drop": difference(teacher, distilled).as_json(),
        "gain_over_control": None if control is None else difference(alike, control).as_json(),
        "same_as_control": None if control is None else _alike(kind, alike, control),
        "mcnemar_p": {
            "distilled_against_teacher": test(distilled, teacher),
            "distilled_against_control": None if control is None else test(alike, control),
        },
        "others": {name: difference(alike, other).as_json() for name, other in (others or {}).items()},
    }


def _alike(kind: TaskKind, first: Predictions, second: Predictions) -> bool:
    same = kind.same(first, second)
    return bool(np.array_equal(first, second) if same is None else same.all())


# --- disagreements ----------------------------------------------------------------------------------------------------


def disagreements(
    kind: TaskKind, split: Split, labels: Sequence[str], *, teacher: Measured, student: Measured, most: int = 500
) -> list[dict[str, Any]]:
    """The test rows on which student and teacher differ, at most `most`.

    Of single labels those where both are surest come first, of numbers those that are farthest apart; others stand in
    the order of the rows.
    """
    same = kind.same(teacher.predictions, student.predictions)
    if same is None:
        apart = np.abs(np.asarray(teacher.predictions) - np.asarray(student.predictions))
        rows = np.flatnonzero(apart > 0)
        rows = rows[np.argsort(-apart[rows], kind="stable")]
    else:
        rows = np.flatnonzero(~same)
        if _one_label(kind):
            sureness = _probabilities(teacher)[rows].max(axis=1) * _probabilities(student)[rows].max(axis=1)
            rows = rows[np.argsort(-sureness, kind="stable")]
    shown = [_shown_by(kind, one, rows[:most], labels) for one in (teacher, student)]
    return [
        {**_row(kind, split, int(row), labels), "teacher": first, "student": second}
        for row, first, second in zip(rows[:most], *shown, strict=True)
    ]


def _row(kind: TaskKind, split: Split, row: int, labels: Sequence[str]) -> dict[str, Any]:
    item: Input = split.inputs[row]
    truth = kind.truth(split, row, labels)
    found = {"input": as_json(item), "truth": truth}
    # The names that such rows had when there was no other kind of task.
    return {"text": item, "label": truth["label"], **found} if _one_label(kind) and isinstance(item, str) else found


def _shown_by(kind: TaskKind, measured: Measured, rows: NDArray[np.int64], labels: Sequence[str]) -> list[Any]:
    shown = [kind.shown(measured.predictions, int(row), labels) for row in rows]
    if not _one_label(kind):
        return shown
    scores = _probabilities(measured)[rows].max(axis=1)
    return [
        {**one, "score": round(float(score), 4) if np.isfinite(score) else None}
        for one, score in zip(shown, scores, strict=True)
    ]


def _probabilities(measured: Measured) -> NDArray[np.float64]:
    probabilities: NDArray[np.float64] = softmax(measured.answers.values.astype(np.float64), axis=1)
    return probabilities


# --- the report -------------------------------------------------------------------------------------------------------


def report(
    kind: TaskKind,
    *,
    rows: Mapping[str, int],
    labels: Sequence[str],
    arms: Mapping[str, Arm | None],
    comparisons: Mapping[str, Any],
    precision: Choice,
    gate: GateSpec | None,
    control_reason: Literal["no_labels", "disabled"] | None,
    counters: Mapping[str, int],
    seconds: Mapping[str, float],
    warnings: Sequence[tuple[str, str]],
    device: str,
    others: Mapping[str, Arm] | None = None,
    constant: Mapping[str, float] | None = None,
    slices: Sequence[Mapping[str, Any]] = (),
    cascade: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """`report.json`, of arms (teacher, distilled, control, untrained, and `others`) by `arm` and of `compare`.

    `constant` has the scores of the best constant answer, as the kind of task gives them; `slices` and `cascade` are
    what the modules of these names make.
    """
    document: dict[str, Any] = {
        "format": 1,
        "verdict": verdict(kind, arms, comparisons, control_reason),
        "metric": kind.primary,
        "rows": dict(rows),
        "labels": list(labels),
        "arms": {name: arms.get(name) for name in _ARMS},
        "others": dict(others or {}),
        "constant": None if constant is None else {**constant, "score": constant[kind.primary]},
        "control_reason": control_reason,
        "comparisons": dict(comparisons),
        "slices": [dict(one) for one in slices],
        "cascade": None if cascade is None else dict(cascade),
        "precision": asdict(precision),
        "gate": {"passed": None, "checks": []},
        "counters": dict(counters),
        "seconds": dict(seconds),
        "warnings": [{"code": code, "message": message} for code, message in warnings],
        "host": {"cpu": processor(), "cores": cores(), "device": device},
    }
    if gate is not None:
        document["gate"] = decide(gate, Bounds.of_report(document)).as_json()
    return document


def verdict(
    kind: TaskKind, arms: Mapping[str, Arm | None], comparisons: Mapping[str, Any], control_reason: str | None
) -> str:
    """One sentence: what was lost against the teacher, what it bought, and whether distillation was the reason."""
    teacher, distilled = arms["teacher"], arms["distilled"]
    if teacher is None or distilled is None:
        raise ValueError("a report needs a teacher and a distilled student")
    drop = comparisons["drop"]
    confidence = f"{100 * drop['confidence']:g} %"
    low, high = _signed(kind, -drop["high"]), _signed(kind, -drop["low"])
    lost = f"{_signed(kind, -drop['value'])}{_unit(kind)} against its teacher's {_scored(kind, teacher)}"
    apart = ", not measurably different" if drop["low"] <= 0 <= drop["high"] else ""
    if kind.primary == "accuracy":
        reached = f"is right on {_scored(kind, distilled)} of the test rows"
    else:
        named = "entity F1" if kind.shape == "words" else metric_words(kind.primary)
        reached = f"reaches {_scored(kind, distilled)} {named} on the test rows"
    quality = f"{reached}{apart}, {lost} ({confidence} interval {low} to {high})"
    return f"The distilled student {quality}{_price(teacher, distilled)}; {_gained(kind, comparisons, control_reason)}."


def _price(teacher: Arm, distilled: Arm) -> str:
    """What is known of size and speed; answers that somebody recorded have neither."""
    words = []
    if teacher["parameters"] and distilled["parameters"]:
        share = 100 * distilled["parameters"] / teacher["parameters"]
        words.append(f"{share:.2g} % of its parameters" if share < 99.5 else f"{share:.0f} % of its parameters")
    slow, fast = (one["precisions"][one["served"]]["p50_ms"] for one in (teacher, distilled))
    if slow is not None and fast is not None:
        words.append(f"{slow / fast:.1f} times its speed on one thread")
    return f", with {' and '.join(words)}" if words else ""


def _gained(kind: TaskKind, comparisons: Mapping[str, Any], control_reason: str | None) -> str:
    gain = comparisons["gain_over_control"]
    if gain is None:
        why = {"no_labels": "there are no labels for a control", "disabled": "the job asked for no control"}
        return f"whether distillation helped is not known: {why.get(control_reason or '', 'there is no control')}"
    if comparisons["same_as_control"]:
        return f"between distillation and training on the labels alone there is {_NO_DIFFERENCE}"
    value, low, high = (_signed(kind, gain[name]) for name in ("value", "low", "high"))
    interval = f"{value}{_unit(kind)}, interval {low} to {high}"
    if gain["low"] > 0:
        return f"distillation helped over training on the labels alone ({interval})"
    if gain["high"] < 0:
        return f"distillation hurt: training on the labels alone gives a better student ({interval})"
    return f"distillation is not shown to help over training on the labels alone ({interval})"


def _scored(kind: TaskKind, one: Arm) -> str:
    """A share of right answers in percent, any other metric as it is."""
    return f"{100 * one['score']:.1f} %" if kind.primary == "accuracy" else _minus(f"{one['score']:.3f}")


def _signed(kind: TaskKind, difference: float) -> str:
    """A difference of shares in points, of another metric as it is; 0 has no sign."""
    text = f"{100 * difference:+.1f}" if kind.primary == "accuracy" else f"{difference:+.3f}"
    return text[1:] if float(text) == 0 else _minus(text)


def _unit(kind: TaskKind) -> str:
    return " points" if kind.primary == "accuracy" else ""


def _minus(number: str) -> str:
    return number.replace("-", "−")
