"""Trains with a plugin of the studio, as a worker would: `python studio_run.py CASE`. See benchmarks/training.py."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from meter import Meter

from studio.ml.modelfacts import read_model_facts
from studio.training import DatasetFacts, Job
from studio.training.registry import find
from studio.worker.host import host_facts


class MeasuredJob(Job):
    """Hands over the rows and keeps what each step cost."""

    def __init__(self, case: dict[str, Any]):
        self.base = Path(case["model"])
        self.model = read_model_facts(self.base, "base")
        self._rows: list[dict[str, Any]] = json.loads(Path(case["chats"]).read_text())
        count = len(self._rows)
        self.data = DatasetFacts(name="rows", shape=case.get("shape", "chat"), rows=count, train=count, validation=0)
        self.host = host_facts(with_gpus=False)
        self.prompts = []
        self.out = Path(case["out"])
        self.work = self.out.parent / f"{self.out.name}-work"
        self.checkpoints = self.work / "checkpoints"
        self.out.mkdir(parents=True)
        self.work.mkdir()
        self.meter = Meter()
        self.losses: list[float] = []
        self._read = 0

    def rows(self, split: Literal["train", "validation"]) -> Iterator[dict[str, Any]]:
        yield from (self._rows if split == "train" else [])

    def phase(self, name: Any, text: str = "") -> None:
        sys.stdout.write(f"{name}: {text}\n")
        self.meter.begin()

    def metric(self, *, step: int, total: int, **values: float) -> None:
        tokens, self._read = int(values["tokens"]) - self._read, int(values["tokens"])
        self.meter.end(tokens=tokens, slots=round(tokens / (1 - values["padding"])))
        self.losses.append(values["loss"])

    def note(self, text: str, *, level: Literal["info", "warning"] = "info") -> None:
        sys.stdout.write(f"{level}: {text}\n")

    def stopping(self) -> bool:
        return False

    def progress(self, done: float, total: float, unit: str = "") -> None: ...
    def sample(self, *, step: int, prompt: str, answer: str) -> None: ...
    def checkpoint(self, *, step: int, folder: Path) -> None: ...


def main() -> None:
    case = json.loads(Path(sys.argv[1]).read_text())
    job = MeasuredJob(case)
    plugin = find(case["plugin"])
    plugin.train(plugin.Config(**case["config"]), job)
    Path(case["result"]).write_text(json.dumps(job.meter.result(job.losses)))


main()
