"""A first look at an upload: what it is taken for, its first rows and first refusals. Reads the beginning only; keeps nothing. No Django.

`python -m studio.datasets.peeking` does it in a process of its own, within limits: a request as JSON on standard input, the answer as
JSON on standard output. `studio.datasets.previews` asks.
"""

import resource
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from studio.datasets.importing import LOOKED_AT, Intake, columns_of, look_ahead, shortened
from studio.datasets.readers import Line, Reading, Refusal, open_file
from studio.datasets.shapes import Detection
from studio.errors import UserError
from studio.lifeline import die_with_parent
from studio.worker.process import be_ended_first, limit_memory

BYTES = 2 * 1024 * 1024
MEMORY = 1 << 30
SECONDS = 20
"""Of the processor."""
WRITTEN = 2 << 30
"""Bytes of the largest file that a look may write: the answer, or what has to be unpacked before it can be read."""
SHOWN = 20


@dataclass
class Peek:
    file_format: str
    """JSONL, JSON, CSV, Parquet, ..., or text."""
    detection: Detection
    """shape (None: a person has to map columns), format, mapping, reason, sure, columns."""
    reading: Reading
    records: list[dict[str, Any]] = field(default_factory=list)
    """The first records as they stand in the file, long values cut: for the column mapper."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """The first canonical rows."""
    refusals: list[Refusal] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)
    """`{column: the beginning of its first value}`."""

    def as_dict(self) -> dict[str, Any]:
        found, reading = self.detection, self.reading
        return {
            "file_format": self.file_format,
            "encoding": reading.encoding,
            "sheet": reading.sheet,
            "sheets": list(reading.sheets),
            "shape": found.shape,
            "format": found.format,
            "reason": found.reason,
            "sure": found.sure,
            "mapping": found.mapping,
            "columns": self.columns,
            "rows": [shortened(row) for row in self.rows],
            "refusals": [refusal.as_dict() for refusal in self.refusals],
            "notices": self.notices,
        }


def peek(
    path: Path, filename: str, *, mapping: dict[str, str] | None = None, limit: int = SHOWN, work: Path | None = None, **reading: str
) -> Peek:
    """Looks at the first records, no further than about 2 MB into the file. `reading` may choose `encoding` and `sheet`.

    Raises UserError where the file cannot be read at all, or the mapping does not fit.
    """
    opened = open_file(path, filename=filename, work=work, **reading)
    try:
        lines, detection = look_ahead(opened, mapping=mapping or {})
    except UserError as error:
        error.facts = {"sheets": list(opened.sheets)} | error.facts  # another sheet may be the one that is meant
        raise
    intake = Intake(opened, detection)
    found = Peek(opened.format, detection, opened)
    seen: list[Line | Refusal] = []
    for number, outcome in enumerate(lines):
        seen.append(outcome)
        if isinstance(outcome, Line) and len(found.records) < limit:
            found.records.append({name: _cut(value) for name, value in outcome.columns.items()})
        if detection.shape is not None:
            taken = intake.take(outcome)
            (found.refusals if isinstance(taken, Refusal) else found.rows).append(taken)  # type: ignore[arg-type]
        elif isinstance(outcome, Refusal):
            found.refusals.append(outcome)
        if len(found.rows) >= limit or number >= LOOKED_AT or opened.position > BYTES:
            break
    found.columns = columns_of(seen)
    found.rows, found.refusals = found.rows[:limit], found.refusals[:limit]
    found.notices = intake.notices() if detection.shape is not None else list(opened.notices)
    return found


def _cut(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text[:200] + "…" if len(text) > 200 else text


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """What a look at `file` found, or `{"error": {...}}`. `work` is a folder for what must be unpacked."""
    chosen = {name: request[name] for name in ("encoding", "sheet") if request.get(name)}
    where = Path(request["file"]), request["filename"]
    try:
        return peek(*where, mapping=request.get("mapping"), work=Path(request["work"]), **chosen).as_dict()
    except UserError as error:
        return {"error": {"message": error.message, "code": error.code, "fields": error.fields, "facts": error.facts}}
    except MemoryError:
        return {"error": {"message": "The beginning of the file needs more memory than a preview may take.", "code": "too_large"}}


def main() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (WRITTEN, WRITTEN))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit_memory(str(MEMORY))
    be_ended_first()
    request = orjson.loads(sys.stdin.buffer.read())
    sys.stdout.buffer.write(orjson.dumps(answer(request), default=str))


if __name__ == "__main__":
    die_with_parent()
    main()
