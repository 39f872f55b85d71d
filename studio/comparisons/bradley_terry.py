"""How much better arms are found than each other, of who was preferred to whom: Bradley-Terry scores with 95 % intervals. Pure numpy.

Arm i is preferred to arm j with probability 1 / (1 + exp(s_j - s_i)) (Bradley and Terry 1952, Biometrika 39:324). A tie counts as half a
win for each, so that a share is "preferred, ties counted half"; Davidson (1970, JASA 65:317) gives ties a parameter of their own instead,
which adds a figure that nobody here asks for. Arms need not have met to be compared: what each did against the others tells.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Z = 1.959963984540054
"""The normal quantile of a two-sided 95 % interval."""
PRIOR = 0.5
"""Each arm also wins and loses this often against an arm of strength 0 that nobody sees, so that one that always won stays finite."""
STEPS = 100
CLOSE = 1e-10
PRECISE = 0.1
"""Half an interval, as a share: whoever knows a share to ten points knows enough."""
MOST = 2_000
"""Ratings beyond which nobody is told to go on."""


@dataclass(frozen=True)
class Share:
    """In how many of 100 cases something is preferred, from 0 to 1, with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half of the interval's width."""
        return (self.high - self.low) / 2

    @property
    def is_settled(self) -> bool:
        """Whether it is told from one half."""
        return self.low > 0.5 or self.high < 0.5


@dataclass(frozen=True)
class Scores:
    """Scores of k arms, whose mean is 0, and how sure they are."""

    strengths: Floats
    """(k,) natural logarithms of odds."""
    covariance: Floats
    """(k, k) the inverse of the observed information."""
    clustered: Floats
    """(k, k) the same where ratings of one prompt agree more than ratings of several do."""
    ratings: float

    def share(self, arm: int, other: int) -> Share:
        """How often `arm` is preferred to `other`, ties counted half."""
        along = np.zeros(len(self.strengths))
        along[arm], along[other] = 1, -1
        return self._share(float(sigmoid(self.strengths[arm] - self.strengths[other])), along)

    def share_of(self, arm: int) -> Share:
        """How often it is preferred to the others on average, ties counted half."""
        others = [other for other in range(len(self.strengths)) if other != arm]
        if not others:
            return Share(0.5, 0.5, 0.5)
        wins = sigmoid(self.strengths[arm] - self.strengths[others])
        value = float(wins.mean())
        slopes = wins * (1 - wins) / len(others) / (value * (1 - value))  # of the logit of their mean: the delta method
        along = np.zeros(len(self.strengths))
        along[others] = -slopes
        along[arm] = slopes.sum()
        return self._share(value, along)

    def _share(self, value: float, along: Floats) -> Share:
        """The interval is even on the scale of log-odds, so it stays between 0 and 1."""
        deviation = self._deviation(along)
        middle = np.log(value / (1 - value))
        return Share(value, float(sigmoid(middle - Z * deviation)), float(sigmoid(middle + Z * deviation)))

    def _deviation(self, along: Floats) -> float:
        """The larger of both standard errors: prompts make ratings alike, but few prompts can seem to agree by chance."""
        return math.sqrt(max(float(along @ each @ along) for each in (self.covariance, self.clustered)))

    @cached_property
    def more(self) -> int:
        """About how many more ratings, spread as these were, until the share of every two arms is steady."""
        k = len(self.strengths)
        shares = [self.share(arm, other) for arm in range(k) for other in range(arm)]
        return max((more_for(share, self.ratings) for share in shares), default=0)


def more_for(share: Share, ratings: float, *, precise: float = PRECISE) -> int:
    """How many more ratings, as far as `share` stays what it is, tell it from one half or make half its interval no wider than `precise`.

    An interval narrows with the root of the number of ratings.
    """
    if share.is_settled or share.half <= precise:
        return 0
    wanted = max(precise, abs(share.value - 0.5), 1e-3)
    needed = max(ratings, 1.0) * (share.half / wanted) ** 2
    return int(min(max(np.ceil(needed - ratings), 1), MOST))


def scores(wins: Floats, *, prior: float = PRIOR) -> Scores:
    """Maximum likelihood by Newton's method, with a small prior.

    `wins` is (p, k, k): of each prompt, how often arm i was preferred to arm j, where a tie is half a win of each. The likelihood is that
    of Hunter (2004, Annals of Statistics 32:384), whose MM steps find the same point more slowly; it is concave, and strictly so with the
    prior. Intervals come of the observed information, and of its sandwich with the prompts as clusters (Liang and Zeger 1986,
    Biometrika 73:13).
    """
    _, k, _ = wins.shape
    total = wins.sum(axis=0)
    met = total + total.T
    strengths = np.zeros(k)
    information = np.eye(k)
    for _ in range(STEPS):
        slope, information = slopes(total, met, strengths, prior)
        step = np.linalg.solve(information, slope)
        strengths = strengths + step * min(1.0, 2.0 / max(float(np.abs(step).max()), CLOSE))  # further than that, the curve is another
        if np.abs(step).max() < CLOSE:
            break
    covariance = np.linalg.inv(information).astype(np.float64)
    return Scores(strengths - strengths.mean(), covariance, covariance @ spread(wins, strengths) @ covariance, float(total.sum()))


def slopes(total: Floats, met: Floats, strengths: Floats, prior: float) -> tuple[Floats, Floats]:
    """The log-likelihood's gradient (k,) and its negative second derivative (k, k)."""
    chance = sigmoid(strengths[:, None] - strengths[None, :])
    alone = sigmoid(strengths)
    gradient = (total - met * chance).sum(axis=1) + prior * (1 - 2 * alone)
    weight = met * chance * (1 - chance)
    np.fill_diagonal(weight, 0)
    information = np.diag(weight.sum(axis=1) + 2 * prior * alone * (1 - alone)) - weight
    return gradient, information


def spread(wins: Floats, strengths: Floats) -> Floats:
    """The sum over prompts of the outer product of each one's gradient (k, k), as large as if it had not been fitted to them."""
    chance = sigmoid(strengths[:, None] - strengths[None, :])
    each = (wins - (wins + wins.transpose(0, 2, 1)) * chance).sum(axis=2)
    rated = int((wins.sum(axis=(1, 2)) > 0).sum())
    return each.T @ each * (rated / (rated - 1) if rated > 1 else 0.0)


def sigmoid(x: "Floats | float") -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.asarray(x, dtype=float))))
