"""Rows of tensors out of safetensors files, read where they are needed, in float32. Nothing is mapped or held; no torch."""

import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from studio.errors import UserError

LARGEST_HEADER = 100 << 20
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

    def rows(self, name: str, start: int, stop: int) -> Array:
        """Rows [start, stop) of a matrix as a new float32 array of shape (stop - start, columns)."""
        place = self.places[name]
        columns = place.shape[1]
        return self._read(place, start * columns, (stop - start) * columns).reshape(stop - start, columns)

    def whole(self, name: str) -> Array:
        """A whole tensor, of any shape, as a new float32 array."""
        place = self.places[name]
        return self._read(place, 0, int(np.prod(place.shape, dtype=np.int64))).reshape(place.shape)

    def _read(self, place: Place, first: int, count: int) -> Array:
        stored = np.empty(count, FORMATS[place.dtype])
        view = memoryview(stored.data).cast("B")
        offset = place.start + first * stored.itemsize
        done = 0
        while done < len(view):
            got = os.preadv(self._descriptors[place.file], [view[done:]], offset + done)
            if got == 0:
                raise UserError(f"{place.file.name} ends too early. Fetch the model again.")
            done += got
        return _float32(stored, place.dtype)


def _float32(stored: npt.NDArray[Any], dtype: str) -> Array:
    if dtype == "BF16":  # the upper half of a float32
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return stored.astype(np.float32, copy=False)


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
        except ValueError as error:
            raise UserError(f"The header of {file.name} cannot be read. Fetch it again.") from error
    header.pop("__metadata__", None)
    return {name: _place(file, name, entry, data=8 + length, size=size) for name, entry in header.items()}


def _place(file: Path, name: str, entry: dict[str, Any], *, data: int, size: int) -> Place:
    dtype, shape = entry["dtype"], tuple(int(length) for length in entry["shape"])
    begin, end = entry["data_offsets"]
    if dtype not in FORMATS:
        raise UserError(f"{name} is stored as {dtype}. Only F32, F16 and BF16 weights can be built into a GGUF.")
    expected = int(np.prod(shape, dtype=np.float64)) * np.dtype(FORMATS[dtype]).itemsize
    if any(length < 0 for length in shape) or not 0 <= begin <= end <= size - data or end - begin != expected:
        raise UserError(f"{name} in {file.name} lies outside the file. Fetch it again.")
    return Place(file, data + begin, shape, dtype)
