"""Float32 rows into the bytes of a type. The kernels are llama.cpp's, or give the same bytes."""

import math

import numpy as np
import numpy.typing as npt

from studio.errors import UserError
from studio.ml.gguf import kernels
from studio.ml.gguf.header import TENSOR_TYPES
from studio.ml.gguf.writing import TYPE_NUMBERS

LARGEST_F16 = 65_520.0
"""From here on a float16 is infinite."""


class OutOfRange(UserError):
    """A weight does not fit into float16."""

    def __init__(self, name: str):
        super().__init__(f"{name} holds weights beyond ±65504, which f16 cannot hold. Build bf16 or q8_0 instead.", code="out_of_range")


def row_bytes(columns: int, kind: str) -> int:
    """Bytes of one row of `columns` weights. `columns` is a multiple of the type's block."""
    _, weights, size = TENSOR_TYPES[TYPE_NUMBERS[kind]]
    return columns // weights * size


def quantize(
    rows: npt.NDArray[np.float32], kind: str, *, name: str, importance: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.uint8]:
    """The bytes of float32 rows of shape (rows, columns), as (rows, row_bytes). The GIL is released meanwhile.

    `importance`, of shape (columns,), weighs the error in each column (llama.cpp's importance matrix); all count alike without.

    Raises UserError where a weight is not a number, or too large for F16.
    """
    try:
        return kernels.quantize(rows, kind, importance, below=LARGEST_F16 if kind == "F16" else math.inf)
    except kernels.Unfit as unfit:
        if math.isfinite(unfit.largest):
            raise OutOfRange(name) from unfit
        raise UserError(
            f"{name} holds weights that are not numbers: the training went wrong, or the file is damaged. Train again."
        ) from unfit
