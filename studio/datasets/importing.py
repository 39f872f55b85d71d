"""One uploaded file as a dataset version: canonical rows, refusals, split, counts and findings. Runs in a worker process; no Django.

What a format or a shape is stands in `readers` and `shapes`.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from studio.datasets import rows, sealing, splitting
from studio.datasets.findings import FEW, Findings
from studio.datasets.messages import Unusable
from studio.datasets.readers import Line, Reading, Refusal, open_file
from studio.datasets.readers.lines import COLUMNS, excerpt
from studio.datasets.shapes import Converter, Detection, detect
from studio.errors import UserError
from studio.training.job import Job
from studio.training.orders import DatasetPayload

LOOKED_AT = 100
"""Records that the shape is detected from."""
REPORT_EVERY = 500
KEPT_REFUSALS = 100_000
"""Refused lines that are written down; all are counted. A file of nothing else would make a list a hundred times its size."""
PREVIEWED = 5
PREVIEWED_CHARACTERS = 2000
PREVIEWED_MESSAGES = 20
TRACKED_COLUMNS = 1000
MAPPABLE = 50
"""Columns that a person is shown to say what they mean."""


def run(payload: dict[str, Any], job: Job) -> dict[str, Any]:
    """Reads `payload["file"]` into job.out/rows.parquet and job.out/refusals.jsonl; returns what was found.

    Raises UserError where nothing can be used, or where rows are refused and the person chose to stop at that.
    """
    order = DatasetPayload.model_validate(payload)
    job.phase("reading", f"Reading {excerpt(order.filename)[:80]}")
    reading = open_file(Path(order.file), filename=order.filename)
    lines, detection = look_ahead(reading, mapping=order.mapping)
    if detection.shape is None:
        facts = {"columns": columns_of(islice(lines, LOOKED_AT))}
        raise UserError(detection.reason, fields={"mapping": "Choose which column is which."}, code="unknown_shape", facts=facts)
    draft, target = job.work / "draft.parquet", job.out / "rows.parquet"
    taken = Intake(reading, detection)
    with rows.RowWriter(draft) as writer, (job.out / "refusals.jsonl").open("wb") as refusals:
        for outcome in watched(lines, reading, job):
            if isinstance(refusal := taken.take(outcome, writer), Refusal) and taken.refused <= KEPT_REFUSALS:
                refusals.write(orjson.dumps(refusal.as_dict()) + b"\n")
    job.progress(reading.size, reading.size, "bytes")
    if order.refused == "stop" and taken.refused:
        raise UserError(f"{_counted(taken.refused, 'row was', 'rows were')} refused, and you chose to stop at that. {_first(taken)}")
    if not taken.hashes:
        facts = {"columns": dict.fromkeys(detection.columns[:MAPPABLE], "")}
        raise UserError(f"{nothing_usable(taken)} {_first(taken)}" if taken.refused else "The file is empty.", facts=facts)
    drafted = sealing.Drafted(
        draft=draft,
        shape=detection.shape,
        hashes=np.frombuffer(taken.hashes, dtype=np.uint64),
        flags=np.frombuffer(taken.flags, dtype=np.uint32),
    )
    sealed = sealing.seal(job, drafted, target, percent=order.validation_percent, seed=order.seed)
    result = taken.result(duplicates=sealed.duplicates, validation=sealed.validation, percent=order.validation_percent)
    return result | {"findings": sealed.findings, "tokens": _tokens(job, target, order.base)}


def look_ahead(reading: Reading, *, mapping: dict[str, str]) -> tuple[Iterator[Line | Refusal], Detection]:
    """All lines from the first on, and what the first records were taken for."""
    first: list[Line | Refusal] = []
    records: list[dict[str, Any]] = []
    for outcome in reading.lines:
        first.append(outcome)
        if isinstance(outcome, Line):
            records.append(outcome.columns)
        if len(records) == LOOKED_AT or len(first) == 10 * LOOKED_AT:
            break
    if not first:
        raise UserError("The file is empty." if reading.format != "CSV" else "The file has a header, but no rows.")
    refused = [outcome for outcome in first if isinstance(outcome, Refusal)]
    if not records:
        several = f" So were the next {len(refused) - 1}." if len(refused) > 1 else ""
        raise UserError(f"No row can be used. {refused[0].reason}{several}")
    try:
        detection = detect(records, mapping=mapping)
    except UserError as error:
        error.facts = {"columns": columns_of(first)}
        raise
    return chain(first, reading.lines), detection


def columns_of(outcomes: Iterable[Line | Refusal]) -> dict[str, str]:
    """`{column: the beginning of its first value}`, for whoever has to say which column is which."""
    found: dict[str, str] = {}
    for line in outcomes:
        for name, value in line.columns.items() if isinstance(line, Line) else ():
            if name in found or len(found) < MAPPABLE:
                found[name] = found.get(name) or example(value)
    return found


def example(value: Any) -> str:
    text = _short(value)
    return excerpt(text if isinstance(text, str) else orjson.dumps(text, default=str).decode())[:80]


def watched(lines: Iterator[Line | Refusal], reading: Reading, job: Job) -> Iterator[Line | Refusal]:
    """The same lines, with progress told and a stop heeded on the way."""
    for number, outcome in enumerate(lines):
        if number % REPORT_EVERY == 0:
            job.raise_if_stopped()
            job.progress(reading.position, reading.size, "bytes")
        yield outcome


class Intake:
    """Takes records in one by one and remembers what the result has to tell; memory grows by 20 bytes a row."""

    def __init__(self, reading: Reading, detection: Detection):
        self.reading, self.detection = reading, detection
        self.converter = Converter(detection)
        self.findings = Findings()
        self.hashes = array("Q")
        self.flags = array("I")
        self.content = hashlib.sha256()
        self.records = self.refused = self.identical = 0
        self.seen: Counter[str] = Counter()
        self.first_refusals: list[Refusal] = []
        self.preview: list[dict[str, Any]] = []

    def take(self, outcome: Line | Refusal, writer: rows.RowWriter | None = None) -> dict[str, Any] | Refusal:
        """The canonical row, written and counted; or why there is none."""
        taken = outcome if isinstance(outcome, Refusal) else self._converted(outcome)
        if isinstance(taken, Refusal):
            self.refused += 1
            if len(self.first_refusals) < PREVIEWED:
                self.first_refusals.append(taken)
            return taken
        row, canonical = taken
        digest = hashlib.sha256(canonical).digest()
        self.hashes.append(splitting.row_hash(digest))
        self.content.update(canonical + b"\n")
        self.flags.append(self.findings.add(row, canonical))
        if len(self.preview) < PREVIEWED:
            self.preview.append(shortened(row))
        if writer is not None:
            writer.add(line=outcome.line if isinstance(outcome, Refusal) else outcome.number, row=canonical.decode())
        return row

    def _converted(self, line: Line) -> tuple[dict[str, Any], bytes] | Refusal:
        self.records += 1
        for name in line.columns:
            if name in self.seen or len(self.seen) < TRACKED_COLUMNS:
                self.seen[name] += 1
        try:
            row = self.converter.row(line.columns)
            canonical = _canonical(row)
        except Unusable as problem:
            self.identical += problem.kind == "identical"
            column = problem.column or (f"message {problem.message}" if problem.message else "")
            return Refusal(line.number, column, problem.sentence(f"{self.reading.unit} {line.number}"), _shown(line.columns))
        return row, canonical

    def result(self, *, duplicates: int, validation: int, percent: float) -> dict[str, Any]:
        count = len(self.hashes)
        return {
            "shape": self.detection.shape,
            "format": self.detection.format,
            "file_format": self.reading.format,
            "reason": self.detection.reason,
            "mapping": self.detection.mapping,
            "columns": list(self.seen)[:COLUMNS],
            "rows": count,
            "refused": self.refused,
            "duplicates": duplicates,
            "blank_lines": self.reading.blank,
            "rows_sha256": self.content.hexdigest(),
            "split": {"train": count - validation, "validation": validation},
            "statistics": self.findings.statistics(),
            "notices": self.notices(),
            "warnings": self._warnings(duplicates=duplicates, validation=validation, percent=percent),
            "preview": self.preview,
        }

    def notices(self) -> list[str]:
        """What was done with the file that a person may not expect."""
        used = set(self.detection.mapping.values())
        unused = [name for name in self.seen if name not in used]
        told = list(self.reading.notices)
        if self.reading.blank:
            told.append(f"{_counted(self.reading.blank, 'blank line', 'blank lines')} skipped.")
        if unused:
            more = f" and {len(unused) - 10} more" if len(unused) > 10 else ""
            told.append(f"Columns left out: {', '.join(name[:40] for name in unused[:10])}{more}.")
        if not self.detection.sure:
            told.append(self.detection.reason)
        for name, number in list(self.seen.items())[:20]:
            if number < self.records:
                told.append(f"Column {name[:40]} is missing in {_counted(self.records - number, 'row', 'rows')}.")
        told += [f"{sentence} ({_counted(number, 'time', 'times')})." for sentence, number in self.converter.passed_over.most_common(10)]
        return told

    def _warnings(self, *, duplicates: int, validation: int, percent: float) -> list[str]:
        count, told = len(self.hashes), []
        if count < FEW:
            told.append(f"Only {_counted(count, 'row', 'rows')} can be used. Training needs at least {FEW} to learn anything that lasts.")
        if self.refused:
            listed = f" The first {KEPT_REFUSALS:,} are listed." if self.refused > KEPT_REFUSALS else ""
            told.append(f"{_counted(self.refused, 'row was', 'rows were')} refused and left out.{listed}")
        if self.identical:
            told.append(f"{_counted(self.identical, 'pair is', 'pairs are')} identical, they teach nothing.")
        if duplicates:
            repeated = _counted(duplicates, "row repeats an earlier one", "rows repeat earlier ones")
            told.append(f"{max(1, round(100 * duplicates / count))} % duplicates: {repeated} exactly.")
        if percent > 0 and not validation:
            told.append("Too few different rows to hold any back for validation: the run will show no validation loss.")
        return told + self.findings.warnings()


def _canonical(row: dict[str, Any]) -> bytes:
    """Compact JSON. Raises Unusable for text that a database or another program could not take."""
    try:
        canonical = orjson.dumps(row)
    except orjson.JSONEncodeError:
        raise Unusable("broken Unicode escape.") from None
    if b"\\u0000" in canonical and any("\0" in text for text in _texts(row)):
        raise Unusable("contains a NUL character.")
    return canonical


def shortened(row: dict[str, Any]) -> dict[str, Any]:
    """A row for the preview, which travels in an event: long texts cut, and only the first messages."""

    def cut(text: str) -> str:
        return text if len(text) <= PREVIEWED_CHARACTERS else text[:PREVIEWED_CHARACTERS] + "…"

    return {
        name: cut(value)
        if isinstance(value, str)
        else [message | {"content": cut(message["content"])} for message in value[:PREVIEWED_MESSAGES]]
        for name, value in row.items()
    }


def _texts(row: dict[str, Any]) -> Iterator[str]:
    for value in row.values():
        if isinstance(value, str):
            yield value
        else:
            yield from (message["content"] for message in value)


def _shown(columns: dict[str, Any]) -> str:
    return excerpt(orjson.dumps({name: _short(value) for name, value in list(columns.items())[:10]}, default=str).decode())


def _short(value: Any) -> Any:
    """Enough of a value for an excerpt; a refused value may be megabytes long or not even be Unicode."""
    if isinstance(value, str):
        return value[:200].encode(errors="replace").decode()
    if isinstance(value, dict):
        return {str(name)[:40]: _short(child) for name, child in list(value.items())[:4]}
    return [_short(child) for child in value[:4]] if isinstance(value, list) else value


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def nothing_usable(taken: Intake) -> str:
    return "The only row cannot be used." if taken.refused == 1 else f"None of the {taken.refused} rows can be used."


def _first(taken: Intake) -> str:
    return " ".join(refusal.reason for refusal in taken.first_refusals)


def _tokens(job: Job, target: Path, base: str) -> dict[str, Any] | None:
    if not base:
        return None
    from studio.ml.tokenstats import measure  # torch's side: only where a base model is there to measure with

    job.phase("tokenizing", "Counting tokens")
    return measure(target, Path(base))
