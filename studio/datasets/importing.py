"""One uploaded file as a dataset version: canonical rows, refusals, split, counts and findings. Runs in a worker process; no Django.

What a format or a shape is stands in `readers` and `shapes`.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from studio.datasets import fast_lane, rows, sealing, splitting
from studio.datasets.ahead import ahead
from studio.datasets.findings import FEW, Findings
from studio.datasets.messages import Unusable
from studio.datasets.readers import Line, Reading, Refusal, jsonl, open_file
from studio.datasets.readers.blocks import LINE_END, Block, blocks
from studio.datasets.readers.lines import COLUMNS, excerpt
from studio.datasets.shapes import Converter, Detection, canonical_json, detect
from studio.errors import UserError
from studio.training.job import Job
from studio.training.orders import DatasetPayload, SplitRules

LOOKED_AT = 100
"""Records that the shape is detected from."""
REPORT_EVERY = 500
NAMED_STRATA = 1000
"""Values of the column that a split is stratified by whose names are remembered."""
PREVIEWED = 5
PREVIEWED_CHARACTERS = 2000
PREVIEWED_MESSAGES = 20
TRACKED_COLUMNS = 1000
MAPPABLE = 50
"""Columns that a person is shown to say what they mean."""


def run(payload: dict[str, Any], job: Job) -> dict[str, Any]:
    """Reads `payload["file"]` into job.out/rows.parquet and job.out/refusals.jsonl.gz; returns what was found.

    Raises UserError where nothing can be used, or where rows are refused and the person chose to stop at that.
    """
    try:
        return _import(DatasetPayload.model_validate(payload), job)
    except UserError as error:
        if columns := error.facts.get("columns"):  # as pairs, since PostgreSQL sorts the names of an object
            error.facts = error.facts | {"columns": [list(pair) for pair in columns.items()]}
        raise


def _import(order: DatasetPayload, job: Job) -> dict[str, Any]:
    job.phase("reading", f"Reading {excerpt(order.filename)[:80]}")
    reading = opened(order, job)
    first, detection = begin(reading, mapping=order.mapping)
    if detection.shape is None:
        facts = {"columns": columns_of(islice(chain(first, reading.lines), LOOKED_AT))}
        raise UserError(detection.reason, fields={"mapping": "Choose which column is which."}, code="unknown_shape", facts=facts)
    check_rules(order.rules, detection.columns)
    draft, target = job.work / "draft.parquet", job.out / "rows.parquet"
    lane = fast_lane.lane_for(detection, [line.columns for line in first if isinstance(line, Line)])
    if reading.format != "JSONL" or order.rules.stratify or order.rules.together:
        lane = None  # whose rows stand in no columns that a pattern would know
    if lane is not None:
        reading = opened(order, job)  # from the first line on, and by blocks
    taken = Intake(reading, detection, order.rules)
    with rows.RowWriter(draft) as writer, rows.RefusalWriter(job.out / "refusals.jsonl") as refusals:
        if lane is not None:
            for proven in watched_blocks(ahead(fast_lane.prove(lane, block) for block in blocks(reading)), reading, job):
                taken.take_block(proven, writer, refused=lambda refusal: refusals.add(refusal.as_dict()))
        else:
            for outcome in watched(chain(first, reading.lines), reading, job):
                if isinstance(refusal := taken.take(outcome, writer), Refusal):
                    refusals.add(refusal.as_dict())
    taken.listed = refusals.written
    job.progress(reading.size, reading.size, "bytes")
    if order.refused == "stop" and taken.refused:
        raise UserError(f"{_counted(taken.refused, 'row was', 'rows were')} refused, and you chose to stop at that. {_first(taken)}")
    if not taken.hashes:
        facts = {"columns": dict.fromkeys(detection.columns[:MAPPABLE], "")}
        raise UserError(f"{nothing_usable(taken)} {_first(taken)}" if taken.refused else "The file is empty.", facts=facts)
    drafted = taken.drafted(draft)
    sealed = sealing.seal(
        job, drafted, target, percent=order.validation_percent, seed=order.seed, near_duplicates=order.rules.near_duplicates
    )
    result = taken.result(duplicates=sealed.duplicates, validation=sealed.validation, percent=order.validation_percent)
    split = {**sealed.told, "strata": sealing.strata_facts(sealed, taken.strata_names), "warnings": result["warnings"] + sealed.warnings}
    return result | split | {"tokens": _tokens(job, target, order.base)}


def opened(order: DatasetPayload, job: Job) -> Reading:
    return open_file(Path(order.file), filename=order.filename, encoding=order.encoding, sheet=order.sheet, work=job.work)


def check_rules(rules: SplitRules, columns: list[str]) -> None:
    """Raises UserError for a column that the file does not have."""
    for rule, name in (("stratify", rules.stratify), ("together", rules.together)):
        if name and name not in columns:
            more = f" and {len(columns) - 20} more" if len(columns) > 20 else ""
            available = ", ".join(excerpt(column)[:40] for column in columns[:20])
            sentence = f'The split cannot go by column "{excerpt(name)[:100]}", it is not in the file. Available: {available}{more}.'
            raise UserError(sentence, fields={f"rules.{rule}": sentence}, code="unknown_column")


def look_ahead(reading: Reading, *, mapping: dict[str, str]) -> tuple[Iterator[Line | Refusal], Detection]:
    """All lines from the first on, and what the first records were taken for."""
    first, detection = begin(reading, mapping=mapping)
    return chain(first, reading.lines), detection


def begin(reading: Reading, *, mapping: dict[str, str]) -> tuple[list[Line | Refusal], Detection]:
    """The first lines, and what their records were taken for."""
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
    return first, detection


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


def watched_blocks(proven: Iterator[fast_lane.Proven], reading: Reading, job: Job) -> Iterator[fast_lane.Proven]:
    for one in proven:
        job.raise_if_stopped()
        job.progress(reading.position, reading.size, "bytes")
        yield one


class Intake:
    """Takes records in, one by one or by blocks, and remembers what the result has to tell; memory grows by 16 bytes a row."""

    def __init__(self, reading: Reading, detection: Detection, rules: SplitRules | None = None):
        self.reading, self.detection = reading, detection
        self.rules = rules or SplitRules()
        self.converter = Converter(detection)
        self.findings = Findings()
        self.hashes = array("Q")
        self.content = hashlib.sha256()
        self.strata, self.together = array("Q"), array("Q")
        self.strata_names: dict[int, str] = {}
        self.records = self.refused = self.identical = self.listed = 0
        self.seen: Counter[str] = Counter()
        self.first_refusals: list[Refusal] = []
        self.preview: list[dict[str, Any]] = []

    def take(self, outcome: Line | Refusal, writer: rows.RowWriter | None = None) -> dict[str, Any] | Refusal:
        """The canonical row, written and counted; or why there is none."""
        taken = self._taken(outcome)
        if isinstance(taken, Refusal):
            return taken
        row, canonical = taken
        digest = hashlib.sha256(canonical).digest()
        self.hashes.append(splitting.row_hash(digest))
        self.content.update(canonical + b"\n")
        self.findings.count(row)
        if isinstance(outcome, Line):
            self._sort(outcome.columns)
        if len(self.preview) < PREVIEWED:
            self.preview.append(shortened(row))
        if writer is not None:
            writer.add(line=outcome.line if isinstance(outcome, Refusal) else outcome.number, row=canonical.decode())
        return row

    def take_block(self, proven: fast_lane.Proven, writer: rows.RowWriter, *, refused: Callable[[Refusal], None]) -> None:
        """All lines of a block, as `take` takes them one by one."""
        block, chat = proven.block, proven.lane.chat
        text, places, odd = self._block_rows(proven, refused)
        if not len(places):
            return
        self.content.update(text)
        ends = np.flatnonzero(np.frombuffer(text, np.uint8) == LINE_END)
        bounds = np.concatenate((np.zeros(1, np.int64), ends + 1))
        each = text.split(b"\n")
        each.pop()
        self.hashes.frombytes(b"".join([hashlib.sha256(row).digest()[:8] for row in each]))
        offsets = (bounds - np.arange(len(bounds))).astype(np.int32)
        texts = pa.StringArray.from_buffers(len(places), pa.py_buffer(offsets), pa.py_buffer(text.replace(b"\n", b"")))
        self._count(*fast_lane.measures(text, bounds, chat=chat), odd)
        for row in each[: max(0, PREVIEWED - len(self.preview))]:
            self.preview.append(shortened(orjson.loads(row)))
        writer.add_block(lines=block.number + places, texts=texts)

    def _block_rows(
        self, proven: fast_lane.Proven, refused: Callable[[Refusal], None]
    ) -> tuple[bytes, npt.NDArray[np.int64], dict[int, dict[str, Any]]]:
        """The canonical rows, each with a line end; the line in the block of each; and those that were not proven, by their place."""
        block, columns = proven.block, proven.lane.columns
        text, found = fast_lane.rows_of(proven)
        if found is None:
            self._saw(columns, len(block))
            return text, np.arange(len(block)), {}
        proven_lines = len(block) - found.count(None)
        odd: dict[int, dict[str, Any]] = {}
        for place, row in enumerate(found):
            if row is None:
                taken = self._unproven(block, place, refused)
                if taken is not None:
                    odd[place], found[place] = taken
            elif proven_lines:
                self._saw(columns, proven_lines)
                proven_lines = 0
        places = np.array([place for place, row in enumerate(found) if row is not None], dtype=np.int64)
        text = b"".join([row + b"\n" for row in found if row is not None])
        return text, places, {int(np.searchsorted(places, place)): row for place, row in odd.items()}

    def _unproven(self, block: Block, place: int, refused: Callable[[Refusal], None]) -> tuple[dict[str, Any], bytes] | None:
        last = place == len(block) - 1 and not block.ended
        outcome = jsonl.judged(self.reading, block.number + place, block.line(place), last=last)
        taken = self._taken(outcome) if outcome is not None else None
        if isinstance(taken, Refusal):
            refused(taken)
            return None
        return taken

    def _taken(self, outcome: Line | Refusal) -> tuple[dict[str, Any], bytes] | Refusal:
        taken = outcome if isinstance(outcome, Refusal) else self._converted(outcome)
        if isinstance(taken, Refusal):
            self.refused += 1
            if len(self.first_refusals) < PREVIEWED:
                self.first_refusals.append(taken)
        return taken

    def _count(self, messages: npt.NDArray[np.int64], characters: npt.NDArray[np.int64], odd: dict[int, dict[str, Any]]) -> None:
        """Lengths and roles of a block's rows; the odd ones, which may hold more than roles and texts, are counted by themselves."""
        counted = self.findings
        for place, row in odd.items():
            counted.count(row)
            messages[place], characters[place] = counted.turns.pop(), counted.characters.pop()
        pairs = np.delete(messages, list(odd))
        if pairs.any():
            turns, first = int((pairs // 2).sum()), int((pairs % 2).sum())
            counted.roles.update({"user": turns, "assistant": turns} | ({"system": first} if first else {}))
        counted.turns.frombytes(messages.astype(np.uint32).tobytes())
        counted.characters.frombytes(characters.astype(np.uint32).tobytes())

    def _sort(self, columns: dict[str, Any]) -> None:
        """Remembers what the split goes by."""
        for values, name in ((self.strata, self.rules.stratify), (self.together, self.rules.together)):
            if name:
                values.append(splitting.value_hash(columns.get(name)))
        if self.rules.stratify and len(self.strata_names) < NAMED_STRATA and (value := self.strata[-1]) != splitting.NOTHING:
            self.strata_names.setdefault(value, excerpt(str(columns[self.rules.stratify]))[:80])

    def _saw(self, names: Iterable[str], times: int = 1) -> None:
        """Counts records with these columns."""
        self.records += times
        for name in names:
            if name in self.seen or len(self.seen) < TRACKED_COLUMNS:
                self.seen[name] += times

    def _converted(self, line: Line) -> tuple[dict[str, Any], bytes] | Refusal:
        self._saw(line.columns)
        try:
            row = self.converter.row(line.columns)
            canonical = canonical_json(row)
        except Unusable as problem:
            self.identical += problem.kind == "identical"
            column = problem.column or (f"message {problem.message}" if problem.message else "")
            return Refusal(line.number, column, problem.sentence(f"{self.reading.unit} {line.number}"), _shown(line.columns))
        return row, canonical

    def drafted(self, draft: Path) -> sealing.Drafted:
        strata, together = (np.frombuffer(values, dtype=np.uint64) if values else None for values in (self.strata, self.together))
        return sealing.Drafted(
            draft=draft,
            shape=str(self.detection.shape),
            hashes=np.frombuffer(self.hashes, dtype=np.uint64),
            flags=np.zeros(len(self.hashes), dtype=np.uint32),
            strata=strata,
            together=together,
        )

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
            listed = f" The first {self.listed:,} are listed." if self.listed < self.refused else ""
            told.append(f"{_counted(self.refused, 'row was', 'rows were')} refused and left out.{listed}")
        if self.identical:
            told.append(f"{_counted(self.identical, 'pair is', 'pairs are')} identical, they teach nothing.")
        if duplicates:
            repeated = _counted(duplicates, "row repeats an earlier one", "rows repeat earlier ones")
            told.append(f"{max(1, round(100 * duplicates / count))} % duplicates: {repeated} exactly.")
        if percent > 0 and not validation:
            told.append("Too few different rows to hold any back for validation: the run will show no validation loss.")
        return told


def shortened(row: dict[str, Any]) -> dict[str, Any]:
    """A row for the preview, which travels in an event: long texts cut, and only the first messages."""

    def cut(text: str) -> str:
        return text if len(text) <= PREVIEWED_CHARACTERS else text[:PREVIEWED_CHARACTERS] + "…"

    return {
        name: cut(value)
        if isinstance(value, str)
        else [
            _short(message) | {key: cut(message[key]) for key in ("content",) if key in message} for message in value[:PREVIEWED_MESSAGES]
        ]
        for name, value in row.items()
    }


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
