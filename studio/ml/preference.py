"""Learning from pairs of a better and a worse answer to the same question: DPO, ORPO, KTO, SimPO; KTO also from one with a thumb.

With log p(answer) the sum of the log-probabilities of an answer's tokens, c the chosen and r the rejected answer, and a
reference (the model before it learnt anything) read once beforehand:

    DPO    -log σ(β·[(log p(c) - log ref(c)) - (log p(r) - log ref(r))])                    Rafailov et al. 2023, eq. 7
    ORPO   nll(c) - β·log σ(log odds(c) - log odds(r)), odds = p/(1-p), per token           Hong et al. 2024, eq. 6 and 7
    KTO    [1 - σ(β·(h(c) - z))] + [1 - σ(β·(z - h(r)))], h = log p - log ref,              Ethayarajh et al. 2024, eq. 8
           z = max(0, mean of h over questions with another row's answer), without gradient;
           of an answer that was liked only the first half, of one that was disliked only the second
    SimPO  -log σ(β·(log p(c)/|c| - log p(r)/|r|) - γ)                                      Meng et al. 2024, eq. 6
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import logsigmoid

from studio.ml.batches import TokenRow
from studio.ml.loading import Reader
from studio.ml.loss import token_losses
from studio.ml.objectives import Judged, Objective, Part, token_pieces
from studio.ml.world import World
from studio.training import Job
from studio.training.config import PreferenceConfig
from studio.training.preferences import REFERENCED, usual_beta


@dataclass
class PairRow:
    """A question with a better and a worse answer; one of them is None where somebody only liked or disliked the other."""

    chosen: TokenRow | None
    rejected: TokenRow | None
    other: TokenRow | None = None
    """The question with another row's answer, for KTO's measure of how far the model has come from the reference."""
    reference: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """log ref of chosen, rejected and other; 0 for what is not there."""

    @property
    def answers(self) -> list[TokenRow]:
        return [answer for answer in (self.chosen, self.rejected) if answer is not None]

    @property
    def readings(self) -> list[TokenRow]:
        return self.answers + ([self.other] if self.other else [])

    @property
    def length(self) -> int:
        return sum(reading.length for reading in self.readings)

    def content(self) -> bytes:
        mark = b"" if self.chosen and self.rejected else b"liked" if self.chosen else b"disliked"
        return mark + b"".join(answer.content() for answer in self.answers)


def mismatched(rows: Sequence[PairRow]) -> None:
    """Gives each row `other`: its own question with the next row's (better) answer, around the end. Needs at least two rows."""
    for place, row in enumerate(rows):
        row.other = joined(row.answers[0], rows[(place + 1) % len(rows)].answers[0])


def joined(question: TokenRow, answer: TokenRow) -> TokenRow:
    """The tokens before the first row's answer, then the second row's answer, cut to the longer of the two rows."""
    upto, since = int(question.supervised.argmax()), int(answer.supervised.argmax())
    room = max(question.length, answer.length)
    return TokenRow(
        ids=np.concatenate([question.ids[:upto], answer.ids[since:]])[:room],
        supervised=np.concatenate([question.supervised[:upto], answer.supervised[since:]])[:room],
    )


class Preference(Objective):
    """Each pair counts as one, whatever its length, and a single answer as half a pair."""

    unit = "pair"

    def __init__(self, reader: Reader, config: PreferenceConfig, world: World):
        super().__init__(reader)
        self.kind, self.beta, self.margin = config.preference, usual_beta(config), config.preference_margin
        self.batch_size, self.world = config.batch_size, world

    def prepare(self, model: Any, train: Sequence[PairRow], validation: Sequence[PairRow], *, job: Job) -> None:
        """Reads every row with the model as it is now: that is the reference."""
        if self.kind not in REFERENCED:
            return
        rows = [*train, *validation]
        if self.kind == "kto":
            mismatched(rows)
        job.phase("preparing", "Reading the rows once with the base model, to compare with")
        mine = self.world.share(range(len(rows)))
        longest = math.ceil(len(rows) / self.world.size)
        read: list[list[float]] = [[], [], []]
        with asleep(model), torch.no_grad(), self.reader.arithmetic.autocast():
            for start in range(0, longest, self.batch_size):
                if self.world.agree(job.stopping()):
                    job.raise_if_stopped()
                piece = [rows[number] for number in mine[start : start + self.batch_size]]
                found, _, _, _ = self._read(piece or rows[:1])
                for place, values in enumerate(found):
                    read[place] += values.tolist()[: len(piece)]
                job.progress(min(start + self.batch_size, longest) * self.world.size, longest * self.world.size, "rows")
        numbers = [int(number) for number in self.world.gather(list(map(float, mine)))]
        columns = [self.world.gather(column) for column in read if column]
        for place, number in enumerate(numbers):
            chosen, rejected, *other = (column[place] for column in columns)
            rows[number].reference = (chosen, rejected, other[0] if other else 0.0)

    def weight(self, row: PairRow) -> float:
        return len(row.answers) / 2

    def part(self, rows: Sequence[PairRow]) -> Part:
        losses, metrics, tokens, slots = self._losses(rows)
        shown = {name: (float(values.sum()), float(len(rows))) for name, values in metrics.items()}
        return Part(loss=losses.sum(), tokens=tokens, slots=slots, metrics=shown)

    def judge(self, rows: Sequence[PairRow]) -> list[Judged]:
        losses, metrics, _, _ = self._losses(rows)
        return [
            Judged(loss=float(loss), weight=self.weight(row), metrics={name: float(values[place]) for name, values in metrics.items()})
            for place, (loss, row) in enumerate(zip(losses, rows, strict=True))
        ]

    def pieces(self, row: PairRow, tokenizer: Any) -> list[tuple[str, bool]]:
        if row.chosen is None or row.rejected is None:
            return [("Liked\n" if row.chosen else "Disliked\n", False), *token_pieces(row.answers[0], tokenizer)]
        chosen, rejected = token_pieces(row.chosen, tokenizer), token_pieces(row.rejected, tokenizer)
        return [("Better\n", False), *chosen, ("\n\nWorse\n", False), *rejected]

    def _read(self, rows: Sequence[PairRow]) -> tuple[list[torch.Tensor], list[torch.Tensor], int, int]:
        """log p, and the number of answer tokens, of the chosen, the rejected and (for KTO) the other answers: fp32 [rows] each, 0 where
        there is no such answer; tokens and slots read."""
        columns = [[row.chosen for row in rows], [row.rejected for row in rows]]
        if rows[0].other is not None:
            columns.append([row.other for row in rows])
        flat = [reading for column in columns for reading in column if reading is not None]
        batch = self.reader.batch(flat)
        each = -token_losses(self.reader.head, self.reader.hidden(batch), batch.targets)
        counts = [reading.targets for reading in flat]
        owner = torch.repeat_interleave(torch.arange(len(flat), device=each.device), torch.tensor(counts, device=each.device))
        sums = torch.zeros(len(flat), device=each.device, dtype=torch.float32).index_add(0, owner, each)
        places = torch.tensor(
            [place for place, reading in enumerate(reading for column in columns for reading in column) if reading is not None],
            device=each.device,
        )
        found = torch.zeros(2, len(columns) * len(rows), device=each.device, dtype=torch.float32)
        counted = torch.tensor(counts, device=each.device, dtype=torch.float32)
        found = found.index_add(1, places, torch.stack([sums, counted]))
        return list(torch.split(found[0], len(rows))), list(torch.split(found[1], len(rows))), batch.tokens, batch.slots

    def _losses(self, rows: Sequence[PairRow]) -> tuple[torch.Tensor, dict[str, torch.Tensor], int, int]:
        """The loss of each row, [rows]; further figures of each; tokens and slots read.

        What KTO says of a single answer is held against the distance that stands between likely and unlikely ones.
        """
        sums, counts, tokens, slots = self._read(rows)
        chosen, rejected, *other = sums
        chosen_count, rejected_count, *_ = counts
        with torch.autocast(chosen.device.type, enabled=False):
            if self.kind in REFERENCED:
                reference = torch.tensor([row.reference for row in rows], device=chosen.device, dtype=torch.float32)
                better, worse = chosen - reference[:, 0], rejected - reference[:, 1]
                if self.kind == "dpo":
                    losses = -logsigmoid(self.beta * (better - worse))
                else:
                    distance = (other[0] - reference[:, 2]).mean().clamp(min=0).detach()
                    liked, disliked = chosen_count > 0, rejected_count > 0
                    losses = torch.sigmoid(self.beta * (distance - better)) * liked
                    losses = losses + torch.sigmoid(self.beta * (worse - distance)) * disliked
                    better, worse = torch.where(liked, better, distance), torch.where(disliked, worse, distance)
                better, worse = self.beta * better, self.beta * worse
            else:
                better, worse = chosen / chosen_count, rejected / rejected_count
                if self.kind == "simpo":
                    losses = -logsigmoid(self.beta * (better - worse) - self.margin)
                else:
                    odds = (better - worse) - (log_complement(better) - log_complement(worse))
                    losses = -better - self.beta * logsigmoid(odds)
                better, worse = self.beta * better, self.beta * worse
        figures = {"accuracy": (better > worse).float().detach(), "margin": (better - worse).detach()}
        return losses, figures, tokens, slots


def log_complement(log_probability: torch.Tensor) -> torch.Tensor:
    """log(1 - p) from log p, kept below 0 so that a certain answer has no infinite odds."""
    return torch.log1p(-torch.exp(log_probability.clamp(max=-1e-6)))


@contextmanager
def asleep(model: Any) -> Iterator[None]:
    """Without dropout; as it was afterwards."""
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)
