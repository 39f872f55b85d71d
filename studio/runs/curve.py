"""What the figures of a run say: where its losses began and ended, and how they moved. Pure arithmetic on its events."""

import math
from dataclasses import dataclass, field
from typing import Any

FEWEST, MOST = 3, 20
"""Losses that are averaged at either end of the run, since one batch says little: a twentieth at the steep start, an eighth at the end."""
TURNED = 0.01
"""How far the last validation loss lies above the lowest, relatively, to say that it has turned."""


@dataclass
class Curve:
    """The losses of a run by step, in order, without what a later attempt did again."""

    losses: dict[int, float] = field(default_factory=dict)
    looks: dict[int, float] = field(default_factory=dict)
    """Step -> validation loss; step 0 is the model as it was before."""
    latest: dict[str, float] = field(default_factory=dict)
    """The last value of every metric."""
    peak: float = 0.0
    """Bytes."""
    total: int = 0
    """Steps that were planned."""

    @classmethod
    def of(cls, events: list[dict[str, Any]]) -> "Curve":
        """From events as a page is sent them. What is no finite number is passed over: a plugin may report anything."""
        curve, attempt = cls(), None
        for event in events:
            if event["type"] != "metric" or not isinstance(step := event.get("step"), int):
                continue
            values = {name: float(value) for name, value in event.items() if is_figure(value)}
            if attempt not in (None, event["attempt"]):
                curve.cut(step if "loss" in values else step + 1)
            attempt = event["attempt"]
            curve.add(step, values)
        return curve

    def cut(self, step: int) -> None:
        """Forgets everything from `step` on: the next attempt does it again."""
        self.losses = {each: loss for each, loss in self.losses.items() if each < step}
        self.looks = {each: loss for each, loss in self.looks.items() if each < step}

    def add(self, step: int, values: dict[str, float]) -> None:
        if "loss" in values:
            self.losses[step] = values["loss"]
        if "validation_loss" in values:
            self.looks[step] = values["validation_loss"]
        self.latest |= values
        self.peak = max(self.peak, values.get("memory", 0.0))
        self.total = int(values.get("total", self.total))

    @property
    def steps(self) -> int:
        return max(self.losses, default=0)

    @property
    def start(self) -> float:
        """The mean of the first losses."""
        return mean(list(self.losses.values())[: edge(len(self.losses) // 20)])

    @property
    def end(self) -> float:
        """The mean of the last losses."""
        return mean(list(self.losses.values())[-edge(len(self.losses) // 8) :])

    @property
    def gain(self) -> float:
        """Share of the training loss that was taken off."""
        return (self.start - self.end) / self.start if self.losses and self.start > 0 else 0.0

    @property
    def best(self) -> tuple[int, float]:
        """(step, loss) of the lowest validation loss, the earliest of equals; (0, NaN) where nobody looked."""
        return min(self.looks.items(), key=lambda look: (look[1], look[0]), default=(0, math.nan))

    @property
    def first_look(self) -> float:
        """The validation loss before training, or as early as somebody looked."""
        return next(iter(self.looks.values()), math.nan)

    @property
    def last_look(self) -> float:
        return next(reversed(self.looks.values()), math.nan)

    @property
    def turned(self) -> bool:
        """Whether the validation loss has risen again after its best."""
        return len(self.looks) > 2 and self.last_look > self.best[1] * (1 + TURNED)

    @property
    def late_gain(self) -> float:
        """Share of the loss that the last third took off: of the validation loss, or of the training loss where nobody looked."""
        looked, losses = list(self.looks.values()), list(self.losses.values())
        if len(looked) > 3:
            before, after = looked[-1 - len(looked) // 3], looked[-1]
        elif third := len(losses) // 3:
            before, after = mean(losses[-2 * third : -third]), mean(losses[-third:])
        else:
            return 0.0
        return (before - after) / before if before > 0 else 0.0


def edge(wanted: int) -> int:
    return max(FEWEST, min(MOST, wanted))


def is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
