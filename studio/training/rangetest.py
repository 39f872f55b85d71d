"""The learning-rate range test (Smith 2017): which rates to try, and what their losses say. No torch; `studio.ml.surveying` trains."""

import math
from collections.abc import Sequence

from pydantic import Field

from studio.training.facts import Fact

BOUNDS = {"lora": (1e-5, 3e-2), "full": (1e-6, 3e-3)}
"""From far below the usual rate to far above it: 2e-4 for an adapter, 2e-5 for all weights."""
STEPS = 30
FALLEN = 0.02
"""Share of the loss that has to be gone before a rate is said to teach something."""
SMOOTH = 0.6
"""How much of the running mean stays at each step."""
BROKEN = 1.3
"""Times the lowest loss: above that the weights have run away, and the test ends."""


class RateRange(Fact):
    """Where a model begins to learn, and the rate from which it no longer gets better."""

    low: float = Field(gt=0, le=1)
    high: float = Field(gt=0, le=1)
    points: list[tuple[float, float]] = Field(max_length=200)
    """(learning rate, loss as a share of the same rows' loss before anything was learnt)"""


def rates(method: str, steps: int = STEPS) -> list[float]:
    """`low · (high / low)^(i / (n - 1))`: equal factors from step to step (Smith 2017, section 3.3, with an exponential rise)."""
    low, high = BOUNDS[method]
    return [low * (high / low) ** (step / (steps - 1)) for step in range(steps)]


def smoothed(losses: Sequence[float]) -> list[float]:
    """The running mean with its start corrected, as Adam corrects its own (Kingma and Ba 2015)."""
    found, mean = [], 0.0
    for number, loss in enumerate(losses, start=1):
        mean = SMOOTH * mean + (1 - SMOOTH) * loss
        found.append(mean / (1 - SMOOTH**number))
    return found


def is_over(losses: Sequence[float]) -> bool:
    """Whether the loss has run away, so that higher rates need not be tried."""
    return not math.isfinite(losses[-1]) or (len(losses) > 3 and losses[-1] > BROKEN * min(losses))


def found_range(tried: Sequence[float], losses: Sequence[float]) -> RateRange | None:
    """The rate at which the smoothed loss has clearly begun to fall, and the one at which it was lowest. None where it never fell.

    Smith 2017: "note the learning rate value when the accuracy starts to increase and when the accuracy slows, becomes ragged, or starts
    to fall. These two learning rates are good choices for bounds." The upper one is a bound, not a proposal.
    """
    points = [(rate, loss) for rate, loss in zip(tried, losses, strict=False) if math.isfinite(loss)]
    if len(points) < 4:
        return None
    curve = smoothed([loss for _, loss in points])
    lowest = min(range(len(curve)), key=curve.__getitem__)
    start = curve[0]
    if start - curve[lowest] < FALLEN * start:
        return None
    first = next(place for place, loss in enumerate(curve) if start - loss >= FALLEN * start)
    kept = [(float(f"{rate:.3g}"), round(loss, 4)) for rate, loss in points]
    return RateRange(low=kept[first][0], high=kept[lowest][0], points=kept)
