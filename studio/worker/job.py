"""The Job that code is handed in a worker process: rows from a Parquet file in, cleaned and throttled events out."""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from studio.storage import remove_folder
from studio.training.job import Job, Phase
from studio.training.orders import Order, TrainPayload
from studio.worker.events import LONGEST_NAME, Reporter, clean, clean_json
from studio.worker.process import StopFlag

PROGRESS_EVERY = 0.25
"""Seconds between two progress events."""
LOOK_EVERY = 0.25
"""Seconds between two looks for the file that asks for a stop."""
MOST_ROWS = 8
"""Rows in one event."""
MOST_NUMBERS = 200
"""Numbers that one metric may bring."""
RESERVED = {"seq", "attempt", "at", "type"}


class WorkerJob(Job):
    """One attempt at one order. `stop_seen` is True once the code that does it was told to stop."""

    def __init__(self, order: Order, reporter: Reporter, stop: StopFlag):
        folder = Path(order.folder)
        self.work, self.out = made_empty(folder / "work"), made_empty(folder / "out")
        self.base, self.prompts = Path(), []
        self.checkpoints = folder / "checkpoints"
        self.stop_seen = False
        self._reporter = reporter
        self._stop_file, self._pause_file = folder / "stop", folder / "pause"
        self._stop = stop
        self._looked_at = -math.inf
        self._rows = Path()
        self._progress_at = -math.inf
        self._progress: dict[str, Any] | None = None
        self._warned_of_numbers = False

    def read(self, payload: TrainPayload) -> None:
        """Fills in what a training reads."""
        self.base, self.model, self.data = Path(payload.base), payload.model, payload.data
        self.host, self.prompts = payload.host, list(payload.prompts)
        self._rows = Path(payload.rows)
        if payload.checkpoints:
            self.checkpoints = Path(payload.checkpoints)
        self.cache = Path(payload.cache) if payload.cache else None

    def rows(self, split: Literal["train", "validation"]) -> Iterator[dict[str, Any]]:
        """Reads one row group at a time, so memory stays flat however many rows there are."""
        from studio import rowfile  # pyarrow, which not every order needs

        yield from rowfile.read(self._rows, split=split)

    def stopping(self) -> bool:
        if not self._stop.asked:
            self._look_for_stop()
        self.stop_seen = self._stop.asked
        return self.stop_seen

    def pausing(self) -> bool:
        # Without a listener nobody would learn of a result, and the next attempt goes on from the state.
        return self.stopping() and (self._reporter.listener_gone or self._pause_file.exists())

    def _look_for_stop(self) -> None:
        now = time.monotonic()
        if now - self._looked_at >= LOOK_EVERY:
            self._looked_at = now
            # Without a listener nobody would learn of the result: save what there is and end.
            if self._stop_file.exists() or self._reporter.listener_gone:
                self._stop.asked = True

    def phase(self, name: Phase, text: str = "") -> None:
        self.flush()
        self._reporter.report("phase", name=clean(name), text=clean(text))
        self._progress_at = -math.inf  # the first progress of a phase is shown at once

    def progress(self, done: float, total: float, unit: str = "") -> None:
        numbers = self._finite({"done": done, "total": total})
        self._progress = {**numbers, "unit": clean(unit)}
        if time.monotonic() - self._progress_at >= PROGRESS_EVERY:
            self.flush()

    def flush(self) -> None:
        """Sends the progress that was held back, so that the last one of a phase is never missing."""
        if self._progress is not None:
            self._progress_at = time.monotonic()
            self._reporter.report("progress", **self._progress)
            self._progress = None

    def metric(self, *, step: int, total: int, **values: float) -> None:
        if taken := RESERVED & values.keys():
            raise ValueError(f"A metric cannot be named {min(taken)}.")
        if len(values) > MOST_NUMBERS:
            raise ValueError(f"A metric has at most {MOST_NUMBERS} numbers, not {len(values)}.")
        numbers = self._finite({clean(name)[:LONGEST_NAME]: value for name, value in values.items()})
        self._reporter.report("metric", step=int(step), total=int(total), **numbers)

    def sample(self, *, step: int, prompt: str, answer: str) -> None:
        self._reporter.report("sample", step=int(step), prompt=clean(prompt), answer=clean(answer))

    def rows_shown(self, *, step: int, name: Literal["first_batch", "best", "worst"], rows: list[dict[str, Any]]) -> None:
        self._reporter.report("rows", step=int(step), name=name, rows=clean_json(rows[:MOST_ROWS]))

    def checkpoint(self, *, step: int, folder: Path) -> None:
        homes = [home for home in (self.work.parent, self.checkpoints.parent) if folder.is_relative_to(home)]
        within = folder.relative_to(homes[0]) if homes else folder.name
        self._reporter.report("checkpoint", step=int(step), folder=clean(within))

    def note(self, text: str, *, level: Literal["info", "warning"] = "info") -> None:
        self._reporter.report("note", text=clean(text), level="warning" if level == "warning" else "info")

    def _finite(self, values: dict[str, Any]) -> dict[str, float | int | None]:
        """JSON knows no NaN and no infinity: they become null, and a warning says so once."""
        numbers = {name: value if isinstance(value, int) else float(value) for name, value in values.items()}
        strange = [name for name, number in numbers.items() if not math.isfinite(number)]
        if strange and not self._warned_of_numbers:
            self._warned_of_numbers = True
            self.note(
                f"{strange[0]} is {numbers[strange[0]]}, which is no number. A learning rate that is too high often causes this.",
                level="warning",
            )
        return {name: None if name in strange else number for name, number in numbers.items()}


def made_empty(folder: Path) -> Path:
    remove_folder(folder)
    folder.mkdir(parents=True)
    return folder
