"""Which tensor gets which type, and float32 rows into that type's bytes. The mixes are llama.cpp's, and so are the kernels."""

import ctypes
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from studio.errors import UserError
from studio.ml.gguf.header import TENSOR_TYPES
from studio.ml.gguf.writing import TYPE_NUMBERS
from studio.ml.llamacpp import library

LARGEST_F16 = 65_520.0
"""From here on a float16 is infinite."""


@dataclass(frozen=True)
class Recipe:
    file_type: int
    """general.file_type, llama.cpp's `llama_ftype`."""
    default: str
    """Type of the matrices that no rule gives another."""


RECIPES = {
    "f16": Recipe(1, "F16"),
    "bf16": Recipe(32, "BF16"),
    "q8_0": Recipe(7, "Q8_0"),
    "q4_k_m": Recipe(15, "Q4_K"),
}
NARROWER = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""What llama.cpp takes where a row is no multiple of 256."""


class OutOfRange(UserError):
    """A weight does not fit into float16."""

    def __init__(self, name: str):
        super().__init__(f"{name} holds weights beyond ±65504, which f16 cannot hold. Build bf16 or q8_0 instead.", code="out_of_range")


def tensor_type(name: str, shape: tuple[int, ...], *, quantization: str, layers: int, grouped: bool, tied: bool) -> str:
    """The type of a tensor, by its name in the GGUF and its shape (rows, columns).

    Source: llama.cpp, src/llama-quant.cpp (`llama_tensor_get_type`). `grouped` is grouped-query attention,
    `tied` a model whose output layer is its embedding.
    """
    default = RECIPES[quantization].default
    if len(shape) < 2:
        return "F32"
    if default in ("F16", "BF16"):
        return default
    chosen = _mixed(name, shape, default=default, layers=layers, grouped=grouped, tied=tied)
    if shape[-1] % _block(chosen)[0]:
        chosen = NARROWER.get(chosen, "F16")
    return chosen if shape[-1] % _block(chosen)[0] == 0 else "F16"


def _mixed(name: str, shape: tuple[int, ...], *, default: str, layers: int, grouped: bool, tied: bool) -> str:
    if default != "Q4_K":
        return default
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        return "Q8_0" if shape[-1] % 256 else "Q6_K"
    if name.endswith((".attn_v.weight", ".ffn_down.weight")) and _more_bits(int(name.split(".")[1]), layers):
        return "Q6_K"
    if name.endswith(".attn_v.weight") and layers == 80 and grouped:  # Llama 2 and 3 with 70B: eight heads share it
        return "Q5_K"
    return default


def _more_bits(layer: int, layers: int) -> bool:
    """llama.cpp's `use_more_bits`: the first and last eighth, and every third between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def row_bytes(columns: int, kind: str) -> int:
    """Bytes of one row of `columns` weights. `columns` is a multiple of the type's block."""
    weights, size = _block(kind)
    return columns // weights * size


def quantize(
    rows: npt.NDArray[np.float32], kind: str, *, name: str, importance: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.uint8]:
    """The bytes of float32 rows of shape (rows, columns), as (rows, row_bytes). The GIL is released meanwhile.

    `importance`, of shape (columns,), weighs the error in each column (llama.cpp's importance matrix); all count alike without.

    Raises UserError where a weight is not a number, or too large for F16.
    """
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    if not np.isfinite(rows).all():
        raise UserError(f"{name} holds weights that are not numbers: the training went wrong, or the file is damaged. Train again.")
    if kind == "F32":
        return rows.view(np.uint8).reshape(rows.shape[0], -1)
    if kind == "F16" and np.abs(rows).max(initial=0) >= LARGEST_F16:
        raise OutOfRange(name)
    weights = None if importance is None else np.ascontiguousarray(importance, dtype=np.float32)
    out = np.empty((rows.shape[0], row_bytes(rows.shape[1], kind)), np.uint8)
    call = library().ggml_quantize_chunk
    call.restype = ctypes.c_size_t
    call.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    written = call(
        TYPE_NUMBERS[kind],
        rows.ctypes.data,
        out.ctypes.data,
        0,
        rows.shape[0],
        rows.shape[1],
        None if weights is None else weights.ctypes.data,
    )
    if written != out.nbytes:
        raise RuntimeError(f"ggml wrote {written} bytes of {name} where {out.nbytes} were expected")
    return out


def _block(kind: str) -> tuple[int, int]:
    _, weights, size = TENSOR_TYPES[TYPE_NUMBERS[kind]]
    return weights, size
