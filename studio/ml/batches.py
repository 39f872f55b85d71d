"""Which rows go together, in which order, and as which tensors. The same seed gives the same batches, always."""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

Layout = Literal["flattened", "padded"]

SORTED_WINDOW = 50
"""Padded batches are made of rows alike in length from windows of so many batches: few pads, and still a random order."""


@dataclass(frozen=True)
class TokenRow:
    """One row as the model reads it."""

    ids: np.ndarray
    """int32 [length]"""
    supervised: np.ndarray
    """bool [length]: which tokens carry a loss. The first never does: nothing comes before it."""
    weights: np.ndarray | None = None
    """float32 [length]: how much each supervised token counts; None where all count as one."""

    @property
    def length(self) -> int:
        return len(self.ids)

    @property
    def targets(self) -> int:
        return int(self.supervised[1:].sum())

    @property
    def weight(self) -> float:
        """The sum of its supervised tokens' weights: what its loss is divided by."""
        return float(self.targets) if self.weights is None else float(self.weights[1:][self.supervised[1:]].sum())

    def content(self) -> bytes:
        """Everything that is learnt from it, to tell one row from another."""
        weights = b"" if self.weights is None else self.weights.tobytes()
        return self.length.to_bytes(4, "little") + self.ids.tobytes() + self.supervised.tobytes() + weights


@dataclass(frozen=True)
class Batch:
    """Tensors of one pass through the model."""

    inputs: dict[str, Any]
    """What the model's forward takes."""
    positions: torch.Tensor
    """int64 [N]: places in the flattened [rows × length] hidden states whose next token is supervised."""
    targets: torch.Tensor
    """int64 [N]: those next tokens."""
    tokens: int
    """Real tokens, pads not counted."""
    slots: int
    """Places in the tensors, pads counted."""
    weights: torch.Tensor | None = None
    """float32 [N]: how much each target counts; None where all count as one."""


def token_row(ids: Sequence[int], supervised: Sequence[bool] | Sequence[int], weights: Sequence[float] | None = None) -> TokenRow:
    return TokenRow(
        ids=np.asarray(ids, dtype=np.int32),
        supervised=np.asarray(supervised, dtype=bool),
        weights=None if weights is None else np.asarray(weights, dtype=np.float32),
    )


def step_batches(lengths: Sequence[int], *, batch_size: int, accumulation: int, seed: int, layout: Layout) -> Iterator[list[list[int]]]:
    """Without end: for each step, the row numbers of its batches. A step never spans two epochs, so an epoch's last may be smaller."""
    epoch = 0
    while True:
        batches = epoch_batches(lengths, batch_size=batch_size, seed=seed, epoch=epoch, layout=layout)
        for start in range(0, len(batches), accumulation):
            yield batches[start : start + accumulation]
        epoch += 1


def epoch_batches(lengths: Sequence[int], *, batch_size: int, seed: int, epoch: int, layout: Layout) -> list[list[int]]:
    """The row numbers of one epoch's batches. Every row comes exactly once."""
    shuffle = random.Random(f"{seed}/{epoch}").shuffle
    order = list(range(len(lengths)))
    shuffle(order)
    if layout == "flattened":
        return _cut(order, batch_size)
    batches = []
    for window in _cut(order, batch_size * SORTED_WINDOW):
        batches += _cut(sorted(window, key=lambda row: lengths[row]), batch_size)
    shuffle(batches)
    return batches


def _cut(items: list[int], size: int) -> list[list[int]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def make_batch(rows: Sequence[TokenRow], *, layout: Layout, device: torch.device, pad: int = 0) -> Batch:
    return flattened(rows, device=device) if layout == "flattened" else padded(rows, device=device, pad=pad)


def flattened(rows: Sequence[TokenRow], *, device: torch.device) -> Batch:
    """All rows one after another in one: [1, sum of lengths]. `documents` keeps each to itself."""
    ends = np.cumsum([row.length for row in rows]).tolist()
    starts = [0, *ends[:-1]]
    return Batch(
        inputs={
            "input_ids": _tensor(np.concatenate([row.ids for row in rows]), device)[None],
            "position_ids": _tensor(np.concatenate([np.arange(row.length) for row in rows]), device)[None],
            "documents": list(zip(starts, ends, strict=True)),
        },
        positions=_positions(rows, starts, device),
        targets=_targets(rows, device),
        tokens=ends[-1],
        slots=ends[-1],
        weights=_weights(rows, device),
    )


def padded(rows: Sequence[TokenRow], *, device: torch.device, pad: int) -> Batch:
    """One row below another, filled up on the right: [rows, longest]."""
    longest = max(row.length for row in rows)
    ids = np.full((len(rows), longest), pad, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    for number, row in enumerate(rows):
        ids[number, : row.length] = row.ids
        mask[number, : row.length] = 1
    return Batch(
        inputs={"input_ids": _tensor(ids, device), "attention_mask": _tensor(mask, device)},
        positions=_positions(rows, [number * longest for number in range(len(rows))], device),
        targets=_targets(rows, device),
        tokens=int(mask.sum()),
        slots=mask.size,
        weights=_weights(rows, device),
    )


def _positions(rows: Sequence[TokenRow], starts: Sequence[int], device: torch.device) -> torch.Tensor:
    places = [start + np.flatnonzero(row.supervised[1:]) for row, start in zip(rows, starts, strict=True)]
    return _tensor(np.concatenate(places), device)


def _targets(rows: Sequence[TokenRow], device: torch.device) -> torch.Tensor:
    return _tensor(np.concatenate([row.ids[1:][row.supervised[1:]] for row in rows]), device)


def _weights(rows: Sequence[TokenRow], device: torch.device) -> torch.Tensor | None:
    if all(row.weights is None for row in rows):
        return None
    each = [np.ones(row.length, dtype=np.float32) if row.weights is None else row.weights for row in rows]
    counted = [weights[1:][row.supervised[1:]] for weights, row in zip(each, rows, strict=True)]
    return torch.from_numpy(np.concatenate(counted)).to(device)


def _tensor(values: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.int64)).to(device)


def spread(count: int, *, limit: int) -> list[int]:
    """At most `limit` of `count` numbers, evenly spread, always the same ones."""
    if count <= limit:
        return list(range(count))
    return [math.floor(number * count / limit) for number in range(limit)]
