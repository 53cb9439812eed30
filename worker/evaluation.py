"""What a student is worth: quality, fidelity and speed, measured on test rows, with intervals; and the report of it.

Everything is paired: teacher, distilled, control and untrained student answer the same rows. What is exported answers
by `models.runtime`, as it will in production. N test rows, C labels; predictions are (N,) numbers of labels. The test
rows choose nothing but the precision that is served. This module trains nothing and writes no files.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import rel_entr, softmax
from scipy.stats import binomtest
from sklearn.metrics import precision_recall_fscore_support

from models.gates import Bounds, decide, unseen_rate
from models.host import cores, processor
from models.runtime import Precision, Runtime
from models.specs import GateSpec
from worker.tasks import text_classification

CONFIDENCE = 0.95
# METHODS: what int8 may lose against fp32 and still be served.
LEAST_AGREEMENT = 0.985
_WARM_UP = 20
_LATENCY_TEXTS = 200
_BINS = 15

Labels = NDArray[np.int64]
Logits = NDArray[np.float32]


# --- statistics -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """A difference of two accuracies on the same rows: `low` to `high` is two-sided, `upper_one_sided` one-sided."""

    value: float
    low: float
    high: float
    upper_one_sided: float
    confidence: float

    def as_json(self) -> dict[str, float]:
        return asdict(self)


def paired_drop(
    teacher_correct: NDArray[np.bool_],
    student_correct: NDArray[np.bool_],
    *,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    resamples: int = 2000,
) -> Interval:
    """Accuracy of the first minus accuracy of the second, both (N,), with its paired bootstrap interval.

    A row's difference is −1, 0 or 1, so that a resample of the rows is one draw of a multinomial over three counts:
    the distribution of the ordinary percentile bootstrap (Efron 1979), N times faster.

    The bootstrap only knows what happened in the sample: where no row differs its interval has no width, and 20 rows
    would prove as much as 20 000. Something that none of N rows showed may still have a rate of up to 1 − α^(1/N), so
    the ends are never nearer to `value` than that. On 5 000 rows this is 0.0006 and does not show.
    """
    rows = len(teacher_correct)
    lost = int((teacher_correct & ~student_correct).sum())
    won = int((~teacher_correct & student_correct).sum())
    value = (lost - won) / rows
    shares = np.array([lost, won, rows - lost - won]) / rows
    draws = np.random.default_rng(seed).multinomial(rows, shares, size=resamples)
    differences = (draws[:, 0] - draws[:, 1]) / rows
    tail = (1 - confidence) / 2
    low = float(np.quantile(differences, tail, method="lower"))
    high = float(np.quantile(differences, 1 - tail, method="higher"))
    upper = float(np.quantile(differences, confidence, method="higher"))
    two_sided, one_sided = unseen_rate(rows, 1 - tail), unseen_rate(rows, confidence)
    return Interval(
        value=value,
        low=max(-1.0, min(low, value - two_sided)),
        high=min(1.0, max(high, value + two_sided)),
        upper_one_sided=min(1.0, max(upper, value + one_sided)),
        confidence=confidence,
    )


def agreement_bound(agreeing: int, rows: int, *, confidence: float = CONFIDENCE) -> float:
    """The one-sided Clopper-Pearson lower bound of a rate of which `agreeing` of `rows` were seen."""
    return float(binomtest(agreeing, rows, alternative="greater").proportion_ci(confidence, method="exact").low)


def share_interval(right: int, rows: int, *, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The two-sided Clopper-Pearson interval of a rate of which `right` of `rows` were seen."""
    interval = binomtest(right, rows).proportion_ci(confidence, method="exact")
    return float(interval.low), float(interval.high)


def mcnemar(first_correct: NDArray[np.bool_], second_correct: NDArray[np.bool_]) -> float:
    """The p-value of McNemar's exact test: whether two networks err equally often, by the rows where one alone does."""
    first_alone = int((first_correct & ~second_correct).sum())
    second_alone = int((~first_correct & second_correct).sum())
    discordant = first_alone + second_alone
    return 1.0 if discordant == 0 else float(binomtest(first_alone, discordant).pvalue)


def per_class(predictions: Labels, targets: Labels, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Precision, recall, F1 and support of each label; 0 where a quotient has no denominator."""
    precision, recall, f1, support = precision_recall_fscore_support(
        targets, predictions, labels=range(len(labels)), zero_division=0.0
    )
    return [
        {
            "label": label,
            "precision": float(precision[index]),
            "recall": float(recall[index]),
            "f1": float(f1[index]),
            "support": int(support[index]),
        }
        for index, label in enumerate(labels)
    ]


def calibration_error(logits: Logits, targets: Labels) -> float:
    """Expected calibration error (Guo 2017, arXiv:1706.04599): 15 equal bins of confidence, weighted by their rows."""
    probabilities = softmax(logits.astype(np.float64), axis=1)
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == targets
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    gaps = np.bincount(bins, weights=right - confidence, minlength=_BINS)
    return float(np.abs(gaps).sum() / len(targets))


def divergence(teacher: Logits, student: Logits) -> float:
    """Mean over the rows of KL(teacher ‖ student), in nats, at temperature 1."""
    first, second = (softmax(logits.astype(np.float64), axis=1) for logits in (teacher, student))
    # A probability that underflowed to 0 would make the mean infinite for the sake of one row.
    return float(rel_entr(first, np.maximum(second, np.finfo(np.float64).tiny)).sum(axis=1).mean())


# --- what is measured of one network ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one text on one thread, tokenization included, and texts per second on every core."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    texts_per_second: float


@dataclass(frozen=True)
class Measured:
    """The answers to the test rows, (N, C), and what they cost. None: it was not exported, so nothing was timed."""

    logits: Logits
    bytes: int | None = None
    """Size of the file that is loaded to serve."""
    latency: Latency | None = None

    @property
    def predictions(self) -> Labels:
        predictions: Labels = self.logits.argmax(axis=1)
        return predictions


def measure(
    folder: Path,
    texts: Sequence[str],
    *,
    precisions: Sequence[Precision] = ("fp32", "int8"),
    on_rows: Callable[[int], None] | None = None,
) -> dict[Precision, Measured]:
    """Open `folder` at each of `precisions`, answer `texts`, and time some of them.

    `on_rows` is told, from this thread, how many more answers there are; it may raise to stop.
    """
    runtimes: dict[Precision, Runtime] = {name: Runtime.open(folder, precision=name) for name in precisions}
    logits = {name: answer(runtime, texts, on_rows=on_rows) for name, runtime in runtimes.items()}
    latencies = measure_latencies(runtimes, texts)
    return {name: Measured(logits[name], runtime.bytes, latencies[name]) for name, runtime in runtimes.items()}


def answer(
    runtime: Runtime, texts: Sequence[str], *, threads: int | None = None, on_rows: Callable[[int], None] | None = None
) -> Logits:
    """The logits (N, C) of `texts`, by several threads on the one session of `runtime`."""
    chunks = [texts[start : start + 32] for start in range(0, len(texts), 32)]
    found = []
    with ThreadPoolExecutor(threads or cores()) as pool:
        futures = [pool.submit(lambda chunk: runtime.logits(runtime.tokenize(chunk)), chunk) for chunk in chunks]
        try:
            for future in futures:
                found.append(future.result())
                if on_rows is not None:
                    on_rows(len(found[-1]))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return np.concatenate(found) if found else np.empty((0, len(runtime.labels)), np.float32)


def measure_latency(runtime: Runtime, texts: Sequence[str]) -> Latency:
    """The latency of `runtime` on about 200 of `texts`."""
    return measure_latencies({runtime.precision: runtime}, texts)[runtime.precision]


def measure_latencies(runtimes: Mapping[Precision, Runtime], texts: Sequence[str]) -> dict[Precision, Latency]:
    """The latency of each of `runtimes` on the same 200 or so of `texts`, after a warm-up.

    The runtimes take turns every few texts: a machine's speed drifts, and what drifts must not decide between them.
    """
    chosen = [texts[index] for index in np.linspace(0, len(texts) - 1, min(_LATENCY_TEXTS, len(texts))).astype(int)]
    times: dict[Precision, list[float]] = {name: [] for name in runtimes}
    seconds = dict.fromkeys(runtimes, 0.0)
    for runtime in runtimes.values():
        runtime.predict(chosen[:_WARM_UP])
    for start in range(0, len(chosen), 10):
        for name, runtime in runtimes.items():
            for text in chosen[start : start + 10]:
                began = time.perf_counter()
                runtime.predict([text])
                times[name].append(1000 * (time.perf_counter() - began))
    for _ in range(2):
        for name, runtime in runtimes.items():
            began = time.perf_counter()
            answer(runtime, chosen)
            seconds[name] += time.perf_counter() - began
    return {
        name: Latency(
            p50_ms=float(np.quantile(times[name], 0.5)),
            p95_ms=float(np.quantile(times[name], 0.95)),
            p99_ms=float(np.quantile(times[name], 0.99)),
            texts_per_second=2 * len(chosen) / seconds[name],
        )
        for name in runtimes
    }


# --- the choice of a precision ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """The precision that is served, and why, in a sentence."""

    served: Precision
    reason: str


def choose_precision(requested: Literal["auto", "fp32", "int8"], measured: Mapping[Precision, Measured]) -> Choice:
    """What the spec asks for; for `auto` int8 if it loses nothing that matters and its median is faster, else fp32."""
    if requested != "auto":
        return Choice(requested, f"The job asks for {requested}.")
    fp32, int8 = measured["fp32"], measured.get("int8")
    if int8 is None or int8.latency is None or fp32.latency is None:
        return Choice("fp32", "int8 was not measured.")
    agreement = float((fp32.predictions == int8.predictions).mean())
    agrees = f"int8 agrees with fp32 on {100 * agreement:.1f} % of the test rows"
    if agreement < LEAST_AGREEMENT:
        return Choice("fp32", f"{agrees}, less than the {100 * LEAST_AGREEMENT:.1f} % that are asked of it.")
    speed = f"its median latency here is {int8.latency.p50_ms:.2f} ms against {fp32.latency.p50_ms:.2f} ms"
    if int8.latency.p50_ms >= fp32.latency.p50_ms:
        return Choice("fp32", f"{agrees}, but {speed}: it is not faster on this processor.")
    return Choice("int8", f"{agrees}, and {speed}.")


# --- the report -------------------------------------------------------------------------------------------------------


def arm(
    measured: Mapping[Precision, Measured],
    targets: Labels,
    labels: Sequence[str],
    *,
    served: Precision,
    parameters: tuple[int, int],
    teacher: Logits | None = None,
    confidence: float = CONFIDENCE,
) -> dict[str, Any]:
    """What the report says of one network: its scores at the `served` precision, its size and its speed at each.

    `parameters`: all, and those outside of embedding tables. `teacher` (N, C): as served; None for the teacher itself.
    """
    answers = measured[served]
    right = answers.predictions == targets
    rows = len(targets)
    agreeing = None if teacher is None else int((answers.predictions == teacher.argmax(axis=1)).sum())
    return {
        **text_classification.scores(answers.logits, targets),
        "accuracy_interval": list(share_interval(int(right.sum()), rows)),
        "per_class": per_class(answers.predictions, targets, labels),
        "calibration_error": calibration_error(answers.logits, targets),
        "agreement": None if agreeing is None else agreeing / rows,
        "agreement_lower_bound": None if agreeing is None else agreement_bound(agreeing, rows, confidence=confidence),
        "divergence": None if teacher is None else divergence(teacher, answers.logits),
        "parameters": parameters[0],
        "parameters_without_embeddings": parameters[1],
        "bytes": answers.bytes,
        "served": served,
        "precisions": {name: _precision(one, measured["fp32"], targets) for name, one in measured.items()},
    }


def _precision(measured: Measured, fp32: Measured, targets: Labels) -> dict[str, Any]:
    latency = measured.latency
    return {
        "bytes": measured.bytes,
        "accuracy": float((measured.predictions == targets).mean()),
        "agreement_with_fp32": float((measured.predictions == fp32.predictions).mean()),
        "p50_ms": latency and latency.p50_ms,
        "p95_ms": latency and latency.p95_ms,
        "p99_ms": latency and latency.p99_ms,
        "texts_per_second": latency and latency.texts_per_second,
    }


def compare(
    targets: Labels,
    *,
    teacher: Labels,
    distilled: Labels,
    control: Labels | None,
    distilled_as_control: Labels | None = None,
    confidence: float,
    seed: int = 0,
) -> dict[str, Any]:
    """The paired comparisons of predictions (N,): what was lost, and what distillation gained.

    `distilled` is as served, perhaps int8. `distilled_as_control` is at the control's precision: what rounding costs
    must not be counted against distillation. None: they are the same.
    """
    right = distilled == targets
    alike = right if distilled_as_control is None else distilled_as_control == targets
    drop = paired_drop(teacher == targets, right, confidence=confidence, seed=seed)
    gain = None if control is None else paired_drop(alike, control == targets, confidence=confidence, seed=seed)
    return {
        "confidence": confidence,
        "drop": drop.as_json(),
        "gain_over_control": gain and gain.as_json(),
        "mcnemar_p": {
            "distilled_against_teacher": mcnemar(right, teacher == targets),
            "distilled_against_control": None if control is None else mcnemar(alike, control == targets),
        },
    }


def disagreements(
    texts: Sequence[str], targets: Labels, labels: Sequence[str], *, teacher: Logits, student: Logits, most: int = 500
) -> list[dict[str, Any]]:
    """The test rows on which student and teacher differ, those where both are surest first, at most `most`."""
    first, second = softmax(teacher, axis=1), softmax(student, axis=1)
    rows = np.flatnonzero(first.argmax(axis=1) != second.argmax(axis=1))
    sureness = first[rows].max(axis=1) * second[rows].max(axis=1)
    return [
        {
            "text": texts[row],
            "label": labels[targets[row]],
            "teacher": _answer(first[row], labels),
            "student": _answer(second[row], labels),
        }
        for row in rows[np.argsort(-sureness, kind="stable")][:most]
    ]


def _answer(probabilities: Logits, labels: Sequence[str]) -> dict[str, Any]:
    best = int(probabilities.argmax())
    return {"label": labels[best], "score": round(float(probabilities[best]), 4)}


def report(
    *,
    rows: Mapping[str, int],
    labels: Sequence[str],
    arms: Mapping[str, Mapping[str, Any] | None],
    comparisons: Mapping[str, Any],
    precision: Choice,
    gate: GateSpec | None,
    control_reason: Literal["no_labels", "disabled"] | None,
    counters: Mapping[str, int],
    seconds: Mapping[str, float],
    warnings: Sequence[tuple[str, str]],
    device: str,
) -> dict[str, Any]:
    """`report.json`, of `arms` (teacher, distilled, control, untrained) by `arm` and `comparisons` by `compare`."""
    document: dict[str, Any] = {
        "format": 1,
        "verdict": verdict(arms, comparisons, control_reason),
        "metric": "accuracy",
        "rows": dict(rows),
        "labels": list(labels),
        "arms": {name: arms.get(name) for name in ("teacher", "distilled", "control", "untrained")},
        "control_reason": control_reason,
        "comparisons": dict(comparisons),
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
    arms: Mapping[str, Mapping[str, Any] | None], comparisons: Mapping[str, Any], control_reason: str | None
) -> str:
    """One sentence: what was lost against the teacher, what it bought, and whether distillation was the reason."""
    teacher, distilled = arms["teacher"], arms["distilled"]
    if teacher is None or distilled is None:
        raise ValueError("a report needs a teacher and a distilled student")
    drop = comparisons["drop"]
    confidence = f"{100 * drop['confidence']:g} %"
    interval = f"({confidence} interval {_signed(-drop['high'])} to {_signed(-drop['low'])})"
    against = f"{_signed(-drop['value'])} points against its teacher's {100 * teacher['accuracy']:.1f} % {interval}"
    apart = ", not measurably different" if drop["low"] <= 0 <= drop["high"] else ""
    quality = f"is right on {100 * distilled['accuracy']:.1f} % of the test rows{apart}, {against}"
    return f"The distilled student {quality}, {_price(teacher, distilled)}; {_gained(comparisons, control_reason)}."


def _price(teacher: Mapping[str, Any], distilled: Mapping[str, Any]) -> str:
    share = 100 * distilled["parameters"] / teacher["parameters"]
    words = f"with {share:.2g} % of its parameters" if share < 99.5 else f"with {share:.0f} % of its parameters"
    slow, fast = (arm["precisions"][arm["served"]]["p50_ms"] for arm in (teacher, distilled))
    if slow is None or fast is None:
        return words
    return f"{words} and {slow / fast:.1f} times its speed on one thread"


def _gained(comparisons: Mapping[str, Any], control_reason: str | None) -> str:
    gain = comparisons["gain_over_control"]
    if gain is None:
        why = {"no_labels": "there are no labels for a control", "disabled": "the job asked for no control"}
        return f"whether distillation helped is not known: {why.get(control_reason or '', 'there is no control')}"
    interval = f"{_signed(gain['value'])} points, interval {_signed(gain['low'])} to {_signed(gain['high'])}"
    if gain["low"] > 0:
        return f"distillation helped over training on the labels alone ({interval})"
    if gain["high"] < 0:
        return f"distillation hurt: training on the labels alone gives a better student ({interval})"
    return f"distillation is not shown to help over training on the labels alone ({interval})"


def _signed(share: float) -> str:
    """A difference of shares in points; 0 has no sign."""
    text = f"{100 * share:+.1f}"
    return "0.0" if text in {"+0.0", "-0.0"} else text.replace("-", "−")
