"""Other places that are told of a run, each by a process of its own beside the training's. None unless the server names some."""

import logging
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from django.conf import settings

from studio.orders.models import Order
from studio.worker.tracking import PACKAGES, TITLES, TrackedRun

log = logging.getLogger("studio.orders")
END_GRACE = 30.0
"""Seconds in which all of them may send what they have left after the run's end."""
LAST_WORDS = 2000
KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NETRC")
KEPT_PREFIXES = ("MLFLOW_", "WANDB_", "TRACKIO_", "HF_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
"""What the libraries are told where to send to, and with which key. The training's process has none of it."""


class Trackers:
    """The processes that tell one attempt at a run. `end` waits for them, and ends those that do not."""

    def __init__(self, order: Order, run: TrackedRun | None):
        self.order = order
        self.folder = order.folder.with_name(f"{order.folder.name}-told")
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        if run is not None:
            self.start(run)

    def start(self, run: TrackedRun) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self.folder / "tracked.json").write_text(run.model_dump_json())
        for name in settings.TRACKERS:
            with self.words(name).open("wb") as words:
                self.processes[name] = subprocess.Popen(
                    [sys.executable, "-m", "studio.worker.tracking", name, str(self.folder), str(self.order.folder / "events.jsonl")],
                    cwd=self.folder,
                    env=environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=words,
                    stderr=words,
                    process_group=0,
                )

    def end(self) -> list[str]:
        """After the run's last event: why some were not told, as sentences."""
        if not self.processes:
            return []
        (self.folder / "over").touch()
        until = time.monotonic() + END_GRACE
        said = [self.end_one(name, process, until) for name, process in self.processes.items()]
        shutil.rmtree(self.folder, ignore_errors=True)
        return [sentence for sentence in said if sentence]

    def end_one(self, name: str, process: "subprocess.Popen[bytes]", until: float) -> str:
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=max(0.0, until - time.monotonic()))
        late = process.poll() is None
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)  # also what its library started
        process.wait()
        if late:
            return f"{TITLES[name]} was not told everything: it took longer than {END_GRACE:.0f} seconds after the end."
        if process.returncode == 0:
            return ""
        words = self.words(name).read_text(errors="replace")[-LAST_WORDS:].strip()
        log.warning("%s was not told of %s: %s", TITLES[name], self.order, words)
        missing = f"No module named '{PACKAGES[name].partition('-')[0]}'" in words
        reason = f"The package {PACKAGES[name]} is not installed." if missing else "The log of the server has the reason."
        return f"{TITLES[name]} was not told of this run. {reason}"

    def words(self, name: str) -> Path:
        return self.folder / f"{name}.txt"


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name in KEPT or name.startswith(KEPT_PREFIXES)}
    path = os.pathsep.join(part for part in (str(settings.ROOT), kept.get("PYTHONPATH", "")) if part)  # it starts in another folder
    return kept | {"PYTHONPATH": path}
