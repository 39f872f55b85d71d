"""Fetches what is still missing of a file over HTTP, so that a broken download goes on where it stopped. No Django, no torch."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import httpx

from studio.training.job import Job

PIECE = 1 << 20
Ask = Callable[[dict[str, str]], AbstractContextManager[httpx.Response]]
"""Opens the answer to a GET with these headers besides the caller's own; raises for a status that is no success."""


class TooShort(Exception):
    """The connection ended before the file did, or sent another part than the one that was asked for."""


class Rest:
    """Called, it fetches what is still missing of a file of `size` bytes, and tells `report` how much is there."""

    def __init__(self, ask: Ask, part: Path, *, size: int, report: Callable[[int], None]):
        self.ask, self.part, self.size, self.report = ask, part, size, report

    def __call__(self) -> None:
        start = size_of(self.part)
        if start > self.size:
            self.part.unlink()
            start = 0
        if start < self.size or not self.part.exists():
            self._stream(start)
        if self.part.stat().st_size != self.size:
            raise TooShort

    def _stream(self, start: int) -> None:
        with self.ask({"Accept-Encoding": "identity", "Range": f"bytes={start}-"}) as response:
            goes_on = response.status_code == httpx.codes.PARTIAL_CONTENT
            if goes_on and not response.headers.get("Content-Range", f"bytes {start}-").startswith(f"bytes {start}-"):
                raise TooShort
            with self.part.open("ab" if goes_on else "wb") as file:
                for piece in response.iter_bytes(PIECE):
                    if file.tell() + len(piece) > self.size:
                        raise TooShort
                    file.write(piece)
                    self.report(file.tell())


def size_of(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def wait(job: Job, seconds: float, *, broke: str) -> None:
    """Says that the connection broke, and lets some time pass before the next try; a stop is heeded meanwhile."""
    job.note(f"{broke}; trying again.", level="warning")
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        job.raise_if_stopped()
        time.sleep(0.1)
