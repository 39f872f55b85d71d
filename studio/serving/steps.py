"""The steps by which the endpoint's seconds are counted: fine enough that a percentile read from them is within a tenth of the truth."""

from bisect import bisect_left

FIRST, LAST = 0.005, 600.0
COUNT = 65
RATIO: float = (LAST / FIRST) ** (1 / (COUNT - 1))
"""Between two steps. The middle of a step, by factors, is then at most 9.6 % off what was counted there."""
STEPS: tuple[float, ...] = tuple(round(FIRST * RATIO**number, 6) for number in range(COUNT))
"""Seconds up to which each step reaches, 5 ms to 10 minutes. One more, after the last, takes all that lasted longer."""


def step_of(seconds: float) -> int:
    """The number of the step in which so many seconds are counted."""
    return bisect_left(STEPS, seconds)


def percentile(counts: list[int], share: float) -> float | None:
    """Seconds within which this share of what was counted ended; None where nothing was."""
    rank, seen = share * sum(counts), 0
    for number, count in enumerate(counts):
        seen += count
        if count and seen >= rank:
            return middle(number)
    return None


def middle(number: int) -> float:
    """What a step's seconds are taken to be; the outermost ones have no middle."""
    if number == 0 or number == COUNT:
        return STEPS[min(number, COUNT - 1)]
    return float((STEPS[number - 1] * STEPS[number]) ** 0.5)
