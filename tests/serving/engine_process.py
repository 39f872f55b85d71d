"""The process that answers, as the supervisor starts it: for tests of what is around it."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def engine_process(root: Path, socket: Path, *words: str, environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Its folder is `root`. It answers on `socket` when this returns, and is gone afterwards."""
    command = [sys.executable, "-m", "studio.serving.engine", "--socket", str(socket), "--root", str(root), *words]
    process = subprocess.Popen(command, env={**os.environ, **(environment or {})})
    try:
        deadline = time.monotonic() + 60
        while not socket.exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        process.wait()
