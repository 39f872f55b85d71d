"""Arrow's IPC file (Feather) and stream, message by message and from front to back, so that one may be packed as well.

A file is a stream between two marks: it is read as one. What a message claims is held against the limits before Arrow believes it.
"""

import struct
from collections.abc import Iterator
from typing import BinaryIO

from studio.datasets.readers.columnar import lines, usable_columns
from studio.datasets.readers.lines import Line, Reading, Refusal
from studio.errors import UserError

FILE = b"ARROW1\x00\x00"
CONTINUES = 0xFFFFFFFF
METADATA = 16 * 1024 * 1024
BODY = 1024**3
"""Bytes that one message may have, packed and unpacked: it is held in memory."""
DAMAGED = "The Arrow file is damaged (after row {}). Export it again."
EARLY = "The Arrow file ends too early; was the upload or export interrupted?"
LARGE_BATCH = "A batch of the Arrow file is larger than 1 GB. Write it in smaller batches."
DICTIONARY, BATCH = 2, 3
"""Kinds of message that have a body."""


def read(reading: Reading) -> Iterator[Line | Refusal]:
    import pyarrow as pa

    number = 0
    with reading.open() as file:
        messages = Messages(file)
        try:
            table = pa.ipc.open_stream(pa.PythonFile(messages, "r"))
            names = usable_columns(reading, table.schema)
            for batch in table:
                batch = batch.select(names)
                batch.validate(full=True)  # offsets that point outside must be found before they are followed
                yield from lines(reading, batch, number=number + 1)
                number += batch.num_rows
                reading.follow(file)
        except MemoryError as error:
            raise UserError(LARGE_BATCH) from error
        except (pa.ArrowException, OSError, UnicodeDecodeError, struct.error, OverflowError) as error:
            raise UserError(EARLY if messages.ended_early else DAMAGED.format(number)) from error
    if not number:
        raise UserError("The file is empty.")


class Messages:
    """The file as Arrow asks for it: the messages of its stream, of which each was measured first."""

    closed = False

    def __init__(self, file: BinaryIO):
        self.file = file
        self.ready = bytearray()
        self.ended_early = False
        self.told = 0
        first = self._exactly(8)
        self.first = b"" if first == FILE else first

    def read(self, size: int = -1) -> bytes:
        while len(self.ready) < size and self._message():
            pass
        piece = bytes(self.ready[:size])
        del self.ready[:size]
        self.told += len(piece)
        return piece

    def _message(self) -> bool:
        """Takes in the next message; False at the end of the stream."""
        mark, self.first = self.first or self._exactly(8), b""
        if len(mark) < 8 or (length := _length(mark)) == 0:
            self.ready += mark
            return False
        if length > METADATA:
            raise UserError(DAMAGED.format(0))
        metadata = self._exactly(length)
        kind, body, buffers = described(metadata)
        if body > BODY:
            raise UserError(LARGE_BATCH)
        content = self._exactly(body)
        if buffers is not None and kind in (DICTIONARY, BATCH):
            _refuse_bomb(content, buffers)
        self.ready += mark + metadata + content
        return True

    def _exactly(self, size: int) -> bytes:
        piece = self.file.read(size)
        self.ended_early = len(piece) < size
        return piece

    def tell(self) -> int:
        return self.told

    def seekable(self) -> bool:
        return False

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def close(self) -> None:
        """Whoever opened the file closes it."""


def _length(mark: bytes) -> int:
    """Bytes of the metadata that follow. Raises UserError for anything but a message's beginning."""
    continues, length = struct.unpack("<II", mark)
    if continues != CONTINUES:
        raise UserError(DAMAGED.format(0))
    return int(length)


def _refuse_bomb(content: bytes, buffers: list[tuple[int, int]]) -> None:
    """Each packed buffer begins with its unpacked length, which Arrow would take from memory at once."""
    total = 0
    for offset, length in buffers:
        if length >= 8:
            (unpacked,) = struct.unpack_from("<q", content, offset)
            total += max(unpacked, length)
    if total > BODY:
        raise UserError(LARGE_BATCH)


def described(metadata: bytes) -> tuple[int, int, list[tuple[int, int]] | None]:
    """(kind, length of the body, where its buffers lie or None where they are not packed) of a message.

    Follows Message.fbs of Apache Arrow's format. Raises struct.error for what is cut off.
    """
    message = _table(metadata, 0)
    kind = _number(metadata, message, 1, "<B")
    body = _number(metadata, message, 3, "<q")
    if body < 0:
        raise struct.error("a body of less than nothing")
    header = _child(metadata, message, 2)
    if header is not None and kind == DICTIONARY:
        header = _child(metadata, header, 1)
    if header is None or kind not in (DICTIONARY, BATCH) or _child(metadata, header, 3) is None:
        return kind, body, None
    vector = _child(metadata, header, 2)
    if vector is None:
        return kind, body, None
    (count,) = struct.unpack_from("<I", metadata, vector)
    end = vector + 4 + 16 * count
    if end > len(metadata):
        raise struct.error("more buffers than there is room for")
    return kind, body, [(offset, length) for offset, length in struct.iter_unpack("<qq", metadata[vector + 4 : end])]


def _table(metadata: bytes, at: int) -> int:
    """Where the table begins that the offset at `at` points to."""
    (offset,) = struct.unpack_from("<I", metadata, at)
    return at + int(offset)


def _slot(metadata: bytes, table: int, field: int) -> int:
    """Where a field of a table stands; 0 where it is left out."""
    (back,) = struct.unpack_from("<i", metadata, table)
    names = table - back
    if names < 0:
        raise struct.error("a table that begins before the message")
    (size,) = struct.unpack_from("<H", metadata, names)
    if 4 + 2 * field + 2 > size:
        return 0
    (offset,) = struct.unpack_from("<H", metadata, names + 4 + 2 * field)
    return table + int(offset) if offset else 0


def _number(metadata: bytes, table: int, field: int, kind: str) -> int:
    slot = _slot(metadata, table, field)
    return int(struct.unpack_from(kind, metadata, slot)[0]) if slot else 0


def _child(metadata: bytes, table: int, field: int) -> int | None:
    slot = _slot(metadata, table, field)
    return _table(metadata, slot) if slot else None
