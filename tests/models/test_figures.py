"""What figures of real calls prove, however often one looks, and what follows for a candidate."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import betaln
from scipy.stats import beta, binom

from models.figures import BOUNDS, Figures, Share, bucket, decide
from models.specs.deployments import Auto

REPETITIONS = 200


def histogram(seconds: NDArray[np.float64]) -> list[int]:
    counts: list[int] = np.bincount(np.searchsorted(BOUNDS, seconds), minlength=len(BOUNDS) + 1).tolist()
    return counts


def evenly(calls: int, milliseconds: float) -> list[int]:
    """So many calls from half to one and a half times as long."""
    return histogram(milliseconds / 1000 * (0.5 + (np.arange(calls) + 0.5) / max(calls, 1)))


class TestShare:
    @pytest.mark.parametrize(
        ("hits", "trials", "confidence"),
        [(0, 10, 0.95), (1, 10, 0.95), (10, 10, 0.95), (0, 1000, 0.95), (37, 1000, 0.99), (999, 1000, 0.9)],
    )
    def test_bounds_are_where_the_mixture_is_as_likely_as_ville_asks(
        self, hits: int, trials: int, confidence: float
    ) -> None:
        misses = trials - hits
        wanted = betaln(hits + 0.5, misses + 0.5) - betaln(0.5, 0.5) + math.log(1 - confidence)

        def excess(rate: float) -> float:
            kept = hits * math.log(rate) if hits else 0.0
            return float(kept + (misses * math.log1p(-rate) if misses else 0.0) - wanted)

        share = Share(hits, trials, confidence)
        seen = hits / trials
        lower = brentq(excess, 1e-12, seen or 1e-12, xtol=1e-12) if hits else 0.0
        upper = brentq(excess, seen, 1 - 1e-12, xtol=1e-12) if misses else 1.0
        assert share.lower == pytest.approx(lower, abs=1e-6)
        assert share.upper == pytest.approx(upper, abs=1e-6)

    def test_one_look_would_prove_more(self) -> None:
        """Clopper and Pearson's bounds, for one look, lie inside of these."""
        for hits, trials in ((0, 50), (3, 50), (50, 50), (40, 1000), (990, 1000)):
            share = Share(hits, trials)
            assert share.lower <= (beta.ppf(0.05, hits, trials - hits + 1) if hits else 0.0)
            assert share.upper >= (beta.ppf(0.95, hits + 1, trials - hits) if hits < trials else 1.0)

    def test_nothing_seen_proves_nothing(self) -> None:
        assert (Share(0, 0).value, Share(0, 0).lower, Share(0, 0).upper) == (None, 0.0, 1.0)

    @pytest.mark.parametrize("rate", [0.02, 0.5, 0.97])
    def test_the_rate_stays_within_at_the_confidence_over_many_looks(self, rate: float) -> None:
        generator = np.random.default_rng(0)
        looks = np.arange(20, 2001, 20)
        hits = np.cumsum(generator.random((REPETITIONS, 2000)) < rate, axis=1)[:, looks - 1]
        left = sum(
            any(not _within(Share(int(k), int(n)), rate) for k, n in zip(row, looks, strict=True)) for row in hits
        )
        at_one_look = beta.ppf(0.025, hits, looks - hits + 1), beta.ppf(0.975, hits + 1, looks - hits)
        left_by_clopper_pearson = int(((at_one_look[0] > rate) | (at_one_look[1] < rate)).any(axis=1).sum())
        print(f"rate {rate}: {left} of {REPETITIONS} left, {left_by_clopper_pearson} by Clopper-Pearson")
        assert left <= binom.ppf(0.999, REPETITIONS, 0.05)
        assert left_by_clopper_pearson > binom.ppf(0.999, REPETITIONS, 0.05), "then one could do without"


def _within(share: Share, rate: float) -> bool:
    return share.lower <= rate <= share.upper


class TestLatency:
    def test_bounds_go_from_a_tenth_of_a_millisecond_to_a_minute(self) -> None:
        assert BOUNDS[0] == 1e-4
        assert BOUNDS[-1] == 60.0
        ratios = [high / low for low, high in pairwise(BOUNDS)]
        assert min(ratios) > 1
        assert max(ratios) < 1.13

    @pytest.mark.parametrize(("seconds", "at"), [(0.0, 0), (1e-4, 0), (60.0, len(BOUNDS) - 1), (61.0, len(BOUNDS))])
    def test_bucket(self, seconds: float, at: int) -> None:
        assert bucket(seconds) == at
        assert histogram(np.array([seconds]))[at] == 1, "the histograms of these tests are made alike"

    @pytest.mark.parametrize("q", [0.5, 0.95, 0.99])
    def test_quantiles_are_near_those_of_the_calls(self, q: float) -> None:
        seconds = np.random.default_rng(0).lognormal(math.log(0.02), 0.6, 20_000)
        found = Figures("stable", "st_1", latency=histogram(seconds)).quantile(q)
        assert found == pytest.approx(np.quantile(seconds, q), rel=0.02)

    def test_quantiles_at_the_ends(self) -> None:
        assert Figures("stable", "st_1").quantile(0.5) is None
        assert Figures("stable", "st_1", latency=histogram(np.full(10, 1e-5))).quantile(0.5) == pytest.approx(5e-5)
        assert Figures("stable", "st_1", latency=histogram(np.full(10, 1e5))).quantile(0.5) == 60.0

    def test_bounds_hold_the_quantile_of_all_calls_over_many_looks(self) -> None:
        generator = np.random.default_rng(0)
        p95 = 0.02 * math.exp(0.5 * 1.6448536)
        left = 0
        for _ in range(REPETITIONS):
            seconds = generator.lognormal(math.log(0.02), 0.5, 1000)
            ends = [
                Figures("stable", "st_1", latency=histogram(seconds[:calls])).quantile_bounds(0.95)
                for calls in range(100, 1001, 100)
            ]
            left += any(not low <= p95 <= high for low, high in ends)
        assert left <= binom.ppf(0.999, REPETITIONS, 0.05)
        low, high = ends[-1]
        assert high / low < 1.6

    def test_few_calls_bound_nothing_above(self) -> None:
        assert Figures("stable", "st_1", latency=evenly(20, 10)).quantile_bounds(0.95)[1] == math.inf


def stable(calls: int = 9000, latency: float = 10.0) -> Figures:
    return Figures("stable", "st_1", calls=calls, inputs=calls, latency=evenly(calls, latency))


def canary(
    calls: int = 2000, *, errors: int = 0, compared: int = 2000, agreed: int = 1990, latency: float = 10.0
) -> Figures:
    return Figures("canary", "st_2", calls, calls, errors, compared, agreed, evenly(calls, latency))


AUTO = Auto(min_inputs=1000, min_agreement=0.95, max_error_rate=0.01, max_latency_ratio=1.5)


class TestDecide:
    @pytest.mark.parametrize(
        ("one", "verdict", "says"),
        [
            (canary(), "promote", "The canary has answered 2,000 inputs; 1,000 are asked for."),
            (canary(999), "wait", "The canary has answered 999 inputs; 1,000 are asked for."),
            (canary(0, compared=0, agreed=0), "wait", "0 calls of the canary arm were timed; 200 are needed"),
            (
                canary(errors=10),
                "wait",
                "At 95 % confidence at most 1.341 % fail: of 2,000 calls of the canary 10 failed; 1 % may.",
            ),
            (canary(errors=60), "abort", "fail: of 2,000 calls of the canary 60 failed; 1 % may."),
            (canary(30, errors=6), "abort", "of 30 calls of the canary 6 failed"),
            (canary(agreed=1900), "wait", "on 1,900 of 2,000 inputs it did; 95 % are asked for."),
            (canary(agreed=1800), "abort", "agrees with the student that serves on at most 92"),
            (canary(compared=0, agreed=0), "wait", "on 0 of 0 inputs it did"),
            (canary(latency=15), "wait", "p95 is at most 1."),
            (canary(latency=25), "abort", "p95 is at least 2"),
            (canary(150, compared=0, agreed=0, latency=25), "wait", "150 calls of the canary arm were timed"),
        ],
    )
    def test_a_canary(self, one: Figures, verdict: str, says: str) -> None:
        decision = decide(AUTO, [stable(), one])
        assert decision.verdict == verdict, decision.reason
        assert says in decision.reason

    def test_only_what_is_open_or_broken_is_told(self) -> None:
        assert decide(AUTO, [stable(), canary(errors=60, agreed=1900)]).reason.count("confidence") == 1
        assert decide(AUTO, [stable(), canary(errors=60, agreed=1800)]).reason.count("confidence") == 2

    def test_what_is_off_does_not_follow(self) -> None:
        good = decide(AUTO.model_copy(update={"promote": False}), [stable(), canary()])
        assert good.verdict == "wait"
        assert good.reason.endswith("Nothing follows: auto.promote is false.")
        bad = decide(AUTO.model_copy(update={"abort": False}), [stable(), canary(errors=60)])
        assert bad.verdict == "wait"
        assert bad.reason.endswith("Nothing follows: auto.abort is false.")

    def test_a_bound_that_is_not_asked_for_needs_nothing(self) -> None:
        auto = Auto(min_inputs=20, max_error_rate=None, max_latency_ratio=None)
        assert decide(auto, [stable(0), canary(20, errors=20, compared=0, agreed=0)]).verdict == "promote"

    def test_a_shadow_has_answered_what_was_compared(self) -> None:
        shadow = Figures("shadow", "st_2", calls=1500, compared=1500, agreed=1495, latency=evenly(1500, 10.0))
        assert decide(AUTO, [stable(), shadow]).verdict == "promote"
        fewer = replace(shadow, compared=900, agreed=899)
        assert "The shadow has compared 900 inputs; 1,000 are asked for." in decide(AUTO, [stable(), fewer]).reason

    def test_of_both_the_canary_decides(self) -> None:
        bad = Figures("shadow", "st_3", calls=2000, errors=2000)
        assert decide(AUTO, [stable(), canary(), bad]).verdict == "promote"

    def test_the_stable_arm_needs_calls_too(self) -> None:
        assert "100 calls of the stable arm were timed" in decide(AUTO, [stable(100), canary()]).reason

    def test_latencies_below_every_bucket_are_not_compared(self) -> None:
        assert "any number of times" in decide(AUTO, [stable(latency=0.01), canary(latency=0.01)]).reason


def ends(auto: Auto, errors: float = 0.0, agreement: float = 1.0, slower: float = 1.0) -> dict[str, int]:
    """What became of candidates with these rates: one look for each 250 calls, up to 3000."""
    generator = np.random.default_rng(1)
    verdicts = {"promote": 0, "abort": 0, "wait": 0}
    for _ in range(REPETITIONS):
        failed = np.cumsum(generator.random(3000) < errors)
        agreed = np.cumsum(generator.random(3000) < agreement)
        mine = generator.lognormal(math.log(0.01 * slower), 0.4, 3000)
        theirs = generator.lognormal(math.log(0.01), 0.4, 6000)
        for calls in range(250, 3001, 250):
            before = int(failed[calls - 1]), calls, int(agreed[calls - 1]), histogram(mine[:calls])
            one = Figures("canary", "st_2", calls, calls, *before)
            verdict = decide(auto, [Figures("stable", "st_1", latency=histogram(theirs[: 2 * calls])), one]).verdict
            if verdict != "wait":
                break
        verdicts[verdict] += 1
    return verdicts


class TestErrorsOfDecisions:
    """Over 200 candidates each, all looked at again and again: decisions that are wrong at most at 1 − confidence."""

    most = int(binom.ppf(0.999, REPETITIONS, 0.05))
    rates = Auto(min_inputs=1000, min_agreement=0.95, max_error_rate=0.02, max_latency_ratio=None)
    times = Auto(min_inputs=1000, max_error_rate=None, max_latency_ratio=1.5)

    @pytest.mark.parametrize(("errors", "agreement"), [(0.0201, 0.99), (0.001, 0.9499)])
    def test_one_that_breaks_a_bound_by_a_hair_is_rarely_promoted(self, errors: float, agreement: float) -> None:
        assert ends(self.rates, errors, agreement)["promote"] <= self.most

    @pytest.mark.parametrize(("errors", "agreement"), [(0.0199, 0.99), (0.001, 0.9501)])
    def test_one_that_holds_every_bound_by_a_hair_is_rarely_aborted(self, errors: float, agreement: float) -> None:
        assert ends(self.rates, errors, agreement)["abort"] <= self.most

    def test_a_good_one_is_promoted_and_a_bad_one_aborted(self) -> None:
        assert ends(self.rates, 0.001, 0.985)["promote"] > 0.95 * REPETITIONS
        assert ends(self.rates, 0.06, 0.985)["abort"] > 0.95 * REPETITIONS
        assert ends(self.rates, 0.001, 0.9)["abort"] > 0.95 * REPETITIONS

    @pytest.mark.parametrize(
        ("slower", "rare", "sure"),
        [(1.0, "abort", "promote"), (1.49, "abort", None), (1.51, "promote", None), (2.5, "promote", "abort")],
    )
    def test_latencies(self, slower: float, rare: str, sure: str | None) -> None:
        found = ends(self.times, slower=slower)
        assert found[rare] <= self.most
        assert sure is None or found[sure] > 0.95 * REPETITIONS
