"""The learning-rate range test (Smith 2017): which rates to try, and what their losses say. No torch; `studio.ml.surveying` trains."""

import math
from collections.abc import Sequence

from pydantic import Field

from studio.training.facts import Fact

BOUNDS = {"lora": (1e-5, 3e-2), "full": (1e-6, 3e-3)}
"""From far below the usual rate to far above it: 2e-4 for an adapter, 2e-5 for all weights."""
STEPS = 24
FALLEN = 0.03
"""Share of the loss that has to be gone before a rate is said to teach something."""
TURN = 4
"""Batches that are read in turn; the losses are looked at as the mean of a turn, for some rows are learnt sooner than others."""
BROKEN = 1.3
"""Times the lowest loss: above that the weights have run away, and the test ends."""


class RateRange(Fact):
    """Where a model begins to learn, and the rate from which it no longer gets better."""

    low: float = Field(gt=0, le=1)
    high: float = Field(gt=0, le=1)
    points: list[tuple[float, float]] = Field(max_length=200)
    """(learning rate, loss as a share of the same rows' loss before anything was learnt)"""
    cut: bool = False
    """The time was over before the loss had run away: higher rates were not tried."""

    def holds(self, rate: float) -> bool:
        """Whether nothing that was found speaks against a rate. One below `low` only needs more steps than the test had."""
        return self.cut or rate <= self.high


def rates(method: str, steps: int = STEPS) -> list[float]:
    """`low · (high / low)^(i / (n - 1))`: equal factors from step to step (Smith 2017, section 3.3, with an exponential rise)."""
    low, high = BOUNDS[method]
    return [low * (high / low) ** (step / (steps - 1)) for step in range(steps)]


def smoothed(losses: Sequence[float]) -> list[float]:
    """The mean of each loss and its neighbours, a turn in all; fewer at the ends."""
    windows = [losses[max(0, place - TURN // 2) : place + TURN // 2] for place in range(len(losses))]
    return [sum(window) / len(window) for window in windows]


def is_over(losses: Sequence[float]) -> bool:
    """Whether the loss has run away, so that higher rates need not be tried."""
    return not math.isfinite(losses[-1]) or (len(losses) > 3 and losses[-1] > BROKEN * min(losses))


def found_range(tried: Sequence[float], losses: Sequence[float], *, cut: bool = False) -> RateRange | None:
    """The rate at which the smoothed loss has clearly begun to fall, and the one at which it was lowest. None where it never fell.
    `losses` are shares of what the same rows lost before anything was learnt.

    Smith 2017: "note the learning rate value when the accuracy starts to increase and when the accuracy slows, becomes ragged, or starts
    to fall. These two learning rates are good choices for bounds." The upper one is a bound, not a proposal.
    """
    points = [(rate, loss) for rate, loss in zip(tried, losses, strict=False) if math.isfinite(loss)]
    if len(points) < 4:
        return None
    curve = smoothed([loss for _, loss in points])
    lowest = min(range(len(curve)), key=curve.__getitem__)
    first = next((place for place, loss in enumerate(curve) if loss <= 1 - FALLEN), None)
    if first is None:
        return None
    kept = [(float(f"{rate:.3g}"), round(loss, 4)) for rate, loss in points]
    return RateRange(low=kept[first][0], high=kept[max(first, lowest)][0], points=kept, cut=cut)
