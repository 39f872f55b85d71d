"""Whether the kernel ended a process because memory ran out: said where there is evidence of it, and never for a guess.

The kernel leaves no word with the process. It counts what it ends in the control group (memory.events, or memory.oom_control of
version 1) and on the whole machine (/proc/vmstat); and memory that was full a moment before tells the rest.
"""

import signal
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import psutil

CGROUP, VMSTAT = Path("/sys/fs/cgroup"), Path("/proc/vmstat")
FULL = 0.92
"""Share of the memory in use from which on a SIGKILL is the kernel's."""
FAR_FROM_FULL = 0.5
"""Share below which a process that the kernel ended was another one: the machine's count is of all its containers."""
EVERY = 0.5
"""Seconds between two looks."""
LOOKS = 20
"""Looks that are kept: ten seconds, in which the kernel takes a large process apart."""


class MemoryWatch:
    """Looks at the memory while a process runs; asked once it has ended."""

    def __init__(self, *, cgroup: Path = CGROUP, vmstat: Path = VMSTAT):
        self._cgroup, self._vmstat = cgroup, vmstat
        self._looked_at = -EVERY
        self._kills = deque([self._counted()], maxlen=LOOKS)
        self._shares = deque([0.0], maxlen=LOOKS)

    def look(self) -> None:
        """Cheap enough to be called at every event; reads at most twice a second."""
        now = time.monotonic()
        if now - self._looked_at >= EVERY:
            self._looked_at = now
            self._kills.append(self._counted())
            self._shares.append(share_in_use(self._cgroup))

    @property
    def fullest(self) -> float:
        """The largest share of the memory that was in use in the last looks, 0 to 1."""
        return max(self._shares)

    def ended_it(self, returncode: int) -> bool:
        """Whether this exit code is the kernel's doing."""
        if returncode != -signal.SIGKILL:
            return False
        (own, everywhere), (own_before, everywhere_before) = self._counted(), self._kills[0]
        counted = own > own_before or (everywhere > everywhere_before and self.fullest >= FAR_FROM_FULL)
        return counted or self.fullest >= FULL

    def _counted(self) -> tuple[int, int]:
        """Processes that the kernel has ended for memory: in this control group, and on the machine."""
        own = max(count(self._cgroup / "memory.events"), count(self._cgroup / "memory" / "memory.oom_control"))
        return own, count(self._vmstat)


def count(file: Path) -> int:
    """The number behind `oom_kill` in a kernel's file; 0 where there is none."""
    for line in lines(file):
        name, _, number = line.partition(" ")
        if name == "oom_kill" and number.isdigit():
            return int(number)
    return 0


def share_in_use(cgroup: Path = CGROUP) -> float:
    """The share of the memory that is taken: of the machine's, or of the control group's limit where that is nearer."""
    machine = psutil.virtual_memory()
    return max([1 - machine.available / machine.total, *(taken / most for taken, most in limits(cgroup))])


def free_memory(cgroup: Path = CGROUP) -> int:
    """Bytes that can still be taken: on the machine, or of the control group's limit where that is less."""
    return max(0, min([psutil.virtual_memory().available, *(most - taken for taken, most in limits(cgroup))]))


def limits(cgroup: Path) -> Iterator[tuple[int, int]]:
    """(bytes taken, bytes at most) of a control group that limits its memory, by either version."""
    for used, limit, stat, name in (
        ("memory.current", "memory.max", "memory.stat", "inactive_file"),
        ("memory/memory.usage_in_bytes", "memory/memory.limit_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        taken, most = figure(cgroup / used), figure(cgroup / limit)
        if 0 < most < psutil.virtual_memory().total:
            given_back = sum(int(line.split()[1]) for line in lines(cgroup / stat) if line.startswith(f"{name} "))
            yield taken - given_back, most  # what was read from files is dropped before anything is ended


def figure(file: Path) -> int:
    text = "".join(lines(file)).strip()
    return int(text) if text.isdigit() else 0


def lines(file: Path) -> list[str]:
    """A kernel's file, line by line; nothing where this kernel has no such file."""
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
