"""The inner loops of a build: types of weights into each other, and what an adapter adds. The same bytes on every machine.

Each function runs in the native extension (native/, one variant per width of vector registers) where it was built, else in fallback.py.
All of them release the GIL. `variant` is for tests: one of `variants()`, or "none" for the fallback; the best there is without.
"""

import ctypes
import functools
import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from studio.ml.gguf import fallback
from studio.ml.gguf.header import TENSOR_TYPES
from studio.ml.gguf.writing import TYPE_NUMBERS

log = logging.getLogger(__name__)

Array = npt.NDArray[np.float32]
CHOICE = "ADAPTER_STUDIO_KERNELS"
"""Environment variable that chooses the variant, or "none" for the fallback."""
NONE = "none"
VARIANTS = ("avx512", "avx2", "plain")
"""From the widest to the narrowest: 16, 8 and 4 weights at a time."""
FILE = Path(__file__).parent / "native" / "kernels.so"
KINDS = ("F16", "BF16", "Q4_0", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
"""Types that the extension writes. All others go through llama.cpp's own kernels."""
WEIGHED = ("Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
"""Those of them that it writes with an importance."""
ANSWER = "10940dec8a325297820c2f7c5508230969234c8168f1aca4520ad90abe4a7d65"
"""SHA-256 of what the kernels make of a few weights: a library that answers anything else is not used."""
POINTER, COUNT, REAL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "quantize": (ctypes.c_uint32, [ctypes.c_int32, POINTER, POINTER, COUNT, COUNT, POINTER]),
    "add_product": (None, [POINTER, POINTER, POINTER, COUNT, COUNT, COUNT, REAL]),
    "row_lengths": (None, [POINTER, POINTER, COUNT, COUNT]),
    "largest": (ctypes.c_uint32, [POINTER, COUNT]),
    "widen_bf16": (None, [POINTER, POINTER, COUNT]),
    "widen_f16": (None, [POINTER, POINTER, COUNT]),
    "narrow_bf16": (None, [POINTER, POINTER, COUNT]),
    "narrow_f16": (None, [POINTER, POINTER, COUNT]),
}
"""Result and arguments of the functions in native/variant.cpp, each of which ends in the name of its variant."""


class Unfit(ValueError):
    """A weight is not finite, or beyond what its new type holds."""

    def __init__(self, largest: float):
        super().__init__(f"The largest magnitude is {largest}")
        self.largest = largest


@functools.cache
def variants() -> tuple[str, ...]:
    """What was built and runs on this processor, the fastest first; empty where the extension is missing or answers wrongly."""
    library = _library()
    if library is None:
        return ()
    runs = [name for name in _built(library) if getattr(library, f"runs_{name}")()]
    wrong = [name for name in runs if _answer(name) != ANSWER]
    if wrong:
        log.warning("The native kernels in %s answer wrongly (%s) and are not used. Install the studio again.", FILE, ", ".join(wrong))
        return ()
    return tuple(runs)


@functools.cache
def used() -> str:
    """The variant that runs, for a build's record: one of VARIANTS, or "" for the fallback."""
    choice = os.environ.get(CHOICE, "")
    if choice == NONE:
        return ""
    if choice in variants():
        return choice
    if choice:
        log.warning("%s=%s is none of the kernels that run here (%s).", CHOICE, choice, ", ".join([*variants(), NONE]))
    return next(iter(variants()), "")


def quantize(
    rows: Array,
    kind: str,
    importance: Array | None = None,
    *,
    below: float = np.inf,
    variant: str | None = None,
) -> npt.NDArray[np.uint8]:
    """The bytes of float32 rows of shape (rows, columns), as (rows, row bytes): what ggml_quantize_chunk makes of them.

    `importance`, of shape (columns,), weighs the squared error in each column. Raises Unfit where a magnitude is not finite or not
    `below` the bound.
    """
    _, weights, size = TENSOR_TYPES[TYPE_NUMBERS[kind]]
    rows = np.ascontiguousarray(rows, np.float32)
    count, columns = rows.shape
    if importance is not None:
        importance = np.ascontiguousarray(importance, np.float32)
    if columns % weights or (importance is not None and importance.shape != (columns,)):
        raise ValueError(f"Rows of {columns} weights do not fit {kind}, or the importance does not fit them")
    function = _function("quantize", variant) if kind in (KINDS if importance is None else WEIGHED) else None
    if function is None:
        _refuse(largest(rows, variant=variant), below)
        return rows.view(np.uint8) if kind == "F32" else fallback.quantize(rows, kind, importance)
    out = np.empty((count, columns // weights * size), np.uint8)
    bits = function(TYPE_NUMBERS[kind], _at(rows), _at(out), count, columns, None if importance is None else _at(importance))
    _refuse(_float(bits), below)
    return out


def add_product(rows: Array, b: Array, a: Array, scale: float, *, variant: str | None = None) -> None:
    """Adds scale · (b @ a) to `rows` in place, whose shape is (rows, columns); b is (rows, rank), a is (rank, columns).

    For each element: sum = 0; sum = sum + b·a for each rank in turn; row = row + scale·sum. Every operation is rounded to float32.
    """
    (count, columns), rank = rows.shape, a.shape[0]
    if rows.dtype != np.float32 or not rows.flags.c_contiguous or b.shape != (count, rank) or a.shape != (rank, columns):
        raise ValueError(f"{b.shape} times {a.shape} cannot be added to {rows.shape} in place")
    a, b = np.ascontiguousarray(a, np.float32), np.ascontiguousarray(b, np.float32)
    function = _function("add_product", variant)
    if function is None:
        return fallback.add_product(rows, b, a, scale)
    function(_at(rows), _at(b), _at(a), count, columns, rank, scale)


def row_lengths(rows: Array, *, variant: str | None = None) -> Array:
    """The Euclidean length of each row, shape (rows,).

    Sixteen running sums of squares, column i in sum i modulo 16; then halves are added to each other, 8, 4, 2 and 1 apart.
    """
    rows = np.ascontiguousarray(rows, np.float32)
    function = _function("row_lengths", variant)
    if function is None:
        return fallback.row_lengths(rows)
    lengths = np.empty(len(rows), np.float32)
    function(_at(rows), _at(lengths), *rows.shape)
    return lengths


def largest(values: Array, *, variant: str | None = None) -> float:
    """The largest magnitude; infinity or NaN where any value is not finite."""
    values = np.ascontiguousarray(values, np.float32)
    function = _function("largest", variant)
    return fallback.largest(values) if function is None else _float(function(_at(values), values.size))


def widen_bf16(stored: npt.NDArray[np.uint16], *, out: Array | None = None, variant: str | None = None) -> Array:
    """bfloat16, given by its bits, as float32: a new array, or `out`."""
    widened: Array = _converted("widen_bf16", stored, np.uint16, np.float32, variant, fallback.widen_bf16, out)
    return widened


def widen_f16(stored: npt.NDArray[np.float16], *, out: Array | None = None, variant: str | None = None) -> Array:
    """float16 as float32: a new array, or `out`."""
    widened: Array = _converted("widen_f16", stored, np.float16, np.float32, variant, fallback.widen_f16, out)
    return widened


def narrow_bf16(values: Array, *, variant: str | None = None) -> npt.NDArray[np.uint16]:
    """The bits of the nearest bfloat16, to even where two are as near. Values must be finite."""
    narrow: npt.NDArray[np.uint16] = _converted("narrow_bf16", values, np.float32, np.uint16, variant, fallback.narrow_bf16)
    return narrow


def narrow_f16(values: Array, *, variant: str | None = None) -> npt.NDArray[np.float16]:
    """The nearest float16, to even where two are as near; infinite from 65520 on. Values must be finite."""
    narrow: npt.NDArray[np.float16] = _converted("narrow_f16", values, np.float32, np.float16, variant, fallback.narrow_f16)
    return narrow


def _converted(
    name: str, values: Any, source: Any, target: Any, variant: str | None, otherwise: Callable[[Any, Any], None], out: Any = None
) -> Any:
    values = np.ascontiguousarray(values, source)
    if out is None:
        out = np.empty(values.shape, target)
    if out.shape != values.shape or out.dtype != target or not out.flags.c_contiguous:
        raise ValueError(f"{values.shape} values cannot be written to an array of {out.shape} {out.dtype}")
    function = _function(name, variant)
    if function is None:
        otherwise(values, out)
    else:
        function(_at(values), _at(out), values.size)
    return out


def _refuse(magnitude: float, below: float) -> None:
    if not magnitude < below:  # also where it is NaN
        raise Unfit(magnitude)


def _at(values: npt.NDArray[Any]) -> int:
    return values.ctypes.data


def _float(bits: int) -> float:
    return float(np.uint32(bits).view(np.float32))


def _function(name: str, variant: str | None) -> Any:
    """The native function, or None where the fallback is to run."""
    chosen = used() if variant is None else variant
    library = _library()
    return None if library is None or chosen in ("", NONE) else getattr(library, f"{name}_{chosen}")


@functools.cache
def _library() -> ctypes.CDLL | None:
    if not FILE.is_file():
        return None
    try:
        library = ctypes.CDLL(str(FILE))
        for variant in _built(library):
            for name, (result, arguments) in SIGNATURES.items():
                function = getattr(library, f"{name}_{variant}")
                function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:  # built for another machine, or from other sources
        log.warning("The native kernels in %s cannot be used: %s. Install the studio again.", FILE, error)
        return None
    return library


def _built(library: ctypes.CDLL) -> list[str]:
    """What the compiler wrote for this family of processors."""
    return [name for name in VARIANTS if hasattr(library, f"runs_{name}")]


def _answer(variant: str) -> str:
    """SHA-256 of what a variant makes of weights that every machine computes alike."""
    weights = _weights()
    digest = hashlib.sha256()
    for kind in KINDS:
        digest.update(quantize(weights, kind, variant=variant).tobytes())
    for kind in WEIGHED:
        digest.update(quantize(weights, kind, np.abs(weights[0]), variant=variant).tobytes())
    changed = weights.copy()
    add_product(changed, weights[:, :5], weights[:5], 0.7, variant=variant)
    narrow, half = narrow_bf16(changed, variant=variant), narrow_f16(changed, variant=variant)
    for made in (changed, row_lengths(changed, variant=variant), narrow, half):
        digest.update(made.tobytes())
    digest.update(widen_bf16(narrow, variant=variant).tobytes() + widen_f16(half, variant=variant).tobytes())
    return digest.hexdigest()


def _weights() -> Array:
    """Weights of shape (7, 256), most of them small, from whole numbers alone."""
    numbers = np.arange(7 * 256, dtype=np.uint64) * np.uint64(2_654_435_761) % np.uint64(1 << 20)
    spread = numbers.astype(np.float32) * np.float32(2.0**-19) - np.float32(1)
    weights: Array = (spread * spread * spread).reshape(7, 256)
    return weights
