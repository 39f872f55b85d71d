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
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

LONGEST_TEXT = 20_000
LARGEST_NUMBER = 1 << 63
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


class Reporter:
    """The one pen. Safe to use from several threads; after `end` it writes no more."""

    def __init__(self, *, folder: Path, pipe: int, attempt: int, first_seq: int):
        self.attempt = attempt
        self.seq = first_seq
        self.ended = False
        self.listener_gone = False
        self._pipe = pipe
        self._file = (folder / "events.jsonl").open("ab")
        self._lock = threading.Lock()

    def report(self, type_: str, **body: Any) -> None:
        """Stores one event, then sends it."""
        with self._lock:
            if not self.ended:
                line = self._line(type_, body)
                self._store(line)
                self._send(line)

    def end(self, **body: Any) -> None:
        """The last event, sent even where it cannot be stored: on a full disk it is the one that says so."""
        with self._lock:
            if self.ended:
                return
            self.ended = True
            line = self._line("end", body)
            try:
                self._store(line)
            finally:
                self._send(line)

    def _line(self, type_: str, body: dict[str, Any]) -> bytes:
        head = {"seq": self.seq, "attempt": self.attempt, "at": datetime.now(UTC).isoformat(), "type": type_}
        line = json.dumps(head | body | head, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
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
