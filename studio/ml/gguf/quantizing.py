"""Float32 rows into the bytes of a type. The kernels are llama.cpp's."""

import ctypes

import numpy as np
import numpy.typing as npt

from studio.errors import UserError
from studio.ml.gguf.header import TENSOR_TYPES
from studio.ml.gguf.writing import TYPE_NUMBERS
from studio.ml.llamacpp import library

LARGEST_F16 = 65_520.0
"""From here on a float16 is infinite."""


class OutOfRange(UserError):
    """A weight does not fit into float16."""

    def __init__(self, name: str):
        super().__init__(f"{name} holds weights beyond ±65504, which f16 cannot hold. Build bf16 or q8_0 instead.", code="out_of_range")


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
