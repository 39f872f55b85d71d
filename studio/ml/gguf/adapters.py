"""A LoRA adapter as a GGUF of its own, which llama.cpp adds to a shared base while it runs. What cannot be so is merged instead."""

import os
import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt

from studio.errors import UserError
from studio.ml.gguf import architectures
from studio.ml.gguf.architectures import Shape
from studio.ml.gguf.exporting import reordered
from studio.ml.gguf.header import Entry
from studio.ml.gguf.lora import Change, read_adapter
from studio.ml.gguf.quantizing import quantize
from studio.ml.gguf.weights import Array, Weights
from studio.ml.gguf.writing import Planned, write_small
from studio.storage import fsync_path


def export_adapter(*, base: Path, adapter: Path, target: Path) -> dict[str, object]:
    """Writes `target`, whole or not at all; returns its size in bytes and how many matrices stand in it.

    Raises UserError for a DoRA adapter, for one with tables of its own, and for what `read_adapter` refuses.
    """
    shape = architectures.read_shape(base)
    with Weights.of_model(base) as weights:
        found = read_adapter(adapter, weights, tied=shape.tied)
    if not found.swappable:
        raise UserError(
            "An adapter with DoRA or with tables of its own cannot be swapped on a running model. Build a merged GGUF from it.",
            code="not_swappable",
        )
    changes = {name: change for name, change in found.changes.items() if isinstance(change, Change)}
    alpha = _alpha(next(iter(changes.values())))
    tensors = []
    for name, change in changes.items():
        tensors += _matrices(shape, name, change, alpha=alpha)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        write_small(temporary, _entries(shape, alpha), tensors)
        fsync_path(temporary)
        os.rename(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_path(target.parent)
    return {"size": target.stat().st_size, "changed": len(found.changes)}


def _alpha(first: Change) -> float:
    """The one alpha of the file. llama.cpp scales each matrix by alpha / rank, where rank is read off its shape."""
    return first.scale * first.rank


def _entries(shape: Shape, alpha: float) -> dict[str, Entry]:
    return {
        "general.architecture": Entry("STRING", shape.family.arch),
        "general.type": Entry("STRING", "adapter"),
        "general.name": Entry("STRING", "adapter"),
        "general.file_type": Entry("UINT32", 1),
        "adapter.type": Entry("STRING", "lora"),
        "adapter.lora.alpha": Entry("FLOAT32", alpha),
    }


def _matrices(shape: Shape, name: str, change: Change, *, alpha: float) -> list[tuple[Planned, npt.NDArray[np.uint8]]]:
    """A as it is, B with its rows in llama.cpp's order; where the scale is not the file's alpha / rank, B makes up for it."""
    new = shape.tensor_name(name)
    if new is None:
        raise UserError(f"The adapter changes {name}, which this base model shares with its embedding. Train without it.")
    heads = shape.heads_of(name)
    b = change.b * np.float32(change.scale * change.rank / alpha)
    if heads:
        b = reordered(b, heads)
    return [_half(f"{new}.lora_a", change.a), _half(f"{new}.lora_b", b)]


def _half(name: str, matrix: Array) -> tuple[Planned, npt.NDArray[np.uint8]]:
    content = quantize(matrix, "F16", name=name)
    return Planned(name, matrix.shape, "F16", content.nbytes), content
