"""The bytes of a GGUF header, version 3, little endian. The counterpart of header.py; weights are written by others."""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from studio.ml.gguf.header import SCALARS, TENSOR_TYPES, VALUE_TYPES, Entry, Value

ALIGNMENT = 32
LENGTH = struct.Struct("<Q")
VALUE_NUMBERS = {name: number for number, name in VALUE_TYPES.items()}
TYPE_NUMBERS = {name: number for number, (name, _, _) in TENSOR_TYPES.items()}


@dataclass(frozen=True)
class Planned:
    """A tensor that is to be written."""

    name: str
    shape: tuple[int, ...]
    """(rows, columns), or (length,)."""
    type: str
    size: int
    """Bytes."""


def padded(size: int) -> int:
    """`size` rounded up to the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def header_bytes(entries: dict[str, Entry], tensors: Iterable[Planned]) -> bytes:
    """The header, padded so that the data section follows. Tensors lie in the order given, each padded."""
    return header_of(len(entries), packed(entries), tensors)


def header_of(count: int, entries: bytes, tensors: Iterable[Planned]) -> bytes:
    """A header from `count` entries that are packed already, since a vocabulary that several files share is packed once."""
    tensors = list(tensors)
    pieces = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), count), entries]
    offset = 0
    for tensor in tensors:
        dimensions = tensor.shape[::-1]
        pieces += [_string(tensor.name), struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)]
        pieces.append(struct.pack("<IQ", TYPE_NUMBERS[tensor.type], offset))
        offset += padded(tensor.size)
    header = b"".join(pieces)
    return header.ljust(padded(len(header)), b"\0")


def packed(entries: dict[str, Entry]) -> bytes:
    """Keys and values as they stand in the header."""
    return b"".join(_string(key) + _entry(entry) for key, entry in entries.items())


def write_small(path: Path, entries: dict[str, Entry], tensors: list[tuple[Planned, npt.NDArray[np.uint8]]]) -> None:
    """A whole file whose weights fit in memory: an adapter."""
    with path.open("wb") as file:
        file.write(header_bytes(entries, [planned for planned, _ in tensors]))
        for planned, content in tensors:
            file.write(content.tobytes().ljust(padded(planned.size), b"\0"))


def _entry(entry: Entry) -> bytes:
    number = VALUE_NUMBERS[entry.type]
    if entry.type != "ARRAY":
        return struct.pack("<I", number) + _value(entry.type, entry.value)
    values = entry.value if isinstance(entry.value, list) else []
    head = struct.pack("<IIQ", number, VALUE_NUMBERS[entry.items], len(values))
    if entry.items == "STRING":
        texts = [str(value).encode() for value in values]
        return head + b"".join([part for text in texts for part in (LENGTH.pack(len(text)), text)])
    return head + struct.pack(f"<{len(values)}{SCALARS[VALUE_NUMBERS[entry.items]][1]}", *values)


def _value(kind: str, value: Value) -> bytes:
    if kind == "STRING":
        return _string(str(value))
    return struct.pack(SCALARS[VALUE_NUMBERS[kind]], value)


def _string(text: str) -> bytes:
    raw = text.encode()
    return LENGTH.pack(len(raw)) + raw
