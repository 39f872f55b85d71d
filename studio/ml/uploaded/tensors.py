"""Reads the header of a stranger's safetensors file more strictly than the format's own library, and writes the tensors anew.

The format: https://github.com/huggingface/safetensors, "Format": 8 bytes of length, a JSON header, then the tensors without holes.
"""

import json
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from studio.errors import UserError
from studio.ml.gguf.weights import FORMATS, Weights

LARGEST_HEADER = 16 << 20
MOST_TENSORS, MOST_DIMENSIONS = 100_000, 4
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,299}", re.ASCII)
PIECE = 4 << 20
"""Weights that are looked at at a time."""
KNOWN_ELSEWHERE = {"F64", "I64", "I32", "I16", "I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "U16", "U32", "U64"}


@dataclass(frozen=True)
class Tensor:
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    """Bytes from the start of the file."""
    size: int


def header(file: Path) -> list[Tensor]:
    """Every tensor, in the order of the bytes. Raises UserError where the header and the bytes are not exactly one adapter's."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(LARGEST_HEADER, size - 8):
            raise UserError("The weights are not a safetensors file, or they are cut off. Upload them again.")
        try:
            told = json.loads(stream.read(length), object_pairs_hook=_unique)
            told.pop("__metadata__", None)
            found = [_tensor(name, entry, data=8 + length) for name, entry in told.items()]
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise UserError("The header of the weights cannot be read. Save the adapter again.") from error
    if not found:
        raise UserError("The adapter is empty. Save it again.")
    if len(found) > MOST_TENSORS:
        raise UserError(f"The file holds {len(found):,} tensors; an adapter has some thousand at most.")
    found.sort(key=lambda tensor: tensor.begin)
    end = 8 + length
    for tensor in found:
        if tensor.begin != end:
            raise UserError(f"{tensor.name} does not lie where the one before it ends. Save the adapter again.")
        end += tensor.size
    if end != size:
        raise UserError("The weights are cut off, or something is added to them. Upload the file again.")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _tensor(name: str, entry: dict[str, Any], *, data: int) -> Tensor:
    if not NAME.fullmatch(name):
        raise UserError(f"{name[:60]!r} is no name of an adapter's tensor.")
    dtype, shape = entry["dtype"], entry["shape"]
    begin, end = entry["data_offsets"]
    if dtype not in FORMATS:
        known = dtype if dtype in KNOWN_ELSEWHERE else "another type"
        raise UserError(f"{name} is stored as {known}. An adapter's weights are F32, F16 or BF16.")
    if not all(type(number) is int for number in (begin, end, *shape)):
        raise ValueError("a size that is no whole number")
    if not 0 < len(shape) <= MOST_DIMENSIONS or not all(0 < length < 1 << 31 for length in shape):
        raise UserError(f"{name} has a shape that no adapter's tensor has.")
    size = np.dtype(FORMATS[dtype]).itemsize
    for length in shape:
        size *= length
    if begin < 0 or end - begin != size:
        raise UserError(f"{name} does not have the bytes that its shape takes. Save the adapter again.")
    return Tensor(name, dtype, tuple(shape), data + begin, size)


def refuse_what_is_no_number(file: Path, tensors: list[Tensor]) -> dict[str, float]:
    """The largest size of each tensor's weights. Raises UserError for a NaN or an infinite one."""
    largest = {}
    with_weights = Weights([file])
    try:
        for tensor in tensors:
            count, most = int(np.prod(tensor.shape)), 0.0
            for start in range(0, count, PIECE):
                values = np.abs(with_weights.flat(tensor.name, start, min(start + PIECE, count)))
                if not np.isfinite(values).all():
                    raise UserError(f"{tensor.name} holds values that are not numbers (NaN or infinite). The training went wrong there.")
                most = max(most, float(values.max()))
            largest[tensor.name] = most
    finally:
        with_weights.close()
    return largest


def write_anew(source: Path, tensors: list[Tensor], names: dict[str, str], target: Path) -> None:
    """The same bytes under `names` and a header of our own, without what else the file said of itself."""
    ordered = sorted(tensors, key=lambda tensor: names[tensor.name])
    told: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for tensor in ordered:
        told[names[tensor.name]] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [place, place + tensor.size]}
        place += tensor.size
    head = json.dumps(told, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with source.open("rb") as stored, target.open("wb") as out:
        out.write(struct.pack("<Q", len(head)) + head)
        for tensor in ordered:
            stored.seek(tensor.begin)
            left = tensor.size
            while left:
                piece = stored.read(min(PIECE, left))
                if not piece:
                    raise UserError("The weights end too early. Upload the file again.")
                out.write(piece)
                left -= len(piece)
        out.flush()
        os.fsync(out.fileno())
