"""What a person would see in a loss curve if they looked at it all day: it explodes, it stands still, it learns by heart.

Pure arithmetic on the losses, so that a run that is resumed sees the same as one that was not.
"""

import math
from dataclasses import dataclass, field

SMOOTHING = 0.9
"""Weight of the past in the smoothed loss."""
EXPLODED = 3.0
"""A smoothed loss so many times its lowest, and above the first losses, does not come back."""
HOPELESS = 25.0
"""Twice what guessing among 262,144 tokens costs, ln(262144) = 12.5 nats. What explodes within the FIRST steps is known by this alone."""
FIRST = 10
"""Steps before anything is judged."""
PLATEAU_SHARE = 0.3
"""Share of the run in which nothing was gained, to call it a plateau."""
PLATEAU_STEPS = 50
GAIN = 0.002
"""Relative gain of the smoothed loss below which nothing was gained."""
RISES = 3
"""Looks in a row above the best one, to say that it learns by heart."""
RISE = 0.01
"""How far above it, relatively."""


@dataclass
class Watch:
    """Fed with every training loss, asked after each."""

    total: int
    """Steps of the whole run."""
    steps: int = 0
    smoothed: float = math.nan
    start: float = math.nan
    """The smoothed loss at FIRST steps."""
    lowest: float = math.inf
    gained_at: int = 0
    """The last step at which the smoothed loss fell by more than GAIN."""
    said: set[str] = field(default_factory=set)

    def feed(self, loss: float) -> None:
        self.steps += 1
        self.smoothed = loss if math.isnan(self.smoothed) else SMOOTHING * self.smoothed + (1 - SMOOTHING) * loss
        if self.steps == FIRST:
            self.start = self.smoothed
        if self.smoothed < self.lowest * (1 - GAIN):
            self.lowest, self.gained_at = self.smoothed, self.steps

    @property
    def exploded(self) -> bool:
        risen = self.smoothed > EXPLODED * self.lowest
        return self.steps > FIRST and risen and (self.smoothed > 1.5 * self.start or self.smoothed > HOPELESS)

    def plateau(self) -> str:
        """A sentence, once, where the loss has stood still for long; empty otherwise."""
        still = self.steps - self.gained_at
        if still < max(PLATEAU_STEPS, PLATEAU_SHARE * self.total):
            return ""
        return self._once(
            "plateau",
            f"The loss has not fallen since step {self.gained_at}. More of the same rows will hardly help: "
            "stop here, or try more varied rows or a higher rank.",
        )

    def overfitting(self, looks: dict[int, float]) -> str:
        """A sentence, once, where the validation losses `looks` (step -> loss) have risen for some time; empty otherwise."""
        step, loss = best_look(looks)
        since = [each for at, each in sorted(looks.items()) if at > step]
        if len(since) < RISES or min(since[-RISES:]) <= loss * (1 + RISE):
            return ""
        if step == 0:  # nothing had been learnt by then, by heart least of all
            return self._once(
                "overfitting",
                "The validation loss has been higher ever since the first step: the steps move the weights too far. "
                "A lower learning rate would help.",
            )
        return self._once(
            "overfitting",
            f"The validation loss has risen since step {step}: the run has begun to learn its rows by heart. "
            "Fewer epochs, more rows, or keeping the best instead of the last weights would help.",
        )

    def _once(self, name: str, sentence: str) -> str:
        if name in self.said:
            return ""
        self.said.add(name)
        return sentence


def best_look(looks: dict[int, float]) -> tuple[int, float]:
    """(step, loss) of the lowest validation loss, the earliest of equals; (0, infinity) where there was none."""
    return min(looks.items(), key=lambda look: (look[1], look[0]), default=(0, math.inf))


def patience_is_over(looks: dict[int, float], *, patience: int) -> bool:
    """True after `patience` looks in a row without a new lowest loss; never where patience is 0."""
    step, _ = best_look(looks)
    return patience > 0 and sum(at > step for at in looks) >= patience
