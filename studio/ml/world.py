"""The processes that train together. Here the only one; several of them are `studio.ml.sharding`'s."""

from collections.abc import Sequence


class World:
    """What a loop asks of the others: which rows are its own, sums over all, and whether anybody wants something."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """True in the one process that reports and writes."""
        return self.rank == 0

    def share(self, numbers: Sequence[int]) -> list[int]:
        """Those of a batch's rows that this process reads."""
        return list(numbers)

    def total(self, *numbers: float) -> list[float]:
        """Each number, added up over all processes."""
        return list(numbers)

    def agree(self, flag: bool) -> bool:
        """True in every process where it is true in one."""
        return flag

    def memory(self, peak: int) -> int:
        """Bytes that all processes took at their peaks of the one memory that they share; where each has its own, of the fullest."""
        return peak

    def gather(self, items: list[float]) -> list[float]:
        """The items of all processes, in the order of their ranks."""
        return items
