"""What a network says of the test rows and what that costs, by the runtime that will serve it; which precision serves.

Knows no comparison and no report. N inputs, E encodings, P places, C numbers of a place.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import pearsonr

from models.host import cores
from models.inputs import Input
from models.runtime import Precision, Runtime
from worker.data import Answers, Encoded
from worker.tasks.base import Predictions, TaskKind

# METHODS: what int8 may lose against fp32 and still be served.
LEAST_AGREEMENT = 0.985
LEAST_CORRELATION = 0.999
LARGEST_SHIFT = 0.05
"""Of the mean of numbers, as a share of their standard deviation."""
_WARM_UP = 20
_LATENCY_INPUTS = 200
_CHUNK = 32


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
    precisions: Sequence[Precision] = ("fp32", "int8"),
    on_rows: Callable[[int], None] | None = None,
) -> dict[Precision, Measured]:
    """Open `folder` at each of `precisions`, answer `inputs`, and time some of them.

    `encoded` is the student's own cut of `inputs` in training: what the runtime answers is read by it, so that the two
    have to agree on windows and places. `on_rows` is told, from this thread, how many more inputs are answered; it may
    raise to stop.
    """
    runtimes: dict[Precision, Runtime] = {name: Runtime.open(folder, precision=name) for name in precisions}
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
    return measure_latencies({runtime.precision: runtime}, inputs)[runtime.precision]


def measure_latencies(runtimes: Mapping[Precision, Runtime], inputs: Sequence[Input]) -> dict[Precision, Latency]:
    """The latency of each of `runtimes` on the same 200 or so of `inputs`, after a warm-up.

    The runtimes take turns every few inputs: a machine's speed drifts, and what drifts must not decide between them.
    """
    at = np.linspace(0, len(inputs) - 1, min(_LATENCY_INPUTS, len(inputs))).astype(int)
    chosen = [inputs[index] for index in at]
    times: dict[Precision, list[float]] = {name: [] for name in runtimes}
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


@dataclass(frozen=True)
class Choice:
    """The precision that is served, and why, in a sentence."""

    served: Precision
    reason: str


def choose_precision(
    requested: Literal["auto", "fp32", "int8"], kind: TaskKind, measured: Mapping[Precision, Measured]
) -> Choice:
    """What the spec asks for; for `auto` int8 if it loses nothing that matters and its median is faster, else fp32."""
    if requested != "auto":
        return Choice(requested, f"The job asks for {requested}.")
    fp32, int8 = measured["fp32"], measured.get("int8")
    if int8 is None or int8.latency is None or fp32.latency is None:
        return Choice("fp32", "int8 was not measured.")
    faithful, words = _faithful(kind, fp32, int8)
    if not faithful:
        return Choice("fp32", f"{words}.")
    speed = f"its median latency here is {int8.latency.p50_ms:.2f} ms against {fp32.latency.p50_ms:.2f} ms"
    if int8.latency.p50_ms >= fp32.latency.p50_ms:
        return Choice("fp32", f"{words}, but {speed}: it is not faster on this processor.")
    return Choice("int8", f"{words}, and {speed}.")


def _faithful(kind: TaskKind, fp32: Measured, int8: Measured) -> tuple[bool, str]:
    """Whether int8 may stand for fp32, and that in words."""
    same = kind.same(fp32.predictions, int8.predictions)
    if same is None:
        return _close(*(np.asarray(one.predictions, np.float64) for one in (fp32, int8)))
    agreement = float(same.mean())
    words = f"int8 agrees with fp32 on {100 * agreement:.1f} % of the test rows"
    if agreement < LEAST_AGREEMENT:
        return False, f"{words}, less than the {100 * LEAST_AGREEMENT:.1f} % that are asked of it"
    return True, words


def _close(fp32: NDArray[np.float64], int8: NDArray[np.float64]) -> tuple[bool, str]:
    """Of numbers (N,): whether they rise and fall together, and their mean has not moved."""
    spread = float(fp32.std())
    if len(fp32) < 2 or not spread or not int8.std():
        return False, "int8 cannot be compared with fp32 on answers that are all the same number"
    correlation = float(pearsonr(fp32, int8).statistic)
    shift = float(abs((int8 - fp32).mean())) / spread
    words = (
        f"the answers of int8 and fp32 to the test rows correlate at {correlation:.5f}, and their means are apart by "
        f"{100 * shift:.1f} % of their standard deviation"
    )
    if not correlation >= LEAST_CORRELATION:  # also true for NaN
        return False, f"{words}; a correlation of {LEAST_CORRELATION} is asked of int8"
    if shift > LARGEST_SHIFT:
        return False, f"{words}; at most {100 * LARGEST_SHIFT:.0f} % are allowed"
    return True, words
