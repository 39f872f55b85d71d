"""What a GGUF file says about itself, read strictly and in pure Python before llama.cpp may open it. Weights stay on disk.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Everything in a header is a claim of a stranger, so every
count, length and size is held against a bound and against the file's true size before anything is allocated for it.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from studio.errors import UserError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_ENTRIES = 100_000
MOST_ITEMS = 4_000_000
"""Longest array; the largest vocabularies have about 500,000 merges."""
LONGEST_KEY = 65_535
LONGEST_STRING = 4 << 20
LONGEST_NAME = 63
LARGEST_HEADER = 512 << 20
LARGEST_DIMENSION = 1 << 40
LARGEST_TENSOR = 1 << 48

STRING, ARRAY = 8, 9
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
VALUE_TYPES = {
    0: "UINT8",
    1: "INT8",
    2: "UINT16",
    3: "INT16",
    4: "UINT32",
    5: "INT32",
    6: "FLOAT32",
    7: "BOOL",
    8: "STRING",
    9: "ARRAY",
    10: "UINT64",
    11: "INT64",
    12: "FLOAT64",
}

TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}
"""Number in the file -> name, weights in a block, bytes of a block."""

Value = int | float | bool | str | list["Value"]


class InvalidGguf(UserError):
    """The file is damaged, cut off, or made to do harm."""

    def __init__(self, reason: str):
        super().__init__(f"This is not a sound GGUF file: {reason}. Build or fetch it again.", code="invalid_gguf")


@dataclass(frozen=True)
class Tensor:
    name: str
    shape: tuple[int, ...]
    """Rows last, as in the file: (columns, rows, ...)."""
    type: str
    offset: int
    """Bytes from the start of the data section."""
    size: int
    """Bytes."""


@dataclass(frozen=True)
class Entry:
    type: str
    """UINT32, STRING, ARRAY, ..."""
    value: Value
    items: str = ""
    """Type of an array's items."""


@dataclass(frozen=True)
class Header:
    version: int
    alignment: int
    entries: dict[str, Entry]
    tensors: dict[str, Tensor]
    data_start: int
    """Bytes before the data section."""
    size: int
    """Bytes of the whole file."""

    def get(self, key: str) -> Value | None:
        entry = self.entries.get(key)
        return entry.value if entry else None


def read_header(path: Path) -> Header:
    """The header of a GGUF file (version 2 or 3, little endian). Raises InvalidGguf with the first thing that is wrong."""
    size = path.stat().st_size
    with path.open("rb") as file:
        scan = _Scan(file, size)
        if scan.take(4) != MAGIC:
            raise InvalidGguf("it does not begin with GGUF")
        version = scan.number("<I")
        if version not in VERSIONS:
            raise InvalidGguf(f"its version is {version}, known are 2 and 3")
        tensor_count = scan.count(MOST_ENTRIES, "tensors")
        entry_count = scan.count(MOST_ENTRIES, "entries")
        entries = _entries(scan, entry_count)
        alignment = _alignment(entries)
        tensors = _tensors(scan, tensor_count, alignment)
        data_start = _up(scan.position, alignment)
    _sizes_agree(tensors, data_start=data_start, alignment=alignment, size=size)
    return Header(version, alignment, entries, {t.name: t for t in tensors}, data_start, size)


class _Scan:
    """Reads forward and never past the end."""

    def __init__(self, file: BinaryIO, size: int):
        self.file = file
        self.left = min(size, LARGEST_HEADER)
        self.position = 0

    def take(self, length: int) -> bytes:
        if length > self.left:
            raise InvalidGguf("it ends in the middle of its header")
        piece = self.file.read(length)
        if len(piece) != length:
            raise InvalidGguf("it ends in the middle of its header")
        self.left -= length
        self.position += length
        return piece

    def number(self, layout: str) -> int:
        value: int = struct.unpack(layout, self.take(struct.calcsize(layout)))[0]
        return value

    def count(self, most: int, what: str) -> int:
        value = self.number("<Q")
        if value > most:
            raise InvalidGguf(f"it claims {value} {what}, at most {most} are allowed")
        return value

    def string(self, longest: int, what: str) -> str:
        length = self.number("<Q")
        if length > longest:
            raise InvalidGguf(f"a {what} of {length} bytes is longer than {longest}")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError as error:
            raise InvalidGguf(f"a {what} is not UTF-8") from error


def _entries(scan: _Scan, count: int) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for _ in range(count):
        key = scan.string(LONGEST_KEY, "key")
        if not key or key in entries:
            raise InvalidGguf(f"the key {key[:60]!r} is empty or stands in it twice")
        entries[key] = _entry(scan, scan.number("<I"))
    return entries


def _entry(scan: _Scan, kind: int) -> Entry:
    if kind != ARRAY:
        return Entry(VALUE_TYPES.get(kind, ""), _value(scan, kind))
    items = scan.number("<I")
    if items == ARRAY or items not in VALUE_TYPES:
        raise InvalidGguf(f"an array holds items of type {items}")
    count = scan.count(MOST_ITEMS, "items in an array")
    if items == STRING:
        return Entry("ARRAY", [scan.string(LONGEST_STRING, "string") for _ in range(count)], "STRING")
    layout = SCALARS[items]
    raw = scan.take(count * struct.calcsize(layout))
    return Entry("ARRAY", list(struct.unpack(f"<{count}{layout[1]}", raw)), VALUE_TYPES[items])


def _value(scan: _Scan, kind: int) -> Value:
    if kind == STRING:
        return scan.string(LONGEST_STRING, "string")
    if kind not in SCALARS:
        raise InvalidGguf(f"an entry has the unknown type {kind}")
    return scan.number(SCALARS[kind])


def _alignment(entries: dict[str, Entry]) -> int:
    entry = entries.get("general.alignment", Entry("UINT32", 32))
    value = entry.value
    if entry.type != "UINT32" or not isinstance(value, int) or not 8 <= value <= 65_536 or value & (value - 1):
        raise InvalidGguf(f"its alignment is {value!r}")
    return value


def _tensors(scan: _Scan, count: int, alignment: int) -> list[Tensor]:
    tensors: list[Tensor] = []
    names: set[str] = set()
    expected = 0
    for _ in range(count):
        tensor = _tensor(scan)
        if tensor.name in names:
            raise InvalidGguf(f"the tensor {tensor.name} stands in it twice")
        if tensor.offset != expected:
            raise InvalidGguf(f"the tensor {tensor.name} begins at {tensor.offset}, not at {expected}")
        names.add(tensor.name)
        tensors.append(tensor)
        expected = _up(tensor.offset + tensor.size, alignment)
    return tensors


def _tensor(scan: _Scan) -> Tensor:
    name = scan.string(LONGEST_NAME, "tensor name")
    dimensions = scan.number("<I")
    if not name or not 1 <= dimensions <= 4:
        raise InvalidGguf(f"the tensor {name!r} has {dimensions} dimensions")
    shape = tuple(scan.number("<Q") for _ in range(dimensions))
    kind = scan.number("<I")
    offset = scan.number("<Q")
    if kind not in TENSOR_TYPES:
        raise InvalidGguf(f"the tensor {name} has the unknown type {kind}")
    type_name, block, block_size = TENSOR_TYPES[kind]
    weights = 1
    for length in shape:
        if not 1 <= length <= LARGEST_DIMENSION:
            raise InvalidGguf(f"the tensor {name} has a dimension of {length}")
        weights *= length
    if weights > LARGEST_TENSOR or shape[0] % block:
        raise InvalidGguf(f"the tensor {name} has a shape that {type_name} does not allow")
    return Tensor(name, shape, type_name, offset, weights // block * block_size)


def _sizes_agree(tensors: list[Tensor], *, data_start: int, alignment: int, size: int) -> None:
    end = tensors[-1].offset + tensors[-1].size if tensors else 0
    if size not in (data_start + end, data_start + _up(end, alignment)):
        raise InvalidGguf(f"it is {size} bytes long, its header describes {data_start + _up(end, alignment)}")


def _up(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment
