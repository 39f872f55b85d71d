"""What a run takes of its device: memory, how busy it is, and power where the machine tells."""

import time
from pathlib import Path

import psutil
import torch

from studio.training import measuring

EVERY = 1.0
"""Seconds between two looks; a GPU's driver answers in milliseconds, and power is an average anyway."""
RAPL = Path("/sys/class/powercap")
NO_TELLING = (ModuleNotFoundError, RuntimeError, AssertionError, OSError)
"""What torch raises where the driver's library is missing or keeps quiet."""


def peak_memory(device: torch.device) -> int:
    """Bytes at the peak so far: reserved on the GPU, resident for a process on the CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    return measuring.peak_memory()


class Meter:
    """Utilisation and power since the last look, as metrics; none where the device does not tell."""

    def __init__(self, device: torch.device):
        self._device = device
        self._process = psutil.Process()
        self._cores = torch.get_num_threads()
        self._counters = sorted(RAPL.glob("intel-rapl:?")) if device.type == "cpu" else []
        self._seen_at = time.monotonic()
        self._before = self._used()
        self._last: dict[str, float] = {}
        self.energy = 0.0
        """Watt-hours so far."""

    def read(self) -> dict[str, float]:
        """`utilisation` (percent), `power` (watts) and `energy` (watt-hours), as far as they are known."""
        now = time.monotonic()
        if (gone := now - self._seen_at) >= EVERY:
            self._last = self._gpu() if self._device.type == "cuda" else self._cpu(gone)
            self._seen_at = now
            if "power" in self._last:
                self.energy += self._last["power"] * gone / 3600
                self._last["energy"] = self.energy
        return self._last

    def _gpu(self) -> dict[str, float]:
        found: dict[str, float] = {}
        try:
            found["utilisation"] = float(torch.cuda.utilization(self._device))
            found["power"] = torch.cuda.power_draw(self._device) / 1000
        except NO_TELLING:
            return found
        return found

    def _cpu(self, gone: float) -> dict[str, float]:
        before, self._before = self._before, self._used()
        found = {"utilisation": min(100.0, 100 * (self._before[0] - before[0]) / (gone * self._cores))}
        if self._counters and self._before[1] > before[1]:  # the counter wraps around now and then
            found["power"] = (self._before[1] - before[1]) / gone
        return found

    def _used(self) -> tuple[float, float]:
        """Seconds of processor time and joules so far."""
        times = self._process.cpu_times()
        return times.user + times.system, sum(map(_joules, self._counters))


def _joules(counter: Path) -> float:
    try:
        return int((counter / "energy_uj").read_text()) / 1e6
    except (OSError, ValueError):  # since 2020 only root may read it
        return 0.0
