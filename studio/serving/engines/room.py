"""How much memory models that answer may take together, and whether one more fits. Loads nothing and ends nothing."""

import psutil

from studio.errors import UserError
from studio.worker.host import memory_size


class Room:
    def __init__(self, budget: int = 0):
        """`budget` in bytes; 0 is half of what the machine has."""
        self.budget = budget or memory_size() // 2

    def lacks(self, need: int, *, used: int) -> int:
        """Bytes that must be freed before `need` fits, beside `used`: within the budget, and within what nobody else has taken."""
        return max(0, used + need - self.budget, need - psutil.virtual_memory().available)

    def refusal(self, need: int, *, used: int) -> UserError:
        if need > self.budget:
            return UserError(
                f"This model needs {words(need)} of memory, and all models that answer may take {words(self.budget)} together. "
                "Ask whoever runs the server to raise STUDIO_SERVING_MEMORY.",
                code="no_memory",
            )
        if used + need > self.budget:
            return UserError(
                f"This model needs {words(need)} of memory, and the models that are answering now leave "
                f"{words(max(0, self.budget - used))}. Ask again in a moment.",
                code="no_memory",
            )
        free = psutil.virtual_memory().available
        return UserError(
            f"This model needs {words(need)} of memory, and this machine has {words(free)} left; something else, such as a training, "
            "takes the rest. Ask again once it has ended.",
            code="no_memory",
        )


def words(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
