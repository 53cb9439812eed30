"""Figures of real calls: what one arm of a deployment has seen, what that proves, and what follows for a candidate.

Figures are looked at again and again while they grow, by the service every second and by people whenever they like. A
Clopper-Pearson bound holds at its confidence for one look: of many looks one soon errs. The bounds here hold at their
confidence for all looks at once (`Share`).

It knows no database: `models.traffic` puts figures down and reads them.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal, NamedTuple

from models.specs.deployments import Auto

Arm = Literal["stable", "canary", "shadow", "fallback"]
ARMS: tuple[Arm, ...] = ("stable", "canary", "shadow", "fallback")
CONFIDENCE = 0.95
"""Of the bounds that are shown where no `auto` names another."""
BOUNDS: tuple[float, ...] = (*(1e-4 * 10 ** (step / 20) for step in range(116)), 60.0)
"""Upper ends of the buckets of latency in seconds, twenty to a decade, from 0.1 ms to 60 s; one bucket lies above."""

_CALLS_FOR_LATENCY = 200


def bucket(seconds: float) -> int:
    """The bucket of a latency: an index below `len(BOUNDS) + 1`."""
    return bisect_left(BOUNDS, seconds)


@dataclass(frozen=True)
class Total:
    """What one API process has seen of one arm of a deployment's version."""

    deployment_id: str
    version: int
    arm: Arm
    student_id: str
    calls: int
    inputs: int
    errors: int
    compared: int
    agreed: int
    latency: list[int]
    """Calls by bucket."""


# --- what figures prove -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """So many of so many, with the rates that they leave possible.

    `lower` and `upper` are a confidence sequence: with probability `confidence` the true rate p lies between them at
    every number of trials at once, so that one may look as often as one likes and stop when one likes. A rate p is out
    when the likelihood of what was seen, averaged over all rates with Jeffreys' prior Beta(½, ½), is 1/α times that
    under p, which by Ville's inequality ever happens to the true one with a probability of at most α = 1 − confidence
    (Robbins 1970; Howard, Ramdas, McAuliffe and Sekhon 2021). Trials are taken to be independent.
    """

    hits: int
    trials: int
    confidence: float = CONFIDENCE
    lower: float = field(init=False)
    upper: float = field(init=False)

    def __post_init__(self) -> None:
        misses = self.trials - self.hits
        object.__setattr__(self, "lower", _least(self.hits, misses, self.confidence))
        object.__setattr__(self, "upper", 1 - _least(misses, self.hits, self.confidence))

    @property
    def value(self) -> float | None:
        return self.hits / self.trials if self.trials else None


def _least(hits: int, misses: int, confidence: float) -> float:
    """The smallest rate of hits that is not out."""
    if hits == 0:
        return 0.0
    mixture = math.lgamma(hits + 0.5) + math.lgamma(misses + 0.5) - math.lgamma(hits + misses + 1) - math.log(math.pi)
    wanted = mixture + math.log(1 - confidence)
    low, high = 0.0, hits / (hits + misses)
    # Up to the share that was seen the likelihood grows, and there it is above what is wanted.
    while high - low > 1e-9:
        middle = (low + high) / 2
        likelihood = hits * math.log(middle) + (misses * math.log1p(-middle) if misses else 0.0)
        low, high = (middle, high) if likelihood < wanted else (low, middle)
    return low


@dataclass(frozen=True)
class Figures:
    """One arm of a version, over all API processes."""

    arm: Arm
    student_id: str
    calls: int = 0
    inputs: int = 0
    errors: int = 0
    compared: int = 0
    agreed: int = 0
    latency: Sequence[int] = (0,) * (len(BOUNDS) + 1)

    @property
    def answered(self) -> int:
        """Inputs that it has answered. A shadow's callers never see an answer: its inputs are those compared."""
        return self.compared if self.arm == "shadow" else self.inputs

    def error_rate(self, confidence: float = CONFIDENCE) -> Share:
        return Share(self.errors, self.calls, confidence)

    def agreement(self, confidence: float = CONFIDENCE) -> Share:
        """With the stable student."""
        return Share(self.agreed, self.compared, confidence)

    @property
    def timed(self) -> int:
        """Calls whose latency is known."""
        return sum(self.latency)

    def quantile(self, q: float) -> float | None:
        """The latency in seconds that a share `q` of the calls stays below, interpolated; None without calls.

        It is exact to the width of a bucket, 12 %. Above the last bound it is that bound.
        """
        rank = q * self.timed
        before = 0
        for index, calls in enumerate(self.latency):
            if calls and before + calls >= rank:
                return _within(index, (rank - before) / calls)
            before += calls
        return None

    def quantile_bounds(self, q: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """Between which latencies the quantile of all calls to come lies, at every number of calls at once.

        It is above a latency if the share of the calls below that is shown to be less than `q`, and at most one if the
        share is shown to be `q` or more. Each end is the bound of a bucket; infinity while nothing is shown.
        """
        below = list(accumulate(self.latency))[:-1]

        def first(shown: Callable[[Share], bool]) -> int:
            return bisect_left(below, True, key=lambda hits: shown(Share(hits, self.timed, confidence)))

        lower, upper = first(lambda share: share.upper >= q), first(lambda share: share.lower >= q)
        return BOUNDS[lower - 1] if lower else 0.0, BOUNDS[upper] if upper < len(BOUNDS) else math.inf


def _within(index: int, share: float) -> float:
    """The latency that lies at `share` of a bucket, whose bounds are a constant ratio apart."""
    if index == 0:
        return BOUNDS[0] * share
    if index == len(BOUNDS):
        return BOUNDS[-1]
    low, high = BOUNDS[index - 1], BOUNDS[index]
    latency: float = low * (high / low) ** share
    return latency


# --- what follows -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decision:
    verdict: Literal["promote", "abort", "wait"]
    reason: str
    """A sentence for each bound that decided, with the numbers in it."""


class _Check(NamedTuple):
    state: Literal["holds", "broken", "open"]
    reason: str


def candidate(figures: Sequence[Figures]) -> Figures | None:
    """The arm that `auto` decides about."""
    by_arm = {one.arm: one for one in figures}
    return by_arm.get("canary") or by_arm.get("shadow")


def decide(auto: Auto, figures: Sequence[Figures]) -> Decision:
    """Hold the bounds of `auto` against what the arms have seen.

    A bound is broken, or holds, when that is shown at the confidence; until then it is open. One that is broken ends
    the candidate at once. It is promoted when it has answered enough inputs and every bound holds: one that breaks any
    of them is promoted with a probability of at most 1 − confidence, however long it runs.
    """
    one = candidate(figures)
    stable = next((arm for arm in figures if arm.arm == "stable"), None)
    if one is None or stable is None:
        return Decision("wait", "There is no candidate.")
    checks = list(_checks(auto, one, stable))
    broken = [check.reason for check in checks if check.state == "broken"]
    if broken:
        return Decision("abort", " ".join(broken)) if auto.abort else _wait(broken, "abort")
    unsure = [check.reason for check in checks if check.state == "open"]
    if unsure:
        return Decision("wait", " ".join(unsure))
    held = [check.reason for check in checks]
    return Decision("promote", " ".join(held)) if auto.promote else _wait(held, "promote")


def _wait(reasons: Sequence[str], switch: str) -> Decision:
    return Decision("wait", " ".join([*reasons, f"Nothing follows: auto.{switch} is false."]))


def _checks(auto: Auto, one: Figures, stable: Figures) -> Iterator[_Check]:
    enough = one.answered >= auto.min_inputs
    verb = "compared" if one.arm == "shadow" else "answered"
    yield _Check(
        "holds" if enough else "open",
        f"The {one.arm} has {verb} {one.answered:,} inputs; {auto.min_inputs:,} are asked for.",
    )
    if auto.max_error_rate is not None:
        yield _errors(auto.max_error_rate, auto.confidence, one)
    if auto.min_agreement is not None:
        yield _agreement(auto.min_agreement, auto.confidence, one)
    if auto.max_latency_ratio is not None:
        yield _latency(auto.max_latency_ratio, auto.confidence, one, stable)


def _errors(limit: float, confidence: float, one: Figures) -> _Check:
    share = one.error_rate(confidence)
    seen = f"of {one.calls:,} calls of the {one.arm} {one.errors:,} failed; {_percent(limit)} may."
    if share.lower > limit:
        return _Check("broken", f"At {_percent(confidence)} confidence at least {_percent(share.lower)} fail: {seen}")
    state: Literal["holds", "open"] = "holds" if share.upper <= limit else "open"
    return _Check(state, f"At {_percent(confidence)} confidence at most {_percent(share.upper)} fail: {seen}")


def _agreement(limit: float, confidence: float, one: Figures) -> _Check:
    share = one.agreement(confidence)
    seen = f"on {one.agreed:,} of {one.compared:,} inputs it did; {_percent(limit)} are asked for."
    sure = f"At {_percent(confidence)} confidence the {one.arm} agrees with the student that serves on at"
    if share.upper < limit:
        return _Check("broken", f"{sure} most {_percent(share.upper)} of inputs: {seen}")
    state: Literal["holds", "open"] = "holds" if share.lower >= limit else "open"
    return _Check(state, f"{sure} least {_percent(share.lower)} of inputs: {seen}")


def _latency(limit: float, confidence: float, one: Figures, stable: Figures) -> _Check:
    fewest = min(one.timed, stable.timed)
    if fewest < _CALLS_FOR_LATENCY:
        who = one.arm if one.timed < _CALLS_FOR_LATENCY else stable.arm
        needs = f"{_CALLS_FOR_LATENCY} are needed on both arms to compare latencies."
        return _Check("open", f"{fewest:,} calls of the {who} arm were timed; {needs}")
    # Each of the two may err in half of the cases that are allowed.
    each = (1 + confidence) / 2
    (low, high), (stable_low, stable_high) = one.quantile_bounds(0.95, each), stable.quantile_bounds(0.95, each)
    sure = f"At {_percent(confidence)} confidence the {one.arm}'s p95 is at"
    asked = f"that of the student that serves; {limit:.3g} times may be."
    if low > limit * stable_high:
        return _Check("broken", f"{sure} least {low / stable_high:.3g} times {asked}")
    if math.isinf(high) or stable_low == 0:
        return _Check("open", f"{sure} most any number of times {asked}")
    most = high / stable_low
    return _Check("holds" if most <= limit else "open", f"{sure} most {most:.3g} times {asked}")


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"
