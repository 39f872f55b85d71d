"""Rows out of Arrow's record batches, which Parquet is read into as well. Columns that hold no text are left out by name."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from studio.datasets.readers.lines import DEPTH, LIMIT, Line, Reading, Refusal, refuse
from studio.datasets.readers.strict_json import width_problem
from studio.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 256
"""Rows that are turned into Python's objects at once."""
EXPANDED = 20 * 1024**3
"""Bytes that all values may take once unpacked."""
SHARED = 64 * 1024**2
"""Bytes that rows which share one value may take when each gets it."""


def usable_columns(reading: Reading, schema: "pa.Schema") -> list[str]:
    """The names of the columns that can be read; the others are noted, or refused where none is left."""
    if problem := width_problem(schema.names):
        raise UserError(f"The {reading.format} file has {problem}")
    twice = next((name for name in schema.names if schema.names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f'Column name "{twice}" appears twice.')
    unsupported = {column.name: kind for column in schema if (kind := _unsupported(column.type, 1))}
    sentences = [f"Column {name} has type {kind}, not supported." for name, kind in unsupported.items()]
    usable = [name for name in schema.names if name not in unsupported]
    if not usable:
        raise UserError(" ".join(sentences[:5]) or "The file is empty.")
    for sentence in sentences[:20]:
        reading.note(f"{sentence} It is left out.")
    return usable


def _unsupported(kind: "pa.DataType", depth: int) -> str:
    """The name of the first type inside `kind` that holds neither text nor structure nor plain numbers."""
    import pyarrow as pa

    types = pa.types
    if depth > DEPTH:
        return f"lists in lists, deeper than {DEPTH}"
    if types.is_map(kind):
        return "map"
    if types.is_union(kind):
        return "union"
    if types.is_struct(kind):
        children = (kind.field(index) for index in range(kind.num_fields))
        return next((found for child in children if (found := _unsupported(child.type, depth + 1))), "")
    if types.is_nested(kind) or types.is_dictionary(kind):
        return _unsupported(kind.value_type, depth + 1)
    if types.is_decimal(kind):
        return "decimal"
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind) or types.is_binary_view(kind):
        return "binary"
    return ""


def lines(reading: Reading, batch: "pa.RecordBatch", *, number: int) -> Iterator[Line | Refusal]:
    """The rows of a batch, of which the first is the row `number` of the file. Raises UserError where the rows are too many to unpack."""
    step = BATCH if _largest_shared(batch) * BATCH < SHARED else 1
    for start in range(0, batch.num_rows, step):
        piece = _unshared(batch.slice(start, step))
        reading.expanded += piece.nbytes
        if reading.expanded > EXPANDED:
            raise UserError(f"The {reading.format} file expands beyond the limit of {EXPANDED >> 30} GB. Split it.")
        if piece.nbytes <= LIMIT:
            try:
                rows = piece.to_pylist()
            except (UnicodeDecodeError, OverflowError, ValueError):
                pass  # one row is at fault: each is tried by itself
            else:
                for offset, row in enumerate(rows, start=number + start):
                    yield Line(offset, row)
                continue
        for offset in range(piece.num_rows):
            yield _line(reading, piece.slice(offset, 1), number + start + offset)


def _largest_shared(batch: "pa.RecordBatch") -> int:
    """Bytes of the longest value that several rows may point to: one in a dictionary, which is stored once."""
    import pyarrow as pa
    import pyarrow.compute as pc

    largest = 0
    for column in batch.columns:
        if pa.types.is_dictionary(column.type):
            kind = column.type.value_type
            text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
            longest = pc.max(pc.binary_length(column.dictionary)).as_py() if text else None
            largest = max(largest, (longest or 8) if text else column.dictionary.nbytes)
    return largest


def _unshared(piece: "pa.RecordBatch") -> "pa.RecordBatch":
    """The same rows with every value beside its row, so that their size is what they take and no more."""
    import pyarrow as pa

    def plain(column: "pa.Array") -> "pa.Array":
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        return column.cast(pa.large_string()) if pa.types.is_string_view(column.type) else column

    return pa.RecordBatch.from_arrays([plain(column) for column in piece.columns], names=piece.schema.names)


def _line(reading: Reading, row: "pa.RecordBatch", number: int) -> Line | Refusal:
    if row.nbytes > LIMIT:
        return Refusal(number, "", f"Row {number} is longer than {LIMIT // 1024 // 1024} MB.", "")
    try:
        return Line(number, row.to_pylist()[0])
    except UnicodeDecodeError as error:
        return refuse(reading, number, f"0x{error.object[error.start]:02x} is not UTF-8.")
    except (OverflowError, ValueError) as error:
        return refuse(reading, number, f"{error}.")
