"""Jobs for the worker tests, and the worker itself as a process: python -m tests.supervisor.jobs REDIS_URL."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import redis

from studio.lifeline import die_with
from studio.supervisor.rqworkers import StudioWorker


def hold(folder: str) -> None:
    """Says who it is, then works until it is stopped; leaves word when its `finally` ran."""
    child = subprocess.Popen(["sleep", "600"], preexec_fn=die_with(os.getpid(), by=signal.SIGKILL))
    try:
        Path(folder, "pids").write_text(f"{os.getpid()} {child.pid}")
        time.sleep(600)
    finally:
        child.kill()
        Path(folder, "finally").touch()


if __name__ == "__main__":
    StudioWorker(["train"], connection=redis.Redis.from_url(sys.argv[1])).work(logging_level="WARNING")
