"""Ties a process to its parent, so that a killed parent leaves nothing behind. No Django."""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

PR_SET_PDEATHSIG = 1  # linux/prctl.h
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with(parent: int, *, by: signal.Signals) -> Callable[[], None]:
    """A `preexec_fn`: the new process gets `by` when the process `parent`, which starts it, dies. Linux only; elsewhere it does nothing."""

    def tie() -> None:
        if LIBC:
            LIBC.prctl(PR_SET_PDEATHSIG, int(by))
            if os.getppid() != parent:  # it died between fork and prctl
                os._exit(1)

    return tie


def die_with_parent() -> None:
    """Kills this process as soon as its parent is gone. For a process that can call it itself; works on every Unix.

    On Linux the kernel does it when the thread that started this process ends; so start it from one that stays.
    """
    if LIBC:
        LIBC.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="lifeline").start()
