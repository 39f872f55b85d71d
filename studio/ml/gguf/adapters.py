"""A LoRA adapter as a GGUF of its own, which llama.cpp adds to a shared base while it runs. What cannot be so is merged instead."""

import math
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from studio.errors import UserError
from studio.ml.gguf import architectures
from studio.ml.gguf.architectures import Shape
from studio.ml.gguf.changes import LowRank
from studio.ml.gguf.exporting import reordered
from studio.ml.gguf.header import Entry
from studio.ml.gguf.lora import read_adapter
from studio.ml.gguf.metadata import general_entries
from studio.ml.gguf.quantizing import OutOfRange, quantize, row_bytes
from studio.ml.gguf.weights import Array, Weights
from studio.ml.gguf.writing import Planned, header_bytes, padded
from studio.storage import fsync_path
from studio.training.orders import BuildAbout

Precision = Literal["f16", "f32", "q8_0"]
FILE_TYPES: dict[Precision, int] = {"f32": 0, "f16": 1, "q8_0": 7}
"""general.file_type, llama.cpp's `llama_ftype`."""
BLOCK = 32
"""Weights that share a scale in q8_0. Ranks are filled up to whole blocks with zeros."""
LIFT = 16
"""The power of two by which A and B together are made larger in q8_0, and alpha smaller. A block's scale is an f16, which has few digits
left where numbers are as small as those of a B that was trained for a short while."""
LARGEST = 127 * 65_504 / 2
"""What a scale in f16 can hold, and a margin."""
CLEAR = 0.25
"""How large B A must be, measured by its ranks one by one, to be rounded rank by rank: what is left of ranks that cancel each other, as in
an adapter that was made the difference of two, would drown in their rounding."""


@dataclass(frozen=True)
class Matrix:
    """One of the two of a layer, which is read when it is written."""

    planned: Planned
    source: str
    """The layer's tensor in the base, for what there is to say about it."""
    read: Callable[[], Array]


def export_adapter(
    *, base: Path, adapter: Path, target: Path, precision: Precision = "f16", name: str = "adapter", about: BuildAbout | None = None
) -> dict[str, object]:
    """Writes `target`, whole or not at all; returns its size in bytes and how many layers it changes.

    Works on every GGUF of the base, whatever its type. One layer is in memory at a time. In q8_0 both factors are rounded as llama.cpp
    rounds weights; a layer that has no whole blocks, numbers too large for that, or ranks that cancel each other, is f32. Raises UserError
    for an adapter that is more than products beside plain layers, for one whose numbers f16 cannot hold, and for what `read_adapter`
    refuses.
    """
    shape = architectures.read_shape(base)
    with Weights.of_model(base) as weights, read_adapter(adapter, weights, tied=shape.tied) as found:
        changes = {tensor: change for tensor, change in found.changes.items() if isinstance(change, LowRank)}
        if not found.swappable:
            raise UserError(
                "An adapter with DoRA or with tables of its own cannot be swapped on a running model. Build a merged GGUF from it.",
                code="not_swappable",
            )
        alpha = _alpha(list(changes.values())) / (2**LIFT if precision == "q8_0" else 1)
        matrices = [matrix for tensor, change in changes.items() for matrix in _matrices(shape, tensor, change, alpha, precision)]
        entries = general_entries(shape.family.arch, name=name, file_type=FILE_TYPES[precision], about=about)
        _write(target, entries | _adapter_entries(alpha), matrices)
    return {"size": target.stat().st_size, "changed": len(changes)}


def _alpha(changes: list[LowRank]) -> float:
    """The one alpha of the file. llama.cpp scales each layer by alpha / rank, whose rank it reads off the shape, and by 1 where it is 0."""
    return next((change.scale * change.rank for change in changes if change.scale), 1.0)


def _adapter_entries(alpha: float) -> dict[str, Entry]:
    return {
        "general.type": Entry("STRING", "adapter"),
        "adapter.type": Entry("STRING", "lora"),
        "adapter.lora.alpha": Entry("FLOAT32", alpha),
    }


def _matrices(shape: Shape, tensor: str, change: LowRank, alpha: float, precision: Precision) -> list[Matrix]:
    """A as it is, B with its rows in llama.cpp's order; where the scale is not the file's alpha / rank, B makes up for it.

    Of a table of words llama.cpp wants what a token picks first, shape (tokens, rank), then what it is multiplied by, (columns, rank):
    `build_inp_embd` in llama-graph.cpp.
    """
    name, kind, rank, lift = shape.tensor_name(tensor), precision.upper(), change.rank, np.float32(1)
    if name is None:
        raise UserError(f"The adapter changes {tensor}, which this base model shares with its embedding. Train without it.")
    heads, (rows, columns) = shape.heads_of(tensor), change.shape
    if precision == "q8_0":
        filled = -(-rank // BLOCK) * BLOCK
        fits = not columns % BLOCK and name != "token_embd.weight"
        found_lift = _lift(change, change.scale * filled / alpha) if fits else None
        if found_lift is None:
            kind = "F32"
        else:
            rank, lift = filled, found_lift
    ratio = np.float32(change.scale * rank / alpha)
    if name == "token_embd.weight":
        first = (lambda: change.outer(0, rows)), rows, rank
        second = (lambda: change.inner().T * ratio), columns, rank
    else:
        first = (lambda: _filled(change.inner() * lift, 0, rank)), rank, columns
        second = (lambda: _filled(_reordered(change.outer(0, rows) * (ratio / lift), heads), 1, rank)), rows, rank
    found = []
    for side, (read, count, width) in (("lora_a", first), ("lora_b", second)):
        planned = Planned(f"{name}.{side}", (count, width), kind, count * row_bytes(width, kind))
        found.append(Matrix(planned, tensor, read))
    return found


def _lift(change: LowRank, ratio: float) -> np.float32 | None:
    """The power of two by which A is multiplied, and B divided beside its ratio; None for what q8_0 cannot hold.

    It makes A's largest number about 1, so that A x, which is rounded as well, is about as large as x.
    """
    inner, outer = (matrix.astype(np.float64) for matrix in (change.inner(), change.outer(0, change.shape[0])))
    across, along = inner @ inner.T, outer.T @ outer
    apart = float((np.diag(across) * np.diag(along)).sum())  # the squared norm of B A, had its ranks nothing to do with each other
    if not math.isfinite(apart):  # `quantize` refuses it
        return np.float32(1)
    if float((across * along).sum()) < CLEAR**2 * apart:
        return None
    largest = float(np.abs(inner).max())
    lift = 2.0 ** -round(math.log2(largest)) if largest else 1.0
    return None if float(np.abs(outer).max()) * abs(ratio) / lift > LARGEST else np.float32(lift)


def _filled(matrix: Array, axis: int, length: int) -> Array:
    """With zeros at the end up to `length`."""
    missing = [(0, length - matrix.shape[axis] if number == axis else 0) for number in (0, 1)]
    return np.pad(matrix, missing) if any(map(sum, missing)) else matrix


def _reordered(matrix: Array, heads: int) -> Array:
    return reordered(matrix, heads) if heads else matrix


def _rounded(matrix: Matrix) -> npt.NDArray[np.uint8]:
    try:
        return quantize(matrix.read(), matrix.planned.type, name=matrix.source)
    except OutOfRange as error:
        raise UserError(
            f"The adapter's {matrix.source} holds numbers beyond ±65504, which f16 cannot hold. Build it in f32.", code="out_of_range"
        ) from error


def _write(target: Path, entries: dict[str, Entry], matrices: list[Matrix]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        with temporary.open("xb") as file:
            file.write(header_bytes(entries, [matrix.planned for matrix in matrices]))
            for matrix in matrices:
                content = _rounded(matrix)
                file.write(content.tobytes().ljust(padded(matrix.planned.size), b"\0"))
        fsync_path(temporary)
        os.rename(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_path(target.parent)
