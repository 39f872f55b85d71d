"""Which of the client's rows a build is compared on, and which its importance is measured on: never the same ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from studio import rowfile

MOST_ROWS, LEAST_ROWS = 40, 10
"""Rows that a build is compared on: the fewer, the larger the model, whose every word takes longer."""
ROWS_TIMES_WEIGHTS = 4e10
"""Sets where in between: 1 billion weights are compared on MOST_ROWS."""

Row = dict[str, Any]


@dataclass(frozen=True)
class HeldOut:
    """Rows to compare on."""

    rows: list[Row]
    split: Literal["validation", "train", ""]
    """Where they come from; empty where the version has none, or there is no version."""


def held_out(rows: str, *, parameters: int) -> HeldOut:
    """Canonical rows of a version, of its validation split alone, so that the perplexity is of rows that nothing was learnt from.

    Where it has no such split, the first training rows.
    """
    if not rows:
        return HeldOut([], "")
    most = int(min(MOST_ROWS, max(LEAST_ROWS, ROWS_TIMES_WEIGHTS / max(1, parameters))))
    if found := list(islice(_chats(rows, "validation"), most)):
        return HeldOut(found, "validation")
    found = list(islice(_chats(rows, "train"), LEAST_ROWS))
    return HeldOut(found, "train" if found else "")


def learnt(rows: str) -> Iterator[Row]:
    """Canonical training rows of a version, without those that `held_out` compares on."""
    if not rows:
        return iter(())
    compared = next(_chats(rows, "validation"), None) is None
    return islice(_chats(rows, "train"), LEAST_ROWS if compared else 0, None)


def _chats(rows: str, split: rowfile.Split) -> Iterator[Row]:
    """Of answers that were compared the better ones: what the model is to say."""
    for row in rowfile.read(Path(rows), split=split):
        if "chosen" in row:
            from studio.ml.tokens import both_answers  # with transformers, which most rows do not need

            yield both_answers(row)[0]
        elif "messages" in row or "text" in row:
            yield row
