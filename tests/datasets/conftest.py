"""A job without a worker around it, and files as people have them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from studio.datasets import importing, rows
from studio.training.job import Job


class QuietJob(Job):
    """Does what a worker's job does for an import: gives two folders and listens."""

    def __init__(self, folder: Path):
        self.work, self.out = folder / "work", folder / "out"
        self.work.mkdir(parents=True)
        self.out.mkdir()
        self.reported: list[tuple[float, float, str]] = []
        self.stop_asked = False

    def rows(self, split: Any) -> Iterator[dict[str, Any]]:
        return rows.read(self.out / "rows.parquet", split=split)

    def stopping(self) -> bool:
        return self.stop_asked

    def progress(self, done: float, total: float, unit: str = "") -> None:
        self.reported.append((done, total, unit))

    def phase(self, name: Any, text: str = "") -> None: ...

    def metric(self, *, step: int, total: int, **values: float) -> None: ...

    def sample(self, *, step: int, prompt: str, answer: str) -> None: ...

    def checkpoint(self, *, step: int, folder: Path) -> None: ...

    def note(self, text: str, *, level: Any = "info") -> None: ...


@pytest.fixture
def job(tmp_path: Path) -> QuietJob:
    return QuietJob(tmp_path / "attempt")


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, bytes | str | list[Any]], Path]:
    """Writes a file: bytes as they are, text in UTF-8, a list as JSON lines."""

    def written(name: str, content: bytes | str | list[Any]) -> Path:
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return written


@pytest.fixture
def import_file(job: QuietJob) -> Callable[..., dict[str, Any]]:
    def imported(path: Path, **settings: Any) -> dict[str, Any]:
        return importing.run({"file": str(path), "filename": path.name} | settings, job)

    return imported


@pytest.fixture
def refusals(job: QuietJob) -> Callable[[], list[dict[str, Any]]]:
    return lambda: rows.refusals(job.out / "refusals.jsonl")
