"""What stands word for word in rows that were trained on: how a result goes on with their beginnings, and what its answers repeat.

A row's beginning is given, and the model goes on greedily, as Carlini et al. do ("Extracting Training Data from Large Language Models",
2021; "Quantifying Memorization Across Neural Language Models", 2023). Theirs counts a row as memorised if 50 tokens follow exactly; rows
of a client are shorter, so what counts here is the share of the words that stand in runs of at least RUN words as they stand in the row.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from studio.ml.heldout import as_asked
from studio.ml.scores import WORDS, words

RUN = 8
"""Words in a row that are no coincidence."""
LEAST_WORDS = 2 * RUN
"""Of an answer that is asked for: a beginning, and as much again to be repeated."""
LONGEST_BEGINNING = 32
"""Words of it that are given."""

Run = tuple[str, ...]


@dataclass(frozen=True)
class Beginning:
    """A training row up to the middle of its last answer, and how it goes on."""

    messages: list[dict[str, Any]]
    """What comes before the answer; [] of a plain text."""
    begun: str
    rest: str


def beginning_of(row: dict[str, Any]) -> Beginning | None:
    """None of a row whose answer is short, or no plain text."""
    if "chosen" in row:
        row = as_asked(row, "")
    if "text" in row:
        return split([], str(row["text"]))
    messages = row["messages"]
    plain = all(isinstance(message.get("content"), str) and not message.get("tool_calls") for message in messages)
    if not plain or "tools" in row or len(messages) < 2 or messages[-1]["role"] != "assistant":
        return None
    before = [{"role": message["role"], "content": message["content"]} for message in messages[:-1]]
    return split(before, messages[-1]["content"])


def split(messages: list[dict[str, Any]], text: str) -> Beginning | None:
    places = [found.end() for found in WORDS.finditer(text)]
    if len(places) < LEAST_WORDS:
        return None
    cut = places[min(len(places) // 2, LONGEST_BEGINNING) - 1]
    return Beginning(messages, text[:cut], text[cut:])


def runs_of(text: str) -> list[Run]:
    """Each RUN words that follow each other, in order."""
    said = words(text)
    return [tuple(said[place : place + RUN]) for place in range(len(said) - RUN + 1)]


def repeated(text: str, known: set[Run]) -> float:
    """The share of a text's words that stand in one of the `known` runs; 0 of a text without words."""
    said = words(text)
    inside = [False] * len(said)
    for place in range(len(said) - RUN + 1):
        if tuple(said[place : place + RUN]) in known:
            inside[place : place + RUN] = [True] * RUN
    return sum(inside) / len(said) if said else 0.0


def text_of(row: dict[str, Any]) -> str:
    """All that stands in a row, but for a preference's worse answer."""
    if "chosen" in row:
        row = as_asked(row, "")
    if "text" in row:
        return str(row["text"])
    return "\n".join(message["content"] for message in row["messages"] if isinstance(message.get("content"), str))


def known_runs(rows: Iterable[dict[str, Any]], wanted: set[Run]) -> set[Run]:
    """Those of the `wanted` runs that stand in one of the rows. Memory stays flat, however many rows there are."""
    found: set[Run] = set()
    for row in rows:
        found.update(run for run in runs_of(text_of(row)) if run in wanted)
    return found
