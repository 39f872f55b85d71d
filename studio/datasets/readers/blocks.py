"""Whole lines by the megabyte, for whoever can judge many at once. What a line says is not looked at."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from studio.datasets.readers.lines import LIMIT, Reading
from studio.datasets.readers.text_stream import chunks

BLOCK = 2 << 20
"""Bytes after which a block ends with the line at hand."""
LINE_END = 10


@dataclass(frozen=True, slots=True)
class Block:
    """Lines that follow each other, each with its end. Where the file ends without one, it was added and `ended` is false."""

    number: int
    """Of the first line, from 1."""
    text: bytes
    bounds: npt.NDArray[np.int64]
    """Where each line begins, and the length of all."""
    ended: bool = True

    def line(self, place: int) -> bytes | None:
        """A line without its end; None where it is longer than the limit."""
        begin, end = self.bounds[place], self.bounds[place + 1] - 1
        return self.text[begin:end] if end - begin <= LIMIT else None

    def __len__(self) -> int:
        return len(self.bounds) - 1


def blocks(reading: Reading) -> Iterator[Block]:
    """Memory stays flat: of a line without end no more is kept than shows that it is too long."""
    number, parts, size = 1, list[bytes](), 0
    for piece in chunks(reading):
        parts.append(piece)
        size += len(piece)
        if size < BLOCK:
            continue
        text = b"".join(parts)
        end = text.rfind(b"\n") + 1
        if end:
            block = _block(number, text[:end])
            number += len(block)
            yield block
        rest = text[end:] if len(text) - end <= LIMIT else text[end : end + LIMIT + 1]
        parts, size = [rest], len(rest)
    if text := b"".join(parts):
        yield _block(number, text) if text.endswith(b"\n") else _block(number, text + b"\n", ended=False)


def _block(number: int, text: bytes, *, ended: bool = True) -> Block:
    ends = np.flatnonzero(np.frombuffer(text, np.uint8) == LINE_END)
    return Block(number, text, np.concatenate((np.zeros(1, np.int64), ends + 1)), ended)
