"""Parquet, read in small batches. Columns of types that hold no text are left out by name, or refused if nothing else is there."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from studio.datasets.readers.lines import LIMIT, Line, Reading, Refusal
from studio.datasets.readers.strict_json import width_problem
from studio.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

BATCH = 256
EXPANDED = 20 * 1024**3
"""Bytes that the values may take once decompressed."""


def read(reading: Reading) -> Iterator[Line | Refusal]:
    import pyarrow as pa

    with reading.path.open("rb") as file:
        table = _opened(file)
        names = _columns(reading, table.schema_arrow)
        if not table.metadata.num_rows:
            raise UserError("The file is empty.")
        number = expanded = 0
        try:
            for batch in table.iter_batches(batch_size=BATCH, columns=names, use_threads=False):
                expanded += batch.nbytes
                if expanded > EXPANDED:
                    raise UserError("The Parquet file expands beyond the limit of 20 GB. Split it.")
                reading.position = int(reading.size * (number + batch.num_rows) / table.metadata.num_rows)
                for offset in range(batch.num_rows):
                    number += 1
                    yield _line(batch, offset, number)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise UserError(f"The Parquet file is damaged (after row {number}). Export it again.") from error


def _opened(file: Any) -> "pq.ParquetFile":
    import pyarrow as pa
    import pyarrow.parquet as pq

    ending = file.seek(-4, os.SEEK_END) and file.read(4)
    if ending == b"PARE":
        raise UserError("The Parquet file is encrypted. Export it without encryption.")
    file.seek(0)
    try:
        table = pq.ParquetFile(file, buffer_size=1024 * 1024, pre_buffer=False)
        str(table.schema_arrow)  # names are decoded only now; they may not be UTF-8
        return table
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        encrypted = "crypt" in str(error).lower()
        raise UserError(
            "The Parquet file is encrypted. Export it without encryption."
            if encrypted
            else "The Parquet file is damaged (footer). Was the upload or export interrupted?"
        ) from error


def _columns(reading: Reading, schema: "pa.Schema") -> list[str]:
    """The names of the columns that can be read; the others are noted, or refused where none is left."""
    if problem := width_problem(schema.names):
        raise UserError(f"The Parquet file has {problem}")
    twice = next((name for name in schema.names if schema.names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f'Column name "{twice}" appears twice.')
    unsupported = {column.name: kind for column in schema if (kind := _unsupported(column.type))}
    sentences = [f"Column {name} has type {kind}, not supported." for name, kind in unsupported.items()]
    usable = [name for name in schema.names if name not in unsupported]
    if not usable:
        raise UserError(" ".join(sentences[:5]) or "The file is empty.")
    for sentence in sentences[:20]:
        reading.note(f"{sentence} It is left out.")
    return usable


def _unsupported(kind: "pa.DataType") -> str:
    """The name of the first type inside `kind` that holds neither text nor structure nor plain numbers."""
    import pyarrow as pa

    types = pa.types
    if types.is_map(kind):
        return "map"
    if types.is_union(kind):
        return "union"
    if types.is_struct(kind):
        return next((found for index in range(kind.num_fields) if (found := _unsupported(kind.field(index).type))), "")
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _unsupported(kind.value_type)
    if types.is_dictionary(kind):
        return _unsupported(kind.value_type)
    if types.is_decimal(kind):
        return "decimal"
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind) or types.is_binary_view(kind):
        return "binary"
    return ""


def _line(batch: "pa.RecordBatch", offset: int, number: int) -> Line | Refusal:
    row = batch.slice(offset, 1)
    if row.get_total_buffer_size() > LIMIT and row.nbytes > LIMIT:
        return Refusal(number, "", f"Row {number} is longer than {LIMIT // 1024 // 1024} MB.", "")
    try:
        return Line(number, row.to_pylist()[0])
    except UnicodeDecodeError as error:
        return Refusal(number, "", f"Row {number}: 0x{error.object[error.start]:02x} is not UTF-8.", "")
    except (OverflowError, ValueError) as error:
        return Refusal(number, "", f"Row {number}: {error}.", "")
