"""What a process has taken of the machine."""

import resource
import sys
from contextlib import suppress
from pathlib import Path


def peak_memory(pid: int | None = None) -> int:
    """The most main memory, in bytes, that a process has held so far: this one's, or another's, where 0 means that nobody knows.

    Not from getrusage alone: on Linux a process begins with the peak of the one that started it.
    """
    with suppress(OSError):
        for line in Path(f"/proc/{pid or 'self'}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    if pid is not None:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak << 10)
