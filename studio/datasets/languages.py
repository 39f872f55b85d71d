"""Which languages rows are in, told from a sample of their answers. The identifier is py3langid's (naive Bayes over byte n-grams)."""

from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

SAMPLE = 10_000
"""Rows that are looked at, evenly spread: each takes a tenth of a millisecond."""
SPREAD = 0x9E3779B1
"""An odd multiplier: a plain stride would meet the same kind of row each time where kinds alternate."""
LOOKED_AT = 160
"""Characters of an answer: more would say little more."""
LETTERS = 20
"""An answer with fewer is in no language that anybody could tell."""
SPACES = 2
"""One with fewer, in letters of English, is a word or a key."""
SURE, FLAG_SURE, FLAG_LETTERS = 0.5, 0.9, 40
UNKNOWN = ""
"""The language of what is too short, or no language: figures, code, names."""


class Languages:
    """Counts the languages of some of `total` rows."""

    def __init__(self, total: int):
        self.every = max(1, -(-total // SAMPLE))
        self.counts: Counter[str] = Counter()
        self.sure: list[tuple[int, str]] = []
        """(index, language) of the rows whose language is beyond doubt."""

    def look(self, index: int, answer: str) -> None:
        if ((index * SPREAD & 0xFFFFFFFF) >> 8) % self.every:
            return
        language, confidence, letters = tell(answer)
        self.counts[language] += 1
        if language and confidence >= FLAG_SURE and letters >= FLAG_LETTERS:
            self.sure.append((index, language))

    @property
    def main(self) -> str:
        known = [(count, language) for language, count in self.counts.items() if language]
        return max(known)[1] if known else UNKNOWN

    def others(self) -> npt.NDArray[np.int64]:
        """The rows that are surely in another language than most."""
        return np.array([index for index, language in self.sure if language != self.main], dtype=np.int64)

    def facts(self) -> dict[str, Any]:
        """How many rows were looked at, and how many of them are in each language, the most first; "" where nobody could tell."""
        return {"looked_at": self.counts.total(), "rows": dict(self.counts.most_common())}


def tell(text: str) -> tuple[str, float, int]:
    """(ISO 639-1 code or UNKNOWN, how sure from 0 to 1, letters that were looked at) for the beginning of a text."""
    beginning = text[:LOOKED_AT]
    letters = sum(map(str.isalpha, beginning))
    if beginning.isascii() and beginning.count(" ") < SPACES:
        return UNKNOWN, 0.0, letters
    if letters < (LETTERS if beginning.isascii() else LETTERS // 2) or 2 * letters < len(beginning):
        return UNKNOWN, 0.0, letters
    language, confidence = _identifier().classify(beginning)
    return (language if confidence >= SURE else UNKNOWN), confidence, letters


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # 30 MB of numbers: only where rows are looked at

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
