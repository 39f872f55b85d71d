"""What differs between a row and what it was, word by word."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import zip_longest
from typing import Any, Literal

Kind = Literal["same", "added", "removed"]
PIECES = re.compile(r"\s+|\w+|[^\w\s]")
MOST_WORDS = 2000
"""Words, signs and gaps that are compared one by one; of longer texts that changed so much, the old and the new are shown whole."""
AROUND = 160
"""Characters of what stayed the same that are shown before and after a change."""


@dataclass(frozen=True)
class Piece:
    kind: Kind
    text: str


@dataclass(frozen=True)
class Said:
    """One message of a row, with what changed in it."""

    role: str
    pieces: list[Piece]


def row_difference(before: dict[str, Any], after: dict[str, Any]) -> list[Said]:
    """Message by message; those that did not change are told too, shortened."""
    told = []
    for name in dict.fromkeys((*before, *after)):
        if name == "tools":
            continue
        pairs = zip_longest(_messages(before.get(name, [])), _messages(after.get(name, [])), fillvalue=("", ""))
        for (old_role, old), (new_role, new) in pairs:
            role = new_role or old_role
            if old_role and new_role and old_role != new_role:
                role = f"{old_role}, now {new_role}"
            label = {"chosen": "better answer", "rejected": "worse answer"}.get(name, role)
            told.append(Said(label if role == "assistant" else role, list(shortened(word_difference(old, new)))))
    return told


def word_difference(before: str, after: str) -> Iterator[Piece]:
    if before == after:
        yield Piece("same", before)
        return
    old, new = PIECES.findall(before), PIECES.findall(after)
    head = _shared(old, new)
    tail = _shared(old[head:][::-1], new[head:][::-1])
    yield from _piece("same", old[:head])
    yield from _middle(old[head : len(old) - tail], new[head : len(new) - tail])
    yield from _piece("same", old[len(old) - tail :] if tail else [])


def _middle(old: list[str], new: list[str]) -> Iterator[Piece]:
    if max(len(old), len(new)) > MOST_WORDS:
        yield from _piece("removed", old)
        yield from _piece("added", new)
        return
    for act, old_begin, old_end, new_begin, new_end in SequenceMatcher(None, old, new).get_opcodes():
        if act == "equal":
            yield from _piece("same", old[old_begin:old_end])
        else:
            yield from _piece("removed", old[old_begin:old_end])
            yield from _piece("added", new[new_begin:new_end])


def shortened(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """What stayed the same is cut where it is long."""
    for piece in pieces:
        if piece.kind == "same" and len(piece.text) > 2 * AROUND + 20:
            yield Piece("same", f"{piece.text[:AROUND]} … {piece.text[-AROUND:]}")
        else:
            yield piece


def _messages(value: Any) -> list[tuple[str, str]]:
    if isinstance(value, str):
        return [("text", value)]
    return [(message["role"], message.get("content") or "") for message in value]


def _shared(one: list[str], other: list[str]) -> int:
    """How many items two lists begin with alike."""
    return next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _piece(kind: Kind, words: list[str]) -> Iterator[Piece]:
    if words:
        yield Piece(kind, "".join(words))
