"""The order "survey": what a base model makes of a dataset's rows before it learns, and which learning rates it takes. Bounded in time.

Measured are the loss of each token that would be learnt, on rows of the training split and on general ones, and a short learning-rate
range test (Smith 2017) for an adapter and for all weights. What takes too long or too much memory is left out, and a note says so.
"""

import gc
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from studio import rowfile
from studio.errors import UserError
from studio.ml.adapters import add_matrices
from studio.ml.batches import TokenRow, spread, token_row
from studio.ml.comparedrows import brought_along
from studio.ml.gguf import budget
from studio.ml.heldout import as_asked
from studio.ml.loading import Arithmetic, Reader, choose_reader, load_base
from studio.ml.lora import fuse_lora
from studio.ml.loss import token_losses
from studio.ml.objectives import NextToken
from studio.ml.tokens import encode_rows, load_tokenizer
from studio.training.advicefacts import SURPRISED
from studio.training.job import Job
from studio.training.lora import PeftConfig
from studio.training.orders import SurveyPayload
from studio.training.rangetest import STEPS, TURN, found_range, is_over, rates
from studio.worker.host import cpu_has_bf16

ROWS, PROBE_ROWS = 64, 24
LOOKED_AT = 50_000
"""Rows from which they are chosen: the first ones, so that a large file is not read whole."""
LONGEST, TESTED = 384, 64
"""Tokens kept of a row that is measured, and of one that the range test learns from."""
MEASURED_SECONDS, PROBE_SECONDS, TEST_SECONDS = 40.0, 20.0, 35.0
BATCH_ROWS = 2
"""Of the range test. Each batch is held against what it lost before anything was learnt, so that few rows are enough."""
FEWEST = 12
"""Steps of a range test, also on a slow machine."""
ADAPTED, TRAINED = 1.3, 16.0
"""Times the base in half precision with an adapter; bytes for each parameter where all learn: weight, gradient and AdamW's two in fp32."""
PROGRAM = 700_000_000

Losses = npt.NDArray[np.float64]


def run(payload: dict[str, Any], job: Job) -> dict[str, Any]:
    """Returns what `training.advicefacts.Surveyed` describes. Raises UserError where no row has anything to learn."""
    order, began = SurveyPayload.model_validate(payload), time.monotonic()
    arithmetic = Arithmetic(device=torch.device("cpu"), bf16=cpu_has_bf16())
    job.phase("reading", "Choosing rows")
    tokenizer = load_tokenizer(Path(order.base))
    rows = list(chosen(tokenizer, Path(order.rows), count=order.train, limit=ROWS))
    if not rows:
        raise UserError("No training row has anything to learn at its beginning. Look at the rows, then measure again.")
    general = brought_along()
    probe = list(readable(tokenizer, [general[place] for place in spread(len(general), limit=PROBE_ROWS)]))
    parameters = order.model.parameters
    with budget.reserved(min(room_for_adapter(parameters), budget.limit()), job=job, limit=budget.limit(), folder=budget.ledger()):
        torch.manual_seed(0)
        facts, tested = looked(order, rows, probe, arithmetic, job=job)
    need = PROGRAM + round(TRAINED * parameters)
    if need > budget.limit():
        job.note("The range test of full fine-tuning was left out: it needs more memory than is set aside for such work.")
    else:
        with budget.reserved(need, job=job, limit=budget.limit(), folder=budget.ledger()):
            tested |= {"full": test_of_all_weights(order, rows, arithmetic, job=job)}
    return facts | {"rates": tested, "seconds": round(time.monotonic() - began, 1)}


def room_for_adapter(parameters: int) -> int:
    return PROGRAM + round(ADAPTED * 2 * parameters)


def chosen(tokenizer: Any, path: Path, *, count: int, limit: int) -> Iterator[TokenRow]:
    """At most `limit` rows of the training split that have something to learn, evenly spread, each cut to its first LONGEST tokens."""
    wanted = set(spread(min(count, LOOKED_AT), limit=limit))
    found = islice(rowfile.read(path, split="train"), max(wanted, default=-1) + 1)
    yield from readable(tokenizer, (as_asked(row, "") for number, row in enumerate(found) if number in wanted))


def readable(tokenizer: Any, rows: Iterable[dict[str, Any]]) -> Iterator[TokenRow]:
    for encoded in encode_rows(tokenizer, rows, max_length=LONGEST):
        if encoded.teaches:
            yield token_row(encoded.ids, encoded.supervised)


def looked(
    order: SurveyPayload, rows: list[TokenRow], probe: list[TokenRow], arithmetic: Arithmetic, *, job: Job
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(figures, range tests) of the base as it is, and with an adapter beside it."""
    job.phase("loading", f"Loading {order.model.name}")
    model = load_base(Path(order.base), arithmetic=arithmetic)
    reader = choose_reader(model, arithmetic=arithmetic)
    losses, seen = surprise(reader, rows, seconds=MEASURED_SECONDS, job=job, said="Reading the rows with the base model")
    if not np.isfinite(losses).all():
        raise UserError(f"{order.model.name} answers with numbers that are none: its weights are damaged.")
    facts: dict[str, Any] = {
        "rows": seen,
        "tokens": len(losses),
        "loss": float(losses.mean()),
        "surprising": float((losses / math.log(2) > SURPRISED).mean()),
    }
    if probe:
        general, known = surprise(reader, probe, seconds=PROBE_SECONDS, job=job, said="Reading general rows with the base model")
        facts |= {"probe_rows": known, "probe_loss": float(general.mean())}
    adapted = add_matrices(model, PeftConfig())
    fuse_lora(adapted)
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    test = RangeTest(reader, trained, job=job, said="Trying learning rates of an adapter")
    found = test.run("lora", rows)
    del adapted, model, reader, trained, test
    gc.collect()
    return facts, {"lora": found}


def test_of_all_weights(order: SurveyPayload, rows: list[TokenRow], arithmetic: Arithmetic, *, job: Job) -> dict[str, Any] | None:
    job.phase("loading", f"Loading {order.model.name}")
    model = load_base(Path(order.base), arithmetic=arithmetic, dtype=torch.float32)
    reader = choose_reader(model, arithmetic=arithmetic)
    return RangeTest(reader, list(model.parameters()), job=job, said="Trying learning rates of full fine-tuning").run("full", rows)


@torch.no_grad()
def surprise(reader: Reader, rows: Sequence[TokenRow], *, seconds: float, job: Job, said: str) -> tuple[Losses, int]:
    """(nats of every token that would be learnt, rows that were read), as far as there was time; at least of one row."""
    job.phase("evaluating", said)
    reader.model.eval()
    found: list[Losses] = []
    began = time.monotonic()
    for row in rows:
        job.raise_if_stopped()
        if found and time.monotonic() - began > seconds:
            job.note(f"{len(found)} of {len(rows)} rows were read: there was no time for more.")
            break
        batch = reader.batch([row])
        with reader.arithmetic.autocast():
            found.append(token_losses(reader.head, reader.hidden(batch), batch.targets).double().numpy())
        job.progress(len(found), len(rows), "rows")
    return np.concatenate(found), len(found)


@dataclass
class RangeTest:
    """One short run whose learning rate rises from step to step until the loss runs away, or the time is over."""

    reader: Reader
    trained: list[torch.nn.Parameter]
    job: Job
    said: str
    clock: Callable[[], float] = time.monotonic

    def run(self, method: str, rows: Sequence[TokenRow]) -> dict[str, Any] | None:
        """What `training.rangetest.RateRange` describes; None where the loss fell at no rate. The weights are changed by it.

        A few batches are read in turn, and each is held against what it lost before: so few rows tell a rate that learns from one that
        does not. What they tell is about these rows; that others are answered better is for a run to show.
        """
        self.job.phase("training", self.said)
        self.reader.model.train()
        objective, batches = NextToken(self.reader), list(self.batches(rows))
        tried = rates(method, self.affordable(objective, batches[0]))
        before = [self.loss(objective, batch, learn=False) for batch in batches]
        turns = islice(cycle(zip(batches, before, strict=True)), len(tried) + 1)
        learning = [parameter for parameter in self.trained if parameter.requires_grad]
        optimizer = torch.optim.AdamW(learning, lr=tried[0], weight_decay=0.0)
        losses: list[float] = []
        """After each step, of the next batch, as a share of what it lost before the first."""
        began, cut = self.clock(), False
        for step, (batch, untouched) in enumerate(turns):
            loss = self.loss(objective, batch, learn=step < len(tried))
            if step:
                losses.append(loss / max(untouched, 1e-6))
                cut = step < len(tried) and self.clock() - began > 2 * TEST_SECONDS
                if cut or is_over(losses) or step == len(tried):
                    break
            for group in optimizer.param_groups:
                group["lr"] = tried[step]
            torch.nn.utils.clip_grad_norm_(learning, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            self.job.progress(step + 1, len(tried), "steps")
        if cut:
            self.job.note("There was no time for the higher learning rates.")
        found = found_range(tried, losses, cut=cut)
        return found.model_dump(mode="json") if found else None

    def affordable(self, objective: NextToken, batch: list[TokenRow]) -> int:
        """Steps for which there is time: each costs a look, and about three times as much to learn."""
        self.loss(objective, batch, learn=False)  # the first one also compiles
        began = self.clock()
        self.loss(objective, batch, learn=False)
        return min(STEPS, max(FEWEST, int(TEST_SECONDS / (5 * max(1e-6, self.clock() - began)))))

    def batches(self, rows: Sequence[TokenRow]) -> Iterator[list[TokenRow]]:
        """Pairs of the rows with most to learn, cut short."""
        short = [TokenRow(ids=row.ids[:TESTED], supervised=row.supervised[:TESTED]) for row in rows]
        kept = [row for row in short if row.targets] or list(rows)
        picked = sorted(kept, key=lambda row: -row.targets)[: BATCH_ROWS * TURN]
        for start in range(0, len(picked), BATCH_ROWS):
            yield picked[start : start + BATCH_ROWS]

    def loss(self, objective: NextToken, batch: list[TokenRow], *, learn: bool) -> float:
        """Nats a token. With `learn` its gradients are left on the weights."""
        self.job.raise_if_stopped()
        with torch.set_grad_enabled(learn), self.reader.arithmetic.autocast():
            loss = objective.part(batch).loss / sum(row.targets for row in batch)
        if learn:
            loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())
