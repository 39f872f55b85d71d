"""Parquet, read in small batches."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from studio.datasets.readers.columnar import BATCH, EXPANDED, lines, usable_columns
from studio.datasets.readers.lines import Line, Reading, Refusal
from studio.datasets.readers.packed import seekable
from studio.errors import UserError

if TYPE_CHECKING:
    import pyarrow.parquet as pq


def read(reading: Reading) -> Iterator[Line | Refusal]:
    import pyarrow as pa

    with seekable(reading) as file:
        table = _opened(file)
        names = usable_columns(reading, table.schema_arrow)
        total = table.metadata.num_rows
        if not total:
            raise UserError("The file is empty.")
        number = 0
        try:
            _refuse_bombs(table)
            for batch in table.iter_batches(batch_size=BATCH, columns=names, use_threads=False):
                batch.validate(full=False)
                yield from lines(reading, batch, number=number + 1)
                number += batch.num_rows
                reading.position = min(reading.size, int(reading.size * number / total))
        except MemoryError as error:
            raise UserError("The Parquet file expands beyond the memory there is. Write it in smaller row groups.") from error
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise UserError(f"The Parquet file is damaged (after row {number}). Export it again.") from error


def _opened(file: BinaryIO) -> "pq.ParquetFile":
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
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError, MemoryError) as error:
        encrypted = "crypt" in str(error).lower()
        raise UserError(
            "The Parquet file is encrypted. Export it without encryption."
            if encrypted
            else "The Parquet file is damaged (footer). Was the upload or export interrupted?"
        ) from error


def _refuse_bombs(table: Any) -> None:
    """Raises UserError where the file itself says that its values exceed the limits."""
    total = 0
    for index in range(table.metadata.num_row_groups):
        group = table.metadata.row_group(index)
        total += max(0, group.total_byte_size)
        if total > EXPANDED:
            raise UserError(f"The Parquet file expands beyond the limit of {EXPANDED >> 30} GB. Split it.")
