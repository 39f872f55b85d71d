"""python -m studio.worker.tracking NAME FOLDER EVENTS: tells one tracker, by its own library, what a run reports.

A process of its own beside the training: whatever the library does, takes or sends, the training does not notice, and the plugin
never sees its keys. Only numbers and settings are told, no rows and no answers. FOLDER holds tracked.json (a TrackedRun); the file
EVENTS is read as it grows until the `end` event, or until a file `over` in FOLDER says that nothing more will come.
"""

import json
import math
import os
import re
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from studio.lifeline import die_with_parent

TITLES = {"tensorboard": "TensorBoard", "mlflow": "MLflow", "wandb": "Weights & Biases", "trackio": "Trackio"}
PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow-skinny", "wandb": "wandb", "trackio": "trackio"}
SILENT = {
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_SILENT": "true",
}
"""The libraries report to their trackers, and to nobody else."""
LOOK_EVERY = 0.5
LONGEST_LINE = 1 << 20
NO_NUMBERS = {"seq", "attempt", "step", "total"}
"""Numbers of a metric event that are no metrics."""
NOT_IN_A_NAME = re.compile(r"[^\w\-./ ]")


class TrackedRun(BaseModel):
    """What a tracker is told of a run besides its numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    """The same for every attempt at a run."""
    project: str
    name: str
    config: dict[str, Any]
    folder: str
    """Where a tracker without a server keeps what it is told."""


class Tracker(ABC):
    """One run at one tracker, from its start (the constructor) to `end`."""

    def __init__(self, run: TrackedRun, folder: Path):
        self.run, self.folder = run, folder

    @abstractmethod
    def log(self, step: int, values: dict[str, float]) -> None: ...

    @abstractmethod
    def end(self, *, succeeded: bool) -> None: ...


class TensorBoard(Tracker):
    """Event files that `tensorboard --logdir` reads, one folder for each run."""

    def __init__(self, run: TrackedRun, folder: Path):
        super().__init__(run, folder)
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.event, self.summary = Event, Summary
        self.writer = EventFileWriter(str(folder / file_name(run.project) / file_name(f"{run.name} {run.id[:8]}")))
        text = "\n".join(f"    {name}: {value}" for name, value in run.config.items())
        said = TensorProto(dtype="DT_STRING", string_val=[text.encode()])
        shown = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        self._write(0, [Summary.Value(tag="settings", metadata=shown, tensor=said)])

    def log(self, step: int, values: dict[str, float]) -> None:
        self._write(step, [self.summary.Value(tag=name, simple_value=value) for name, value in values.items()])

    def _write(self, step: int, values: list[Any]) -> None:
        self.writer.add_event(self.event(wall_time=time.time(), step=step, summary=self.summary(value=values)))

    def end(self, *, succeeded: bool) -> None:
        self.writer.close()


class MLflow(Tracker):
    """A run of an experiment, at the server of MLFLOW_TRACKING_URI or in a folder."""

    def __init__(self, run: TrackedRun, folder: Path):
        super().__init__(run, folder)
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            os.environ |= {"MLFLOW_TRACKING_URI": folder.as_uri(), "MLFLOW_ALLOW_FILE_STORE": "true"}
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self.metric = Metric
        self.client = MlflowClient()
        found = self.client.get_experiment_by_name(run.project)
        experiment = found.experiment_id if found else self.client.create_experiment(run.project)
        before = self.client.search_runs([experiment], filter_string=f"tags.adapter_studio_run = '{run.id}'", max_results=1)
        if before:
            self.id = before[0].info.run_id
            self.client.update_run(self.id, status="RUNNING")
        else:
            self.id = self.client.create_run(experiment, run_name=run.name, tags={"adapter_studio_run": run.id}).info.run_id
            self.client.log_batch(self.id, params=[Param(name, str(value)[:500]) for name, value in run.config.items()])

    def log(self, step: int, values: dict[str, float]) -> None:
        now = int(time.time() * 1000)
        self.client.log_batch(self.id, metrics=[self.metric(name, value, now, step) for name, value in values.items()])

    def end(self, *, succeeded: bool) -> None:
        self.client.set_terminated(self.id, status="FINISHED" if succeeded else "FAILED")


class WeightsAndBiases(Tracker):
    """A run at the server that WANDB_API_KEY opens; without a key it is kept in a folder, for `wandb sync`."""

    def __init__(self, run: TrackedRun, folder: Path):
        super().__init__(run, folder)
        import wandb

        self.wandb_run = wandb.init(
            project=file_name(run.project),
            name=run.name,
            id=run.id,
            resume="allow",
            config=run.config,
            dir=str(folder),
            mode=None if os.environ.get("WANDB_API_KEY") else "offline",
            settings=wandb.Settings(console="off", disable_code=True, disable_git=True, x_disable_machine_info=True, x_disable_stats=True),
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        self.wandb_run.log(values, step=step)

    def end(self, *, succeeded: bool) -> None:
        self.wandb_run.finish(exit_code=0 if succeeded else 1)


class Trackio(Tracker):
    """A run in Trackio's own database under a folder, or at TRACKIO_SERVER_URL or TRACKIO_SPACE_ID."""

    def __init__(self, run: TrackedRun, folder: Path):
        super().__init__(run, folder)
        os.environ.setdefault("TRACKIO_DIR", str(folder))
        import trackio

        self.trackio: Any = trackio
        trackio.init(
            project=file_name(run.project),
            name=f"{run.name} {run.id[:8]}",
            config=run.config,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        self.trackio.log(values, step=step)

    def end(self, *, succeeded: bool) -> None:
        self.trackio.finish()


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WeightsAndBiases, "trackio": Trackio}


def track(name: str, folder: Path, reported: Path) -> None:
    """Tells the tracker `name` everything, from the first event to the last."""
    run = TrackedRun.model_validate_json((folder / "tracked.json").read_bytes())
    kept = Path(run.folder) / name
    kept.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.environ.update(SILENT)
    tracker = TRACKERS[name](run, kept)
    status = "failed"
    for event in events(reported, over=folder / "over"):
        if event.get("type") == "metric" and isinstance(step := event.get("step"), int):
            if values := numbers(event):
                tracker.log(step, values)
        elif event.get("type") == "end":
            status = str(event.get("status"))
    tracker.end(succeeded=status in ("succeeded", "stopped", "paused"))


def events(reported: Path, *, over: Path) -> Iterator[dict[str, Any]]:
    """Each event as it comes, up to the end. A line that is none is passed over: the plugin could write into the file."""
    while not reported.exists():
        if over.exists():
            return
        time.sleep(LOOK_EVERY)
    with reported.open("rb") as file:
        rest = b""
        while True:
            is_over = over.exists()  # looked at before the reading, so that nothing after it is missed
            chunk = file.read(LONGEST_LINE)
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > LONGEST_LINE:
                rest = b""
            for line in lines:
                with suppress(ValueError):
                    event = json.loads(line)
                    if isinstance(event, dict):
                        yield event
                        if event.get("type") == "end":
                            return
            if not chunk:
                if is_over:
                    return
                time.sleep(LOOK_EVERY)


def numbers(event: dict[str, Any]) -> dict[str, float]:
    """The finite numbers of a metric event, under names that every tracker takes."""
    return {
        NOT_IN_A_NAME.sub("_", name)[:100]: float(value)
        for name, value in event.items()
        if name not in NO_NUMBERS and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def file_name(text: str) -> str:
    """A name that is a folder's as well: client and project come from people."""
    return re.sub(r"[^\w\-. ]+", "-", text).strip(" .-")[:100] or "adapter-studio"


if __name__ == "__main__":
    die_with_parent()
    track(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
