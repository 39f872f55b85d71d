"""How long the rows of a dataset are under one base model's tokenizer and template. No torch, flat memory."""

import math
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from studio import rowfile
from studio.errors import UserError
from studio.ml.tokens import both_answers, encode_rows, load_tokenizer
from studio.training import Job, TokenFacts
from studio.training.orders import TokensPayload

BUCKETS = 24
STEPS = (1, 2, 2.5, 5, 10)
"""Widths of a bucket are one of these times a power of ten, so that edges are round numbers."""
BATCH = 256

Report = Callable[[int, int], None]


def run(payload: dict[str, Any], job: Job) -> dict[str, Any]:
    """The order "tokens": `{"tokens": TokenFacts}`."""
    order = TokensPayload.model_validate(payload)
    job.phase("tokenizing", "Counting the tokens")

    def report(done: int, total: int) -> None:
        job.raise_if_stopped()
        job.progress(done, total, "rows")

    return {"tokens": measure(Path(order.rows), Path(order.base), report=report)}


def measure(rows_path: Path, base: Path, *, max_length: int | None = None, report: Report | None = None) -> dict[str, Any]:
    """A TokenFacts as JSON for every row of a rows.parquet. `report(done, total)` hears of each batch of rows.

    With `max_length` rows are counted as they are after the cut. Of a preference row both answers are counted, as two.
    """
    tokenizer = load_tokenizer(base)
    lengths: list[int] = []
    supervised = 0
    for batch, done, total in _batches(rows_path):
        readings = [reading for row in batch for reading in _readings(row)]
        for encoded in encode_rows(tokenizer, readings, max_length=max_length):
            lengths.append(len(encoded.ids))
            supervised += sum(encoded.supervised)
        if report:
            report(done, total)
    if not lengths:
        raise UserError("This dataset has no rows to count. Import one with at least one row.")
    lengths.sort()
    return TokenFacts(
        total=sum(lengths),
        supervised=supervised,
        p50=percentile(lengths, 50),
        p95=percentile(lengths, 95),
        p99=percentile(lengths, 99),
        longest=lengths[-1],
        histogram=histogram(lengths),
    ).model_dump(mode="json")


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


def _batches(path: Path) -> Iterator[tuple[list[dict[str, Any]], int, int]]:
    """Rows in batches, with how many are done after each and how many there are."""
    total, done, rows = rowfile.count(path), 0, rowfile.read(path)
    while batch := list(islice(rows, BATCH)):
        done += len(batch)
        yield batch, done, total


def _readings(row: dict[str, Any]) -> list[dict[str, Any]]:
    return both_answers(row) if "chosen" in row else [row]
