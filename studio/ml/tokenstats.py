"""How long the rows of a dataset are under one base model's tokenizer and template. No torch, flat memory."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from studio import rowfile
from studio.errors import UserError
from studio.ml import tokenview
from studio.ml.tokens import Encoded, both_answers, encode_rows, load_tokenizer
from studio.training import Job, TokenFacts
from studio.training.facts import Cut
from studio.training.orders import TokensPayload

BUCKETS = 24
STEPS = (1, 2, 2.5, 5, 10)
"""Widths of a bucket are one of these times a power of ten, so that edges are round numbers."""
BATCH = 256

CUTS = tuple(2**power for power in range(8, 18))
"""Max lengths of which it is told what they would cut: 256 to 131,072."""
SAMPLE = 200_000
"""Rows that are read at most. The share of rows over a limit is then known to a tenth of a per cent, in a minute instead of many."""
SEED = 42
LENGTHS = "lengths.npy"
"""A file of the result: the length of each row, by its index; of a preference row that of the longer answer, 0 where it was not read."""

Report = Callable[[int, int], None]


def run(payload: dict[str, Any], job: Job) -> dict[str, Any]:
    """The order "tokens": `{"tokens": TokenFacts}`, the file `lengths.npy`, and the first rows as `studio.ml.tokenview` writes them."""
    order = TokensPayload.model_validate(payload)
    job.phase("tokenizing", "Counting the tokens")

    def report(done: int, total: int) -> None:
        job.raise_if_stopped()
        job.progress(done, total, "rows")

    rows, base = Path(order.rows), Path(order.base)
    facts = measure(rows, base, limit=order.limit, report=report, lengths_file=job.out / LENGTHS)
    if order.first:  # looked at next, most likely; here the tokenizer is loaded already
        tokenview.write_block(load_tokenizer(base), rowfile.between(rows, 0, order.first), job.out / tokenview.ROWS)
    return {"tokens": facts}


def measure(
    rows_path: Path,
    base: Path,
    *,
    max_length: int | None = None,
    limit: int = 0,
    report: Report | None = None,
    lengths_file: Path | None = None,
) -> dict[str, Any]:
    """A TokenFacts as JSON for the rows of a rows.parquet. `report(done, total)` hears of each batch of rows.

    With `max_length` rows are counted as they are after the cut. `limit` is a max length of special interest. Of a preference row both
    answers are counted, as two.
    """
    tokenizer = load_tokenizer(base)
    everything = rowfile.count(rows_path)
    drawn = sample(everything)
    read = int(drawn.sum())
    by_row = np.zeros(everything, np.uint32)
    tally = Tally(limits=tuple(sorted({*CUTS, limit} - {0})))
    for batch, done in _batches(rows_path, drawn):
        readings = [_readings(row) for _, row in batch]
        encoded = encode_rows(tokenizer, (reading for both in readings for reading in both), max_length=max_length)
        for (index, _), both in zip(batch, readings, strict=True):
            by_row[index] = tally.add([next(encoded) for _ in both])
        if report:
            report(done, read)
    if not tally.lengths:
        raise UserError("This dataset has no rows to count. Import one with at least one row.")
    if lengths_file:
        np.save(lengths_file, by_row)
    facts = tally.facts(everything / read)
    return facts.model_copy(update={"sample": read if read < everything else 0}).model_dump(mode="json")


def sample(everything: int) -> npt.NDArray[np.bool_]:
    """Which rows to read: all of them, or SAMPLE that stand for all."""
    drawn = np.ones(everything, np.bool_)
    drawn[SAMPLE:] = False
    return np.random.default_rng(SEED).permutation(drawn)


@dataclass
class Tally:
    """Sums over rows that come one by one."""

    limits: tuple[int, ...]
    lengths: list[int] = field(default_factory=list)
    supervised: int = 0
    cuts: dict[int, list[int]] = field(default_factory=dict)
    """Max length -> rows, tokens, supervised, empty, as in a Cut."""

    def add(self, readings: list[Encoded]) -> int:
        """A row with its readings; answers with the length of the longest."""
        longest = max(len(reading.ids) for reading in readings)
        for reading in readings:
            self.lengths.append(len(reading.ids))
            self.supervised += sum(reading.supervised)
        for limit in self.limits:
            if limit >= longest:
                break
            self._cut(readings, limit)
        return longest

    def _cut(self, readings: list[Encoded], limit: int) -> None:
        sums = self.cuts.setdefault(limit, [0, 0, 0, 0])
        sums[0] += 1
        sums[1] += sum(max(0, len(reading.ids) - limit) for reading in readings)
        sums[2] += sum(sum(reading.supervised[limit:]) for reading in readings)
        sums[3] += all(reading.teaches for reading in readings) and not all(any(reading.supervised[1:limit]) for reading in readings)

    def facts(self, factor: float) -> TokenFacts:
        """`factor` is how many rows each that was read stands for."""
        ordered = sorted(self.lengths)
        reached = [limit for limit in self.limits if limit < ordered[-1]]
        shown = [*reached, *self.limits[len(reached) : len(reached) + 1]]
        return TokenFacts(
            total=round(factor * sum(ordered)),
            supervised=round(factor * self.supervised),
            p50=percentile(ordered, 50),
            p95=percentile(ordered, 95),
            p99=percentile(ordered, 99),
            longest=ordered[-1],
            histogram=[(edge, round(factor * count)) for edge, count in histogram(ordered)],
            cuts=[self._told(limit, factor) for limit in shown],
        )

    def _told(self, limit: int, factor: float) -> Cut:
        rows, tokens, supervised, empty = (round(factor * each) for each in self.cuts.get(limit, (0, 0, 0, 0)))
        return Cut(max_length=limit, rows=rows, tokens=tokens, supervised=supervised, empty=empty)


def percentile(ordered: list[int], percent: float) -> int:
    """The smallest length that at least so many percent of the rows do not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def histogram(ordered: list[int]) -> list[tuple[int, int]]:
    """(upper edge in tokens, rows) in about 24 buckets of one round width; the last takes everything beyond twice the 99th percentile."""
    width = round_width(min(ordered[-1], 2 * percentile(ordered, 99)))
    edges = [width * (number + 1) for number in range(BUCKETS)]
    counts = [0] * BUCKETS
    for length in ordered:
        counts[min(BUCKETS - 1, (length - 1) // width if length else 0)] += 1
    while len(counts) > 1 and not counts[-1]:
        counts.pop()
    edges = edges[: len(counts)]
    edges[-1] = max(edges[-1], ordered[-1])
    return list(zip(edges, counts, strict=True))


def round_width(reach: int) -> int:
    """The smallest round width with which the buckets reach so far."""
    least = max(1.0, reach / BUCKETS)
    power = 10.0 ** math.floor(math.log10(least))
    return next(math.ceil(step * power) for step in STEPS if step * power >= least)


def _batches(path: Path, drawn: npt.NDArray[np.bool_]) -> Iterator[tuple[list[tuple[int, dict[str, Any]]], int]]:
    """The rows that were drawn as (index, row), in batches, with how many are done after each."""
    rows = ((index, row) for index, row in enumerate(rowfile.read(path)) if drawn[index])
    done = 0
    while batch := list(islice(rows, BATCH)):
        done += len(batch)
        yield batch, done


def _readings(row: dict[str, Any]) -> list[dict[str, Any]]:
    return both_answers(row) if "prompt" in row else [row]
