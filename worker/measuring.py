"""What a network says of some rows and what that costs, by the runtime that will serve it; which precision serves.

Knows no other network and no report. N inputs, E encodings, P places, C numbers of a place.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.stats import pearsonr

from models.gates import metric_words
from models.host import cores
from models.inputs import Input
from models.runtime import FILES, Precision, Runtime
from worker.data import Answers, Encoded
from worker.statistics import CONFIDENCE, paired
from worker.tasks.base import Predictions, Split, TaskKind

# METHODS: what int8 may lose against fp32 and still be served.
LEAST_AGREEMENT = 0.985
LEAST_CORRELATION = 0.999
LARGEST_SHIFT = 0.05
"""Of the mean of numbers, as a share of their standard deviation."""
_WARM_UP = 20
_LATENCY_INPUTS = 200
_CHUNK = 32

Name = TypeVar("Name", bound=str)


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one input on one thread, tokenization included, and inputs per second on every core."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    texts_per_second: float


@dataclass(frozen=True)
class Measured:
    """What one network answers to N inputs, and what that costs. None: it was not exported, so nothing was timed."""

    answers: Answers
    predictions: Predictions
    bytes: int | None = None
    """Size of the file that is loaded to serve."""
    latency: Latency | None = None

    @classmethod
    def of(
        cls,
        kind: TaskKind,
        answers: Answers,
        encoded: Encoded,
        inputs: Sequence[Input],
        *,
        bytes: int | None = None,  # noqa: A002 - the field's name
        latency: Latency | None = None,
    ) -> "Measured":
        """`answers` to `encoded`, the network's own cut of `inputs`."""
        return cls(answers, kind.predictions(answers, encoded, inputs), bytes, latency)


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(
    folder: Path,
    kind: TaskKind,
    encoded: Encoded,
    inputs: Sequence[Input],
    *,
    precisions: Sequence[Precision] | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> dict[Precision, Measured]:
    """Open `folder` at each of `precisions`, by default all that it has, and measure them as `measure_all` does."""
    if precisions is None:
        precisions = [name for name in get_args(Precision) if (folder / FILES[name]).exists()]
    runtimes = {name: Runtime.open(folder, precision=name) for name in precisions}
    return measure_all(runtimes, kind, encoded, inputs, on_rows=on_rows)


def measure_all(
    runtimes: Mapping[Name, Runtime],
    kind: TaskKind,
    encoded: Encoded,
    inputs: Sequence[Input],
    *,
    on_rows: Callable[[int], None] | None = None,
) -> dict[Name, Measured]:
    """Have each of `runtimes`, the networks of one student, answer `inputs`, and time some of them.

    `encoded` is the student's own cut of `inputs` in training: what the runtime answers is read by it, so that the two
    have to agree on windows and places. `on_rows` is told, from this thread, how many more inputs are answered; it may
    raise to stop.
    """
    answers = {
        name: answers_of(answer(runtime, inputs, on_rows=on_rows), encoded, kind.width or len(runtime.labels))
        for name, runtime in runtimes.items()
    }
    latencies = measure_latencies(runtimes, inputs)
    return {
        name: Measured.of(kind, answers[name], encoded, inputs, bytes=runtime.bytes, latency=latencies[name])
        for name, runtime in runtimes.items()
    }


def answer(
    runtime: Runtime,
    inputs: Sequence[Input],
    *,
    threads: int | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> list[list[NDArray[np.float32]]]:
    """The logits (P, C) of each input's windows, by several threads on the one session of `runtime`."""
    chunks = [inputs[start : start + _CHUNK] for start in range(0, len(inputs), _CHUNK)]
    found: list[list[NDArray[np.float32]]] = []
    with ThreadPoolExecutor(threads or cores()) as pool:
        futures = [pool.submit(runtime.answers, chunk) for chunk in chunks]
        try:
            for future in futures:
                part = future.result()
                found += part
                if on_rows is not None:
                    on_rows(len(part))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return found


def answers_of(parts: Sequence[Sequence[NDArray[np.float32]]], encoded: Encoded, width: int) -> Answers:
    """The answers to N inputs, window by window, as answers to the encodings E. `width` is C.

    Raises `ValueError` where the two do not have the same windows and places.
    """
    flat = [window for windows in parts for window in windows]
    rows = np.repeat(np.arange(len(parts)), [len(windows) for windows in parts])
    expected = np.arange(len(encoded)) if encoded.rows is None else encoded.rows
    places = [1] * len(encoded) if encoded.places is None else [len(one) for one in encoded.places]
    if not np.array_equal(rows, expected) or [len(window) for window in flat] != places:
        raise ValueError("the runtime cuts these inputs into other windows or places than training does")
    return Answers.of(flat, width)


def measure_latency(runtime: Runtime, inputs: Sequence[Input]) -> Latency:
    """The latency of `runtime` on about 200 of `inputs`."""
    return measure_latencies({"this": runtime}, inputs)["this"]


def measure_latencies(runtimes: Mapping[Name, Runtime], inputs: Sequence[Input]) -> dict[Name, Latency]:
    """The latency of each of `runtimes` on the same 200 or so of `inputs`, after a warm-up.

    The runtimes take turns every few inputs: a machine's speed drifts, and what drifts must not decide between them.
    """
    at = np.linspace(0, len(inputs) - 1, min(_LATENCY_INPUTS, len(inputs))).astype(int)
    chosen = [inputs[index] for index in at]
    times: dict[Name, list[float]] = {name: [] for name in runtimes}
    seconds = dict.fromkeys(runtimes, 0.0)
    for runtime in runtimes.values():
        runtime.predict(chosen[:_WARM_UP])
    for start in range(0, len(chosen), 10):
        for name, runtime in runtimes.items():
            for item in chosen[start : start + 10]:
                began = time.perf_counter()
                runtime.predict([item])
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

Candidate = Literal["fp32", "int8-dynamic", "int8-static"]
"""What may be served. Of the two int8 files one is kept, `student.int8.onnx`."""

_PRECISION: Mapping[Candidate, Precision] = {"fp32": "fp32", "int8-dynamic": "int8", "int8-static": "int8"}
_NAMES: Mapping[Candidate, str] = {"fp32": "fp32", "int8-dynamic": "int8", "int8-static": "calibrated int8"}
_CLEARLY_FASTER = 0.9
"""Of the dynamic int8's median latency: two runs of one file differ by some percent."""


@dataclass(frozen=True)
class Choice:
    """The precision that is served, and why, in a sentence."""

    served: Precision
    reason: str
    int8: Candidate | None = None
    """Which int8 file is kept, served or not; None: there is none."""
    candidates: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What was measured of each on the validation rows; `refused` says why it is not served, if it was not."""

    @property
    def candidate(self) -> Candidate:
        """The one that is served."""
        return "fp32" if self.served == "fp32" or self.int8 is None else self.int8


@dataclass(frozen=True)
class _Judged:
    """An int8 candidate against fp32: what is to be said of it, and whether it may be served."""

    words: str
    allowed: bool
    facts: Mapping[str, Any]
    p50_ms: float


def open_candidates(
    folder: Path, files: Mapping[Candidate, Path], probe: Sequence[Input]
) -> tuple[dict[Candidate, Runtime], dict[Candidate, str]]:
    """The networks of `folder` in those of `files` that are there, and of each int8 one that cannot be used the reason.

    A file that opens is asked for an answer to each of `probe`. Raises `ArtifactDamaged` if it is fp32 that fails.
    """
    opened: dict[Candidate, Runtime] = {}
    damaged: dict[Candidate, str] = {}
    for name, file in files.items():
        if not file.exists():
            continue
        try:
            runtime = Runtime.open(folder, precision=_PRECISION[name], network=file)
            answers = runtime.answers(probe)
        except Exception:  # ONNX Runtime's have no common root
            if name == "fp32":
                raise
            damaged[name] = f"the {_NAMES[name]} file of this network cannot be used"
        else:
            if name != "fp32" and any(window.size and np.isnan(window).all() for one in answers for window in one):
                damaged[name] = f"the {_NAMES[name]} file of this network answers with no numbers"
            else:
                opened[name] = runtime
    return opened, damaged


def choose_precision(
    requested: Literal["auto", "fp32", "int8"],
    kind: TaskKind,
    split: Split,
    measured: Mapping[Candidate, Measured],
    damaged: Mapping[Candidate, str] | None = None,
    *,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Choice:
    """What the spec asks for; for `auto` the fastest of those that lose nothing that matters, on the rows of `split`.

    `measured` are the answers to `split`, the validation rows: a choice by the test rows would flatter what they then
    show. int8 is served if it agrees with fp32 on 98.5 % of the rows (numbers: correlates at 0.999), its main metric is
    not significantly lower by the paired interval at `confidence`, and its median latency is lower. Of the two int8
    files the dynamic one, unless calibration is faster by more than a tenth.
    """
    damaged = damaged or {}
    fp32 = measured["fp32"]
    judged: dict[Candidate, _Judged] = {
        name: _judge(kind, split, name, fp32, one, confidence, seed) for name, one in measured.items() if name != "fp32"
    }
    best = _fastest(judged)
    kept = best or next(iter(judged), None)
    table: dict[str, Mapping[str, Any]] = {"fp32": _facts(kind, split, fp32)}
    table |= {name: one.facts for name, one in judged.items()}
    table |= {name: {"refused": f"{reason[0].upper()}{reason[1:]}."} for name, reason in damaged.items()}
    served, reason = _decided(requested, judged, best, kept, damaged)
    return Choice(served, reason, kept, table)


def _decided(
    requested: Literal["auto", "fp32", "int8"],
    judged: Mapping[Candidate, _Judged],
    best: Candidate | None,
    kept: Candidate | None,
    damaged: Mapping[Candidate, str],
) -> tuple[Precision, str]:
    if requested == "fp32":
        return "fp32", "The job asks for fp32."
    if kept is None:
        why = next(iter(damaged.values()), "int8 was not measured")
        return "fp32", f"fp32 is served, for {why}."
    words = judged[kept].words
    if requested == "int8":
        doubt = "" if best is not None else f" By itself it would not be served: {words}."
        return "int8", f"The job asks for int8.{doubt}"
    return ("fp32" if best is None else "int8"), f"{words}."


def _fastest(judged: Mapping[Candidate, _Judged]) -> Candidate | None:
    """The dynamic int8 if it is allowed and the calibrated one is not clearly faster."""
    allowed: list[Candidate] = [name for name, one in judged.items() if one.allowed]
    if len(allowed) < 2:
        return next(iter(allowed), None)
    clearly = judged["int8-static"].p50_ms < _CLEARLY_FASTER * judged["int8-dynamic"].p50_ms
    return "int8-static" if clearly else "int8-dynamic"


def _judge(
    kind: TaskKind, split: Split, name: Candidate, fp32: Measured, one: Measured, confidence: float, seed: int
) -> _Judged:
    facts = _facts(kind, split, one)
    faithful, words = _faithful(kind, _NAMES[name], fp32, one)
    loss = paired(
        kind.statistics(fp32.predictions, split),
        kind.statistics(one.predictions, split),
        kind.metric,
        confidence=confidence,
        seed=seed,
    )
    same = kind.same(fp32.predictions, one.predictions)
    facts |= {"agreement_with_fp32": None if same is None else float(same.mean()), "loss": loss.as_json()}
    p50, before = (np.inf if side.latency is None else side.latency.p50_ms for side in (one, fp32))
    speed = f"its median latency here is {p50:.2f} ms against {before:.2f} ms"
    if not faithful:
        allowed = False
    elif loss.low > 0:
        allowed = False
        interval = f"{100 * confidence:g} % interval {loss.low:.4f} to {loss.high:.4f}"
        words += f", but loses {loss.value:.4f} {metric_words(kind.primary)} ({interval})"
    elif not p50 < before:
        allowed = False
        words += f", but {speed}: it is not faster on this processor"
    else:
        allowed = True
        words += f", and {speed}"
    return _Judged(words, allowed, {**facts, "refused": None if allowed else f"{words}."}, float(p50))


def _facts(kind: TaskKind, split: Split, one: Measured) -> dict[str, Any]:
    return {
        "score": kind.scores(one.predictions, split)[kind.primary],
        "bytes": one.bytes,
        "p50_ms": one.latency and one.latency.p50_ms,
        "refused": None,
    }


def _faithful(kind: TaskKind, name: str, fp32: Measured, int8: Measured) -> tuple[bool, str]:
    """Whether int8 may stand for fp32, and that in words."""
    same = kind.same(fp32.predictions, int8.predictions)
    if same is None:
        return _close(name, *(np.asarray(one.predictions, np.float64) for one in (fp32, int8)))
    agreement = float(same.mean())
    words = f"{name} agrees with fp32 on {100 * agreement:.1f} % of the validation rows"
    if agreement < LEAST_AGREEMENT:
        return False, f"{words}, less than the {100 * LEAST_AGREEMENT:.1f} % that are asked of it"
    return True, words


def _close(name: str, fp32: NDArray[np.float64], int8: NDArray[np.float64]) -> tuple[bool, str]:
    """Of numbers (N,): whether they rise and fall together, and their mean has not moved."""
    spread = float(fp32.std())
    if len(fp32) < 2 or not spread or not int8.std():
        return False, f"{name} cannot be compared with fp32 on answers that are all the same number"
    correlation = float(pearsonr(fp32, int8).statistic)
    shift = float(abs((int8 - fp32).mean())) / spread
    words = (
        f"the answers of {name} and fp32 to the validation rows correlate at {correlation:.5f}, and their means are "
        f"apart by {100 * shift:.1f} % of their standard deviation"
    )
    if not correlation >= LEAST_CORRELATION:  # also true for NaN
        return False, f"{words}; a correlation of {LEAST_CORRELATION} is asked of it"
    if shift > LARGEST_SHIFT:
        return False, f"{words}; at most {100 * LARGEST_SHIFT:.0f} % are allowed"
    return True, words
