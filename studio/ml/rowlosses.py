"""The loss of each of some rows under one model, whoever asks: evaluations, comparisons and what looks at rows before a run."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from studio.errors import UserError
from studio.ml.batches import TokenRow, token_row
from studio.ml.loading import Arithmetic, Reader, choose_reader
from studio.ml.loss import token_losses
from studio.ml.objectives import NextToken
from studio.ml.releasedmodel import Released
from studio.ml.tokens import encode_rows
from studio.training.job import Job
from studio.training.orders import EvaluatedModel

LONGEST_ROW = 2048
"""Tokens of a row; one that is longer for a model is left out, for what is cut differs."""
BATCH_TOKENS = 2048

Row = dict[str, Any]
Losses = npt.NDArray[np.float64]
Numbered = tuple[int, TokenRow]
"""A row as it is read, and its place among all."""


def longest_for(told: EvaluatedModel) -> int:
    return min(LONGEST_ROW, told.context or LONGEST_ROW)


def row_losses(
    model: Released, rows: list[Row], told: EvaluatedModel, *, job: Job, tell: Callable[[int, int], None] | None = None
) -> tuple[Losses, Losses]:
    """(nats, tokens) of each row's answers; NaN of one that is too long, or teaches nothing. `tell` hears how many of how many are done."""
    losses, tokens = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
    usable = readable(model.tokenizer, rows, longest=longest_for(told))
    reader = choose_reader(model.model, arithmetic=model.arithmetic)
    objective, done = NextToken(reader), 0
    for batch in batches(usable):
        job.raise_if_stopped()
        for (number, row), loss in zip(batch, judged(objective, reader, [row for _, row in batch], model.arithmetic), strict=True):
            losses[number], tokens[number] = loss, row.targets
        done += len(batch)
        (tell or (lambda done, total: job.progress(done, total, "rows")))(done, len(usable))
    refuse_no_numbers(losses[[number for number, _ in usable]], told)
    return losses, tokens


def refuse_no_numbers(losses: Losses, told: EvaluatedModel) -> None:
    if not np.isfinite(losses).all():
        raise UserError(f"{told.name} answers with numbers that are none: its weights are damaged, or its training went astray.")


def readable(tokenizer: Any, rows: list[Row], *, longest: int) -> list[Numbered]:
    """Those that fit whole and have something to learn, with their places."""
    return [
        (number, token_row(encoded.ids, encoded.supervised))
        for number, encoded in enumerate(encode_rows(tokenizer, rows, max_length=longest))
        if encoded.teaches and not encoded.cut
    ]


@torch.no_grad()
def judged(objective: NextToken, reader: Reader, rows: list[TokenRow], arithmetic: Arithmetic) -> list[float]:
    reader.model.eval()
    with arithmetic.autocast():
        return [each.loss for each in objective.judge(rows)]


@torch.no_grad()
def states_of(reader: Reader, rows: list[TokenRow], arithmetic: Arithmetic) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(hidden state before, id) of each row's supervised tokens, shapes [N, hidden size] and [N]: all that its logits follow from."""
    reader.model.eval()
    with arithmetic.autocast():
        batch = reader.batch(rows)
        hidden = reader.hidden(batch)
    counts = [row.targets for row in rows]
    return list(zip(torch.split(hidden, counts), torch.split(batch.targets, counts), strict=True))


@torch.no_grad()
def loss_of(reader: Reader, hidden: torch.Tensor, targets: torch.Tensor, arithmetic: Arithmetic) -> float:
    """Nats of one row's supervised tokens, from `states_of`."""
    with arithmetic.autocast():
        return float(token_losses(reader.head, hidden, targets).sum())


def batches(rows: list[Numbered]) -> Iterator[list[Numbered]]:
    """Rows alike in length together, each batch of about BATCH_TOKENS."""
    batch: list[Numbered] = []
    for entry in sorted(rows, key=lambda entry: entry[1].length):
        if batch and (len(batch) + 1) * entry[1].length > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(entry)
    if batch:
        yield batch
