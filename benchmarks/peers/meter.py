"""What each step of a training costs: wall time, processor time, and how busy others kept the machine meanwhile. Standard library only.

Processor time per token is what holds on a machine that is shared; wall time is worth what `others` says it is.
"""

import os
import time
from pathlib import Path
from typing import Any

TICKS = os.sysconf("SC_CLK_TCK")


class Meter:
    """One record for each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.peak = 0
        self._began = self._now()

    def begin(self) -> None:
        self._began = self._now()

    def end(self, *, tokens: int, slots: int) -> None:
        """The step that began read `tokens` real ones, in tensors of `slots` places."""
        wall, own, all_ = (now - then for now, then in zip(self._now(), self._began, strict=True))
        others = max(0.0, all_ - own) / max(wall, 1e-9)
        self.steps.append({"wall": wall, "cpu": own, "others": others, "tokens": tokens, "slots": slots})
        self.peak = peak_memory()
        self.begin()

    def result(self, losses: list[float]) -> dict[str, Any]:
        return {"steps": self.steps, "peak": self.peak, "losses": losses}

    @staticmethod
    def _now() -> tuple[float, float, float]:
        times = os.times()
        own = times.user + times.system + times.children_user + times.children_system
        return time.perf_counter(), own, busy()


def busy() -> float:
    """Seconds that all processors together have worked since the machine started."""
    user, nice, system, _idle, _waiting, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICKS


def peak_memory() -> int:
    """Bytes of the largest resident set so far. Not getrusage's: that begins with the size of the process that started this one."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
