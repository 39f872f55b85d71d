"""A first look at an upload: what it is taken for, its first rows and first refusals. Reads the beginning only; keeps nothing."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studio.datasets.importing import LOOKED_AT, Intake, look_ahead
from studio.datasets.readers import Line, Refusal, open_file
from studio.datasets.shapes import Detection

BYTES = 2 * 1024 * 1024


@dataclass
class Peek:
    file_format: str
    """JSONL, JSON, CSV, Parquet or text."""
    detection: Detection
    """shape (None: a person has to map columns), format, mapping, reason, sure, columns."""
    records: list[dict[str, Any]] = field(default_factory=list)
    """The first records as they stand in the file, long values cut: for the column mapper."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """The first canonical rows."""
    refusals: list[Refusal] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def peek(path: Path, filename: str, *, mapping: dict[str, str] | None = None, limit: int = 20) -> Peek:
    """Looks at the first records, no further than about 2 MB into the file.

    Raises UserError where the file cannot be read at all, or the mapping does not fit.
    """
    reading = open_file(path, filename=filename)
    lines, detection = look_ahead(reading, mapping=mapping or {})
    intake = Intake(reading, detection)
    found = Peek(reading.format, detection)
    for number, outcome in enumerate(lines):
        if isinstance(outcome, Line) and len(found.records) < limit:
            found.records.append({name: _cut(value) for name, value in outcome.columns.items()})
        if detection.shape is not None:
            taken = intake.take(outcome)
            (found.refusals if isinstance(taken, Refusal) else found.rows).append(taken)  # type: ignore[arg-type]
        elif isinstance(outcome, Refusal):
            found.refusals.append(outcome)
        if len(found.rows) >= limit or number >= LOOKED_AT or reading.position > BYTES:
            break
    found.rows, found.refusals = found.rows[:limit], found.refusals[:limit]
    found.notices = intake.notices() if detection.shape is not None else list(reading.notices)
    return found


def _cut(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text[:200] + "…" if len(text) > 200 else text
