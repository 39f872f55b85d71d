"""Which rows a release is measured on: held-out ones that nothing was trained on, as both are asked. No torch."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from studio import rowfile
from studio.ml.batches import spread

MOST_ROWS, LEAST_ROWS = 200, 40
"""Rows that are measured: the fewer, the larger the model, whose every word takes longer."""
ROWS_TIMES_WEIGHTS = 4e10
"""Sets where in between: 1 billion weights are measured on 40."""

Row = dict[str, Any]


@dataclass(frozen=True)
class HeldOut:
    rows: list[Row]
    """Those that are measured, evenly spread over the whole."""
    of: int
    """How many there are that nothing was trained on."""
    learnt: int
    """How many were left out because something was trained on them."""


def held_out(path: Path, *, split: str, learnt_from: Iterable[Path], parameters: int) -> HeldOut:
    """Canonical rows that are in no training split of `learnt_from`, told by their hashes."""
    return held_out_of([path], split=split, learnt_from=learnt_from, most=most_rows(parameters))


def most_rows(parameters: int) -> int:
    return int(min(MOST_ROWS, max(LEAST_ROWS, ROWS_TIMES_WEIGHTS / max(1, parameters))))


def held_out_of(paths: Sequence[Path], *, split: str, learnt_from: Iterable[Path], most: int) -> HeldOut:
    """The same of several versions together, at most `most` of them; a row that two versions have is one."""
    trained = [_column(each, "hash")[_column(each, "split") == "train"] for each in learnt_from]
    learnt = np.unique(np.concatenate(trained)) if trained else np.array([], dtype=np.uint64)
    kept: list[tuple[Path, int]] = []
    met, seen = np.array([], dtype=np.uint64), 0
    for path in paths:
        hashes = _column(path, "hash")
        wanted = ~np.isin(hashes, met) & (_column(path, "split") == split if split else True)
        known = np.isin(hashes, learnt)
        kept += [(path, int(place)) for place in np.flatnonzero(wanted & ~known)]
        seen += int((wanted & known).sum())
        met = np.union1d(met, hashes[wanted])
    chosen = [kept[place] for place in spread(len(kept), limit=most)]
    return HeldOut(
        [row for path in paths for row in rows_at(path, {place for of, place in chosen if of == path})], of=len(kept), learnt=seen
    )


def rows_at(path: Path, places: set[int]) -> list[Row]:
    return [row for index, row in enumerate(rowfile.read(path)) if index in places] if places else []


def _column(path: Path, name: str) -> npt.NDArray[Any]:
    column = pq.read_table(path, columns=[name])[name]
    return np.asarray(column.to_pylist()) if name == "split" else column.to_numpy()


def as_asked(row: Row, system: str) -> Row:
    """The row as a model is asked with it: of two compared answers the better one, and with `system` where it has none of its own."""
    if "chosen" in row:
        from studio.ml.tokens import both_answers

        row = both_answers(row)[0]
    if not system or "messages" not in row or row["messages"][0]["role"] == "system":
        return row
    return row | {"messages": [{"role": "system", "content": system}, *row["messages"]]}


def answers_of(row: Row) -> str:
    """What a model is to say of it, whatever tokens it reads in."""
    if "text" in row:
        return str(row["text"])
    return "".join(message.get("content") or "" for message in row["messages"] if message["role"] == "assistant")


@dataclass(frozen=True)
class Question:
    """One of the rows as it is asked, and what its author would have said."""

    row: Row
    """Up to where the answer begins: `messages` that end with a question, or the beginning of a `text`."""
    shown: str
    expected: str


BEGINNING = 240
"""Characters of a text that are given, at most; never more than half of it."""


def questions(rows: list[Row], *, limit: int, fits: Callable[[Question], bool] = lambda question: True) -> list[Question]:
    """At most `limit`, evenly spread over the rows that can be asked: plain conversations with an answer, and texts, where they fit."""
    found = [question for row in rows if (question := _question(row)) is not None and fits(question)]
    return [found[place] for place in spread(len(found), limit=limit)]


def _question(row: Row) -> Question | None:
    if "chosen" in row or "tools" in row:
        row = as_asked(row, "")
    if "text" in row:
        return _beginning(str(row["text"]))
    if "tools" in row or any(not isinstance(message.get("content"), str) or message.get("tool_calls") for message in row["messages"]):
        return None  # what it answers depends on tools that are not here
    messages = list(row["messages"])
    answer = messages.pop() if messages and messages[-1]["role"] == "assistant" else None
    if answer is None or not messages or messages[-1]["role"] != "user":
        return None
    plain = [{"role": message["role"], "content": message["content"]} for message in messages]
    return Question({"messages": plain}, shown=plain[-1]["content"], expected=answer["content"])


def _beginning(text: str) -> Question | None:
    end = text.rfind(" ", 0, min(BEGINNING, len(text) // 2) + 1)
    if end < 1:
        return None
    return Question({"text": text[:end]}, shown=text[:end], expected=text[end:].strip())
