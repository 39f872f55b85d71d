"""A job's rows as what the objective learns from, and the objective that its shape of rows asks for."""

from collections.abc import Iterator
from itertools import chain
from typing import Any, Literal

from studio.errors import UserError
from studio.ml.batches import TokenRow, token_row
from studio.ml.loading import Reader
from studio.ml.objectives import NextToken, Objective
from studio.ml.preference import PairRow, Preference
from studio.ml.tokens import Encoded, both_answers, encode_rows
from studio.ml.world import World
from studio.training import Job, TrainConfig
from studio.training.config import PreferenceConfig

Read = tuple[Any, bool]
"""A row to learn from, None where nothing in it is to be learnt; and whether it was cut."""


def read_rows(job: Job, tokenizer: Any, config: TrainConfig) -> tuple[list[Any], list[Any]]:
    """Training and validation rows as tokens. Rows without anything to learn are left out and named in a note."""
    job.phase("tokenizing", "Reading the rows as tokens")
    total = job.data.train + job.data.validation
    kept: dict[str, list[Any]] = {"train": [], "validation": []}
    done = cut = empty = 0
    splits: tuple[Literal["train", "validation"], ...] = ("train", "validation")
    for split in splits:
        for row, was_cut in _READERS[job.data.shape](tokenizer, job.rows(split), config):
            job.raise_if_stopped()
            if row is not None:
                kept[split].append(row)
            cut += was_cut
            empty += row is None
            done += 1
            job.progress(done, total, "rows")
    if cut:
        job.note(f"{cut} of {done} rows were longer than {config.max_length} tokens and were cut.")
    if empty:
        job.note(f"{empty} of {done} rows were left out: nothing in them is to be learnt.", level="warning")
    if not kept["train"]:
        raise UserError(
            f"No training row has anything to learn within {config.max_length} tokens. Raise the max length.",
            fields={"max_length": "Too short."},
        )
    return kept["train"], kept["validation"]


def _tokens(tokenizer: Any, rows: Iterator[dict[str, Any]], config: TrainConfig) -> Iterator[Read]:
    for encoded in encode_rows(tokenizer, rows, max_length=config.max_length, last_answer=config.learn_from == "last_answer"):
        yield (_row(encoded) if encoded.teaches else None), encoded.cut


def _pairs(tokenizer: Any, rows: Iterator[dict[str, Any]], config: TrainConfig) -> Iterator[Read]:
    readings = chain.from_iterable(map(both_answers, rows))
    both = encode_rows(tokenizer, readings, max_length=config.max_length)
    for chosen, rejected in zip(both, both, strict=True):
        # Where the cut took what the two answers differ in, there is nothing to choose between.
        differ = chosen.ids != rejected.ids and chosen.teaches and rejected.teaches
        yield (PairRow(_row(chosen), _row(rejected)) if differ else None), chosen.cut or rejected.cut


def _row(encoded: Encoded) -> TokenRow:
    return token_row(encoded.ids, encoded.supervised, encoded.weights)


_READERS = {"chat": _tokens, "text": _tokens, "preference": _pairs}


def objective_of(job: Job, reader: Reader, config: TrainConfig, world: World) -> Objective:
    """How rows of this job's shape are learnt."""
    if isinstance(config, PreferenceConfig) and job.data.shape == "preference":
        return Preference(reader, config, world)
    return NextToken(reader)
