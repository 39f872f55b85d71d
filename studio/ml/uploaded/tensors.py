"""What a stranger's safetensors file holds, beyond what `modelfacts.read_header` checks of every file, and the same bytes written anew."""

import json
import os
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from studio.errors import UserError
from studio.ml.gguf.weights import FORMATS, Weights
from studio.ml.modelfacts import Tensor, read_header

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,299}", re.ASCII)
PIECE = 4 << 20
"""Weights that are looked at, and bytes that are copied, at a time."""


def header(file: Path) -> dict[str, Tensor]:
    """Every tensor by name. Raises UserError where the file is damaged, empty, or holds what no adapter does."""
    found = read_header(file)
    if not found:
        raise UserError("The adapter is empty. Save it again.")
    for name, tensor in found.items():
        if not NAME.fullmatch(name):
            raise UserError(f"{name[:60]!r} is no name of an adapter's tensor.")
        if tensor.dtype not in FORMATS:
            raise UserError(f"{name} is stored as {tensor.dtype}. An adapter's weights are F32, F16 or BF16.")
        if not tensor.shape or not tensor.count:
            raise UserError(f"{name} has a shape that no adapter's tensor has.")
    return found


def sizes(file: Path, tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """The largest absolute value of each tensor. Raises UserError for a NaN or an infinite one."""
    found = {}
    with Weights([file]) as weights:
        for name, tensor in tensors.items():
            most = 0.0
            for start in range(0, tensor.count, PIECE):
                values = np.abs(weights.flat(name, start, min(start + PIECE, tensor.count)))
                if not np.isfinite(values).all():
                    raise UserError(f"{name} holds values that are not numbers (NaN or infinite). The training went wrong there.")
                most = max(most, float(values.max()))
            found[name] = most
    return found


def write_anew(source: Path, tensors: Mapping[str, Tensor], names: Mapping[str, str], target: Path) -> None:
    """The same bytes under `names` and a header of our own, without what else the file said of itself."""
    with Weights([source]) as weights:
        starts = {name: place.start for name, place in weights.places.items()}
    ordered = sorted(tensors, key=names.__getitem__)
    told: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in ordered:
        tensor = tensors[name]
        told[names[name]] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [end, end + tensor.size]}
        end += tensor.size
    head = json.dumps(told, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with source.open("rb") as stored, target.open("wb") as out:
        out.write(struct.pack("<Q", len(head)) + head)
        for name in ordered:
            stored.seek(starts[name])
            left = tensors[name].size
            while piece := stored.read(min(PIECE, left)):
                out.write(piece)
                left -= len(piece)
        out.flush()
        os.fsync(out.fileno())
