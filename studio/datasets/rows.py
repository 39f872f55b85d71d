"""Canonical rows on disk: written once as Parquet, then opened a page at a time. What a row may be is decided elsewhere.

A version's `rows.parquet` names each row, its split and what was found about it. The row's text stands there too, or in a store: an
earlier version's file that is hard-linked beside it, so that rows which did not change are stored once.
"""

import gzip
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from studio.datasets.ahead import ahead
from studio.datasets.flags import Flag
from studio.rowfile import HERE, STORES, Split, Texts, count, read, stores

GROUP = 1000
"""Rows in each row group, at most: what has to be read to show one of them."""
GROUP_SIZE = 8 << 20
"""Characters after which a group ends before it has so many rows: a row may have megabytes."""
KNOWN_COLUMNS = 6
"""Small columns of versions that were looked at last; at a million rows, each takes 1 to 8 MB."""
PAGE_SIZE = 16 << 20
"""Bytes of rows after which a page ends before it has as many as were asked for."""
MOST_REFUSED = 1 << 30
"""Packed bytes of refused lines that are written down; all are counted."""
PACKED = ".gz"
PIECE = 256 << 10
"""Bytes that are unpacked at a time."""
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
    """Writes rows in groups of `GROUP`, before their splits are known. Flat memory; packing goes on beside the caller.

    `stores` are the files that `keep` refers to by their place in it.
    """

    def __init__(self, path: Path, *, stores: Sequence[str] = ()):
        self.schema = DRAFT.with_metadata({STORES: json.dumps(list(stores)).encode()})
        # Read once more and then removed, so that speed counts for more than size.
        self.writer = pq.ParquetWriter(path, self.schema, compression="lz4", use_dictionary=["store"], write_statistics=False)
        self.columns: tuple[list[int], list[int], list[int], list[str | None]] = ([], [], [], [])
        self.tables: list[pa.Table] = []
        self.rows = self.size = 0
        self.packing = ThreadPoolExecutor(1)
        self.packed: Future[None] | None = None

    def add(self, *, line: int, row: str) -> None:
        self._add(line, HERE, 0, row)

    def keep(self, *, line: int, store: int, at: int) -> None:
        """A row whose text stands in a store."""
        self._add(line, store, at, None)

    def add_block(self, *, lines: npt.NDArray[np.int64], texts: pa.StringArray) -> None:
        """Rows that follow each other."""
        self._gather()
        count = len(texts)
        columns = [lines, np.full(count, HERE, np.int16), np.zeros(count, np.int64), texts.cast(pa.large_string())]
        self.tables.append(pa.table(columns, schema=self.schema))
        self.rows += count
        self.size += texts.get_total_buffer_size()
        if self.rows >= GROUP or self.size >= GROUP_SIZE:
            self._flush(whole=self.size < GROUP_SIZE)

    def _add(self, line: int, store: int, at: int, row: str | None) -> None:
        for column, value in zip(self.columns, (line, store, at, row), strict=True):
            column.append(value)  # type: ignore[attr-defined]
        self.rows += 1
        self.size += len(row or "")
        if self.rows == GROUP or self.size >= GROUP_SIZE:
            self._flush()

    def _gather(self) -> None:
        """What was added row by row as a table."""
        if self.columns[0]:
            self.tables.append(pa.table(list(self.columns), schema=self.schema))
            self.columns = ([], [], [], [])

    def _flush(self, *, whole: bool = False) -> None:
        """Hands on what was gathered; with `whole`, only as many rows as fill groups."""
        self._gather()
        if not self.rows:
            return
        table = pa.concat_tables(self.tables)
        rest = len(table) % GROUP if whole else 0
        self._pack(table.slice(0, len(table) - rest))
        self.tables, self.rows, self.size = [table.slice(len(table) - rest)] if rest else [], rest, 0

    def _pack(self, table: pa.Table) -> None:
        if self.packed is not None:
            self.packed.result()
        self.packed = self.packing.submit(self.writer.write_table, table, row_group_size=GROUP)

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self._flush()
                if self.packed is not None:
                    self.packed.result()
        finally:
            self.packing.shutdown()
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
    names = pa.array(["train", "validation"])
    with pq.ParquetWriter(target, schema, **options) as writer:
        begin = 0
        for table in ahead(source.read_row_group(group) for group in range(source.num_row_groups)):
            here = slice(begin, begin + len(table))
            begin, nothing = here.stop, np.zeros(len(table), np.uint64)
            columns = [
                np.arange(here.start, here.stop),
                table["line"],
                names.take(pa.array(validation[here].view(np.int8))),
                flags[here],
                np.full(len(table), ALONE) if groups is None else groups[here],
                hashes[here],
                nothing if strata is None else strata[here],
                nothing if together is None else together[here],
                table["store"],
                table["at"],
                table["row"].cast(pa.string()),
            ]
            writer.write_table(pa.table(columns, schema=schema))


def link_store(rows_path: Path, folder: Path) -> str:
    """Hard-links a rows.parquet into `folder` under a name that tells its content's place; the name to give to `RowWriter`."""
    status = rows_path.stat()
    name = f"rows-{status.st_ino:x}.parquet"
    if not (folder / name).exists():
        try:
            os.link(rows_path, folder / name)
        except OSError:  # a file system that knows no links, or allows no more of them
            shutil.copyfile(rows_path, folder / name)
    return name


@dataclass(frozen=True)
class Found:
    """Some rows, and how far was looked for them."""

    rows: list[dict[str, Any]]
    reached: int | None = None
    """Index of the row that was looked at last, where a search was cut short; None where there was no need to."""
    total: int | None = None
    """How many rows fit in all; None where a query would have to look at each."""
    full: bool = False
    """The page ended before the rows did."""


def page(
    rows_path: Path,
    *,
    split: Split | None = None,
    after: int = -1,
    before: int | None = None,
    limit: int = 50,
    flags: int = 0,
    wanted: npt.NDArray[np.int64] | None = None,
    query: str = "",
) -> list[dict[str, Any]]:
    """Up to `limit` rows whose index is above `after`, each as {index, line, split, flags, group, hash, store, at, duplicate, row}.

    With `before`, the last ones below it instead. `row` is the canonical dict. Only rows with any of `flags`, with an index in
    `wanted`, or with a text that holds `query` (capitals do not matter) are taken where these are given. Reads only the row groups that
    may hold them. Fewer come where they are very long, but one always does while there are any.
    """
    return search(rows_path, split=split, after=after, before=before, limit=limit, flags=flags, wanted=wanted, query=query).rows


def search(
    rows_path: Path,
    *,
    split: Split | None = None,
    after: int = -1,
    before: int | None = None,
    limit: int = 50,
    flags: int = 0,
    wanted: npt.NDArray[np.int64] | None = None,
    query: str = "",
    most: int | None = None,
) -> Found:
    """As `page`, but a query that looked at `most` rows stops there and says so."""
    with pq.ParquetFile(rows_path) as file:
        numbers = matching(rows_path, split=split, flags=flags, wanted=wanted)
        source = Texts(rows_path.parent, stores(file))
        found: list[dict[str, Any]] = []
        looked, room, full, backwards = 0, PAGE_SIZE, False, before is not None
        total = None if query else file.metadata.num_rows if numbers is None else len(numbers)
        for group, begin, places in _places(file, numbers, after=after, before=before):
            if most is not None and query and looked >= most:
                reached = begin + int(places[-1]) + 1 if backwards else begin + int(places[0]) - 1
                return Found(_ordered(found, backwards), reached, full=True)
            looked += max(len(places), GROUP // 2)  # a group is read for a single row, too
            room, full = _gather(_entries(file, source, group, places, query, backwards, limit - len(found)), found, limit, room)
            if full:
                break
        return Found(_ordered(found, backwards), total=total, full=full)


def matching(
    rows_path: Path, *, split: Split | None = None, flags: int = 0, wanted: npt.NDArray[np.int64] | None = None
) -> npt.NDArray[np.int64] | None:
    """The indices of all rows that fit, in order; None where nothing is asked of them."""
    fitting: npt.NDArray[np.bool_] | None = None
    if split:
        held_back = known_column(rows_path, "split")
        fitting = held_back if split == "validation" else ~held_back
    if flags:
        flagged = (known_column(rows_path, "flags") & np.uint32(flags)) != 0
        fitting = flagged if fitting is None else fitting & flagged
    if wanted is not None:
        chosen = np.zeros(pq.read_metadata(rows_path).num_rows, dtype=bool)
        chosen[wanted[(wanted >= 0) & (wanted < len(chosen))]] = True
        fitting = chosen if fitting is None else fitting & chosen
    return None if fitting is None else np.flatnonzero(fitting)


def _places(
    file: pq.ParquetFile, numbers: npt.NDArray[np.int64] | None, *, after: int, before: int | None
) -> Iterator[tuple[int, int, npt.NDArray[np.int64]]]:
    """(row group, its first index, places in it) of the rows to look at, from where the page begins; backwards with `before`."""
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    ends = np.cumsum(sizes).tolist()
    low, high = after + 1, before if before is not None else (ends[-1] if ends else 0)
    for group in reversed(range(len(ends))) if before is not None else range(len(ends)):
        begin, end = max(ends[group] - sizes[group], low), min(ends[group], high)
        if begin >= end:
            continue
        first = ends[group] - sizes[group]
        if numbers is None:
            yield group, first, np.arange(begin, end) - first
        elif len(places := numbers[np.searchsorted(numbers, begin) : np.searchsorted(numbers, end)]):
            yield group, first, places - first


def _entries(
    file: pq.ParquetFile, source: Texts, group: int, places: npt.NDArray[np.int64], query: str, backwards: bool, limit: int
) -> Iterator[tuple[dict[str, Any], str]]:
    """(small columns, text) of a group's rows at these places, the last first where the page goes backwards."""
    if query:
        places = places[_holding(file, source, group, places, query)]
    places = places[::-1] if backwards else places
    places = places[:limit] if not query else places
    for begin in range(0, len(places), limit):
        table = file.read_row_group(group).take(pa.array(places[begin : begin + limit]))
        yield from zip(table.select(SMALL).to_pylist(), source.fill(table), strict=True)


def _holding(file: pq.ParquetFile, source: Texts, group: int, places: npt.NDArray[np.int64], query: str) -> npt.NDArray[np.bool_]:
    """Which of the rows hold the query in one of their texts."""
    table = file.read_row_group(group, columns=["store", "at", "row"])
    if len(places) < len(table):
        table = table.take(pa.array(places))
    here = pc.all(pc.equal(table["store"], HERE)).as_py()
    column = table["row"].combine_chunks() if here else pa.array(source.fill(table), pa.large_string())
    # Rows are compact JSON without escapes for letters, so that a text stands there as it is written. The names of keys and roles stand
    # there too: what is found is looked at again.
    needle = orjson.dumps(query)[1:-1].decode()
    held: npt.NDArray[np.bool_] = pc.match_substring(column, needle, ignore_case=True).to_numpy(zero_copy_only=False)
    folded = query.casefold()
    for place in np.flatnonzero(held).tolist():
        held[place] = any(folded in text.casefold() for text in said(orjson.loads(column[place].as_py())))
    return held


def _gather(entries: Iterator[tuple[dict[str, Any], str]], found: list[dict[str, Any]], limit: int, room: int) -> tuple[int, bool]:
    """Adds rows to a page; returns the room that is left, and whether the page is full."""
    for entry, text in entries:
        found.append(entry | {"duplicate": bool(entry["flags"] & Flag.DUPLICATE), "row": orjson.loads(text)})
        room -= len(text)
        if room <= 0 or len(found) >= limit:
            return room, True
    return room, False


def _ordered(found: list[dict[str, Any]], backwards: bool) -> list[dict[str, Any]]:
    return found[::-1] if backwards else found


def said(row: dict[str, Any]) -> Iterator[str]:
    """The texts of a canonical row, in order; of tools and their calls nothing."""
    for value in row.values():
        if isinstance(value, str):
            yield value
        else:
            yield from (message.get("content") or "" for message in value)


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


def drafted_page(draft: Path, *, begin: int, limit: int) -> list[tuple[int, str]]:
    """(line, canonical JSON) of up to `limit` of a draft's rows from the place `begin` on; its stores lie beside it."""
    with pq.ParquetFile(draft) as file:
        source, found, end = Texts(draft.parent, stores(file)), list[tuple[int, str]](), 0
        for group in range(file.num_row_groups):
            first, end = end, end + file.metadata.row_group(group).num_rows
            if end <= begin or len(found) >= limit:
                continue
            table = file.read_row_group(group).slice(max(0, begin - first), limit - len(found))
            found += zip(table["line"].to_pylist(), source.fill(table), strict=True)
        return found


def column(rows_path: Path, name: str) -> npt.NDArray[Any]:
    """One of the small columns, over all rows: `index`, `line`, `split`, `flags`, `group`, `hash`, `store` or `at`."""
    with pq.ParquetFile(rows_path, pre_buffer=True) as file:  # a third of the time that read_table takes
        found: npt.NDArray[Any] = file.read(columns=[name])[name].to_numpy()
    return found


class RefusalWriter:
    """Writes refused lines as packed JSON lines to `path`.gz, until the file has `MOST_REFUSED` bytes."""

    def __init__(self, path: Path):
        self.file = path.with_name(path.name + PACKED).open("wb")
        self.packer = gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=self.file, mtime=0)
        self.written = 0

    def add(self, refusal: dict[str, Any]) -> None:
        if self.file.tell() < MOST_REFUSED:
            self.packer.write(orjson.dumps(refusal) + b"\n")
            self.written += 1

    def __enter__(self) -> "RefusalWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self.packer.close()
        self.file.close()


def open_refusals(path: Path) -> BinaryIO:
    """The JSON lines of a refusals.jsonl, packed or not, from the first on."""
    packed = path.with_name(path.name + PACKED)
    return gzip.open(packed) if packed.exists() else path.open("rb")  # type: ignore[return-value]


def refusal_pieces(path: Path) -> Iterator[bytes]:
    """The JSON lines, unpacked a piece at a time."""
    with open_refusals(path) as file:
        while piece := file.read(PIECE):
            yield piece


def known_column(rows_path: Path, name: str) -> npt.NDArray[Any]:
    """The same, kept for whoever turns page after page, and not to be written to; of `split` whether each row is held back."""
    status = rows_path.stat()
    return _known_column(rows_path, name, (status.st_ino, status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=KNOWN_COLUMNS)
def _known_column(rows_path: Path, name: str, stamp: tuple[int, int, int]) -> npt.NDArray[Any]:
    if name == "split":
        found: npt.NDArray[Any] = pc.equal(pq.read_table(rows_path, columns=["split"])["split"], "validation").to_numpy()
    else:
        found = column(rows_path, name)
    found.flags.writeable = False
    return found


def refusals(path: Path, limit: int = 100, *, after: int = 0) -> list[dict[str, Any]]:
    """Up to `limit` refusals, {line, column, reason, excerpt}, from a refusals.jsonl; `after` of them are passed over."""
    with open_refusals(path) as file:
        return [orjson.loads(line) for line in islice(file, after, after + limit)]


__all__ = ["HERE", "Split", "Texts", "count", "read"]
