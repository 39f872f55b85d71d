"""Canonical rows on disk: written once as Parquet, then opened a page at a time. What a row may be is decided elsewhere.

A version's `rows.parquet` names each row, its split and what was found about it. The row's text stands there too, or in a store: an
earlier version's file that is hard-linked beside it, so that rows which did not change are stored once.
"""

import json
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from studio.datasets.flags import Flag
from studio.rowfile import HERE, STORES, Split, Texts, count, read, stores

GROUP = 1000
"""Rows in each row group, at most: what has to be read to show one of them."""
GROUP_SIZE = 8 << 20
"""Characters after which a group ends before it has so many rows: a row may have megabytes."""
PAGE_SIZE = 16 << 20
"""Bytes of rows after which a page ends before it has as many as were asked for."""
ALONE = -1
"""The group of a row that resembles no other."""
DRAFT = pa.schema(
    [
        ("line", pa.int64()),
        ("store", pa.int16()),
        ("at", pa.int64()),
        ("row", pa.large_string()),
    ]
)
SCHEMA = pa.schema(
    [
        ("index", pa.int64()),
        ("line", pa.int64()),
        ("split", pa.string()),
        ("flags", pa.uint32()),
        ("group", pa.int64()),
        ("hash", pa.uint64()),
        ("stratum", pa.uint64()),
        ("together", pa.uint64()),
        ("store", pa.int16()),
        ("at", pa.int64()),
        ("row", pa.string()),
    ],
)
SMALL = [name for name in SCHEMA.names if name != "row"]


class RowWriter:
    """Writes rows one by one in groups of `GROUP`, before their splits are known. Flat memory.

    `stores` are the files that `keep` refers to by their place in it.
    """

    def __init__(self, path: Path, *, stores: Sequence[str] = ()):
        schema = DRAFT.with_metadata({STORES: json.dumps(list(stores)).encode()})
        self.writer = pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False, write_statistics=False)
        self.schema = schema
        self.columns: tuple[list[int], list[int], list[int], list[str | None]] = ([], [], [], [])
        self.size = 0

    def add(self, *, line: int, row: str) -> None:
        self._add(line, HERE, 0, row)

    def keep(self, *, line: int, store: int, at: int) -> None:
        """A row whose text stands in a store."""
        self._add(line, store, at, None)

    def _add(self, line: int, store: int, at: int, row: str | None) -> None:
        for column, value in zip(self.columns, (line, store, at, row), strict=True):
            column.append(value)  # type: ignore[attr-defined]
        self.size += len(row or "")
        if len(self.columns[0]) == GROUP or self.size >= GROUP_SIZE:
            self._flush()

    def _flush(self) -> None:
        if self.columns[0]:
            self.writer.write_table(pa.table(list(self.columns), schema=self.schema))
            self.columns, self.size = ([], [], [], []), 0

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._flush()
        self.writer.close()


def finish(
    draft: Path,
    target: Path,
    *,
    validation: npt.NDArray[np.bool_],
    flags: npt.NDArray[np.uint32],
    hashes: npt.NDArray[np.uint64],
    groups: npt.NDArray[np.int64] | None = None,
    strata: npt.NDArray[np.uint64] | None = None,
    together: npt.NDArray[np.uint64] | None = None,
) -> None:
    """Copies a draft, group by group, adding what is known of each row: index, split, findings, hash, the group of its near-duplicates
    (ALONE: none), and hashes of what the split goes by (0: nothing): equal strata are spread evenly, equal `together` are never parted."""
    source = pq.ParquetFile(draft)
    schema = SCHEMA.with_metadata({STORES: (source.schema_arrow.metadata or {}).get(STORES, b"[]")})
    options: dict[str, Any] = {
        "compression": "zstd",
        "use_dictionary": ["split", "store"],
        "write_statistics": ["index", "split", "flags"],
    }
    with pq.ParquetWriter(target, schema, **options) as writer:
        begin = 0
        for group in range(source.num_row_groups):
            table = source.read_row_group(group)
            here = slice(begin, begin + len(table))
            begin = here.stop
            columns = [
                pa.array(np.arange(here.start, here.stop)),
                table["line"].combine_chunks(),
                pa.array(np.where(validation[here], "validation", "train"), pa.string()),
                pa.array(flags[here]),
                pa.array(np.full(len(table), ALONE) if groups is None else groups[here]),
                pa.array(hashes[here]),
                pa.array(np.zeros(len(table), np.uint64) if strata is None else strata[here]),
                pa.array(np.zeros(len(table), np.uint64) if together is None else together[here]),
                table["store"].combine_chunks(),
                table["at"].combine_chunks(),
                table["row"].combine_chunks().cast(pa.string()),
            ]
            writer.write_table(pa.table(columns, schema=schema))


def link_store(rows_path: Path, folder: Path) -> str:
    """Hard-links a rows.parquet into `folder` under a name that tells its content's place; the name to give to `RowWriter`."""
    status = rows_path.stat()
    name = f"rows-{status.st_ino:x}.parquet"
    if not (folder / name).exists():
        os.link(rows_path, folder / name)
    return name


def page(
    rows_path: Path,
    *,
    split: Split | None = None,
    after: int = -1,
    limit: int = 50,
    flags: int = 0,
    wanted: npt.NDArray[np.int64] | None = None,
    query: str = "",
) -> list[dict[str, Any]]:
    """Up to `limit` rows whose index is above `after`, each as {index, line, split, flags, group, hash, store, at, duplicate, row}.

    `row` is the canonical dict. Only rows with any of `flags`, with an index in `wanted`, or whose text holds `query` (capitals do not
    matter) are taken where these are given. Reads only the row groups that may hold them. Fewer come where they are very long, but
    one always does while there are any.
    """
    file = pq.ParquetFile(rows_path)
    texts = Texts(rows_path.parent, stores(file))
    found: list[dict[str, Any]] = []
    end, room = 0, PAGE_SIZE
    for group in range(file.num_row_groups):
        begin, end = end, end + file.metadata.row_group(group).num_rows
        if end <= after + 1 or (wanted is not None and not ((wanted >= begin) & (wanted < end)).any()):
            continue
        if not _may_hold(file.metadata.row_group(group), split, flags):
            continue
        small = file.read_row_group(group, columns=SMALL)
        chosen = _chosen(small, split=split, after=after, flags=flags, wanted=wanted)
        for entry, text in _texts_of(file, texts, group, small, chosen, query=query, limit=limit - len(found)):
            found.append(entry | {"duplicate": bool(entry["flags"] & Flag.DUPLICATE), "row": orjson.loads(text)})
            room -= len(text)
            if room <= 0 or len(found) >= limit:
                return found
    return found


def _may_hold(group: pq.RowGroupMetaData, split: str | None, flags: int) -> bool:
    if split:
        statistics = group.column(SCHEMA.get_field_index("split")).statistics
        if statistics is not None and statistics.has_min_max and not statistics.min <= split <= statistics.max:
            return False
    if flags:
        statistics = group.column(SCHEMA.get_field_index("flags")).statistics
        if statistics is not None and statistics.has_min_max and statistics.max == 0:
            return False
    return True


def _chosen(small: pa.Table, *, split: str | None, after: int, flags: int, wanted: npt.NDArray[np.int64] | None) -> npt.NDArray[np.int64]:
    index = small["index"].to_numpy()
    chosen = index > after
    if split:
        chosen &= small["split"].to_numpy(zero_copy_only=False) == split
    if flags:
        chosen &= (small["flags"].to_numpy() & np.uint32(flags)) != 0
    if wanted is not None:
        chosen &= np.isin(index, wanted)
    return np.flatnonzero(chosen)


def _texts_of(
    file: pq.ParquetFile, texts: Texts, group: int, small: pa.Table, chosen: npt.NDArray[np.int64], *, query: str, limit: int
) -> Iterator[tuple[dict[str, Any], str]]:
    """(small columns, text) of the chosen rows of a group; with a query, only of those that hold it."""
    if not len(chosen):
        return
    if not query:
        chosen = chosen[:limit]
    table = file.read_row_group(group, columns=["store", "at", "row"]).take(pa.array(chosen))
    filled = texts.fill(table)
    entries = small.take(pa.array(chosen)).to_pylist()
    if query:
        # Rows are compact JSON without escapes for letters, so that a text is found as it is written there.
        needle = orjson.dumps(query)[1:-1].decode()
        holds = pc.match_substring(pa.array(filled, pa.large_string()), needle, ignore_case=True).to_pylist()
        yield from islice(((entry, text) for entry, text, held in zip(entries, filled, holds, strict=True) if held), limit)
        return
    yield from zip(entries, filled, strict=True)


def texts(rows_path: Path, *, split: Split | None = None) -> Iterator[tuple[dict[str, Any], str]]:
    """(small columns, canonical JSON) of all rows of a split, in their frozen order. Flat memory."""
    file = pq.ParquetFile(rows_path)
    source = Texts(rows_path.parent, stores(file))
    for group in range(file.num_row_groups):
        table = file.read_row_group(group)
        for entry, text in zip(table.select(SMALL).to_pylist(), source.fill(table), strict=True):
            if split is None or entry["split"] == split:
                yield entry, text


def drafted(draft: Path, folder: Path) -> Iterator[str]:
    """The canonical JSON of a draft's rows, in order; its stores lie in `folder`. Flat memory."""
    file = pq.ParquetFile(draft)
    source = Texts(folder, stores(file))
    for group in range(file.num_row_groups):
        yield from source.fill(file.read_row_group(group, columns=["store", "at", "row"]))


def column(rows_path: Path, name: str) -> npt.NDArray[Any]:
    """One of the small columns, over all rows: `index`, `line`, `split`, `flags`, `group`, `hash`, `store` or `at`."""
    found: npt.NDArray[Any] = pq.read_table(rows_path, columns=[name])[name].to_numpy()
    return found


def refusals(path: Path, limit: int = 100, *, after: int = 0) -> list[dict[str, Any]]:
    """Up to `limit` refusals, {line, column, reason, excerpt}, from a refusals.jsonl; `after` of them are passed over."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in islice(file, after, after + limit)]


__all__ = ["HERE", "Split", "Texts", "count", "read"]
