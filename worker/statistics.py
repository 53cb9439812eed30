"""Intervals and tests: what the test rows prove of a share, of a difference of two networks, of a probability.

Knows no network, task or file. N rows, K statistics of a row.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import rel_entr, softmax
from scipy.stats import binomtest

from models.gates import unseen_rate

CONFIDENCE = 0.95
_BINS = 15
# Draws of rows that are held at once, some 50 MB with their counts.
_HELD = 2_000_000

Floats = NDArray[np.float64]
Logits = NDArray[np.float32]
Metric = Callable[[Floats], Floats]
"""Makes (…) metrics of sums (…, K) of statistics of rows."""


@dataclass(frozen=True)
class Interval:
    """A difference of two metrics on the same rows: `low` to `high` is two-sided, `upper_one_sided` one-sided."""

    value: float
    low: float
    high: float
    upper_one_sided: float
    confidence: float

    def as_json(self) -> dict[str, float]:
        return asdict(self)


def paired(
    first: Floats,
    second: Floats,
    metric: Metric,
    *,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    resamples: int = 2000,
) -> Interval:
    """The metric of the first minus that of the second, with its paired percentile bootstrap (Efron 1979).

    `first` and `second` (N, K) have additive statistics of the same rows, and `metric` makes (…) metrics of sums
    (…, K): of 0/1 for right answers a mean, of counts an F1, of moments a correlation.

    The bootstrap only knows what happened in the sample: where no row differs its interval has no width, and 20 rows
    would prove as much as 20 000. Something that none of N rows showed may still have a rate of up to 1 − α^(1/N), so
    the ends are never nearer to `value` than that. On 5 000 rows this is 0.0006 and does not show. The floor is exact
    for a metric that is a mean over rows of numbers from 0 to 1; others are treated alike: a row that nobody has seen
    is taken to cost its share of the rows, 1/N of the metric.
    """
    rows = len(first)
    ones, twos = _bootstrapped([first, second], metric, seed=seed, resamples=resamples)
    differences = ones - twos
    value = float(metric(first.sum(axis=0)) - metric(second.sum(axis=0)))
    tail = (1 - confidence) / 2
    low = float(np.quantile(differences, tail, method="lower"))
    high = float(np.quantile(differences, 1 - tail, method="higher"))
    upper = float(np.quantile(differences, confidence, method="higher"))
    two_sided, one_sided = unseen_rate(rows, 1 - tail), unseen_rate(rows, confidence)
    # Two metrics from 0 to 1 differ by at most 1, two correlations by at most 2.
    most = 1.0 if abs(value) <= 1 and min(ones.min(), twos.min()) >= 0 else 2.0
    return Interval(
        value=value,
        low=max(-most, min(low, value - two_sided)),
        high=min(most, max(high, value + two_sided)),
        upper_one_sided=min(most, max(upper, value + one_sided)),
        confidence=confidence,
    )


def metric_bound(
    statistics: Floats, metric: Metric, *, confidence: float = CONFIDENCE, seed: int = 0, resamples: int = 2000
) -> float:
    """The one-sided lower bound of a metric: the lower end of its percentile bootstrap, with the floor of `paired`.

    `statistics` (N, K) and `metric` as there. For shares of right answers `agreement_bound` is exact; this is for what
    is no share, such as an F1 or a correlation. Never below 0, or −1 for a metric that may be negative.
    """
    (found,) = _bootstrapped([statistics], metric, seed=seed, resamples=resamples)
    value = float(metric(statistics.sum(axis=0)))
    low = float(np.quantile(found, 1 - confidence, method="lower"))
    least = 0.0 if min(value, found.min()) >= 0 else -1.0
    return max(least, min(low, value - unseen_rate(len(statistics), confidence)))


def _bootstrapped(sides: Sequence[Floats], metric: Metric, *, seed: int, resamples: int) -> list[Floats]:
    """The metric of each side (N, K) in the same draws of N rows with replacement, (resamples,) each."""
    rows = len(sides[0])
    generator = np.random.default_rng(seed)
    held = max(1, _HELD // rows)
    parts = []
    for start in range(0, resamples, held):
        counts = _resampled(rows, min(held, resamples - start), generator)
        parts.append([metric(counts @ side) for side in sides])
    return [np.concatenate(side) for side in zip(*parts, strict=True)]


def _resampled(rows: int, times: int, generator: np.random.Generator) -> Floats:
    """How often each row was drawn, (times, N), in draws of N rows with replacement."""
    drawn = generator.integers(0, rows, size=(times, rows)) + rows * np.arange(times)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=times * rows)
    return counts.reshape(times, rows).astype(np.float64)


def agreement_bound(agreeing: int, rows: int, *, confidence: float = CONFIDENCE) -> float:
    """The one-sided Clopper-Pearson lower bound of a rate of which `agreeing` of `rows` were seen."""
    return float(binomtest(agreeing, rows, alternative="greater").proportion_ci(confidence, method="exact").low)


def share_interval(right: int, rows: int, *, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The two-sided Clopper-Pearson interval of a rate of which `right` of `rows` were seen."""
    interval = binomtest(right, rows).proportion_ci(confidence, method="exact")
    return float(interval.low), float(interval.high)


def mcnemar(first_right: NDArray[np.bool_], second_right: NDArray[np.bool_]) -> float:
    """The p-value of McNemar's exact test: whether two networks err equally often, by the rows where one alone does."""
    first_alone = int((first_right & ~second_right).sum())
    second_alone = int((~first_right & second_right).sum())
    discordant = first_alone + second_alone
    return 1.0 if discordant == 0 else float(binomtest(first_alone, discordant).pvalue)


def calibration_error(logits: Logits, right: NDArray[np.bool_]) -> float:
    """Expected calibration error (Guo 2017, arXiv:1706.04599): 15 equal bins of confidence, weighted by their rows.

    `right` (N,): whether the highest of `logits` (N, C) is the true one.
    """
    confidence = softmax(logits.astype(np.float64), axis=1).max(axis=1)
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    gaps = np.bincount(bins, weights=right - confidence, minlength=_BINS)
    return float(np.abs(gaps).sum() / len(right))


def divergence(teacher: Logits, student: Logits) -> float | None:
    """Mean over rows (N, C) of KL(teacher ‖ student), in nats, at temperature 1.

    A row that is not a number in either, such as a word that was cut off, is left out; None where no row is left.
    """
    both = ~(np.isnan(teacher).any(axis=1) | np.isnan(student).any(axis=1))
    if not both.any():
        return None
    first, second = (softmax(logits[both].astype(np.float64), axis=1) for logits in (teacher, student))
    # A probability that underflowed to 0 would make the mean infinite for the sake of one row.
    return float(rel_entr(first, np.maximum(second, np.finfo(np.float64).tiny)).sum(axis=1).mean())
