"""Reads the canonical rows of a version from its Parquet file. Writing them, pages and findings are `studio.datasets.rows`'s.

A row's text stands in the file itself or in a store: an earlier version's file that lies hard-linked beside it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

Split = Literal["train", "validation"]
HERE = -1
"""The store of a row whose text stands in the file itself."""
STORES = b"stores"
"""Key of the file's metadata: a JSON list of the names of its stores."""


def stores(file: pq.ParquetFile) -> list[str]:
    found: list[str] = json.loads((file.schema_arrow.metadata or {}).get(STORES, b"[]"))
    return found


@dataclass
class Texts:
    """Finds the texts of rows that stand in stores. Keeps the group that was read last of each, since rows mostly follow each other."""

    folder: Path
    names: list[str]
    files: dict[int, pq.ParquetFile] = field(default_factory=dict)
    ends: dict[int, npt.NDArray[np.int64]] = field(default_factory=dict)
    last: dict[int, tuple[int, pa.ChunkedArray]] = field(default_factory=dict)

    def fill(self, table: pa.Table) -> list[str]:
        """The texts of `table`'s rows, in order. Without the columns `store` and `at`, all stand in the column `row`."""
        texts: list[str] = table["row"].to_pylist()
        if "store" not in table.column_names:
            return texts
        kept = table["store"].to_numpy()
        places = table["at"].to_numpy()
        for number in np.flatnonzero(kept != HERE).tolist():
            texts[number] = self._one(int(kept[number]), int(places[number]))
        return texts

    def _one(self, store: int, at: int) -> str:
        if store not in self.files:
            file = pq.ParquetFile(self.folder / self.names[store])
            self.files[store] = file
            self.ends[store] = np.cumsum([file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)])
        ends = self.ends[store]
        group = int(np.searchsorted(ends, at, side="right"))
        if store not in self.last or self.last[store][0] != group:
            self.last[store] = group, self.files[store].read_row_group(group, columns=["row"])["row"]
        begin = int(ends[group - 1]) if group else 0
        return str(self.last[store][1][at - begin])


def read(path: Path, *, split: Split | None = None) -> Iterator[dict[str, Any]]:
    """All canonical rows of a split, in their frozen order, one row group at a time: memory stays flat however many there are."""
    with pq.ParquetFile(path) as file:
        texts = Texts(path.parent, stores(file))
        columns = [name for name in ("split", "store", "at", "row") if name in file.schema_arrow.names]
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=columns)
            for name, row in zip(table["split"].to_pylist(), texts.fill(table), strict=True):
                if split is None or name == split:
                    yield orjson.loads(row)


def between(path: Path, begin: int, end: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """(index, canonical row) of the rows from `begin` up to `end`; reads only the row groups that hold them."""
    with pq.ParquetFile(path) as file:
        texts = Texts(path.parent, stores(file))
        columns = [name for name in ("store", "at", "row") if name in file.schema_arrow.names]
        first = 0
        for group in range(file.num_row_groups):
            after = first + file.metadata.row_group(group).num_rows
            if first < end and begin < after:
                low, high = max(begin, first), min(end, after)
                table = file.read_row_group(group, columns=columns).slice(low - first, high - low)
                for index, row in enumerate(texts.fill(table), low):
                    yield index, orjson.loads(row)
            first = after


def count(path: Path, *, split: Split | None = None) -> int:
    with pq.ParquetFile(path) as file:
        if split is None:
            return int(file.metadata.num_rows)
        return sum(file.read_row_group(group, columns=["split"])["split"].to_pylist().count(split) for group in range(file.num_row_groups))
