"""The kernels of a build without the native extension: numpy, and the quantizer that xllamacpp brings. The same bytes, more slowly.

Each function does what its counterpart in native/ does, operation by operation: float32, in a fixed order, never fused.
"""

import ctypes

import numpy as np
import numpy.typing as npt

from studio.ml.gguf.header import TENSOR_TYPES
from studio.ml.gguf.writing import TYPE_NUMBERS
from studio.ml.llamacpp import library

Array = npt.NDArray[np.float32]
RUNNING_SUMS = 16
"""Of row_lengths: column i is added to sum i modulo 16."""
CACHED = 1 << 16
"""Weights that are worked on at a time, so that they stay in the processor's cache."""
FINITE = 0x7FFF_FFFF
"""All bits of a float32 but its sign. As integers, magnitudes are in order, and infinity and NaN come last."""


def quantize(rows: Array, kind: str, importance: Array | None) -> npt.NDArray[np.uint8]:
    """The bytes of rows of shape (rows, columns) as (rows, row bytes), by llama.cpp's own kernels (ggml_quantize_chunk)."""
    _, weights, size = TENSOR_TYPES[TYPE_NUMBERS[kind]]
    out = np.empty((rows.shape[0], rows.shape[1] // weights * size), np.uint8)
    call = library().ggml_quantize_chunk
    call.restype = ctypes.c_size_t
    call.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    pointer = None if importance is None else importance.ctypes.data
    written = call(TYPE_NUMBERS[kind], rows.ctypes.data, out.ctypes.data, 0, rows.shape[0], rows.shape[1], pointer)
    if written != out.nbytes:
        raise RuntimeError(f"ggml wrote {written} bytes of {kind} where {out.nbytes} were expected")
    return out


def largest(values: Array) -> float:
    """The largest magnitude; infinity or NaN where any value is not finite."""
    return float((values.view(np.uint32) & np.uint32(FINITE)).max(initial=0).view(np.float32))


def add_product(rows: Array, b: Array, a: Array, scale: float) -> None:
    """Adds scale · (b @ a) to `rows` in place, whose shape is (rows, columns); b is (rows, rank), a is (rank, columns).

    For each element: sum = 0; sum = sum + b·a for each rank in turn; row = row + scale·sum. Every operation is rounded to float32.
    """
    step = max(1, CACHED // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        piece, factors = rows[start : start + step], b[start : start + step]
        total, product = np.zeros_like(piece), np.empty_like(piece)
        for k in range(a.shape[0]):
            np.multiply(factors[:, k : k + 1], a[k], out=product)
            np.add(total, product, out=total)
        np.multiply(total, np.float32(scale), out=total)
        np.add(piece, total, out=piece)


def row_lengths(rows: Array) -> Array:
    """The Euclidean length of each row, shape (rows,).

    Sixteen running sums of squares, column i in sum i modulo 16; then halves are added to each other, 8, 4, 2 and 1 apart.
    """
    count, columns = rows.shape
    sums = np.zeros((count, RUNNING_SUMS), np.float32)
    for start in range(0, columns, RUNNING_SUMS):
        piece = rows[:, start : start + RUNNING_SUMS]
        sums[:, : piece.shape[1]] += piece * piece
    width = RUNNING_SUMS
    while width > 1:
        width //= 2
        sums = sums[:, :width] + sums[:, width : 2 * width]
    lengths: Array = np.sqrt(sums[:, 0])
    return lengths


def widen_bf16(stored: npt.NDArray[np.uint16], out: Array) -> None:
    """A bfloat16 is the upper half of a float32."""
    bits = out.view(np.uint32)
    bits[...] = stored
    np.left_shift(bits, 16, out=bits)


def widen_f16(stored: npt.NDArray[np.float16], out: Array) -> None:
    out[...] = stored


def narrow_f16(values: Array, out: npt.NDArray[np.float16]) -> None:
    with np.errstate(over="ignore", under="ignore"):
        out[...] = values


def narrow_bf16(values: Array, out: npt.NDArray[np.uint16]) -> None:
    bits = values.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    out[...] = (bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)
