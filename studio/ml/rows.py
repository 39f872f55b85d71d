"""A job's rows as what the objective learns from, and the objective that its shape of rows asks for."""

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any, Literal

from studio.errors import UserError
from studio.ml import tokencache
from studio.ml.batches import TokenRow, token_row
from studio.ml.loading import Reader
from studio.ml.objectives import NextToken, Objective
from studio.ml.preference import PairRow, Preference
from studio.ml.tokencache import Read
from studio.ml.tokens import ENDS, Encoded, both_answers, encode_rows
from studio.ml.world import World
from studio.training import Job, TrainConfig
from studio.training.config import PreferenceConfig
from studio.training.preferences import needs_pairs

SPLITS: tuple[Literal["train", "validation"], ...] = ("train", "validation")


def read_rows(job: Job, tokenizer: Any, config: TrainConfig) -> tuple[list[Any], list[Any]]:
    """Training and validation rows as tokens. Rows without anything to learn are left out and named in a note."""
    job.phase("tokenizing", "Reading the rows as tokens")
    reads = _kept_reads(job, tokenizer, config) if job.cache else _reads(job, tokenizer, config)
    both = reads["train"] + reads["validation"]
    done, cut, empty = len(both), sum(was_cut for _, was_cut in both), sum(row is None for row, _ in both)
    kept = {split: [row for row, _ in reads[split] if row is not None] for split in SPLITS}
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


def _kept_reads(job: Job, tokenizer: Any, config: TrainConfig) -> dict[str, list[Read]]:
    """As `_reads`, from an earlier run where one read the same rows in the same way."""
    assert job.cache is not None
    rows = ((split, row) for split in SPLITS for row in job.rows(split))
    key = tokencache.key_of(tokenizer, rows, shape=job.data.shape, max_length=config.max_length, learn_from=config.learn_from)
    reads = tokencache.load(job.cache, key)
    if reads is None:
        reads = _reads(job, tokenizer, config)
        tokencache.save(job.cache, key, reads)
    return reads


def _reads(job: Job, tokenizer: Any, config: TrainConfig) -> dict[str, list[Read]]:
    total = job.data.train + job.data.validation
    reads: dict[str, list[Read]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        for read in _READERS[job.data.shape](tokenizer, job.rows(split), config):
            job.raise_if_stopped()
            reads[split].append(read)
            job.progress(sum(map(len, reads.values())), total, "rows")
    return reads


def _tokens(tokenizer: Any, rows: Iterator[dict[str, Any]], config: TrainConfig) -> Iterator[Read]:
    for encoded in encode_rows(tokenizer, rows, max_length=config.max_length, last_answer=config.learn_from == "last_answer"):
        yield (_row(encoded) if encoded.teaches else None), encoded.cut


def _pairs(tokenizer: Any, rows: Iterator[dict[str, Any]], config: TrainConfig) -> Iterator[Read]:
    ends: deque[list[str]] = deque()
    """Of rows that are read but not encoded yet: which answers each has."""

    def readings() -> Iterator[dict[str, Any]]:
        for row in rows:
            ends.append([end for end in ENDS if end in row])
            if len(ends[-1]) == 1 and isinstance(config, PreferenceConfig) and (why_not := needs_pairs(config, unpaired=1, rows=2)):
                raise UserError(why_not, fields={"preference": why_not})
            yield from both_answers(row)

    found = encode_rows(tokenizer, readings(), max_length=config.max_length)
    for first in found:
        named = ends.popleft()
        answers = [first, *islice(found, len(named) - 1)]
        # Where the cut took what the two answers differ in, there is nothing to choose between.
        differ = all(answer.teaches for answer in answers) and not (len(answers) == 2 and answers[0].ids == answers[1].ids)
        by_end = {end: _row(answer) for end, answer in zip(named, answers, strict=True)}
        row = PairRow(chosen=by_end.get("chosen"), rejected=by_end.get("rejected")) if differ else None
        yield row, any(answer.cut for answer in answers)


def _row(encoded: Encoded) -> TokenRow:
    return token_row(encoded.ids, encoded.supervised, encoded.weights)


_READERS = {"chat": _tokens, "text": _tokens, "preference": _pairs}


def objective_of(job: Job, reader: Reader, config: TrainConfig, world: World) -> Objective:
    """How rows of this job's shape are learnt."""
    if isinstance(config, PreferenceConfig) and job.data.shape == "preference":
        return Preference(reader, config, world)
    return NextToken(reader)
