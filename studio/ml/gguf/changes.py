"""What an adapter does to one tensor of its base, a few rows at a time: it adds a product, replaces rows or all of it. No torch.

A matrix comes as rows [start, start + len(rows)) of it, a vector as one row or as it is, from 0. Reading is safe from several threads.
"""

import threading
import weakref
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from studio.ml.gguf.kernels import add_product, row_lengths
from studio.ml.gguf.weights import Array, Weights

KEPT = 24 << 20
"""Bytes of small matrices that stay in memory, since every piece of their layer needs them."""
AT_ONCE = 1024
"""Rows of a table that are read at a time where all of it must be looked through."""

Reader = Callable[[int, int], Array]
"""Rows [start, stop) of a matrix, as a new array."""


class Stored:
    """The tensors of an adapter, read where they are needed; those asked for last are kept. Closes itself once nobody knows it."""

    def __init__(self, file: Path):
        self.weights = Weights([file])
        self.places = self.weights.places
        self._kept: OrderedDict[str, Array] = OrderedDict()
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, self.weights.close)

    def close(self) -> None:
        self._finalizer()

    def kept(self, name: str) -> Array:
        """A whole tensor. Not to be written to."""
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name]
        found = self.weights.whole(name)
        found.flags.writeable = False
        with self._lock:
            self._kept[name] = found
            while len(self._kept) > 1 and sum(matrix.nbytes for matrix in self._kept.values()) > KEPT:
                self._kept.popitem(last=False)
        return found


class Change(ABC):
    """What becomes of one tensor."""

    @property
    def replaces(self) -> bool:
        """True where nothing is left of the base's: only the shape of `rows` is looked at then, and the base may have fewer rows."""
        return False

    @abstractmethod
    def applied(self, rows: Array, start: int) -> Array:
        """Rows [start, start + len(rows)) as they are after the change. `rows`, which must be contiguous, may be overwritten."""


@dataclass(frozen=True)
class LowRank(Change):
    """W' = W + scale · B A, and for DoRA each row of it brought to its magnitude.

    A table of words, and a layer that is stored as [inputs, outputs], is the transpose of what peft computes: `turned`.
    """

    stored: Stored
    a: str
    """A's name in the adapter: shape (rank, inputs), or (rank, rows of the table)."""
    b: str
    """B's: shape (outputs, rank), or (columns of the table, rank)."""
    scale: float
    turned: bool = False
    magnitude: str | None = None
    """Under DoRA, the name of the lengths that peft gives each output: one for each row, or where `turned` for each column."""
    before: Reader | None = None
    """How W is read; only for `turned` under DoRA, whose lengths go over all rows."""

    @property
    def rank(self) -> int:
        return self.stored.places[self.a].shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of W."""
        inputs, outputs = self.stored.places[self.a].shape[1], self.stored.places[self.b].shape[0]
        return (inputs, outputs) if self.turned else (outputs, inputs)

    def inner(self) -> Array:
        """What all rows share, shape (rank, columns). Not to be written to."""
        return np.ascontiguousarray(self.stored.kept(self.b).T) if self.turned else self.stored.kept(self.a)

    def outer(self, start: int, stop: int) -> Array:
        """What rows [start, stop) have of their own, shape (stop - start, rank)."""
        if not self.turned:
            return self.stored.weights.rows(self.b, start, stop)
        rows = self.shape[0]
        found = np.empty((stop - start, self.rank), np.float32)
        for number in range(self.rank):
            found[:, number] = self.stored.weights.flat(self.a, number * rows + start, number * rows + stop)
        return found

    def applied(self, rows: Array, start: int) -> Array:
        """DoRA: peft's `DoraLinearLayer`, arXiv 2402.09353 eq. 5: m · (W + scale BA) / ‖W + scale BA‖ per output."""
        stop = start + len(rows)
        add_product(rows, self.outer(start, stop), self.inner(), self.scale)
        if self.magnitude is None:
            return rows
        with np.errstate(divide="ignore", invalid="ignore"):  # a row of zeros is refused by name when it is quantized
            if self.turned:
                rows *= self._magnitudes / self._lengths
            else:
                rows *= (self._magnitudes[start:stop] / row_lengths(rows))[:, None]
        return rows

    @property
    def _magnitudes(self) -> Array:
        return self.stored.kept(self.magnitude or "").reshape(-1)

    @cached_property
    def _lengths(self) -> Array:
        """Of the columns of W + scale BA. Squares are added in float64, one row after the other, and so alike everywhere."""
        if self.before is None:
            raise RuntimeError("a turned DoRA layer was made without a way to read its weights")
        count, columns = self.shape
        squares = np.zeros(columns)
        for start, stop in pieces(count):
            rows = self.before(start, stop)
            add_product(rows, self.outer(start, stop), self.inner(), self.scale)
            for row in np.square(rows, dtype=np.float64):
                squares += row
        return np.sqrt(squares).astype(np.float32)


@dataclass(frozen=True)
class Whole(Change):
    """A tensor that was trained in full and takes the place of the base's."""

    stored: Stored
    name: str

    @property
    def replaces(self) -> bool:
        return True

    def applied(self, rows: Array, start: int) -> Array:
        width = rows.size // len(rows)
        return self.stored.weights.flat(self.name, start * width, start * width + rows.size).reshape(rows.shape)


@dataclass(frozen=True)
class Tokens(Change):
    """Rows of a table that were trained one by one: peft's trainable_token_indices."""

    stored: Stored
    name: str
    """Shape (tokens, columns)."""
    indices: tuple[int, ...]
    """The row that each of them takes the place of; no two alike."""

    def applied(self, rows: Array, start: int) -> Array:
        indices, order = self._sorted
        first, last = np.searchsorted(indices, [start, start + len(rows)])
        if first < last:
            rows[indices[first:last] - start] = self.stored.kept(self.name)[order[first:last]]
        return rows

    @cached_property
    def _sorted(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.intp]]:
        indices = np.array(self.indices, np.int64)
        order = np.argsort(indices)
        return indices[order], order


@dataclass(frozen=True)
class Added(Change):
    """A vector that is added to a bias, scaled: peft's lora_bias."""

    stored: Stored
    name: str
    scale: float

    def applied(self, rows: Array, start: int) -> Array:
        rows += (self.stored.kept(self.name) * np.float32(self.scale)).reshape(rows.shape)
        return rows


@dataclass(frozen=True)
class Chain(Change):
    """Several changes, one after another."""

    links: tuple[Change, ...]

    @property
    def replaces(self) -> bool:
        return self.links[0].replaces

    def applied(self, rows: Array, start: int) -> Array:
        for link in self.links:
            rows = link.applied(rows, start)
        return rows


def alike(one: Change, other: Change, *, rows: int) -> bool:
    """True where both certainly make the same of a matrix with so many rows: a table of words and an output layer trained as one."""
    if isinstance(one, Chain) and isinstance(other, Chain):
        pairs = zip(one.links, other.links, strict=False)
        return len(one.links) == len(other.links) and all(alike(*pair, rows=rows) for pair in pairs)
    if isinstance(one, Whole) and isinstance(other, Whole):
        return equal(
            lambda start, stop: one.stored.weights.rows(one.name, start, stop),
            lambda start, stop: other.stored.weights.rows(other.name, start, stop),
            rows=rows,
        )
    if isinstance(one, Tokens) and isinstance(other, Tokens):
        return one.indices == other.indices and np.array_equal(one.stored.kept(one.name), other.stored.kept(other.name))
    if isinstance(one, LowRank) and isinstance(other, LowRank):
        plain = one.magnitude is None and other.magnitude is None
        if not plain or (one.scale, one.rank) != (other.scale, other.rank) or not np.array_equal(one.inner(), other.inner()):
            return False
        return equal(one.outer, other.outer, rows=rows)
    return False


def equal(one: Reader, other: Reader, *, rows: int) -> bool:
    return all(np.array_equal(one(*piece), other(*piece)) for piece in pieces(rows))


def pieces(rows: int) -> Iterator[tuple[int, int]]:
    return ((start, min(rows, start + AT_ONCE)) for start in range(0, rows, AT_ONCE))
