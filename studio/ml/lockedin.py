"""Runs one of our modules in a process that is locked in, and hands back what it left. Nothing of it is believed before it is checked.

The module is called as `python -m MODULE REQUEST.json FOLDER`, enters `studio.ml.sandbox` before it opens what is a stranger's, and
leaves what it has to say in FOLDER.
"""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import studio
from studio.training.job import Job


class Silent(Exception):
    """It left nothing that could be read. The message says why, in words that go on after the program's name."""


def run(module: str, request: dict[str, Any], *, folder: Path, job: Job, seconds: float) -> None:
    """Runs it to its end. `folder` is the only one that it can write to. Raises Silent, and Stopped once a stop was asked for."""
    asked = folder / "request.json"
    asked.write_text(json.dumps(request | {"parent": os.getpid()}))
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", module, str(asked.resolve()), str(folder.resolve())],
        env=bare_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        timely = _wait(child, job, seconds)
    finally:
        with suppress(ProcessLookupError, PermissionError):  # macOS refuses where all of them have ended
            os.killpg(child.pid, signal.SIGKILL)  # with what it may have started
        child.wait()
    if not timely:
        raise Silent(f"did not answer within {seconds / 60:.0f} minutes")
    if child.returncode != 0:
        raise Silent(f"ended without an answer (exit {child.returncode})")


def bare_environment() -> dict[str, str]:
    """Nothing of what the studio keeps in its environment."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
    none = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}  # a GPU may be training
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return kept | none | threads | {"PYTHONPATH": str(Path(next(iter(studio.__path__))).parent)}


def _wait(child: subprocess.Popen[bytes], job: Job, seconds: float) -> bool:
    """Whether it ended in time."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        job.raise_if_stopped()
        with suppress(subprocess.TimeoutExpired):
            child.wait(timeout=min(0.25, left))
            return True
    return False


def opened(path: Path) -> tuple[BinaryIO, int]:
    """A plain file that the process left, and its size in bytes. Raises Silent for a link out of its folder, a pipe, and none."""
    try:
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK))  # noqa: SIM115
    except OSError as error:
        raise Silent("ended without an answer") from error
    found = os.fstat(file.fileno())
    if not stat.S_ISREG(found.st_mode):
        file.close()
        raise Silent("gave an answer that makes no sense")
    return file, found.st_size
