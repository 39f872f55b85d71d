"""What the studio costs a training: the same loop with a job that keeps silent, and inside the worker process.

    python benchmarks/overhead.py --model FOLDER [--steps 60] [--rounds 3]

Both run in processes of their own, by turns. The worker stores every event in its file, then sends it through a pipe that is
read here, as the supervisor does. Three figures are printed:

- the medians of the seconds between two steps, and their ratio: all there is, but on a busy machine mostly noise;
- the seconds that the loop waited for its job's calls (events stored and sent, looks for a stop), as a share of a step: what
  the border adds, whatever else runs;
- the same with states saved every tenth step and a fixed prompt answered five times: what the loop waited for these.

A state is written beside the training, so what is counted is what the loop waits for. Answers have a share of a run's time (see
`studio.ml.loop.SAMPLE_SHARE`), above a few seconds that every run may spend: in a run as short as this one they are most of it.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from studio.training import DatasetFacts, Job  # noqa: E402
from studio.training.orders import Order, TrainPayload  # noqa: E402
from studio.worker.events import Reporter  # noqa: E402
from studio.worker.host import host_facts, training_environment  # noqa: E402
from studio.worker.job import WorkerJob  # noqa: E402
from studio.worker.process import StopFlag  # noqa: E402

ROWS = 200
CALLS = {"stopping", "metric", "progress", "checkpoint", "sample", "note"}
TARGET = 2.0
"""Per cent."""


class SilentJob(Job):
    """Hands over the rows and keeps the time of each step; nothing is stored or sent."""

    def __init__(self, payload: TrainPayload, folder: Path):
        self.base, self.model, self.data, self.host = Path(payload.base), payload.model, payload.data, payload.host
        self.prompts = []
        self.work, self.out = folder / "work", folder / "out"
        self.work.mkdir(parents=True)
        self.out.mkdir()
        self.checkpoints, self.cache = folder / "states", None
        self.times: list[float] = []

    def rows(self, split: Literal["train", "validation"]) -> Iterator[dict[str, Any]]:
        yield from (chat(number) for number in range(ROWS) if split == "train")

    def stopping(self) -> bool:
        return False

    def metric(self, *, step: int, total: int, **values: float) -> None:
        self.times.append(time.time())

    def phase(self, name: Any, text: str = "") -> None: ...
    def progress(self, done: float, total: float, unit: str = "") -> None: ...
    def sample(self, *, step: int, prompt: str, answer: str) -> None: ...
    def checkpoint(self, *, step: int, folder: Path) -> None: ...
    def note(self, text: str, *, level: Literal["info", "warning"] = "info") -> None: ...


class TimedJob(WorkerJob):
    """The worker's own job, with the time that its calls take."""

    spent = 0.0

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        return timed(self, found) if name in CALLS else found


def timed(job: TimedJob, call: Any) -> Any:
    def measured(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            job.spent += time.perf_counter() - started

    return measured


def chat(number: int) -> dict[str, Any]:
    """A made-up row; lengths vary as in real ones."""
    question = {"role": "user", "content": f"Customer {number} asks where the order is."}
    reply = {"role": "assistant", "content": "Your order left our warehouse today. " * (1 + number % 7)}
    return {"messages": [question, reply]}


def order_for(model: Path, folder: Path, *, steps: int) -> Order:
    import pyarrow
    import pyarrow.parquet

    from studio.ml.modelfacts import read_model_facts

    folder.mkdir(parents=True)
    table = pyarrow.table({"split": ["train"] * ROWS, "row": [json.dumps(chat(number)) for number in range(ROWS)]})
    pyarrow.parquet.write_table(table, folder / "rows.parquet")
    payload = TrainPayload(
        plugin="peft_lora",
        config={"max_steps": steps, "batch_size": 4, "evaluate_every": math.ceil(steps / 5), "save_every": 10},
        prompts=["Where is my order?"],
        base=str(model),
        model=read_model_facts(model, "base"),
        rows=str(folder / "rows.parquet"),
        data=DatasetFacts(name="made up", shape="chat", rows=ROWS, train=ROWS, validation=0),
        host=host_facts(with_gpus=False),
    )
    order = Order(
        id="1",
        kind="train",
        attempt=1,
        first_seq=1,
        folder=str(folder),
        target=str(folder / "result"),
        payload=payload.model_dump(mode="json"),
    )
    (folder / "order.json").write_text(order.model_dump_json())
    return order


def bare(folder: Path) -> list[float]:
    """Seconds between steps of the loop by itself."""
    child = [sys.executable, __file__, "--bare", str(folder / "order.json")]
    done = subprocess.run(child, cwd=ROOT, env=os.environ | training_environment(), stdout=subprocess.PIPE, check=True, text=True)
    return gaps(json.loads(done.stdout.splitlines()[-1]))


def run_bare(order: Path) -> None:
    from training_plugins.peft_lora import PeftLora

    payload = TrainPayload.model_validate(json.loads(order.read_text())["payload"])
    job = SilentJob(payload, order.parent / "bare")
    plugin = PeftLora()
    plugin.train(plugin.Config(**payload.config), job)
    sys.stdout.write(json.dumps(job.times) + "\n")


def run_timed(file: Path) -> None:
    """Prints the seconds that the border's calls, states and answers took, by the step."""
    from studio.ml.loop import Loop
    from studio.ml.saving import Saver
    from training_plugins.peft_lora import PeftLora

    order = Order.model_validate_json(file.read_bytes())
    payload = TrainPayload.model_validate(order.payload)
    pipe = os.dup(1)
    job = TimedJob(order, Reporter(folder=file.parent, pipe=pipe, attempt=1, first_seq=1), StopFlag())
    job.read(payload)
    waited = {name: timed_method(owner, name) for owner, name in ((Loop, "_save"), (Saver, "before_change"), (Loop, "_show_answers"))}
    plugin = PeftLora()
    plugin.train(plugin.Config(**payload.config), job)
    steps = payload.config["max_steps"]
    states = (sum(waited["_save"]) + sum(waited["before_change"])) / steps
    sys.stdout.write(json.dumps([job.spent / steps, states, sum(waited["_show_answers"]) / steps]) + "\n")


def timed_method(owner: type, name: str) -> list[float]:
    """A list that every call of a class's method adds its seconds to."""
    call, spent = getattr(owner, name), []

    def measured(self: Any, *args: Any) -> Any:
        started = time.perf_counter()
        try:
            return call(self, *args)
        finally:
            spent.append(time.perf_counter() - started)

    setattr(owner, name, measured)
    return spent


def waiting(folder: Path) -> tuple[float, float, float]:
    """Seconds of a step that the loop waits for its job, for states, and for answers."""
    child = [sys.executable, __file__, "--timed", str(folder / "order.json")]
    done = subprocess.run(child, cwd=ROOT, env=os.environ | training_environment(), stdout=subprocess.PIPE, check=True, text=True)
    border, states, answers = json.loads(done.stdout.splitlines()[-1])
    return border, states, answers


def in_worker(folder: Path) -> list[float]:
    """Seconds between steps inside `python -m studio.worker`, by the times in its events."""
    child = [sys.executable, "-m", "studio.worker", str(folder / "order.json")]
    times = []
    with subprocess.Popen(child, cwd=ROOT, env=os.environ | training_environment(), stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            event = json.loads(line)
            if event["type"] == "metric" and "loss" in event:
                times.append(datetime.fromisoformat(event["at"]).timestamp())
            if event["type"] == "end" and event["status"] != "succeeded":
                raise SystemExit(event["error"])
    return gaps(times)


def gaps(times: list[float]) -> list[float]:
    """The first steps are left out: they also make buffers and compile products."""
    return [after - before for before, after in pairwise(times[5:])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a base model; a small one is enough")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--timed", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        return run_bare(options.bare)
    if options.timed:
        return run_timed(options.timed)
    if options.model is None:
        parser.error("Name a model: --model FOLDER")
    alone: list[float] = []
    inside: list[float] = []
    waits: list[tuple[float, float, float]] = []
    with tempfile.TemporaryDirectory() as temp:
        for number in range(options.rounds):
            folder = Path(temp) / str(number)
            order_for(options.model.resolve(), folder, steps=options.steps)
            alone += bare(folder)
            inside += in_worker(folder)
            waits.append(waiting(folder))
    before, after = statistics.median(alone), statistics.median(inside)
    wait, states, answers = (statistics.median(each) for each in zip(*waits, strict=True))
    sys.stdout.write(
        f"loop alone    {before * 1000:8.2f} ms per step ({len(alone)} steps)\n"
        f"in the studio {after * 1000:8.2f} ms per step ({len(inside)} steps)\n"
        f"difference    {100 * (after / before - 1):8.2f} %\n"
        f"border        {wait * 1000:8.2f} ms per step, {100 * wait / before:.2f} % of it (target: below {TARGET:g} %)\n"
        f"states        {states * 1000:8.2f} ms per step, {100 * states / before:.2f} % of it, one every tenth step\n"
        f"answers       {answers * 1000:8.2f} ms per step, {100 * answers / before:.2f} % of it; in a long run at most 1 %\n"
    )


if __name__ == "__main__":
    main()
