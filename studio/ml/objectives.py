"""What is learnt from rows: a loss with its weight, batch by batch. The loop divides, steps and reports; it knows no row from inside."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from studio.ml.batches import TokenRow
from studio.ml.loading import Reader
from studio.ml.loss import summed_loss, token_losses
from studio.training import Job

SHOWN_TOKENS = 400
"""Tokens of a row that are shown; the rest is cut off."""


@dataclass(frozen=True)
class Part:
    """What one batch adds to a step."""

    loss: torch.Tensor
    """A scalar with a gradient: the sum over the rows, each counted with its weight."""
    tokens: int
    """Real tokens that went through the model."""
    slots: int
    """The same with pads."""
    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Further numbers to show: name -> (sum, count)."""


@dataclass(frozen=True)
class Judged:
    """One validation row."""

    loss: float
    """Summed, as in Part."""
    weight: float
    metrics: dict[str, float] = field(default_factory=dict)


class Objective(ABC):
    """One way to learn. `weight` of a row, summed over a step, is what the step's loss is divided by."""

    unit: ClassVar[str] = "token"
    """What a loss of 1 is per."""

    def __init__(self, reader: Reader):
        self.reader = reader

    def prepare(self, model: Any, train: Sequence[Any], validation: Sequence[Any], *, job: Job) -> None:
        """Called once before anything is learnt or taken up, with the weights as the plugin made them."""
        return

    @abstractmethod
    def weight(self, row: Any) -> float: ...

    @abstractmethod
    def part(self, rows: Sequence[Any]) -> Part: ...

    @abstractmethod
    def judge(self, rows: Sequence[Any]) -> list[Judged]:
        """Each row by itself. Called without gradients."""

    @abstractmethod
    def pieces(self, row: Any, tokenizer: Any) -> list[tuple[str, bool]]:
        """The row as text: (piece, whether it is learnt), in order."""


class NextToken(Objective):
    """The cross-entropy of every supervised token, each counted with its weight."""

    def weight(self, row: TokenRow) -> float:
        return row.weight

    def part(self, rows: Sequence[TokenRow]) -> Part:
        batch = self.reader.batch(rows)
        loss = summed_loss(self.reader.head, self.reader.hidden(batch), batch.targets, batch.weights)
        return Part(loss=loss, tokens=batch.tokens, slots=batch.slots)

    def judge(self, rows: Sequence[TokenRow]) -> list[Judged]:
        batch = self.reader.batch(rows)
        each = token_losses(self.reader.head, self.reader.hidden(batch), batch.targets)
        if batch.weights is not None:
            each = each * batch.weights
        sums = [float(piece.sum()) for piece in torch.split(each, [row.targets for row in rows])]
        return [Judged(loss=loss, weight=row.weight) for loss, row in zip(sums, rows, strict=True)]

    def pieces(self, row: TokenRow, tokenizer: Any) -> list[tuple[str, bool]]:
        return token_pieces(row, tokenizer)


def token_pieces(row: TokenRow, tokenizer: Any) -> list[tuple[str, bool]]:
    """Neighbours that are learnt, or not, together as one text."""
    pieces: list[tuple[list[int], bool]] = []
    for token, learnt in zip(row.ids[:SHOWN_TOKENS].tolist(), row.supervised[:SHOWN_TOKENS].tolist(), strict=True):
        if not pieces or pieces[-1][1] != learnt:
            pieces.append(([], learnt))
        pieces[-1][0].append(token)
    return [(str(tokenizer.decode(ids, skip_special_tokens=False)), learnt) for ids, learnt in pieces]
