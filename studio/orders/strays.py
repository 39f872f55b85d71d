"""Finds and ends what a worker process left running: also what left its process group, by the mark in its environment."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MARK = "ADAPTER_STUDIO_ATTEMPT"
"""A variable that a worker process, and whatever it starts, has in its environment: ORDER-ATTEMPT."""
ROUNDS = 20
"""How often it is looked again, for a process may start another one just before it is ended."""
PROC = Path("/proc")


def mark(order: object, attempt: int) -> str:
    return f"{order}:{attempt}"


def end_strays(order: object, *, attempts: range) -> int:
    """Kills the processes of these attempts of an order, and says how many. Linux only: elsewhere the process group must do."""
    if sys.platform != "linux":
        return 0
    wanted = {f"{MARK}={mark(order, attempt)}".encode() for attempt in attempts}
    ended = set()
    for _ in range(ROUNDS):
        found = [pid for pid in processes() if pid not in ended and not wanted.isdisjoint(environment(pid))]
        if not found:
            break
        for pid in found:
            ended.add(pid)
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
    return len(ended)


def processes() -> Iterator[int]:
    own = os.getpid()
    return (int(entry.name) for entry in PROC.iterdir() if entry.name.isdecimal() and int(entry.name) != own)


def environment(pid: int) -> list[bytes]:
    """The variables that a process was started with; none where it is another user's, or has ended."""
    try:
        return (PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return []
