"""How rows resemble each other: near-duplicates, different answers to one question, and what stands on both sides of the split.

Near-duplicates are found by MinHash (Broder 1997) over pairs of neighbouring words, in bands (LSH; Leskovec, Rajaraman and Ullman,
"Mining of Massive Datasets", chapter 3). Sketches lie in files: 64 bytes a row to compare, and 168 to meet by. The sketches are `rensa`'s.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import rensa

from studio.datasets import splitting
from studio.datasets.rows import ALONE

Words = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]
Chosen = npt.NDArray[np.bool_]

SIMILAR = 0.8
"""Two rows are near-duplicates where they share so much of their pairs of words (Jaccard)."""
SLACK = 0.035
"""The standard error of that share as signatures tell it. Pairs so much below count, too: rather one more than one missed."""
SLOTS, BANDS, BAND = 128, 21, 6
"""At 0.8 a pair is met in one of the bands with a chance of 0.998, at 0.7 with 0.93, at 0.5 with 0.28; what is met is then compared."""
SEED = 42
LONGEST = 100_000
"""Characters of a row that are compared."""
BATCH = 1 << 18
"""Characters that are hashed at a time: each takes some 60 bytes meanwhile."""
BLOCK = 1 << 16
"""Pairs that are compared at a time."""
BITS = "bits"
COMMON_SHARE, COMMON_ROWS = 0.1, 20
"""Pairs of words that stand in so many of the different rows say nothing of their likeness: they belong to a template, or the language."""
NO_QUESTION = 0


def compared_text(row: dict[str, Any]) -> str:
    """What is said in a row, without what the model is told beforehand, which many rows have in common."""
    if "text" in row:
        return str(row["text"])[:LONGEST]
    messages = row["messages"] if "messages" in row else chain(row["prompt"], row.get("chosen", ())[-1:], row.get("rejected", ())[-1:])
    return "\n".join(message.get("content") or "" for message in messages if message["role"] != "system")[:LONGEST]


def question_and_answer(row: dict[str, Any]) -> tuple[int, int]:
    """Hashes of all that comes before the last answer, and of that answer: capitals, spaces and a last mark do not matter.

    (NO_QUESTION, 0) for a text, and for an answer that somebody only disliked: it stands in no conflict with a better one.
    """
    if "text" in row or ("prompt" in row and "chosen" not in row):
        return NO_QUESTION, 0
    if "messages" in row:
        before, last = row["messages"][:-1], row["messages"][-1]
    else:
        before, last = row["prompt"], row["chosen"][-1]
    asked = tuple(part for message in before for part in (message["role"], plain(message.get("content") or "")))
    said = plain(last.get("content") or "") or str(last.get("tool_calls", ""))
    return (hash(asked) & 0xFFFFFFFFFFFFFFFF) or 1, hash(said) & 0xFFFFFFFFFFFFFFFF


def plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".!?… ")


# --- words -----------------------------------------------------------------------------------------------------------------------------

IS_WORD = np.zeros(256, dtype=bool)
IS_WORD[[*range(ord("0"), ord("9") + 1), *range(ord("a"), ord("z") + 1), *range(0x80, 0x100)]] = True
BASE = np.uint64(0x9E3779B97F4A7C15)
INVERSE = np.uint64(pow(int(BASE), -1, 1 << 64))
END = 0
"""Between rows: no text holds a NUL."""


class Powers:
    """Powers of an odd number modulo 2^64, as many as were needed so far."""

    def __init__(self, base: np.uint64):
        self.base, self.known = base, np.ones(1, dtype=np.uint64)

    def first(self, number: int) -> Words:
        if number > len(self.known):
            self.known = np.cumprod(np.concatenate([[np.uint64(1)], np.full(number, self.base)]), dtype=np.uint64)
        return self.known[:number]


FORTH, BACK = Powers(BASE), Powers(INVERSE)


def word_pairs(texts: Sequence[str]) -> tuple[Words, Numbers]:
    """(hash of each word with the one after it, where each text's begin and end).

    A word is a run of letters and digits; in scripts that write no spaces each character is one. Capitals and marks are passed over.
    """
    joined = ("\0".join(texts) + "\0").lower().encode()
    data = np.frombuffer(joined, dtype=np.uint8)
    inside = IS_WORD[data]
    for place in (np.flatnonzero(data == 0xE2), np.flatnonzero((data[:-1] == 0xE3) & (data[1:] == 0x80))):
        for offset in range(3):  # general punctuation and signs, U+2000 to U+2FFF, and those of CJK, U+3000 to U+303F
            inside[place + offset] = False
    starts = inside & ((data >= 0xE3) & (data < 0xF8))
    starts[1:] |= inside[1:] & ~inside[:-1]
    starts[0] = inside[0]
    begins = np.flatnonzero(starts)
    ends = np.flatnonzero(data == END)
    bounds = np.concatenate([[0], np.searchsorted(begins, ends)])
    if not len(begins):
        return np.empty(0, dtype=np.uint64), bounds
    # The polynomial hash of a word is that of its place in the whole, moved back to the beginning.
    values = np.where(inside, data, 0).astype(np.uint64) * FORTH.first(len(data))
    words = mixed(np.add.reduceat(values, begins) * BACK.first(len(data))[begins])
    following: Words = np.append(words[1:], np.uint64(0))
    last = bounds[1:][bounds[1:] > bounds[:-1]] - 1
    following[last] = 0
    return mixed(words * np.uint64(3) + following * BASE), bounds


def mixed(values: Words) -> Words:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def common_pairs(texts: Sequence[str]) -> Words:
    """The pairs of words that belong to a template: those in many of the (different) texts. Sorted."""
    if not texts:
        return np.empty(0, dtype=np.uint64)
    once = [np.unique(word_pairs([text])[0]) for text in texts]
    values, counts = np.unique(np.concatenate(once), return_counts=True)
    found: Words = values[counts >= max(COMMON_ROWS, COMMON_SHARE * len(texts))]
    return found


def without(pairs: Words, bounds: Numbers, common: Words) -> tuple[Words, Numbers]:
    """The pairs that are not common. A text of common ones alone keeps them all."""
    if not len(common) or not len(pairs):
        return pairs, bounds
    place = np.minimum(np.searchsorted(common, pairs), len(common) - 1)
    kept = common[place] != pairs
    counts = np.add.reduceat(np.append(kept, False), bounds[:-1].clip(max=len(kept))) * (np.diff(bounds) > 0)
    kept |= np.repeat(counts == 0, np.diff(bounds))
    return pairs[kept], np.concatenate([[0], np.cumsum(kept)])[bounds]


# --- near-duplicates -------------------------------------------------------------------------------------------------------------------


class Sketches:
    """What is remembered of texts, in files of one folder, in their order: for each band a number that texts meet by, and, to compare
    those that meet, four bits of each of `SLOTS` minima. All bits are zero for a text without words."""

    def __init__(self, folder: Path, common: Words):
        folder.mkdir()
        self.common = common
        self.files = [name.open("wb") for name in (folder / BITS, *(folder / f"band-{band}" for band in range(BANDS)))]
        self.texts: list[str] = []
        self.size = self.count = 0
        self.beside = ThreadPoolExecutor(1)  # numpy and rensa let go of the interpreter for much of the time
        self.pending: Future[None] | None = None

    def add(self, text: str) -> None:
        self.texts.append(text)
        self.size += len(text)
        if self.size >= BATCH:
            self._flush()

    def _flush(self) -> None:
        self._settle()
        if self.texts:
            self.pending = self.beside.submit(self._write, self.texts)
            self.count += len(self.texts)
            self.texts, self.size = [], 0

    def _settle(self) -> None:
        if self.pending is not None:
            self.pending.result()

    def _write(self, texts: list[str]) -> None:
        pairs, bounds = without(*word_pairs(texts), self.common)
        matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(pairs, bounds.astype(np.uint64), SLOTS, SEED)
        minima = np.fromiter(chain.from_iterable(matrix.to_rows()), dtype=np.uint64, count=len(texts) * SLOTS).reshape(-1, SLOTS)
        blank = np.diff(bounds) == 0
        nibbles = (minima & np.uint64(15)).astype(np.uint8)
        bits = nibbles[:, ::2] | nibbles[:, 1::2] * np.uint8(16)
        bits[blank] = 0
        keys = mixed((minima[:, : BANDS * BAND].reshape(-1, BANDS, BAND) * FORTH.first(BAND)).sum(axis=2, dtype=np.uint64))
        for file, values in zip(self.files, (bits, *keys.T), strict=True):
            file.write(values.tobytes())

    def __enter__(self) -> "Sketches":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._flush()
            self._settle()
        self.beside.shutdown()
        for file in self.files:
            file.close()


def clusters(folder: Path, count: int, *, heed: Callable[[int, int], None] = lambda done, of: None) -> Numbers:
    """For each of `count` texts that were sketched, the first one that it is connected with by likeness; itself where there is none.

    `heed(bands done, of)` is called between the bands, and may raise.
    """
    roots = np.arange(count)
    if count < 2:
        return roots
    bits = np.memmap(folder / BITS, dtype=np.uint8, mode="r", shape=(count, SLOTS // 2))
    for band in range(BANDS):
        heed(band, BANDS)
        one, other = _met(np.fromfile(folder / f"band-{band}", dtype=np.uint64))
        apart = roots[one] != roots[other]
        one, other = one[apart], other[apart]
        alike = _alike(bits, one, other)
        if alike.any():
            roots = splitting.connected(count, roots[one[alike]], roots[other[alike]])[roots]
    heed(BANDS, BANDS)
    return roots


def _met(keys: Words) -> tuple[Numbers, Numbers]:
    """Pairs that share a key: each row with the first of its key, and with the one before it."""
    order = np.argsort(keys, kind="stable")
    ranked = keys[order]
    repeats = np.flatnonzero(ranked[1:] == ranked[:-1]) + 1
    starts = np.ones(len(keys), dtype=bool)
    starts[repeats] = False
    first = np.maximum.accumulate(np.where(starts, np.arange(len(keys)), 0))[repeats]
    further = first < repeats - 1
    return (
        np.concatenate([order[first], order[repeats[further] - 1]]),
        np.concatenate([order[repeats], order[repeats[further]]]),
    )


def _alike(bits: npt.NDArray[np.uint8], one: Numbers, other: Numbers) -> Chosen:
    """Which of the pairs share so many of their minima that they are near-duplicates. Texts without words resemble nothing."""
    found = np.zeros(len(one), dtype=bool)
    for begin in range(0, len(one), BLOCK):
        here = slice(begin, begin + BLOCK)
        first, second = bits[one[here]], bits[other[here]]
        differ = first ^ second
        shared = np.count_nonzero(differ & 15 == 0, axis=1) + np.count_nonzero(differ & 240 == 0, axis=1)
        # Four bits agree by chance once in 16 times.
        found[here] = ((shared / SLOTS - 1 / 16) / (1 - 1 / 16) >= SIMILAR - SLACK) & first.any(axis=1)
    return found


@dataclass(frozen=True)
class Firsts:
    """Which rows repeat an earlier one exactly, told from their hashes."""

    of: Numbers
    """For each row the first one that is equal to it."""

    @classmethod
    def among(cls, hashes: splitting.Hashes) -> "Firsts":
        _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
        return cls(first[inverse])

    @property
    def different(self) -> Chosen:
        return np.asarray(self.of == np.arange(len(self.of)))

    def groups(self, roots: Numbers) -> Numbers:
        """The least index of each row's group, from the `clusters` of the different rows; ALONE for a row in none."""
        different = self.different
        rows = np.flatnonzero(different)
        least = rows[roots][(np.cumsum(different) - 1)[self.of]]
        sizes = np.bincount(least, minlength=len(self.of))
        return np.where(sizes[least] > 1, least, ALONE)


def near(groups: Numbers, hashes: splitting.Hashes) -> Chosen:
    """True for each row that nearly repeats the first of its group, not exactly."""
    found: Chosen = (groups != ALONE) & (hashes != hashes[np.where(groups == ALONE, 0, groups)])
    return found


def conflicts(questions: Words, answers: Words) -> Chosen:
    """True for each row whose question has a different answer elsewhere."""
    found = np.zeros(len(questions), dtype=bool)
    asked = np.flatnonzero(questions != NO_QUESTION)
    if not len(asked):
        return found
    _, place = np.unique(questions[asked], return_inverse=True)
    first = np.zeros(int(place.max()) + 1, dtype=np.uint64)
    first[place[::-1]] = answers[asked][::-1]
    differs = np.zeros(len(first), dtype=bool)
    differs[place[answers[asked] != first[place]]] = True
    found[asked] = differs[place]
    return found


def _among(few: npt.NDArray[Any], many: npt.NDArray[Any]) -> Chosen:
    """Which of a few values are among many, without sorting these."""
    values, place = np.unique(few, return_inverse=True)
    met = np.zeros(len(values), dtype=bool)
    if len(values):
        at = np.minimum(np.searchsorted(values, many), len(values) - 1)
        met[at[values[at] == many]] = True
    return met[place]


def leaked(held_back: Chosen, *, hashes: splitting.Hashes, questions: Words, groups: Numbers) -> Chosen:
    """True for each row held back that is to be trained on, too: the same, nearly the same, or the same question."""
    found = np.zeros(len(held_back), dtype=bool)
    rows = np.flatnonzero(held_back)
    for values, nothing in ((hashes, None), (questions, NO_QUESTION), (groups, ALONE)):
        both = _among(values[rows], values[~held_back])
        found[rows] |= both if nothing is None else both & (values[rows] != nothing)
    return found
