"""Jobs for tests that call the code of an order directly, without a worker process."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from studio.training import Job


class ListeningJob(Job):
    """Keeps what it is told. `stop_after` is how many looks it takes until a stop is asked for."""

    def __init__(self, folder: Path, *, stop_after: int | None = None):
        self.work, self.out = folder / "work", folder / "out"
        self.work.mkdir(parents=True)
        self.out.mkdir()
        self.phases: list[str] = []
        self.texts: list[str] = []
        self.steps: list[tuple[float, float]] = []
        self.notes: list[str] = []
        self.stop_after = stop_after

    def rows(self, split: str) -> Iterator[dict[str, Any]]:
        return iter(())

    def stopping(self) -> bool:
        if self.stop_after is not None:
            self.stop_after -= 1
        return self.stop_after is not None and self.stop_after < 0

    def phase(self, name: str, text: str = "") -> None:
        self.phases.append(name)
        self.texts.append(text)

    def progress(self, done: float, total: float, unit: str = "") -> None:
        self.steps.append((done, total))

    def metric(self, *, step: int, total: int, **values: float) -> None: ...

    def sample(self, *, step: int, prompt: str, answer: str) -> None: ...

    def checkpoint(self, *, step: int, folder: Path) -> None: ...

    def note(self, text: str, *, level: str = "info") -> None:
        self.notes.append(text)
