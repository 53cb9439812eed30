"""`python -m benchmarks.traffic STUDENT CANDIDATE`: what a canary, a shadow and moves do to a deployment's callers.

Against a running service, at a steady rate whether or not answers come; latencies count from when a call was due.
Windows with and without a shadow alternate, so that whatever else the machine does falls on both.
"""

import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from scipy.stats import binom

from limbeck import Client
from limbeck.predictions import Predictions

NAME = "traffic-benchmark"
TEXTS = (
    "a gripping, quietly devastating film",
    "the plot makes no sense and neither does anyone in it",
    "it runs for two hours",
    "i laughed twice , both times at the wrong moment",
    "one of the best performances of the year , and she is on screen for ten minutes",
)
FRACTION = 0.1
CONFIDENCE = 0.999
_SETTLES_SECONDS = 1.0


@dataclass(frozen=True)
class Answered:
    seconds: float
    arm: str | None


class Load:
    """Calls at `rate` a second."""

    def __init__(self, client: Client, rate: float) -> None:
        self._client = client
        self._rate = rate
        self._threads = ThreadPoolExecutor(32)

    def run(self, seconds: float, between: Callable[[], None] | None = None) -> list[Answered]:
        """Every call's answer; `between` runs beside them. A call that fails raises."""
        beside = None if between is None else self._threads.submit(between)
        began = time.perf_counter()
        calls: list[Future[Answered]] = []
        for number in range(round(seconds * self._rate)):
            due = began + number / self._rate
            time.sleep(max(0.0, due - time.perf_counter()))
            calls.append(self._threads.submit(self._call, TEXTS[number % len(TEXTS)], due))
        found = [call.result() for call in calls]
        if beside is not None:
            beside.result()
        return found

    def _call(self, text: str, due: float) -> Answered:
        answers: Predictions = self._client.predict(NAME, text)
        return Answered(time.perf_counter() - due, answers.arm)


def p95(answers: Sequence[Answered]) -> float:
    """Milliseconds."""
    return float(np.quantile([1000 * one.seconds for one in answers], 0.95))


def canary(client: Client, load: Load, student: str, candidate: str, seconds: float) -> str:
    """The share that a canary of 10 % got, as a line of the table."""
    client.deployments.put(NAME, student, canary={"student": candidate, "fraction": FRACTION})
    time.sleep(_SETTLES_SECONDS)
    arms = Counter(one.arm for one in load.run(seconds))
    calls = arms.total()
    low, high = binom.interval(CONFIDENCE, calls, FRACTION)
    return f"| canary of 10 % | {arms['canary']} of {calls} calls | {low:.0f} to {high:.0f} (99.9 % binomial) |"


def shadow(client: Client, load: Load, student: str, candidate: str, rounds: int, seconds: float) -> str:
    """p95 with and without a shadow, and the median of the rounds' ratios, as a line of the table."""
    ratios, pooled = [], {False: list[Answered](), True: list[Answered]()}
    for turn in range(rounds):
        window: dict[bool, list[Answered]] = {}
        for on in (True, False) if turn % 2 else (False, True):
            client.deployments.put(NAME, student, shadow={"student": candidate} if on else None)
            time.sleep(_SETTLES_SECONDS)
            window[on] = load.run(seconds)
            pooled[on] += window[on]
        ratios.append(p95(window[True]) / p95(window[False]))
    shadowed, plain = p95(pooled[True]), p95(pooled[False])
    both = f"{shadowed:.1f} ms with, {plain:.1f} ms without: {shadowed / plain:.2f} times"
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}, median {statistics.median(ratios):.2f}, over {rounds} rounds"
    return f"| shadow of every call: the caller's p95 | {both} | {spread} |"


def moves(client: Client, load: Load, student: str, candidate: str) -> str:
    """20 promotions and rollbacks under load, as a line of the table. A call that fails raises."""
    client.deployments.put(NAME, student)

    def move() -> None:
        for _ in range(10):
            client.deployments.put(NAME, candidate)
            time.sleep(0.3)
            client.deployments.rollback(NAME)
            time.sleep(0.3)

    answers = load.run(10.0, move)
    return f"| 20 promotions and rollbacks | {len(answers)} calls | none lost; p95 {p95(answers):.1f} ms |"


def main(
    student: str,
    candidate: str,
    rate: Annotated[float, typer.Option(help="Calls a second.")] = 50.0,
    seconds: Annotated[float, typer.Option(help="Of one window.")] = 10.0,
    rounds: Annotated[int, typer.Option(min=1, help="Pairs of windows with and without a shadow.")] = 6,
    out: Annotated[Path, typer.Option()] = Path("docs/benchmarks/traffic.md"),
) -> None:
    """Measure, and write the table."""
    with Client() as client:
        load = Load(client, rate)
        began = os.getloadavg()[0]
        lines = [
            canary(client, load, student, candidate, 4 * seconds),
            shadow(client, load, student, candidate, rounds, seconds),
            moves(client, load, student, candidate),
        ]
        client.deployments.delete(NAME)
    out.write_text(
        "# A canary, a shadow and moves under load, measured\n\n"
        f"Written by `python -m benchmarks.traffic STUDENT CANDIDATE`; do not edit. {rate:g} calls a second, each "
        "one text, over HTTP; "
        f"{os.cpu_count()} cores, on which the callers run too; load average at the start {began:.1f}.\n\n"
        "| | | |\n|---|---|---|\n" + "\n".join(lines) + "\n",
        "utf-8",
    )
    typer.echo(out.read_text("utf-8"))


if __name__ == "__main__":
    typer.run(main)
