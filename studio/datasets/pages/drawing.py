"""How a row's tokens are drawn: an element for each, with its id, as learnt, only read or cut, and with white space to be seen."""

import json
from dataclasses import dataclass
from typing import Any

from django.utils.html import format_html, format_html_join

PART = 8192
"""Tokens that are drawn at once; a browser slows down with more."""
SPACE = format_html("<i>{}</i>", " ")
SEEN = {
    " ": SPACE,
    "\n": format_html('<i class="line">{}</i>', "\n"),
    "\t": format_html('<i class="tab">{}</i>', "\t"),
    "\r": format_html('<i class="hid">{}</i>', "\\r"),
}
"""White space: the character itself, so that it can be copied, in an element that the style sheet puts a sign before."""

Run = tuple[int, int, float]


@dataclass(frozen=True)
class Drawn:
    """One reading of a row under a max length."""

    name: str
    tokens: str
    """HTML."""
    runs: list[Run]
    """[begin, end, weight] of what is learnt."""
    total: int
    length: int
    begin: int
    """Place of the first token that is drawn."""
    end: int
    written: int
    """Tokens whose text is known; what follows in a very long row is counted only."""

    @property
    def runs_json(self) -> str:
        return json.dumps(self.runs)

    @property
    def learnt(self) -> int:
        return within(self.runs, 0, self.length)

    @property
    def cut(self) -> int:
        return max(0, self.total - self.length)

    @property
    def share(self) -> int:
        """Per cent of what is kept that is learnt."""
        return round(100 * self.learnt / max(1, min(self.total, self.length)))

    @property
    def teaches(self) -> bool:
        """False where a run would leave the row out: the first token has nothing before it to be told from."""
        return within(self.runs, 1, self.length) > 0

    @property
    def earlier(self) -> int | None:
        return max(0, self.begin - PART) if self.begin else None

    @property
    def later(self) -> int | None:
        return self.end if self.end < self.written else None


def within(runs: list[Run], begin: int, end: int) -> int:
    """How many of the learnt tokens stand from `begin` up to `end`."""
    return sum(max(0, min(end, upto) - max(begin, since)) for since, upto, _ in runs)


def draw(reading: dict[str, Any], *, last_answer: bool, length: int, begin: int) -> Drawn:
    """A reading as `studio.ml.tokenview` writes it, from its token number `begin` on."""
    runs: list[Run] = [(since, upto, weight) for since, upto, weight in reading["last" if last_answer else "learnt"]]
    written = len(reading["ids"])
    begin = begin if begin < written else 0
    end = min(written, begin + PART)
    weights = [0.0] * (end - begin)
    for since, upto, weight in runs:
        for place in range(max(since, begin), min(upto, end)):
            weights[place - begin] = weight
    special = set(reading["special"])
    parts = (
        (_token(reading["ids"][place], reading["texts"][place], weights[place - begin], special=place in special, cut=place >= length),)
        for place in range(begin, end)
    )
    return Drawn(
        name=reading["name"],
        tokens=format_html_join("", "{}", parts),
        runs=runs,
        total=reading["total"],
        length=length,
        begin=begin,
        end=end,
        written=written,
    )


def _token(number: int, text: str | None, weight: float, *, special: bool, cut: bool) -> str:
    names = "tok-trained" if weight else "tok-masked"
    if special:
        names += " tok-special"
    if text is None:
        names += " tok-more"
    if cut:
        names += " tok-cut"
    weighed = format_html(' data-weight="{}"', f"{weight:g}") if weight not in (0.0, 1.0) else ""
    return format_html('<span class="{}" data-id="{}"{}>{}</span>', names, int(number), weighed, seen(text or ""))


def seen(text: str) -> str:
    """The text as HTML: white space with a sign, and what would be invisible by its number."""
    if text.isprintable():
        return format_html_join(SPACE, "{}", ((word,) for word in text.split(" ")))
    return format_html_join("", "{}", ((_letter(letter),) for letter in text))


def _letter(letter: str) -> str:
    if letter in SEEN:
        return SEEN[letter]
    return letter if letter.isprintable() else format_html('<i class="hid">{}</i>', code(letter))


def code(letter: str) -> str:
    return f"\\u{ord(letter):04x}" if ord(letter) < 0x10000 else f"\\U{ord(letter):08x}"
