"""A conformance suite for plugins, ours and a stranger's: `check_plugin(MyPlugin)` in a test is all it takes.

It really starts `python -m studio.worker`, so the plugin must be installed or stand in training_plugins/.
Each check raises AssertionError with a sentence that says what to mend.
"""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from studio.checkpoints import newest, step_of
from studio.storage import read_manifest, sha256_file
from studio.training.facts import DatasetFacts, Estimate, HostFacts, Linear, ModelFacts
from studio.training.measuring import peak_memory
from studio.training.orders import Order, TrainPayload
from studio.training.plugin import TrainingPlugin
from studio.training.registry import refusal

STOP_LIMIT = 10.0
"""Seconds that a plugin may take from a request to stop until its end event."""
START_LIMIT = 180.0
"""Seconds that a plugin may take for three steps, or until its first one: torch alone takes some to load."""

TINY_MODEL = ModelFacts(
    name="tiny",
    architecture="LlamaForCausalLM",
    family="llama",
    parameters=100_000,
    hidden_size=64,
    layers=2,
    intermediate_size=128,
    vocabulary=512,
    heads=4,
    kv_heads=2,
    head_size=16,
    context_length=512,
    tied=True,
    dtype="float32",
    size=400_000,
    linears=[
        Linear(name="q_proj", inputs=64, outputs=64, count=2),
        Linear(name="k_proj", inputs=64, outputs=32, count=2),
        Linear(name="v_proj", inputs=64, outputs=32, count=2),
        Linear(name="o_proj", inputs=64, outputs=64, count=2),
        Linear(name="gate_proj", inputs=64, outputs=128, count=2),
        Linear(name="up_proj", inputs=64, outputs=128, count=2),
        Linear(name="down_proj", inputs=128, outputs=64, count=2),
    ],
    chat_template=True,
)
"""A Llama of two layers, for plugins that load none; one that does is given the facts of its own base."""


def chat_rows(count: int = 20) -> list[dict[str, Any]]:
    """Canonical rows to try a plugin on."""
    return [
        {"messages": [{"role": "user", "content": f"What is {n} and {n}?"}, {"role": "assistant", "content": f"It is {n + n}."}]}
        for n in range(count)
    ]


@dataclass(frozen=True)
class Case:
    """What a plugin is tried on. Its folder receives orders, rows and results."""

    plugin: str
    folder: Path
    base: Path
    model: ModelFacts = TINY_MODEL
    rows: list[dict[str, Any]] = field(default_factory=chat_rows)
    config: dict[str, Any] = field(default_factory=dict)
    requires: tuple[str, ...] = ()

    @property
    def data(self) -> DatasetFacts:
        validation = len(self.rows[::10])
        shape: Any = next((shape for key, shape in {"text": "text", "prompt": "preference"}.items() if key in self.rows[0]), "chat")
        unpaired = sum(("chosen" in row) != ("rejected" in row) for row in self.rows)
        train = len(self.rows) - validation
        return DatasetFacts(name="tiny", shape=shape, rows=len(self.rows), train=train, validation=validation, unpaired=unpaired)

    @property
    def host(self) -> HostFacts:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return HostFacts(name="here", cpus=os.cpu_count() or 1, memory=memory, packages=versions(self.requires))


def check_plugin(
    plugin_class: type[TrainingPlugin],
    *,
    base: Path | None = None,
    model: ModelFacts = TINY_MODEL,
    rows: list[dict[str, Any]] | None = None,
    config: dict[str, Any] | None = None,
) -> None:
    """Puts a plugin through every check.

    `base` is the folder of a tiny base model and `model` its facts, for a plugin that loads one; `config`
    replaces defaults that would be slow on a test machine.
    """
    check_class(plugin_class)
    check_import(plugin_class)
    with tempfile.TemporaryDirectory(prefix="check_plugin_") as name:
        folder = Path(name)
        case = Case(
            plugin=plugin_class.name,
            folder=folder,
            base=base or folder,
            model=model,
            rows=rows or chat_rows(),
            config={"batch_size": 1, "max_length": 64} | (config or {}),
            requires=plugin_class.requires,
        )
        check_estimate(plugin_class, case)
        check_three_steps(plugin_class, case)
        check_stop(case)
        if plugin_class.resumes:
            check_resume(case)
            check_pause(case)


def check_class(plugin_class: type[TrainingPlugin]) -> None:
    """Name, title, defaults and presets are valid, and a form can be drawn."""
    reason = refusal(plugin_class)
    expect(not reason, reason)


def check_import(plugin_class: type[TrainingPlugin]) -> None:
    """The studio finds the plugin, and loading it does not load torch: the web process loads every plugin."""
    code = (
        "import sys; from studio.training.registry import find; find(sys.argv[1]); "
        "print(*sorted({'torch', 'transformers', 'peft', 'django'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, plugin_class.name], env=environment(), capture_output=True, text=True, timeout=START_LIMIT, check=False
    )
    expect(done.returncode == 0, f"A fresh process does not find {plugin_class.name}: {done.stderr.strip().splitlines()[-1:]}")
    heavy = done.stdout.split()
    expect(not heavy, f"Loading the plugin imports {', '.join(heavy)}. Import it inside train().")


def check_estimate(plugin_class: type[TrainingPlugin], case: Case) -> None:
    """The estimate is a range that holds: low up to high, nothing negative."""
    config = plugin_class.Config(**case.config)
    plugin = plugin_class()
    errors = [issue.message for issue in plugin.check(config, case.model, case.data, case.host) if issue.level == "error"]
    expect(not errors, f"The plugin refuses the case that it is tried on: {' '.join(errors)}")
    estimate = plugin.estimate(config, case.model, case.data, case.host)
    expect(0 < estimate.memory.low <= estimate.memory.high, "The estimate's memory must go from low to high, above 0.")
    expect(0 < estimate.seconds.low <= estimate.seconds.high < math.inf, "The estimate's seconds must go from low to high, above 0.")
    expect(estimate.steps >= 1, "The estimate must have at least one step.")
    expect(estimate.disk > 0, "The estimate must say what the result takes on the disk.")


TOLERANCE = 1.15
"""By what factor the peak memory may lie outside the range that was estimated."""


def check_three_steps(plugin_class: type[TrainingPlugin], case: Case) -> None:
    """Three steps report numbered events in order, leave a sealed result, and take what was estimated."""
    config: dict[str, Any] = {"max_steps": 3}
    peak, events = 0, []
    with worker(case, name="three", config=config) as process:
        for event in read_events(process):
            events.append(event)
            peak = max(peak, peak_memory(process.pid))
    end = check_events(case, events, name="three")
    expect(end["status"] == "succeeded", f"Three steps ended as {end['status']}: {end['error']}\n{end['detail']}")
    metrics = [event for event in events if event["type"] == "metric"]
    steps = [event["step"] for event in metrics]
    expect(steps == sorted(steps) and steps[-1:] == [3], f"Metrics must come in order and reach step 3; they came for the steps {steps}.")
    expect(any(math.isfinite(event.get("loss") or math.nan) for event in metrics), "No metric named loss was reported.")
    check_result(Path(end["result"]["folder"]))
    estimate = plugin_class().estimate(plugin_class.Config(**case.config | config), case.model, case.data, case.host)
    expect(
        estimate.steps == 3, f"Three steps were asked for; the estimate says {estimate.steps}. See studio.training.memory.planned_steps."
    )
    measured = max([event["memory"] for event in metrics if event.get("memory")], default=peak)
    check_memory(measured, estimate)
    size = sum(path.stat().st_size for path in Path(end["result"]["folder"]).rglob("*") if path.is_file())
    expect(size <= estimate.disk * TOLERANCE, f"The result takes {size} bytes on the disk; the estimate says {estimate.disk}.")


def check_memory(measured: float, estimate: Estimate) -> None:
    """The peak in bytes, as the plugin reported it or the process took it, is about where the estimate said. Where nobody knows: 0."""
    low, high = estimate.memory.low / TOLERANCE, estimate.memory.high * TOLERANCE
    expect(
        not measured or low <= measured <= high,
        f"The peak was {measured / 1e6:.0f} MB; the estimate says {estimate.memory.low / 1e6:.0f} to {estimate.memory.high / 1e6:.0f} MB.",
    )


def check_stop(case: Case) -> None:
    """A stop in the middle of a long run is heeded within ten seconds."""
    with worker(case, name="stop", config={"max_steps": 1_000_000}) as process:
        events, asked_at = [], math.inf
        for event in read_events(process):
            events.append(event)
            if event["type"] == "metric" and asked_at == math.inf:
                asked_at = time.monotonic()
                process.send_signal(signal.SIGTERM)
        took = time.monotonic() - asked_at
    end = check_events(case, events, name="stop")
    expect(
        end["status"] == "stopped", f"After a stop the run ended as {end['status']}: {end['error']}. Look at job.stopping() at every step."
    )
    expect(took <= STOP_LIMIT, f"The stop took {took:.1f} s; at most {STOP_LIMIT:.0f} s is right. Look at job.stopping() at every step.")


LONG_ENOUGH: dict[str, Any] = {"max_steps": 40, "save_every": 4, "evaluate_every": 4}
"""Steps enough to be broken off in the middle, after a state was saved and before the next one is."""
BROKEN_OFF_AT = 10


def check_resume(case: Case) -> None:
    """A worker that is killed in the middle and resumed reports the losses and leaves the files of one that was not."""
    whole = run_through(case, name="whole")
    states = case.folder / "killed-states"
    with worker(case, name="killed", config=LONG_ENOUGH, checkpoints=states) as process:
        for event in read_events(process):
            if is_step(event, BROKEN_OFF_AT):
                break
        expect(process.poll() is None, "The run was over before it could be broken off.")
        process.kill()
    state = newest(states)
    expect(state is not None, "No whole state stands in job.checkpoints. Save one every config.save_every steps.")
    assert state is not None
    resumed = run_through(case, name="resumed", checkpoints=states)
    check_same(case, whole, resumed, names=("whole", "resumed"), after=step_of(state))


def check_pause(case: Case) -> None:
    """A pause in the middle is heeded within ten seconds, leaves a state and no result, and no trace in the losses."""
    states = case.folder / "paused-states"
    took = math.inf
    with worker(case, name="paused", config=LONG_ENOUGH, checkpoints=states) as process:
        events, asked_at = [], math.inf
        for event in read_events(process):
            events.append(event)
            if is_step(event, BROKEN_OFF_AT) and asked_at == math.inf:
                asked_at = time.monotonic()
                (case.folder / "paused" / "pause").touch()
                (case.folder / "paused" / "stop").touch()
                process.send_signal(signal.SIGTERM)
        took = time.monotonic() - asked_at
    end = check_events(case, events, name="paused")
    expect(
        end["status"] == "paused",
        f"After a pause the run ended as {end['status']}: {end['error']}. Where job.pausing(), save a state and raise Stopped.",
    )
    expect(not end["result"] and took <= STOP_LIMIT, f"The pause took {took:.1f} s and left {end['result'] or 'nothing'} as its result.")
    made = [event for event in events if event["type"] == "metric" and "loss" in event]
    state = newest(states)
    expect(state is not None and step_of(state) == made[-1]["step"], "The pause left no whole state of its last step.")
    resumed = run_through(case, name="unpaused", checkpoints=states)
    whole = [json.loads(line) for line in (case.folder / "whole" / "events.jsonl").read_bytes().splitlines()]
    expect(losses(whole) == losses([*events, *resumed]), "The losses of a run that was paused differ from those of one that was not.")


def run_through(case: Case, *, name: str, checkpoints: Path | None = None) -> list[dict[str, Any]]:
    """The events of a run to its end, from the newest state in `checkpoints` on where there is one."""
    with worker(case, name=name, config=LONG_ENOUGH, checkpoints=checkpoints) as process:
        events = list(read_events(process))
    end = check_events(case, events, name=name)
    expect(end["status"] == "succeeded", f"The run {name} ended as {end['status']}: {end['error']}\n{end['detail']}")
    return events


def check_same(case: Case, one: list[dict[str, Any]], other: list[dict[str, Any]], *, names: tuple[str, str], after: int) -> None:
    """The second run goes on after a step as the first one did: the same losses from there on, and the same files in the end."""
    expect(other[0].get("text") == f"Resumed from step {after}.", "The first thing that a resumed run reports must be where it goes on.")
    expected = {step: values for step, values in losses(one).items() if step > after}
    found = losses(other)
    wrong = [step for step in expected if found.get(step) != expected[step]]
    expect(
        not wrong and found.keys() == expected.keys(),
        f"Resumed at step {after}, the losses of the steps {wrong or sorted(found)} are not those of a run that was not broken off.",
    )
    files: list[Any] = [read_manifest(case.folder / f"{name}-result")["files"] for name in names]
    differing = [name for name, entry in files[0].items() if name != "lineage.json" and files[1].get(name) != entry]
    expect(not differing, f"After a resume {', '.join(differing)} differs from what a run leaves that was not broken off.")


def losses(events: list[dict[str, Any]]) -> dict[int, dict[str, float]]:
    """Training and validation loss by step."""
    found: dict[int, dict[str, float]] = {}
    for event in events:
        if event["type"] == "metric":
            values = {name: event[name] for name in ("loss", "validation_loss") if name in event}
            found[event["step"]] = found.get(event["step"], {}) | values
    return found


def is_step(event: dict[str, Any], step: int) -> bool:
    return event["type"] == "metric" and "loss" in event and event["step"] >= step


def check_events(case: Case, events: list[dict[str, Any]], *, name: str) -> dict[str, Any]:
    """Numbers without gaps, one end, and the file says what the pipe said; returns the end event."""
    expect(bool(events), f"No event came. The log says: {log(case, name)}")
    numbers = [event["seq"] for event in events]
    expect(numbers == list(range(1, len(events) + 1)), f"The events are numbered {numbers}.")
    ends = [event for event in events if event["type"] == "end"]
    expect(len(ends) == 1 and events[-1] is ends[0], f"One end event must come last. The log says: {log(case, name)}")
    stored = [json.loads(line) for line in (case.folder / name / "events.jsonl").read_bytes().splitlines()]
    expect(stored == events, "The pipe did not carry the same events as events.jsonl.")
    return ends[0]


def check_result(folder: Path) -> None:
    """The sealed folder holds exactly what its manifest says."""
    files: Any = read_manifest(folder)["files"]
    expect("lineage.json" in files and len(files) > 1, "The plugin left nothing in job.out.")
    for name, entry in files.items():
        expect(sha256_file(folder / name) == entry["sha256"], f"{name} is not what the manifest says.")


def expect(condition: bool, sentence: str) -> None:
    if not condition:
        raise AssertionError(sentence)


@contextmanager
def worker(case: Case, *, name: str, config: dict[str, Any], checkpoints: Path | None = None) -> "Iterator[subprocess.Popen[bytes]]":
    """A worker process at an order of its own; killed after START_LIMIT, and when the block is left."""
    path = write_order(case, name=name, config=config, checkpoints=checkpoints)
    with (
        (path.parent / "log.txt").open("wb") as log_file,
        subprocess.Popen(
            [sys.executable, "-m", "studio.worker", str(path)], env=environment(), stdout=subprocess.PIPE, stderr=log_file
        ) as process,
    ):
        timer = threading.Timer(START_LIMIT, process.kill)
        timer.start()
        try:
            yield process
        finally:
            timer.cancel()
            if process.poll() is None:
                process.kill()


def read_events(process: "subprocess.Popen[bytes]") -> Iterator[dict[str, Any]]:
    """Events as they come; returns once the process has ended."""
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)
    process.wait()


def write_order(case: Case, *, name: str, config: dict[str, Any], checkpoints: Path | None = None) -> Path:
    """order.json for a training, in a folder of its own; its result is to stand beside it."""
    attempt = case.folder / name
    attempt.mkdir(parents=True)
    rows = case.folder / "rows.parquet"
    if not rows.exists():
        write_rows(rows, case.rows)
    payload = TrainPayload(
        plugin=case.plugin,
        config=case.config | config,
        base=str(case.base),
        model=case.model,
        rows=str(rows),
        data=case.data,
        host=case.host,
        prompts=["What is 2 and 2?"],
        lineage={"run": name},
        checkpoints=str(checkpoints or ""),
    )
    order = Order(
        id=name,
        kind="train",
        attempt=1,
        first_seq=1,
        folder=str(attempt),
        target=str(case.folder / f"{name}-result"),
        payload=payload.model_dump(mode="json"),
    )
    path = attempt / "order.json"
    path.write_text(order.model_dump_json(indent=1))
    return path


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """rows.parquet as a dataset version has it; every tenth row is for validation."""
    import pyarrow
    import pyarrow.parquet

    table = {
        "index": pyarrow.array(range(len(rows)), pyarrow.int64()),
        "line": pyarrow.array(range(1, len(rows) + 1), pyarrow.int64()),
        "split": ["train" if index % 10 else "validation" for index in range(len(rows))],
        "row": [json.dumps(row) for row in rows],
    }
    pyarrow.parquet.write_table(pyarrow.table(table), path)


def log(case: Case, name: str) -> str:
    return (case.folder / name / "log.txt").read_text(errors="replace")[-2000:]


def environment() -> dict[str, str]:
    """Ours, with everything importable here importable there as well; and threads that wait asleep, as a worker's do."""
    importable = os.pathsep.join(path for path in sys.path if path)
    return os.environ | {"PYTHONPATH": importable, "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    there = {}
    for package in packages:
        try:
            there[package] = version(package)
        except PackageNotFoundError:
            continue
    return there
