"""The charts of a verdict: quality against time, against cost, and against forgetting. Places in a picture, which others draw."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from studio.comparisons.figures import Figure, Verdict
from studio.comparisons.marks import Mark
from studio.comparisons.taken import Costs, Spread
from studio.workspaces.templatetags.studio import duration, number

WIDTH, HEIGHT = 440, 280
LEFT, RIGHT, TOP, BOTTOM = 56, 36, 16, 44
"""Around the plot, for the figures of its axes."""
STEPS = (1, 2, 2.5, 5, 10)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True)
class Spot:
    """One arm: a dot with whiskers to either end of its intervals."""

    letter: str
    name: str
    dot: int
    """The number of its `dot-N` class."""
    x: float
    y: float
    left: float
    right: float
    top: float
    bottom: float
    words: str
    is_faint: bool = False


@dataclass(frozen=True)
class Plot:
    title: str
    x_title: str
    y_title: str
    spots: list[Spot]
    xs: list[Tick]
    ys: list[Tick]
    y_better: str = "lower"
    width: int = WIDTH
    height: int = HEIGHT
    edge_left: int = LEFT
    edge_right: int = WIDTH - RIGHT
    edge_top: int = TOP
    edge_bottom: int = HEIGHT - BOTTOM

    @property
    def words(self) -> str:
        return f"{self.title}. " + "; ".join(spot.words for spot in self.spots)


Extent = tuple[float, float, float]
"""(low, value, high)"""


@dataclass(frozen=True)
class Quality:
    """What stands upwards: the gain, whose interval leaves out how hard the rows are, or the loss where arms began with other models."""

    title: str
    word: str
    better: str
    up: dict[int, Extent]


def plots(verdict: Verdict, marks: dict[int, Mark], costs: Costs | None = None) -> list[Plot]:
    """Those for which at least two arms have figures. What arms took on different kinds of machines is not drawn against each other."""
    gained = all(arm.gain for arm in verdict.measured) and len({arm.base for arm in verdict.measured}) == 1
    quality = "Gain over the untouched model" if gained else "Loss"
    up = {arm.number: extent(arm.gain if gained else arm.loss) for arm in verdict.measured}
    how = Quality(f"{quality}, nats per {verdict.unit}", "gain" if gained else "loss", "higher" if gained else "lower", up)
    seconds = {arm.number: spread(arm.took.seconds) for arm in verdict.measured if arm.took.seconds and verdict.one_machine}
    spent = {number: spread(cost) for number, cost in costs.by_arm.items()} if costs and verdict.one_machine else {}
    forgotten = {arm.number: extent(arm.forgetting) for arm in verdict.measured if arm.forgetting}
    found = [
        plot(verdict, marks, "Quality against time", "Time of one training", how, seconds, duration, unit=unit_of_time(seconds)),
        plot(
            verdict,
            marks,
            "Quality against cost",
            f"Cost of one training, {costs.currency if costs else ''}",
            how,
            spent,
            number,
        ),
        plot(verdict, marks, "Quality against forgetting", "Loss added on general rows, nats", how, forgotten, number),
    ]
    return [one for one in found if one is not None]


def plot(
    verdict: Verdict,
    marks: dict[int, Mark],
    title: str,
    x_title: str,
    quality: "Quality",
    across: dict[int, Extent],
    said: Callable[[float], str],
    *,
    unit: float = 1.0,
) -> Plot | None:
    arms = [arm for arm in verdict.measured if arm.number in across]
    if len(arms) < 2:
        return None
    up = {arm.number: quality.up[arm.number] for arm in arms}
    xs = Scale.of([value for arm in arms for value in across[arm.number]] + [0.0], LEFT, WIDTH - RIGHT, unit=unit)
    ys = Scale.of([value for each in up.values() for value in each], HEIGHT - BOTTOM, TOP)
    spots = []
    for arm in arms:
        (left, x, right), (low, y, high) = across[arm.number], up[arm.number]
        mark = marks.get(arm.number)
        spots.append(
            Spot(
                letter=letter(arm.number),
                name=arm.name,
                dot=mark.dot if mark else 0,
                x=xs.at(x),
                y=ys.at(y),
                left=xs.at(left),
                right=xs.at(right),
                top=ys.at(high),
                bottom=ys.at(low),
                words=f"{arm.name}: {said(x)}, {quality.word} {number(y)}, from {number(low)} to {number(high)}",
                is_faint=len(arm.seeds) < 2,
            )
        )
    return Plot(title, x_title, quality.title, spots, xs.ticks(said), ys.ticks(plain(ys.step)), quality.better)


def letter(arm: int) -> str:
    """A, B, ... Z, A2, ...: short enough to stand beside a dot."""
    round_, place = divmod(arm, len(LETTERS))
    return LETTERS[place] + (str(round_ + 1) if round_ else "")


def extent(figure: Figure | None) -> Extent:
    assert figure is not None  # asked of arms that have one
    return figure.low, figure.value, figure.high


def spread(told: Spread) -> Extent:
    """Without an interval, the figure alone."""
    return (told.mean, told.mean, told.mean) if told.low is None or told.high is None else (told.low, told.mean, told.high)


def unit_of_time(seconds: dict[int, Extent]) -> float:
    """Ticks stand at whole seconds, minutes or hours."""
    most = max((high for _, _, high in seconds.values()), default=0.0)
    return 3600.0 if most > 5400 else 60.0 if most > 90 else 1.0


def plain(step: float) -> Callable[[float], str]:
    digits = max(0, -math.floor(math.log10(step))) + (1 if f"{step / 10 ** math.floor(math.log10(step)):.1f}" == "2.5" else 0)
    return lambda value: f"{value:.{digits}f}"


@dataclass(frozen=True)
class Scale:
    low: float
    high: float
    step: float
    begin: float
    end: float

    @classmethod
    def of(cls, values: list[float], begin: float, end: float, *, unit: float = 1.0) -> "Scale":
        """From a round number below all values to one above them; `begin` and `end` are where those stand in the picture."""
        least, most = min(values), max(values)
        room = (most - least) or abs(most) * 0.2 or 1.0
        step = round_step(room / 4 / unit) * unit
        low, high = math.floor(least / step) * step, math.ceil(most / step) * step
        return cls(low, high if high > low else low + step, step, begin, end)

    def at(self, value: float) -> float:
        return round(self.begin + (value - self.low) / (self.high - self.low) * (self.end - self.begin), 1)

    def ticks(self, said: Callable[[float], str]) -> list[Tick]:
        count = round((self.high - self.low) / self.step)
        values = [self.low + place * self.step for place in range(count + 1)]
        return [Tick(self.at(value), "0" if abs(value) < self.step / 1e6 else said(value)) for value in values]


def round_step(wanted: float) -> float:
    power = 10.0 ** math.floor(math.log10(wanted))
    return next(step * power for step in STEPS if step * power >= wanted * 0.999)
