"""How the arms of a comparison are told apart in charts and tables: a colour and a dash of their own, the same on every page."""

from collections.abc import Iterable
from dataclasses import dataclass

from studio.comparisons.models import Arm
from studio.training.registry import load_plugins

OF_METHOD = {"lora": 0, "full": 1}
"""LoRA is indigo and full fine-tuning orange everywhere; only one arm of each can be."""
COLOURS = 7
"""Of the eight of charts; grey stays with untouched base models."""
DASHES = 6


@dataclass(frozen=True)
class Mark:
    """`colour` from 0 to 6, `dash` from 0 to 5: with more arms than colours the dash tells those of one colour apart."""

    colour: int
    dash: int

    @property
    def dot(self) -> int:
        """The number of its `dot-N` class."""
        return self.colour + 1


def marks_of(arms: Iterable[Arm]) -> dict[int, Mark]:
    """By the arm's number."""
    taken: dict[int, int] = {}
    plugins = load_plugins()
    arms = sorted(arms, key=lambda arm: arm.number)
    for arm in arms:
        loaded = plugins.get(arm.plugin)
        colour = OF_METHOD.get(loaded.plugin.method if loaded and loaded.plugin else "")
        if colour is not None and colour not in taken.values():
            taken[arm.number] = colour
    free = [colour for colour in (*range(2, COLOURS), 0, 1) if colour not in taken.values()]
    rest = [arm.number for arm in arms if arm.number not in taken]
    for place, number in enumerate(rest):
        taken[number] = free[place] if place < len(free) else place % COLOURS
    return {arm.number: Mark(taken[arm.number], place % DASHES) for place, arm in enumerate(arms)}
