"""Reads a file as a worker of the studio does: `python studio_import.py FILE FOLDER`. See benchmarks/datasets.py."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from cost import Cost

from studio.datasets import importing, looking, sealing
from studio.training.job import Job


class QuietJob(Job):
    def __init__(self, folder: Path):
        self.work, self.out = folder / "work", folder / "out"
        self.work.mkdir()
        self.out.mkdir()

    def rows(self, split: Any) -> Iterator[dict[str, Any]]:
        raise NotImplementedError

    def stopping(self) -> bool:
        return False

    def phase(self, name: Any, text: str = "") -> None: ...

    def progress(self, done: float, total: float, unit: str = "") -> None: ...

    def metric(self, *, step: int, total: int, **values: float) -> None: ...

    def sample(self, *, step: int, prompt: str, answer: str) -> None: ...

    def checkpoint(self, *, step: int, folder: Path) -> None: ...

    def note(self, text: str, *, level: Any = "info") -> None: ...


class Timed:
    """A function with the seconds that its calls take: what is compared, split and packed is no part of reading."""

    def __init__(self, function: Callable[..., Any]):
        self.function, self.seconds, self.cpu = function, 0.0, 0.0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        began, used = time.perf_counter(), time.process_time()
        try:
            return self.function(*arguments, **named)
        finally:
            self.seconds += time.perf_counter() - began
            self.cpu += time.process_time() - used


look, seal = Timed(looking.look), Timed(sealing.seal)
looking.look, sealing.seal = look, seal  # type: ignore[assignment]
file = Path(sys.argv[1])
with Cost() as cost:
    importing.run({"file": str(file), "filename": file.name}, QuietJob(Path(sys.argv[2])))
cost.phases = {"reading": cost.wall - seal.seconds, "looking": look.seconds, "packing": seal.seconds - look.seconds}
cost.phases |= {"reading, of the processor": cost.cpu - seal.cpu}
cost.tell()
