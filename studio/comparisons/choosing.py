"""Which of two arms to take, and why, by what can be told of what they gain and of what they take."""

import math
from dataclasses import dataclass

from studio.comparisons.figure_words import listed, percent
from studio.comparisons.figures import ArmFigures, Figure
from studio.comparisons.statistics import over_seeds
from studio.comparisons.taken import Spread

CHEAPER, DEARER = 0.95, 1.05
"""Below and above which an arm is said to take less, or more, than another."""
LITTLE = 1.25
"""Up to which it is a little more."""
ANYTHING = 0.75
"""Half the width of a ratio's interval, as a share of the ratio, from which it says nothing."""
LOSES_LITTLE = 0.95
"""An arm that surely keeps this share is taken for what it saves."""
WIDE = 0.25
"""Half the width of a kept share from which it says nothing."""
PARTS = {
    2: "half",
    3: "a third",
    4: "a quarter",
    5: "a fifth",
    6: "a sixth",
    7: "a seventh",
    8: "an eighth",
    9: "a ninth",
    10: "a tenth",
    12: "a twelfth",
    15: "a fifteenth",
    20: "a twentieth",
    25: "a twenty-fifth",
    30: "a thirtieth",
    40: "a fortieth",
    50: "a fiftieth",
    60: "a sixtieth",
    70: "a seventieth",
    80: "an eightieth",
    90: "a ninetieth",
    100: "a hundredth",
    200: "a two-hundredth",
    500: "a five-hundredth",
    1000: "a thousandth",
}


@dataclass(frozen=True)
class Ratio:
    """What one arm takes beside another, over their seeds."""

    value: float
    low: float | None = None
    """Of the 95 % interval; None where one of them has a single seed."""
    high: float | None = None
    """Infinite where the other's figure may be nothing."""

    @property
    def half(self) -> float:
        """What stands behind the ±; 0 where nothing is known of chance."""
        return 0.0 if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def is_told(self) -> bool:
        """Whether it says something: seeds may differ so much that it might be anything."""
        return self.half < self.value * ANYTHING

    @property
    def is_less(self) -> bool:
        """Clearly less, and not by chance as far as seeds can tell. What is not told in a sentence is no reason in another."""
        return self.is_told and self.value < CHEAPER and (self.high is None or self.high < 1)

    @property
    def is_more(self) -> bool:
        return self.is_told and self.value > DEARER and (self.low is None or self.low > 1)


def ratios(arm: ArmFigures, other: ArmFigures) -> dict[str, Ratio]:
    """What it takes beside the other: time and memory where both ran on the same kind of machine, and storage."""
    pairs = {"storage": (arm.size, other.size)}
    if arm.took.compares_with(other.took):
        pairs = {"time": (arm.took.seconds, other.took.seconds), "memory": (arm.took.memory, other.took.memory), **pairs}
    found = {what: ratio_of((arm.number, ours), (other.number, theirs)) for what, (ours, theirs) in pairs.items()}
    return {what: ratio for what, ratio in found.items() if ratio is not None}


def ratio_of(ours: tuple[int, Spread | None], theirs: tuple[int, Spread | None]) -> Ratio | None:
    """Each is an arm's number with its figure. The interval comes from the ratio of each resample, as that of a kept share does."""
    (arm, above), (other, below) = ours, theirs
    if not above or not below or not above.mean > 0 or not below.mean > 0:
        return None
    if len(above.each) < 2 or len(below.each) < 2:
        return Ratio(above.mean / below.mean)
    reference = over_seeds(other, below.each)
    if not reference.interval().low > 0:
        return Ratio(above.mean / below.mean, 0.0, math.inf)
    found = (over_seeds(arm, above.each) / reference).interval()
    return Ratio(found.value, max(0.0, found.low), found.high)


def cost_of(arm: ArmFigures, other: ArmFigures) -> float:
    """Time, memory and storage in one figure, the geometric mean of those that are known; 1 where none is."""
    told = [ratio.value for ratio in ratios(arm, other).values()]
    return math.exp(sum(map(math.log, told)) / len(told)) if told else 1.0


def is_told(arm: ArmFigures) -> bool:
    """Whether what it keeps of the reference's gain says something."""
    if arm.gain and arm.gain.is_below:
        return True
    return arm.kept is not None and (arm.kept.half < WIDE or arm.kept.low > 1)


def choice(first: ArmFigures, reference: ArmFigures) -> tuple[ArmFigures | None, str]:
    """(the arm to take, or None where nothing speaks for either; the advice), of one whose share of the reference's gain is told."""
    beside = ratios(first, reference)
    saves, more = savings(beside), surplus(beside)
    though = f", though {listed(more)}" if more else ""
    if first.kept is None or (first.kept.high < 1 and first.kept.low < LOSES_LITTLE):
        unless = f" Where that does not matter, {listed(saves)}{though}." if saves and gained(first) else ""
        return reference, f"Take {reference.name}{why_not(first)}{unless}"
    if first.kept.low > 1:
        return first, f"Take {first.name}: {listed(['it gains more', *saves])}{though}."
    if saves:
        return first, f"Take {first.name}: {listed([loses(first.kept), *saves])}{though}."
    if more:
        return reference, f"Take {reference.name}: {first.name} gains no more that can be told, and {listed(more)}."
    if beside:
        alike = all(CHEAPER <= ratio.value <= DEARER for ratio in beside.values())
        much = "they take about as much" if alike else "no difference in what they take can be told"
        return None, f"Either will do: neither loses anything that can be told, and {much}."
    return None, "Neither loses anything that can be told, and what they take is not known."


def loses(kept: Figure) -> str:
    if kept.high < 1:
        return f"it loses only {percent(1 - kept.value)} of the gain"
    at_most = f", at most {percent(1 - kept.low)} of the gain" if kept.low < LOSES_LITTLE else ""
    return f"it loses nothing that can be told{at_most}"


def gained(arm: ArmFigures) -> bool:
    return not (arm.gain and arm.gain.is_below) and arm.kept is not None and arm.kept.low > 0


def why_not(first: ArmFigures) -> str:
    """Why the reference is taken instead."""
    if first.gain and first.gain.is_below:
        return f": {first.name} made the model worse."
    if first.kept is None or not gained(first):
        return f": {first.name} gained nothing that can be told."
    lost = 1 - first.kept.value
    return (
        f"{' where the last per cent matters' if lost <= 0.1 else ''}: {first.name} surely loses a part of its gain, about {percent(lost)}."
    )


def savings(beside: dict[str, Ratio]) -> list[str]:
    """it took 31 % of the time; its file is a sixtieth of the size."""
    took = [f"{percent(beside[what].value)} of the {what}" for what in ("time", "memory") if what in beside and beside[what].is_less]
    told = [f"it took {listed(took)}"] if took else []
    size = beside.get("storage")
    return told + ([f"its file is {part(size.value)} of the size"] if size and size.is_less else [])


def surplus(beside: dict[str, Ratio]) -> list[str]:
    """What it takes more of."""
    took = []
    if (time := beside.get("time")) and time.is_more:
        took.append("a little longer" if time.value <= LITTLE else f"{time.value:.1f} times as long")
    if (memory := beside.get("memory")) and memory.is_more:
        took.append("a little more memory" if memory.value <= LITTLE else f"{memory.value:.1f} times the memory")
    size = beside.get("storage")
    return ([f"it took {listed(took)}"] if took else []) + (["its file is larger"] if size and size.is_more else [])


def part(share: float) -> str:
    """a sixtieth, where a round one is near; 37 % otherwise."""
    near = min(PARTS, key=lambda count: abs(math.log(share * count)))
    return PARTS[near] if abs(math.log(share * near)) < 0.09 else percent(share)
