"""Writes what a worker reports: numbered lines, to events.jsonl first and then to the pipe. Knows nothing of orders.

The keys of each type, besides seq, attempt, at and type:

    phase       name, text
    progress    done, total, unit
    metric      step, total, and each number under its name (null where it was not finite)
    sample      step, prompt, answer
    rows        step, name, rows
    checkpoint  step, folder (within the attempt's or the order's folder)
    note        text, level
    end         status, result, error, detail
"""

import json
import math
import os
import re
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

LONGEST_TEXT = 20_000
LARGEST_NUMBER = 1 << 63
LONGEST_NAME = 60
"""Characters of a metric's name."""
SPEECH: dict[str, tuple[float, float]] = {
    "metric": (2000, 20),
    "progress": (1000, 0.5),
    "sample": (500, 2),
    "rows": (100, 0.5),
    "phase": (200, 1),
    "note": (200, 0.5),
    "checkpoint": (500, 1),
}
"""How many events of a type may come at once, and how many each second after that; other types have no limit here."""
METRIC_KINDS = 16
"""Sets of metric names that are counted apart, so that a loss at every step does not crowd out the rare validation loss."""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def clean(text: object) -> str:
    """A text that any screen, file and database takes: no control characters but newline and tab, no half characters."""
    whole = str(text).encode("utf-8", "replace").decode("utf-8")
    return CONTROL.sub("", whole)[:LONGEST_TEXT]


def clean_json(value: Any) -> Any:
    """A value as JSON has it: texts cleaned; NaN, infinity and numbers beyond 64 bits as null. Raises TypeError for what is no JSON."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) < LARGEST_NUMBER else None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str | Path):
        return clean(value)
    if isinstance(value, dict):
        return {clean(key): clean_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [clean_json(each) for each in value]
    raise TypeError(f"{type(value).__name__} is no JSON")


class Allowance:
    """So many at once, and so many each second after that. `take` is False where there is nothing left of it."""

    def __init__(self, at_once: float, per_second: float):
        self.at_once, self.per_second = at_once, per_second
        self.left = at_once
        self.filled_at = time.monotonic()

    def take(self, amount: float = 1) -> bool:
        now = time.monotonic()
        self.left = min(self.at_once, self.left + (now - self.filled_at) * self.per_second)
        self.filled_at = now
        if self.left < amount:
            return False
        self.left -= amount
        return True


class Reporter:
    """The one pen. Safe to use from several threads; after `end` it writes no more.

    Whoever reports faster than anybody reads is thinned, with a note that says so; the last metric and progress are always sent.
    """

    def __init__(self, *, folder: Path, pipe: int, attempt: int, first_seq: int):
        self.attempt = attempt
        self.seq = first_seq
        self.ended = False
        self.listener_gone = False
        self._pipe = pipe
        self._file = (folder / "events.jsonl").open("ab")
        self._lock = threading.RLock()  # a plugin's signal handler may report in the middle of a report
        self._allowances: dict[tuple[str, ...], Allowance] = {}
        self._held: dict[tuple[str, ...], dict[str, Any]] = {}
        self._thinned: set[str] = set()

    def report(self, type_: str, **body: Any) -> None:
        """Stores one event, then sends it; or leaves it out, where too many of its type came before."""
        with self._lock:
            if self.ended:
                return
            kind = self._kind(type_, body)
            if kind is not None and not self._allowances[kind].take():
                self._leave_out(type_, kind, body)
                return
            if type_ == "phase":
                self._write_held()
            self._held.pop(kind or (), None)
            self._write(type_, body)

    def _kind(self, type_: str, body: dict[str, Any]) -> tuple[str, ...] | None:
        """What an event is counted with; None where it is not counted."""
        if type_ not in SPEECH:
            return None
        kind = (type_, *sorted(body)) if type_ == "metric" else (type_,)
        if kind not in self._allowances:
            if len(self._allowances) >= METRIC_KINDS + len(SPEECH):
                kind = (type_,)
            self._allowances.setdefault(kind, Allowance(*SPEECH[type_]))
        return kind

    def _leave_out(self, type_: str, kind: tuple[str, ...], body: dict[str, Any]) -> None:
        if type_ in ("metric", "progress"):
            self._held[kind] = body
        if type_ not in self._thinned and type_ != "progress":
            self._thinned.add(type_)
            text = f"Events of the type {type_} come faster than they can be shown, so only some of them are kept."
            self._write("note", {"text": text, "level": "info"})

    def _write_held(self) -> None:
        """What was held back last of each kind, so that no curve ends before the run does."""
        while self._held:
            kind = next(iter(self._held))
            self._write(kind[0], self._held.pop(kind))

    def _write(self, type_: str, body: dict[str, Any]) -> None:
        line = self._line(type_, body)
        self._store(line)
        self._send(line)

    def end(self, **body: Any) -> None:
        """The last event, sent even where it cannot be stored: on a full disk it is the one that says so."""
        with self._lock:
            if self.ended:
                return
            self.ended = True
            with suppress(OSError):  # a full disk, or a pipe that was closed; the end is told all the same
                self._write_held()
            line = self._line("end", body)
            try:
                self._store(line)
            finally:
                self._send(line)

    def _line(self, type_: str, body: dict[str, Any]) -> bytes:
        head = {"seq": self.seq, "attempt": self.attempt, "at": datetime.now(UTC).isoformat(), "type": type_}
        line = json.dumps(head | body | head, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"
        self.seq += 1
        return line

    def _store(self, line: bytes) -> None:
        self._file.write(line)
        self._file.flush()

    def _send(self, line: bytes) -> None:
        if self.listener_gone:
            return
        try:
            while line:
                line = line[os.write(self._pipe, line) :]
        except BrokenPipeError:
            self.listener_gone = True
