"""Rows of tensors out of safetensors files, read where they are needed, in float32. Nothing is mapped or held; no torch."""

import json
import os
import struct
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from studio.errors import UserError
from studio.ml.gguf import kernels

LARGEST_HEADER = 100 << 20
LARGEST_SCRATCH = 16 << 20
"""Bytes that a thread keeps between two reads."""
FORMATS: dict[str, npt.DTypeLike] = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Place:
    file: Path
    start: int
    """Bytes from the start of the file."""
    shape: tuple[int, ...]
    dtype: str


class Weights:
    """The tensors of a folder of safetensors, or of one file. Reading is safe from several threads."""

    def __init__(self, files: list[Path]):
        self.places: dict[str, Place] = {}
        self._descriptors: dict[Path, int] = {}
        self._memory = threading.local()
        for file in files:
            for name, place in _places(file).items():
                if name in self.places:
                    raise UserError(f"The tensor {name} stands in two files. Fetch the model again.")
                self.places[name] = place
        for file in files:
            self._descriptors[file] = os.open(file, os.O_RDONLY)

    @classmethod
    def of_model(cls, folder: Path) -> "Weights":
        """The model in a folder: model.safetensors, or the shards that its index names."""
        index = folder / "model.safetensors.index.json"
        if not index.exists():
            return cls([_there(folder / "model.safetensors")])
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if any(Path(name).name != name for name in names):
            raise UserError("The index of the weights names files outside the model's folder. Fetch the model again.")
        return cls([_there(folder / name) for name in names])

    def close(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors = {}

    def __enter__(self) -> "Weights":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def rows(self, name: str, start: int, stop: int, *, out: Array | None = None) -> Array:
        """Rows [start, stop) of a matrix in float32, shape (stop - start, columns): a new array, or `out`, which must be contiguous."""
        place = self.places[name]
        columns = place.shape[1]
        out = np.empty((stop - start, columns), np.float32) if out is None else out
        self._read(place, start * columns, out.reshape(-1))
        return out

    def flat(self, name: str, start: int, stop: int) -> Array:
        """Weights [start, stop) of a tensor, row after row, as a new float32 array of that length."""
        out = np.empty(stop - start, np.float32)
        self._read(self.places[name], start, out)
        return out

    def whole(self, name: str) -> Array:
        """A whole tensor, of any shape, as a new float32 array."""
        place = self.places[name]
        out = np.empty(place.shape, np.float32)
        self._read(place, 0, out.reshape(-1))
        return out

    def expect(self, name: str, start: int, stop: int) -> None:
        """Tells the system that these rows are read soon, so that the disk works while the processor does."""
        if not hasattr(os, "posix_fadvise"):  # not on macOS
            return
        place = self.places[name]
        row = place.shape[1] * np.dtype(FORMATS[place.dtype]).itemsize
        os.posix_fadvise(self._descriptors[place.file], place.start + start * row, (stop - start) * row, os.POSIX_FADV_WILLNEED)

    def _read(self, place: Place, first: int, out: Array) -> None:
        """Fills `out`, which is flat, with the weights from number `first` on."""
        dtype = np.dtype(FORMATS[place.dtype])
        offset = place.start + first * dtype.itemsize
        if place.dtype == "F32":
            self._fill(place, offset, out.data.cast("B"))
            return
        stored = self._scratch(len(out) * dtype.itemsize).view(dtype)
        self._fill(place, offset, stored.data.cast("B"))
        (kernels.widen_bf16 if place.dtype == "BF16" else kernels.widen_f16)(stored, out=out)

    def _fill(self, place: Place, offset: int, view: memoryview) -> None:
        while view:
            got = os.preadv(self._descriptors[place.file], [view], offset)
            if got == 0:
                raise UserError(f"{place.file.name} ends too early. Fetch the model again.")
            view, offset = view[got:], offset + got

    def _scratch(self, size: int) -> npt.NDArray[np.uint8]:
        """Bytes of the thread's own, which its next read takes again."""
        found: npt.NDArray[np.uint8] | None = getattr(self._memory, "bytes", None)
        if found is None or len(found) < size:
            found = np.empty(size, np.uint8)
            if size <= LARGEST_SCRATCH:
                self._memory.bytes = found
        return found[:size]


def _there(file: Path) -> Path:
    if not file.is_file():
        raise UserError(f"{file.name} is missing. A model needs its weights as safetensors.")
    return file


def _places(file: Path) -> dict[str, Place]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(LARGEST_HEADER, size - 8):
            raise UserError(f"{file.name} is not a safetensors file, or it is cut off. Fetch it again.")
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            return {name: _place(file, name, entry, data=8 + length, size=size) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise UserError(f"The header of {file.name} cannot be read. Fetch it again.") from error


def _place(file: Path, name: str, entry: dict[str, Any], *, data: int, size: int) -> Place:
    dtype, shape = entry["dtype"], tuple(int(length) for length in entry["shape"])
    begin, end = entry["data_offsets"]
    if dtype not in FORMATS:
        raise UserError(f"{name} is stored as {dtype}. Only F32, F16 and BF16 weights can be built into a GGUF.")
    expected = int(np.prod(shape, dtype=np.float64)) * np.dtype(FORMATS[dtype]).itemsize
    if any(length < 0 for length in shape) or not 0 <= begin <= end <= size - data or end - begin != expected:
        raise UserError(f"{name} in {file.name} lies outside the file. Fetch it again.")
    return Place(file, data + begin, shape, dtype)
