"""A whole studio for the tests of the main job: started as `manage.py up` starts it, stopped with Ctrl-C. Nothing in it is a stand-in."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

LONGEST_START = 120.0
LONGEST_STOP = 30.0


@dataclass
class Studio:
    """One that runs. What a test does with it goes through its address or its commands."""

    url: str
    setup_url: str
    data_dir: Path
    env: dict[str, str]
    log: Path

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`manage.py` with these words."""
        return subprocess.run([sys.executable, "-m", "django", *words], env=self.env, text=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def studio(smollm2_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """A fresh one on a free port. At the end it must stop cleanly, leave no process and have logged no mistake of its own."""
    folder = tmp_path_factory.mktemp("studio")
    data_dir, ready, log = folder / "data", folder / "ready.json", folder / "up.log"
    env = environment(data_dir, wheels=smollm2_wheel.parent)
    command = [sys.executable, "-m", "django", "up", "--port", "0", "--data-dir", str(data_dir), "--ready-file", str(ready)]
    with log.open("w") as output:
        process = subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        wait_until_ready(process, ready, log)
        yield Studio(**json.loads(ready.read_text()), data_dir=data_dir, env=env, log=log)
        process.send_signal(signal.SIGINT)
        assert process.wait(LONGEST_STOP) == 0, log.read_text()
        assert [one.cmdline() for one in processes_of(data_dir)] == []
        assert "Traceback" not in log.read_text(), log.read_text()
    finally:
        for left in [*processes_of(data_dir), *([psutil.Process(process.pid)] if process.poll() is None else [])]:
            left.kill()
        process.wait()


def environment(data_dir: Path, *, wheels: Path) -> dict[str, str]:
    """What the studio is started with: nothing of another one, and a pip that finds the base model without a network."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("STUDIO_") and name != "REDIS_URL"}
    return env | {
        "DJANGO_SETTINGS_MODULE": "studio.settings",
        "STUDIO_DATA_DIR": str(data_dir),
        "PIP_FIND_LINKS": str(wheels),
        "PIP_NO_INDEX": "1",
    }


def wait_until_ready(process: subprocess.Popen[bytes], ready: Path, log: Path) -> None:
    deadline = time.monotonic() + LONGEST_START
    while not ready.exists():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def processes_of(data_dir: Path) -> list[psutil.Process]:
    """Every process that was started for this data folder, by whomever."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("STUDIO_DATA_DIR") == str(data_dir) and process.pid != os.getpid():
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found
