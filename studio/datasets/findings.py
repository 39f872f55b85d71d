"""What is noteworthy about a row by itself, and counts over rows: lengths, turns, roles. How rows resemble each other is `comparing`'s.

Most rows hold nothing. So many rows at once are searched for `SIGNS` first, by an automaton; only where one stands do patterns look.
"""

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from studio.datasets import personal
from studio.datasets.flags import Flag

FEW = 10
TURNS = 20
"""Conversations with so many messages, or more, are counted as one kind."""

PLACEHOLDER = re.compile(
    r"\{\{\s{0,20}(?P<braces>[A-Za-z_][\w.\- ]{0,60}?)\s{0,20}\}\}"
    r"|(?<![\w\])])\[(?P<brackets>(?i:your|insert|enter|recipient'?s?|company'?s?|customer'?s?)[ _-][\w '/-]{2,40}"
    r"|NAME|Name|(?:FIRST|LAST|FULL) NAME|(?:First|Last|Full) Name|COMPANY|Company|DATE|Date|ADDRESS|Address|CITY|City)\](?![(\[:])"
    r"|<(?P<angles>NAME|(?:FIRST|LAST|FULL|USER|CUSTOMER|COMPANY|CLIENT)[_ -]NAME|COMPANY|CUSTOMER|ORDER[_ -](?:NUMBER|ID))>"
    r"|(?<![\w${])\{(?P<brace>(?:customer|company|client|agent|first|last|full)_?name|order_(?:number|id))\}(?!\})"
)
CODE = re.compile(r"```|\bf['\"]|\.format\(|\$\{|\bdef |=>")
"""Where a text holds code, {customer_name} is most likely part of it."""
CONTROL_TOKENS = re.compile(
    r"<\|[a-z][a-z0-9_]{1,40}\|>|<｜[^｜<>\n]{1,40}｜>|</?s>|\[/?INST\]|\[/?(?:AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|SYSTEM_PROMPT)\]"
    r"|<</?SYS>>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>"
)
# Joiners (U+200C, U+200D) are left out: emoji and several scripts need them. So are the tags that flags are made of.
HIDDEN = re.compile(
    "\x1b(?:\\[[0-9;?]{0,20}[A-Za-z])?|[\x01-\x07\x0e-\x1a\x1c-\x1f\x7f\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]"
    "|(?<![\U0001f3f4\U000e0020-\U000e007f])[\U000e0020-\U000e007f]+"
)
NOTHING_SAID = frozenset(
    {
        "n/a", "na", "none", "null", "nil", "nan", "undefined", "empty", "blank", "todo", "tbd", "tba", "xxx", "idk", "sorry",
        "no output", "no answer", "no response", "noinput", "nooutput", "no input", "placeholder", "lorem ipsum", "[]", "{}",
    }
)  # fmt: skip
LONGEST_NOTHING = 40
BARE = " \t\r\n.…-–—_*?!<>`\"'“”‘’«»"
"""What stands around an answer and says nothing."""

SIGNS: dict[Flag, str] = {
    Flag.PLACEHOLDER: r"\{\{|\[(?i:your|insert|enter|recipient|company|customer)|\[(?:NAME|Name|F|L|DATE|Date|ADDRESS|Address|CITY|City)"
    r"|NAME>|<(?:COMPANY|CUSTOMER|ORDER)|name\}|\{order_",
    Flag.CONTROL: r"<\||<｜|</?s>|INST\]|_TOOLS\]|\[/?TOOL_|_PROMPT\]|SYS>>|_of_turn>|<(?:bos|eos|pad|unk)>",
    Flag.HIDDEN: r"\\u00[01]|[\x{7f}\x{200b}\x{200e}\x{200f}\x{202a}-\x{202e}\x{2060}-\x{2069}\x{feff}\x{e0020}-\x{e007f}]",
    Flag.SECRET: personal.SECRET_SIGNS,
    Flag.PERSONAL: personal.PERSONAL_SIGNS,
}
"""A row whose canonical JSON matches none of a flag's signs does not get the flag. In RE2's syntax; in one go they cost about a
microsecond a kilobyte."""
ANY_SIGN = "|".join(SIGNS.values())


def texts_of(row: dict[str, Any]) -> Iterator[str]:
    """What is said in a row, and what tools are called with."""
    for value in row.values():
        if isinstance(value, str):
            yield value
        else:
            for message in value:
                if text := message.get("content"):
                    yield text
                for call in message.get("tool_calls") or ():
                    yield from _inside(call["function"].get("arguments"))


def _inside(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for child in value.values() if isinstance(value, dict) else value:
            yield from _inside(child)


def answer_of(row: dict[str, Any]) -> str:
    """What is learnt last: the answer of a chat, the better one of a pair, or the text. Empty where it is only a call of a tool."""
    if "text" in row:
        return str(row["text"])
    return str(last_message(row).get("content") or "")


def last_message(row: dict[str, Any]) -> dict[str, Any]:
    """The last message of a chat, the better answer of a pair, or the one that somebody liked or disliked."""
    message: dict[str, Any] = next(row[name] for name in ("messages", "chosen", "rejected") if name in row)[-1]
    return message


def says_nothing(row: dict[str, Any]) -> bool:
    answer = answer_of(row)
    if len(answer) > LONGEST_NOTHING:
        return False
    said = answer.strip(BARE).lower()
    if said in NOTHING_SAID:
        return True
    return not said and ("text" in row or not last_message(row).get("tool_calls"))


def placeholders(text: str) -> Iterator[re.Match[str]]:
    code: bool | None = None
    for match in PLACEHOLDER.finditer(text):
        if match["brace"] and code is None:
            code = CODE.search(text) is not None
        if not (match["brace"] and code):
            yield match


def placeholder_name(match: re.Match[str]) -> str:
    """What stands between the braces."""
    return next(group for group in match.groups() if group is not None)


Shown = Iterator[tuple[str, str]]
"""(what may be shown of a find, its kind)."""


def _masked(find: Callable[[str], Iterator[personal.Found]]) -> Callable[[str], Shown]:
    return lambda text: ((personal.masked(text, found), found.kind) for found in find(text))


LOOKS: dict[Flag, Callable[[str], Shown]] = {
    Flag.PLACEHOLDER: lambda text: ((match[0], "placeholder") for match in placeholders(text)),
    Flag.CONTROL: lambda text: ((match[0], "control") for match in CONTROL_TOKENS.finditer(text)),
    Flag.HIDDEN: lambda text: ((f"\\u{ord(match[0][0]):04X}", "hidden") for match in HIDDEN.finditer(text)),
    Flag.SECRET: _masked(personal.secrets),
    Flag.PERSONAL: _masked(personal.personal),
}
"""How each flag is found in a text."""
SENTENCES = {
    "placeholder": "{rows} unfilled placeholders such as {example}. Fill them in, or the model learns to say them.",
    "control": "{rows} control tokens such as {example}; they will be treated as plain text.",
    "hidden": "{rows} invisible or direction-changing characters such as {example}.",
    "secret": "{rows} what looks like a secret key ({example}). A model can repeat what it has learnt.",
    "e-mail": "{rows} e-mail addresses. A model can repeat what it has learnt.",
    "phone": "{rows} phone numbers ({example}). A model can repeat what it has learnt.",
    "iban": "{rows} bank account numbers, IBAN ({example}). A model can repeat what it has learnt.",
    "card": "{rows} payment card numbers ({example}). A model can repeat what it has learnt.",
}


class Alone:
    """What was found in rows by themselves: counts of rows by kind, and the first example of each, masked."""

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def look(self, canonical: pa.Array, rows: Sequence[dict[str, Any]]) -> npt.NDArray[np.uint32]:
        """The flags of rows, given as canonical JSON and parsed."""
        flags = np.zeros(len(rows), dtype=np.uint32)
        suspects = np.flatnonzero(pc.match_substring_regex(canonical, ANY_SIGN).to_numpy(zero_copy_only=False))
        if len(suspects):
            texts = canonical.take(pa.array(suspects))
            for flag, signs in SIGNS.items():
                here = suspects[pc.match_substring_regex(texts, signs).to_numpy(zero_copy_only=False)]
                flags[[index for index in here.tolist() if self._holds(flag, rows[index])]] |= np.uint32(flag)
        flags[[index for index, row in enumerate(rows) if says_nothing(row)]] |= np.uint32(Flag.EMPTY)
        return flags

    def _holds(self, flag: Flag, row: dict[str, Any]) -> bool:
        kinds: dict[str, str] = {}
        for text in texts_of(row):
            for shown, kind in LOOKS[flag](text):
                kinds.setdefault(kind, shown)
        self.found.update(kinds.keys())
        self.examples = {kind: shown[:40] for kind, shown in kinds.items()} | self.examples
        return bool(kinds)

    def warnings(self) -> list[str]:
        """Sentences for a person, with counts of rows."""
        return [
            sentence.format(rows=_rows(self.found[kind]), example=self.examples[kind])
            for kind, sentence in SENTENCES.items()
            if self.found[kind]
        ]


class Findings:
    """Counts over all rows; memory grows by 8 bytes a row."""

    def __init__(self) -> None:
        self.characters = array("I")
        self.turns = array("I")
        self.roles: Counter[str] = Counter()
        self.forms: Counter[str] = Counter()
        """What not every way to train, or not every model, reads: rows with one answer, `liked` or `disliked`, and rows with `tools`."""

    def count(self, row: dict[str, Any]) -> None:
        if "text" in row:
            self.turns.append(0)
            self.characters.append(len(row["text"]))
        else:
            messages = row["messages"] if "messages" in row else row["prompt"] + row.get("chosen", []) + row.get("rejected", [])
            self._count_form(row, messages)
            self.turns.append(len(messages))
            self.characters.append(sum(len(message.get("content") or "") for message in messages))
            for message in messages:
                self.roles[message["role"]] += 1

    def _count_form(self, row: dict[str, Any], messages: list[dict[str, Any]]) -> None:
        if "prompt" in row and not ("chosen" in row and "rejected" in row):
            self.forms["liked" if "chosen" in row else "disliked"] += 1
        if "tools" in row or any("tool_calls" in message for message in messages):
            self.forms["tools"] += 1

    def statistics(self) -> dict[str, Any]:
        """Turns (messages in a row), also as `{messages: rows}`, characters (Unicode code points of its texts), and messages by role."""
        return {
            "characters": _spread(self.characters),
            "turns": _spread(self.turns) | {"rows": _counts(self.turns)},
            "roles": dict(self.roles),
        } | ({"forms": dict(self.forms)} if self.forms else {})


def _rows(number: int) -> str:
    return "1 row contains" if number == 1 else f"{number} rows contain"


def _counts(values: "array[int]") -> dict[str, int]:
    """Rows by their number of messages, `TURNS` and more as one. Texts have none."""
    counts = np.bincount(np.minimum(np.frombuffer(values, dtype=np.uint32), TURNS)) if values else np.zeros(0, dtype=np.int64)
    return {str(turns): int(rows) for turns, rows in enumerate(counts.tolist()) if rows and turns}


def _spread(values: "array[int]") -> dict[str, Any]:
    numbers = np.frombuffer(values, dtype=np.uint32)
    if not len(numbers):
        return {"total": 0, "mean": 0.0, "p50": 0, "p95": 0, "largest": 0}
    p50, p95 = np.percentile(numbers, [50, 95], method="nearest").tolist()
    mean = round(float(numbers.mean()), 1)
    return {"total": int(numbers.sum(dtype=np.uint64)), "mean": mean, "p50": p50, "p95": p95, "largest": int(numbers.max())}
