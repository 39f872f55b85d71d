"""One order "build" while it is worked on: what its steps share, and what is told of each file in the end."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.ml.gguf import kernels, reports
from studio.ml.gguf.choosing import Row, held_out
from studio.training.job import Job
from studio.training.orders import BuildPayload
from studio.worker.host import cpu_count

MOST_THREADS = 8
"""More of them would wait for the disk."""

Built = dict[str, dict[str, Any]]
"""By type: `file`, `size`, `verification`, `tensor_types`, `kernels`."""


@dataclass(frozen=True)
class Build:
    order: BuildPayload
    job: Job
    state: Path
    """Where unfinished files live, and outlive a killed attempt."""
    compared: list[Row]
    compared_split: str
    """Where these rows come from: validation, train, or empty for none of the client's."""

    @property
    def base(self) -> Path:
        return Path(self.order.base)

    @property
    def adapter(self) -> Path | None:
        return Path(self.order.adapter) if self.order.adapter else None

    @property
    def name(self) -> str:
        """What files are called, without type and suffix. Of a name in other letters than a file name may hold, nothing is left."""
        return self.order.name or "model"

    @property
    def threads(self) -> int:
        """For what is written."""
        return min(cpu_count(), MOST_THREADS)

    @property
    def llamacpp_threads(self) -> int:
        """Half of the processors: llama.cpp's threads wait for each other, and crawl where one of them is kept waiting by others."""
        return max(1, cpu_count() // 2)

    def folder(self, quantization: str) -> Path:
        return self.job.out / quantization

    def told(self, done: int, total: int) -> None:
        """Progress of writing."""
        self.job.progress(done, total, "bytes")

    def writes(self, names: list[str]) -> None:
        self.job.phase("converting", f"Writing {len(names)} files in one pass" if len(names) > 1 else f"Writing {names[0]}")

    def checks(self, names: list[str]) -> None:
        self.job.phase("checking", f"Checking {', '.join(names)}")


@dataclass(frozen=True)
class Made:
    """What was written of one type, and checked."""

    quantization: str
    file: Path | None
    """The one to take home; None where the whole folder is."""
    size: int
    verification: dict[str, Any]
    tensor_types: dict[str, int]
    """How many tensors are of each type."""
    importance: bool = False
    tokenizer: Path | None = None
    """The folder whose tokenizer counts, where that is not the base's."""


def begun(order: BuildPayload, job: Job) -> Build:
    found = held_out(order.rows, parameters=order.model.parameters)
    state = Path(order.state) if order.state else job.work / "state"
    return Build(order, job, state, found.rows, found.split)


def recorded(build: Build, made: Made) -> dict[str, Any]:
    """Writes what lies beside the file; returns what is told of it."""
    from studio.ml.gguf.bundle import write_bundle

    order, folder = build.order, build.folder(made.quantization)
    verification = made.verification | {"rows_from": build.compared_split}
    for reason in verification["reasons"]:
        build.job.note(f"{made.quantization}: {reason}", level="warning")
    facts = {
        "file": made.file.name if made.file else "",
        "size": made.size,
        "verification": verification,
        "tensor_types": made.tensor_types,
        "kernels": kernels.used(),
    }
    about = {"name": build.name, "kind": order.kind, "quantization": made.quantization, "importance": made.importance}
    reports.write(folder, about | {"about": order.about.model_dump()} | facts)
    write_bundle(
        folder,
        file=made.file,
        kind=order.kind,
        quantization=made.quantization,
        about=order.about,
        base=build.base,
        verification=verification,
        tokenizer=made.tokenizer,
        importance=made.importance,
    )
    return facts
