"""Canonical rows on disk: written once as Parquet, then opened a page at a time. What a row may be is decided elsewhere."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

Split = Literal["train", "validation"]
GROUP = 1000
"""Rows in each row group, at most: what has to be read to show one of them."""
GROUP_SIZE = 8 << 20
"""Characters after which a group ends before it has so many rows: a row may have megabytes."""
PAGE_SIZE = 16 << 20
"""Bytes of rows after which a page ends before it has as many as were asked for."""
DRAFT = pa.schema([("line", pa.int64()), ("row", pa.large_string())])
SCHEMA = pa.schema(
    [("index", pa.int64()), ("line", pa.int64()), ("split", pa.string()), ("duplicate", pa.bool_()), ("row", pa.string())],
)


class RowWriter:
    """Writes rows one by one in groups of `GROUP`, before their splits are known. Flat memory."""

    def __init__(self, path: Path):
        self.writer = pq.ParquetWriter(path, DRAFT, compression="zstd", use_dictionary=False, write_statistics=False)
        self.lines: list[int] = []
        self.rows: list[str] = []
        self.size = 0

    def add(self, *, line: int, row: str) -> None:
        self.lines.append(line)
        self.rows.append(row)
        self.size += len(row)
        if len(self.rows) == GROUP or self.size >= GROUP_SIZE:
            self._flush()

    def _flush(self) -> None:
        if self.rows:
            self.writer.write_table(pa.table([self.lines, self.rows], schema=DRAFT))
            self.lines, self.rows, self.size = [], [], 0

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._flush()
        self.writer.close()


def finish(draft: Path, target: Path, *, validation: npt.NDArray[np.bool_], duplicate: npt.NDArray[np.bool_]) -> None:
    """Copies a draft, group by group, adding each row's index, split and whether it repeats an earlier one."""
    source = pq.ParquetFile(draft)
    options: dict[str, Any] = {"compression": "zstd", "use_dictionary": ["split"], "write_statistics": ["index", "split"]}
    with pq.ParquetWriter(target, SCHEMA, **options) as writer:
        begin = 0
        for group in range(source.num_row_groups):
            table = source.read_row_group(group)
            here = slice(begin, begin + len(table))
            begin = here.stop
            columns = [
                pa.array(np.arange(here.start, here.stop)),
                table["line"].combine_chunks(),
                pa.array(np.where(validation[here], "validation", "train"), pa.string()),
                pa.array(duplicate[here]),
                table["row"].combine_chunks().cast(pa.string()),
            ]
            writer.write_table(pa.table(columns, schema=SCHEMA))


def page(rows_path: Path, *, split: Split | None = None, after: int = -1, limit: int = 50) -> list[dict[str, Any]]:
    """Up to `limit` rows whose index is above `after`: {index, line, split, duplicate, row}, where `row` is the canonical dict.

    Reads only the row groups that hold them. Fewer come where they are very long, but one always does while there are any.
    """
    file = pq.ParquetFile(rows_path)
    found: list[dict[str, Any]] = []
    end, room = 0, PAGE_SIZE
    for group in range(file.num_row_groups):
        end += file.metadata.row_group(group).num_rows
        if end <= after + 1:
            continue
        if split and not _may_hold(file.metadata.row_group(group), split):
            continue
        here, room = _page_of_group(file, group, split=split, after=after, limit=limit - len(found), room=room)
        found += here
        if len(found) >= limit or room <= 0:
            break
    return found


def _may_hold(group: pq.RowGroupMetaData, split: str) -> bool:
    statistics = group.column(SCHEMA.get_field_index("split")).statistics
    return statistics is None or not statistics.has_min_max or bool(statistics.min <= split <= statistics.max)


def _page_of_group(
    file: pq.ParquetFile, group: int, *, split: str | None, after: int, limit: int, room: int
) -> tuple[list[dict[str, Any]], int]:
    """The rows, and how many bytes of room are left after them."""
    # The small columns tell which rows are wanted; only then are the rows themselves read.
    small = file.read_row_group(group, columns=["index", "line", "split", "duplicate"])
    index, splits = small["index"].to_numpy(), small["split"].to_numpy(zero_copy_only=False)
    wanted = np.flatnonzero((index > after) & ((splits == split) if split else True))[:limit]
    if not len(wanted):
        return [], room
    rows = file.read_row_group(group, columns=["row"])["row"].take(pa.array(wanted)).to_pylist()
    found = []
    for entry, row in zip(small.take(pa.array(wanted)).to_pylist(), rows, strict=True):
        found.append(entry | {"row": orjson.loads(row)})
        room -= len(row)
        if room <= 0:
            break
    return found, room


def read(rows_path: Path, *, split: Split | None = None) -> Iterator[dict[str, Any]]:
    """All canonical rows of a split, in their frozen order. Flat memory."""
    file = pq.ParquetFile(rows_path)
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=["split", "row"])
        for name, row in zip(table["split"].to_pylist(), table["row"].to_pylist(), strict=True):
            if split is None or name == split:
                yield orjson.loads(row)


def count(rows_path: Path, *, split: Split | None = None) -> int:
    file = pq.ParquetFile(rows_path)
    if split is None:
        return int(file.metadata.num_rows)
    return sum(file.read_row_group(group, columns=["split"])["split"].to_pylist().count(split) for group in range(file.num_row_groups))


def refusals(path: Path, limit: int = 100, *, after: int = 0) -> list[dict[str, Any]]:
    """Up to `limit` refusals, {line, column, reason, excerpt}, from a refusals.jsonl; `after` of them are passed over."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in islice(file, after, after + limit)]
