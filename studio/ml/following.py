"""Several processes that train together: the worker's own leads, speaks and writes; the others are started by it and follow in silence.

All run the same plugin with the same settings on the same rows. They end together: a follower that fails ends the run, and none
outlives the one that leads. torch is imported once they are on their way, for each needs seconds to load it. What a follower runs is
`studio.ml.follower`.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from studio.errors import UserError
from studio.ml.world import World
from studio.training import DatasetFacts, FullConfig, HostFacts, Job, ModelFacts

LAST_WORDS = 10.0
"""Seconds that processes which end together may lie apart."""


class Order(BaseModel):
    """What a follower is told, as JSON in the folder that all of them share."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    plugin: str
    config: dict[str, Any]
    size: int
    base: Path
    model: ModelFacts
    data: DatasetFacts
    host: HostFacts
    prompts: list[str]
    checkpoints: Path
    resume: Path | None


class FollowingJob(Job):
    """The job of a process that follows: it reads what the first one reads, and says nothing."""

    def __init__(self, folder: Path, rank: int):
        order = Order.model_validate_json((folder / "order.json").read_bytes())
        self.order, self.folder, self.rank = order, folder, rank
        self.work = self.out = folder / str(rank)
        self.work.mkdir()
        self.base, self.model, self.data, self.host = order.base, order.model, order.data, order.host
        self.prompts, self.checkpoints, self.resume = order.prompts, order.checkpoints, order.resume

    def rows(self, split: Literal["train", "validation"]) -> Iterator[dict[str, Any]]:
        with (self.folder / f"{split}.jsonl").open() as file:
            yield from map(json.loads, file)

    def stopping(self) -> bool:
        return False  # the first process is asked, and tells the others

    def phase(self, name: Any, text: str = "") -> None: ...

    def progress(self, done: float, total: float, unit: str = "") -> None: ...

    def metric(self, *, step: int, total: int, **values: float) -> None: ...

    def sample(self, *, step: int, prompt: str, answer: str) -> None: ...

    def checkpoint(self, *, step: int, folder: Path) -> None: ...

    def note(self, text: str, *, level: Literal["info", "warning"] = "info") -> None: ...


@contextmanager
def together(plugin: str, config: FullConfig, job: Job) -> Iterator[World]:
    """The processes that `config` asks for, this one among them; one alone where it asks for no more.

    Raises UserError where a follower ended before its time.
    """
    if config.processes == 1:
        yield World()
        return
    if isinstance(job, FollowingJob):
        with joined(job.folder, rank=job.rank, size=config.processes, on_gpus=bool(job.host.gpus)) as world:
            yield world
        return
    folder, threads = write_order(plugin, config, job), max(1, job.host.cpus // config.processes)
    followers = Followers(folder, size=config.processes, threads=threads)
    try:
        import torch

        torch.set_num_threads(threads)  # as many as each of the others, or sums would differ in their last digits
        followers.wait_until_ready(job)
        with joined(folder, rank=0, size=config.processes, on_gpus=bool(job.host.gpus)) as world:
            yield world
        followers.wait()
    except RuntimeError:
        followers.raise_their_error()
        raise
    finally:
        followers.end()


@contextmanager
def joined(folder: Path, *, rank: int, size: int, on_gpus: bool) -> Iterator[World]:
    """Among the others, until all are done or this one fails."""
    import torch.distributed as dist

    from studio.ml.sharding import Together

    world = Together(rank, size, on_gpus=on_gpus)
    (folder / f"ready-{rank}").touch()
    world.join(folder / "store")
    try:
        yield world
        dist.barrier()  # whoever left early would cut off what others still read
    finally:
        dist.destroy_process_group()


def write_order(plugin: str, config: FullConfig, job: Job) -> Path:
    """The folder that the followers read: settings, facts and rows."""
    folder = job.work / "processes"
    folder.mkdir()
    order = Order(
        plugin=plugin,
        config=config.model_dump(),
        size=config.processes,
        base=job.base,
        model=job.model,
        data=job.data,
        host=job.host,
        prompts=job.prompts,
        checkpoints=job.checkpoints,
        resume=job.resume,
    )
    (folder / "order.json").write_text(order.model_dump_json())
    splits: tuple[Literal["train", "validation"], ...] = ("train", "validation")
    for split in splits:
        with (folder / f"{split}.jsonl").open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in job.rows(split))
    return folder


class Followers:
    """The other processes, as the first one sees them."""

    def __init__(self, folder: Path, *, size: int, threads: int):
        self.folder = folder
        there = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": str(threads)}
        self.processes = {
            rank: subprocess.Popen(
                [sys.executable, "-m", "studio.ml.follower", str(folder), str(rank)],
                env=os.environ | there,
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr,
            )
            for rank in range(1, size)
        }

    def wait_until_ready(self, job: Job) -> None:
        """Returns once all of them are about to join. Raises UserError where one ends before, Stopped at a stop."""
        while not all((self.folder / f"ready-{rank}").exists() for rank in self.processes):
            job.raise_if_stopped()
            self.raise_error()
            time.sleep(0.05)

    def raise_error(self) -> None:
        """Raises UserError where one has failed: its own sentence, or that it ended."""
        for rank, process in self.processes.items():
            if process.poll():
                raise self._error(rank, process.returncode)

    def raise_their_error(self) -> None:
        """As `raise_error`, where the first process has seen that it cannot reach them: the reason may come a moment later."""
        deadline = time.monotonic() + LAST_WORDS
        while time.monotonic() < deadline:
            self.raise_error()
            if all(process.poll() is not None for process in self.processes.values()):
                return
            time.sleep(0.05)

    def _error(self, rank: int, code: int) -> UserError:
        words = self.folder / f"error-{rank}.json"
        if words.exists():
            return UserError(**json.loads(words.read_bytes()))
        how = f"was ended by signal {-code}; memory may have run out" if code < 0 else f"failed with exit code {code}"
        return UserError(f"Process {rank + 1} of {len(self.processes) + 1} {how}. The log has its last words. Resume the run to go on.")

    def wait(self) -> None:
        """Returns once all have ended by themselves."""
        deadline = time.monotonic() + LAST_WORDS
        for process in self.processes.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                return

    def end(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()
