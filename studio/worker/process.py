"""What makes a process a good worker: it keeps its events apart, and heeds a stop and its memory limit."""

import os
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path


def private_stdout() -> int:
    """A descriptor of what was standard output, for events alone; from here on, standard output is standard error."""
    descriptor = os.dup(1)
    os.dup2(2, 1)  # libraries print banners to stdout; only events may go there
    to_close = [descriptor]

    def close() -> None:
        while to_close:  # once: a child of a child may hold another file under this number
            os.close(to_close.pop())

    os.register_at_fork(after_in_child=close)  # a child that stays would keep the supervisor waiting for the end of the pipe
    return descriptor


def go_without(package: str) -> None:
    """From here on the package looks as if it were not installed, unless it is loaded already: libraries that could use it do not."""
    sys.modules.setdefault(package, None)  # type: ignore[arg-type]  # None is how Python says that there is no such module


class StopFlag:
    """True once a stop was asked for. A plain attribute: a signal handler may set it at any moment, where a lock could block."""

    asked = False


def stop_at_signals() -> StopFlag:
    """A flag that SIGTERM and Ctrl-C raise; from here on they do nothing else."""
    flag = StopFlag()

    def ask(_number: int, _frame: object) -> None:
        flag.asked = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask)
    return flag


def limit_memory(limit: str | None) -> None:
    """Makes allocations beyond `limit` bytes fail with MemoryError, so that a hostile file cannot take the machine along."""
    if limit and sys.platform == "linux":  # elsewhere RLIMIT_DATA does not count mapped memory
        resource.setrlimit(resource.RLIMIT_DATA, (int(limit), int(limit)))


def be_ended_first() -> None:
    """Where the machine runs out of memory the kernel ends one process: rather this one than the database or the web server."""
    with suppress(OSError):  # another kernel, or a container that does not allow it
        Path("/proc/self/oom_score_adj").write_text("700")
