"""How far figures of a few seeds and rows can be trusted: bootstrap intervals and shares. Pure numpy, the same result each time.

The two things that chance decides are drawn anew, as Bouthillier et al. 2021 ("Accounting for Variance in Machine Learning Benchmarks",
arXiv:2103.03098) ask for: the seed that trained an arm, and the rows that it is judged by. Rows are drawn once for all arms (a paired
bootstrap: Koehn 2004, "Statistical Significance Tests for Machine Translation Evaluation"; Efron & Tibshirani 1993, "An Introduction
to the Bootstrap", chapter 8), so that a hard row is hard for each of them and does not blur what differs.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
RESAMPLES = 4000
SEED = 20_240_229
"""Of the draws: whoever computes again gets the same interval."""
SURE = 0.95
MOST_SEEDS = 10
"""Of a comparison; what would need more cannot be told by it."""
STUDENT = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.160,
    2.145,
    2.131,
    2.120,
    2.110,
    2.101,
    2.093,
)
"""The 97.5 % quantile of Student's t with 1, 2, ... degrees of freedom."""


@dataclass(frozen=True)
class Interval:
    value: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """What stands behind the ±."""
        return (self.high - self.low) / 2

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Draws:
    """A figure as it was measured, and as it comes out in each of the resamples; figures of one Bootstrap can be reckoned with."""

    value: float
    each: Floats
    """(resamples,)"""

    def __sub__(self, other: "Draws") -> "Draws":
        return Draws(self.value - other.value, self.each - other.each)

    def __truediv__(self, other: "Draws") -> "Draws":
        with np.errstate(divide="ignore", invalid="ignore"):
            return Draws(self.value / other.value if other.value else math.nan, self.each / other.each)

    def exp(self) -> "Draws":
        """A loss in nats per token becomes a perplexity (Jelinek et al. 1977). What is too large for a float is infinite."""
        with np.errstate(over="ignore"):
            return Draws(float(np.exp(np.float64(self.value))), np.exp(self.each))

    def interval(self, sure: float = SURE) -> Interval:
        """The percentile interval (Efron & Tibshirani 1993, chapter 13), which always holds the value itself."""
        low, high = np.nanquantile(self.each, [(1 - sure) / 2, (1 + sure) / 2])
        return Interval(self.value, min(float(low), self.value), max(float(high), self.value))


class Bootstrap:
    """Draws seeds and rows anew, for all figures that are asked of it in the same way.

    Rows are drawn with replacement. Seeds are not: three of them, drawn with replacement, never leave the range of the three, and the
    interval would hold the truth in far fewer than 95 of 100 cases. Their deviations from the arm's mean are multiplied by normal
    numbers instead (a multiplier bootstrap: Mammen 1993, Annals of Statistics 21), on the scale that makes the mean of normal seeds
    follow Student's t (Student 1908), whose wide tails are the price of few seeds. What seeds differ by only because each of them
    found other rows hard is in the draws of rows already, and is taken off (the two-way analysis of variance: Fisher 1925, chapter 7).
    One seed has no deviation: its interval tells of the rows alone.
    """

    def __init__(self, rows: int, *, resamples: int = RESAMPLES, seed: int = SEED):
        self.rows, self.resamples, self.seed = rows, resamples, seed
        chosen = np.random.default_rng(seed).integers(0, rows, size=(resamples, rows)) if rows else np.zeros((resamples, 0), np.int64)
        offsets = np.arange(resamples)[:, None] * rows
        self.counts: Floats = (
            np.bincount((chosen + offsets).ravel(), minlength=resamples * rows).reshape(resamples, rows).astype(np.float64)
        )
        """(resamples, rows): how often each row was drawn."""

    def seeds(self, name: Hashable, count: int) -> Floats:
        """(resamples, count) weights of the deviations of an arm's seeds from their mean; the same whenever the arm is asked for."""
        generator = np.random.default_rng([self.seed, *(ord(letter) for letter in str(name)), count])
        normal = generator.standard_normal((self.resamples, count))
        normal -= normal.mean(axis=1, keepdims=True)
        tails = np.sqrt((count - 1) / generator.chisquare(count - 1, self.resamples))[:, None]
        return normal * tails / math.sqrt(count * (count - 1))

    def mean(self, name: Hashable, values: Sequence[Floats] | Floats, weights: Floats | None = None) -> Draws:
        """The mean over an arm's seeds of a figure per unit of its rows.

        `values` (seeds, rows) are sums over a row, in nats for a loss; `weights` (rows,) are the units of a row, tokens or characters.
        Without weights each row is one unit, as for an exact match.
        """
        table = np.atleast_2d(np.asarray(values, dtype=np.float64))
        units = np.ones(self.rows) if weights is None else np.asarray(weights, dtype=np.float64)
        if table.shape[1] != self.rows or units.shape != (self.rows,):
            raise ValueError(f"{self.rows} rows were expected, and {table.shape[1]} came with {units.size} weights.")
        if not units.sum():
            return Draws(math.nan, np.full(self.resamples, math.nan))
        by_row = table.mean(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            each = (self.counts @ by_row) / (self.counts @ units)
        if len(table) > 1:
            deviations = seed_deviations(table, units)
            each = each + self.seeds(name, len(table)) @ deviations
        return Draws(float(by_row.sum() / units.sum()), each)


def seed_deviations(table: Floats, units: Floats) -> Floats:
    """(seeds,) how far each seed's mean lies from that of all, without what the choice of rows explains; in the table's unit per unit.

    `table` (seeds, rows) of at least two seeds, `units` (rows,). The variance of the seeds' means is that of the seeds and, divided by
    the rows, that of what is left of each row once its own mean and its seed's are taken off (Fisher 1925, chapter 7).
    """
    seeds, rows = table.shape
    means = table.sum(axis=1) / units.sum()
    deviations: Floats = means - means.mean()
    left = table - table.mean(axis=0) - np.outer(deviations, units)
    by_rows = (left**2).sum() / (seeds - 1) * rows / max(rows - 1, 1) / units.sum() ** 2
    found = deviations.var(ddof=1)
    return deviations * math.sqrt(max(0.0, 1 - by_rows / found)) if found else deviations


def over_seeds(name: Hashable, values: Sequence[float]) -> Draws:
    """A figure that each of an arm's seeds has one of, as what its training took: their mean, drawn as the seeds of a loss are.

    Its interval is Student's. Arms of different names are drawn apart, and all figures of one arm along with each other.
    """
    return Bootstrap(1).mean(name, np.asarray(values, dtype=np.float64)[:, None])


def kept_share(gain: Draws, reference: Draws) -> Interval | None:
    """Which share of the reference's gain an arm keeps; None where the reference's gain may be nothing, for then no share means anything.

    A ratio's interval comes from the ratio of each resample (Efron & Tibshirani 1993, chapter 25); it is only finite where the
    denominator is surely not 0 (Fieller 1954).
    """
    if not reference.interval().low > 0:
        return None
    return (gain / reference).interval()


def best_of(draws: Mapping[int, Draws]) -> dict[int, float]:
    """How likely it is of each figure that it is the lowest of all: the share of resamples in which it is."""
    if not draws:
        return {}
    table = np.stack([one.each for one in draws.values()])
    lowest = np.bincount(np.argmin(table, axis=0), minlength=len(table)) / table.shape[1]
    return dict(zip(draws, (float(share) for share in lowest), strict=True))


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t; the normal's for what the table does not hold, which differs by less than 0.1 there."""
    return STUDENT[freedom - 1] if 0 < freedom <= len(STUDENT) else 1.96 if freedom > 0 else math.inf


def seeds_needed(difference: float, ours: Sequence[float], theirs: Sequence[float], rows_error: float) -> int | None:
    """With how many seeds for each of two arms a difference of this size would be told from chance; None where rows are what lacks.

    `ours` and `theirs` are the mean losses of each seed; `rows_error` is the standard error that the choice of rows leaves, in the same
    unit. The interval of a mean of n is t(n - 1) · s / √n (Student 1908); variances add up.
    """
    if len(ours) < 2 or len(theirs) < 2 or not difference:
        return None
    spread = float(np.var(ours, ddof=1) + np.var(theirs, ddof=1))
    for count in range(max(len(ours), len(theirs)) + 1, MOST_SEEDS + 1):
        if math.hypot(student(count - 1) * math.sqrt(spread / count), 1.96 * rows_error) < abs(difference):
            return count
    return None
