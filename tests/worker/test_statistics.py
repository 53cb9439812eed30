"""Statistics against known values and their definitions."""

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, bootstrap, pearsonr

from models.gates import unseen_rate
from worker import statistics
from worker.statistics import Floats, Metric, agreement_bound, metric_bound, paired


def outcomes(*, both: int, first: int = 0, second: int = 0, neither: int = 0) -> tuple[Floats, Floats]:
    """Two networks' right and wrong answers (N, 1), with the given counts of the four kinds of row."""
    one = np.array([1.0] * both + [1.0] * first + [0.0] * second + [0.0] * neither)
    two = np.array([1.0] * both + [0.0] * first + [1.0] * second + [0.0] * neither)
    return one[:, None], two[:, None]


def drop(counts: dict[str, int], **more: Any) -> statistics.Interval:
    """The interval of a difference of two accuracies."""
    rows = sum(counts.values())
    return paired(*outcomes(**counts), lambda sums: sums[..., 0] / rows, **more)


def correlation(sums: Floats) -> Floats:
    """Of sums of 1, x, y, x², y² and x·y."""
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    spread = np.sqrt(np.maximum((n * xx - x**2) * (n * yy - y**2), 0))
    return np.divide(n * xy - x * y, spread, out=np.zeros_like(spread), where=spread > 1e-9)


def moments(x: Floats, y: Floats) -> Floats:
    return np.stack([np.ones_like(x), x, y, x**2, y**2, x * y], axis=1)


def f1(sums: Floats) -> Floats:
    """Of sums of right, predicted and true entities."""
    return 2 * sums[..., 0] / np.maximum(sums[..., 1] + sums[..., 2], 1)


def entities(rows: int, seed: int) -> Floats:
    rng = np.random.default_rng(seed)
    right = rng.integers(0, 3, rows)
    return np.stack([right, right + rng.integers(0, 2, rows), right + rng.integers(0, 2, rows)], axis=1).astype(float)


def slowly(sides: list[Floats], metric: Metric, *, seed: int, resamples: int) -> list[list[float]]:
    """The metric of each side in every resample: row by row, as the bootstrap is defined."""
    rows = len(sides[0])
    draws = np.random.default_rng(seed).integers(0, rows, size=(resamples, rows))
    return [[float(metric(np.array([side[row] for row in draw]).sum(axis=0))) for draw in draws] for side in sides]


class TestPaired:
    @pytest.mark.parametrize("confidence", [0.9, 0.95])
    def test_it_is_its_definition(self, confidence: float) -> None:
        first, second = entities(60, seed=1), entities(60, seed=2)
        found = paired(first, second, f1, confidence=confidence, seed=5, resamples=200)
        ones, twos = slowly([first, second], f1, seed=5, resamples=200)
        differences = sorted(one - two for one, two in zip(ones, twos, strict=True))
        value = f1(first.sum(axis=0)) - f1(second.sum(axis=0))
        tail = (1 - confidence) / 2
        # The order statistics on the outer side of each quantile, and the floor of what 60 rows cannot have seen.
        low = min(differences[int(np.floor(tail * 199))], value - (1 - tail ** (1 / 60)))
        high = max(differences[int(np.ceil((1 - tail) * 199))], value + (1 - tail ** (1 / 60)))
        upper = max(differences[int(np.ceil(confidence * 199))], value + (1 - (1 - confidence) ** (1 / 60)))
        assert (found.value, found.low, found.high, found.upper_one_sided) == pytest.approx(
            (value, low, high, upper), abs=1e-9
        )

    def test_the_value_is_the_difference_of_the_metrics(self) -> None:
        interval = drop({"both": 800, "first": 60, "second": 20, "neither": 120})
        assert interval.value == pytest.approx(0.04)
        assert interval.low < 0.04 < interval.upper_one_sided < interval.high
        # The standard error of a paired difference, by hand.
        error = np.sqrt((80 - 40**2 / 1000) / 1000**2)
        assert interval.high == pytest.approx(0.04 + 1.96 * error, abs=0.002)
        assert interval.low == pytest.approx(0.04 - 1.96 * error, abs=0.002)
        assert interval.upper_one_sided == pytest.approx(0.04 + 1.645 * error, abs=0.002)

    def test_it_is_the_percentile_bootstrap_of_a_share(self) -> None:
        teacher, student = outcomes(both=300, first=40, second=15, neither=45)
        ours = paired(teacher, student, lambda sums: sums[..., 0] / 400, resamples=20_000)
        theirs = bootstrap(
            ((teacher - student)[:, 0],),
            np.mean,
            method="percentile",
            n_resamples=20_000,
            rng=np.random.default_rng(1),
        ).confidence_interval
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.003)

    def test_it_is_the_percentile_bootstrap_of_a_correlation(self) -> None:
        rng = np.random.default_rng(0)
        truth = rng.normal(size=300)
        one, two = truth + rng.normal(size=300) / 2, truth + rng.normal(size=300)
        ours = paired(moments(one, truth), moments(two, truth), correlation, resamples=4000)
        theirs = bootstrap(
            (one, two, truth),
            lambda first, second, true: np.corrcoef(first, true)[0, 1] - np.corrcoef(second, true)[0, 1],
            paired=True,
            vectorized=False,
            method="percentile",
            n_resamples=2000,
            rng=np.random.default_rng(1),
        ).confidence_interval
        assert ours.value == pytest.approx(pearsonr(one, truth).statistic - pearsonr(two, truth).statistic)
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)

    def test_a_metric_that_is_no_mean(self) -> None:
        # Found, predicted and true entities of each row: F1 of the first is 1, of the second 2·10/(10 + 20).
        first = np.array([[1.0, 1.0, 1.0]] * 20)
        second = np.array([[1.0, 1.0, 1.0]] * 10 + [[0.0, 0.0, 1.0]] * 10)
        interval = paired(first, second, lambda sums: 2 * sums[..., 0] / (sums[..., 1] + sums[..., 2]))
        assert interval.value == pytest.approx(1 / 3)
        assert 0 < interval.low < 1 / 3 < interval.high < 1

    def test_pairing_is_what_makes_it_narrow(self) -> None:
        close = drop({"both": 800, "first": 10, "second": 0, "neither": 190})
        scattered = drop({"both": 620, "first": 190, "second": 180, "neither": 10})
        assert close.value == pytest.approx(0.01)
        assert scattered.value == pytest.approx(0.01)
        assert close.high - close.low < 0.3 * (scattered.high - scattered.low)

    def test_the_same_seed_gives_the_same_interval(self) -> None:
        counts = {"both": 80, "first": 6, "second": 2, "neither": 12}
        assert drop(counts, seed=3) == drop(counts, seed=3)

    def test_swapping_the_two_turns_it_over(self) -> None:
        there = drop({"both": 800, "first": 60, "second": 20, "neither": 120})
        back = drop({"both": 800, "first": 20, "second": 60, "neither": 120})
        assert back.value == -there.value
        assert (back.low, back.high) == pytest.approx((-there.high, -there.low), abs=0.003)

    @pytest.mark.parametrize(("rows", "unseen"), [(20, 1 - 0.861), (59, 0.05), (299, 0.01)])
    def test_few_rows_that_all_agree_prove_little(self, rows: int, unseen: float) -> None:
        interval = drop({"both": rows})
        assert interval.value == 0
        assert interval.upper_one_sided == pytest.approx(unseen, abs=5e-4)
        assert interval.low < 0 < interval.high

    def test_the_floor_holds_for_any_metric(self) -> None:
        numbers = np.arange(20.0)
        one = moments(numbers, numbers)
        interval = paired(one, one, correlation)
        assert interval.value == 0
        assert interval.upper_one_sided == pytest.approx(unseen_rate(20, 0.95))

    def test_the_floor_does_not_show_on_many_rows(self) -> None:
        assert drop({"both": 5000}).upper_one_sided < 0.001

    def test_two_correlations_may_differ_by_more_than_one(self) -> None:
        numbers = np.arange(50.0)
        interval = paired(moments(numbers, numbers), moments(-numbers, numbers), correlation)
        assert interval.value == pytest.approx(2)
        assert interval.low < interval.value <= interval.high <= 2 + 1e-9

    def test_five_thousand_rows_take_less_than_a_second(self) -> None:
        rng = np.random.default_rng(0)
        truth, one, two = rng.normal(size=(3, 5000))
        began = time.process_time()
        paired(moments(one, truth), moments(two, truth), correlation)
        assert time.process_time() - began < 1  # of the processor's time: others use it too

    @given(st.tuples(*[st.integers(0, 200)] * 4).filter(lambda counts: sum(counts) > 0), st.floats(0.8, 0.99))
    @settings(deadline=None, max_examples=50)
    def test_its_ends_are_in_order(self, counts: tuple[int, int, int, int], confidence: float) -> None:
        names = ("both", "first", "second", "neither")
        interval = drop(dict(zip(names, counts, strict=True)), confidence=confidence, resamples=500)
        assert -1 <= interval.low <= interval.value <= interval.upper_one_sided <= interval.high <= 1

    @pytest.mark.long
    def test_the_one_sided_end_covers(self) -> None:
        """Over many draws of test rows the end is above the true drop about as often as it says."""
        rng = np.random.default_rng(0)
        shares = np.array([0.75, 0.08, 0.05, 0.12])
        covered = 0
        for draw in range(1000):
            both, first, second, neither = rng.multinomial(400, shares)
            interval = drop({"both": both, "first": first, "second": second, "neither": neither}, seed=draw)
            covered += interval.upper_one_sided >= 0.03
        assert 0.93 <= covered / 1000 <= 0.98


class TestMetricBound:
    def test_it_is_its_definition(self) -> None:
        statistics = entities(60, seed=1)
        (found,) = slowly([statistics], f1, seed=3, resamples=200)
        lower = min(sorted(found)[int(np.floor(0.05 * 199))], f1(statistics.sum(axis=0)) - (1 - 0.05 ** (1 / 60)))
        assert metric_bound(statistics, f1, seed=3, resamples=200) == pytest.approx(lower, abs=1e-9)

    def test_of_a_share_it_is_near_the_exact_one(self) -> None:
        right, _ = outcomes(both=870, neither=130)
        found = metric_bound(right, lambda sums: sums[..., 0] / 1000)
        assert found == pytest.approx(agreement_bound(870, 1000), abs=0.003)

    @pytest.mark.parametrize("rows", [20, 299])
    def test_few_rows_without_a_mistake_prove_little(self, rows: int) -> None:
        right, _ = outcomes(both=rows)
        assert metric_bound(right, lambda sums: sums[..., 0] / rows) == pytest.approx(0.05 ** (1 / rows), abs=1e-9)

    def test_it_stays_where_the_metric_can_be(self) -> None:
        wrong, _ = outcomes(both=0, neither=10)
        assert metric_bound(wrong, lambda sums: sums[..., 0] / 10) == 0.0
        numbers = np.arange(10.0)
        assert metric_bound(moments(-numbers, numbers), correlation) == -1.0


class TestAgreementBound:
    @pytest.mark.parametrize(("rows", "bound"), [(20, 0.861), (59, 0.950), (299, 0.990)])
    def test_all_agree(self, rows: int, bound: float) -> None:
        assert agreement_bound(rows, rows) == pytest.approx(bound, abs=5e-4)
        assert agreement_bound(rows, rows) == pytest.approx(0.05 ** (1 / rows))

    def test_none_agree(self) -> None:
        assert agreement_bound(0, 50) == 0.0

    @given(st.integers(1, 500), st.data())
    @settings(deadline=None, max_examples=50)
    def test_it_lies_below_what_was_seen_and_falls_with_confidence(self, rows: int, data: st.DataObject) -> None:
        agreeing = data.draw(st.integers(0, rows))
        loose, strict = (agreement_bound(agreeing, rows, confidence=confidence) for confidence in (0.9, 0.99))
        assert 0 <= strict <= loose <= agreeing / rows


class TestShareInterval:
    @pytest.mark.parametrize(
        ("right", "rows", "low", "high"),
        [(81, 263, 0.2527, 0.3676), (15, 148, 0.0578, 0.1617), (0, 20, 0.0, 0.1684), (1, 29, 0.0009, 0.1776)],
    )
    def test_published_values(self, right: int, rows: int, low: float, high: float) -> None:
        """Newcombe 1998 (Statistics in Medicine 17:857), table I, method 5."""
        assert statistics.share_interval(right, rows) == pytest.approx((low, high), abs=5e-5)

    @pytest.mark.parametrize(("right", "rows"), [(81, 263), (15, 148), (1, 29), (28, 29)])
    @pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
    def test_quantiles_of_the_beta_distribution(self, right: int, rows: int, confidence: float) -> None:
        tail = (1 - confidence) / 2
        expected = beta.ppf(tail, right, rows - right + 1), beta.ppf(1 - tail, right + 1, rows - right)
        assert statistics.share_interval(right, rows, confidence=confidence) == pytest.approx(expected, abs=1e-9)
        one_sided = beta.ppf(1 - confidence, right, rows - right + 1)
        assert agreement_bound(right, rows, confidence=confidence) == pytest.approx(one_sided, abs=1e-9)

    def test_known_value(self) -> None:
        # Clopper-Pearson of 0 of 10: the upper end is 1 − 0.025^(1/10).
        assert statistics.share_interval(0, 10) == pytest.approx((0.0, 1 - 0.025**0.1))


class TestMcnemar:
    def answers(self, **counts: int) -> tuple[Any, Any]:
        first, second = outcomes(**counts)
        return first[:, 0] == 1, second[:, 0] == 1

    def test_known_value(self) -> None:
        # 2 · P(X ≤ 1 | 6 fair coins) = 2 · 7/64
        assert statistics.mcnemar(*self.answers(both=10, first=5, second=1)) == pytest.approx(14 / 64)

    def test_a_published_example(self) -> None:
        # Fagerland 2013 (BMC Medical Research Methodology 13:91), airway hyper-responsiveness: 1 and 7 of 21 pairs.
        answers = self.answers(both=1, first=1, second=7, neither=12)
        assert statistics.mcnemar(*answers) == pytest.approx(2 * (1 + 8) / 2**8, abs=1e-9)
        assert statistics.mcnemar(*answers) == pytest.approx(0.070, abs=5e-4)

    def test_no_difference(self) -> None:
        assert statistics.mcnemar(*self.answers(both=10)) == 1.0
        assert statistics.mcnemar(*self.answers(both=10, first=3, second=3)) == 1.0


class TestCalibration:
    def test_sure_and_right(self) -> None:
        logits = np.array([[50, 0], [0, 50]], np.float32)
        assert statistics.calibration_error(logits, np.array([True, True])) == pytest.approx(0, abs=1e-6)
        assert statistics.calibration_error(logits, np.array([False, False])) == pytest.approx(1, abs=1e-6)

    def test_by_hand(self) -> None:
        # Three rows as sure as 0.82, two of them right, and two as sure as 0.62, both right.
        shares = np.array([[0.82, 0.18]] * 3 + [[0.62, 0.38]] * 2)
        right = np.array([True, True, False, True, True])
        expected = 3 / 5 * abs(2 / 3 - 0.82) + 2 / 5 * abs(1 - 0.62)
        assert statistics.calibration_error(np.log(shares).astype(np.float32), right) == pytest.approx(
            expected, abs=1e-6
        )

    def test_as_sure_as_right(self) -> None:
        logits = np.log(np.array([[0.75, 0.25]] * 4, np.float32))
        assert statistics.calibration_error(logits, np.array([True] * 3 + [False])) == pytest.approx(0, abs=1e-6)


class TestDivergence:
    def test_of_the_same_is_nothing(self) -> None:
        logits = np.array([[1, 2, 3], [400, 0, -400]], np.float32)
        assert statistics.divergence(logits, logits) == 0

    def test_by_hand(self) -> None:
        teacher, student = (np.log(np.array([shares], np.float32)) for shares in ([0.5, 0.5], [0.75, 0.25]))
        expected = 0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25)
        assert statistics.divergence(teacher, student) == pytest.approx(expected, rel=1e-5)

    def test_it_stays_finite(self) -> None:
        found = statistics.divergence(*(np.array([row], np.float32) for row in ([0, 2000], [2000, 0])))
        assert found is not None
        assert np.isfinite(found)

    def test_a_place_that_only_one_answers_is_left_out(self) -> None:
        whole = np.log(np.array([[0.5, 0.5], [0.9, 0.1]], np.float32))
        cut = whole.copy()
        cut[1] = np.nan
        assert statistics.divergence(whole, cut) == 0
        assert statistics.divergence(cut[1:], whole[1:]) is None
