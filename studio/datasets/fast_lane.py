"""Lines that are rows as they stand, many at once: one pattern proves it of each, and their canonical form is a matter of replacing.

What a pattern proves here, `strict_json`, `messages` and `shapes` would find as well, one line at a time: strict JSON, no key twice, no
number, nothing left out, every text said and in its turn. A line that is not proven is no worse; it is read there.

RE2 matches (in pyarrow): in linear time, whatever the line holds, and without the interpreter.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from studio.datasets.messages import ROLES
from studio.datasets.readers.blocks import Block
from studio.datasets.readers.lines import LIMIT
from studio.datasets.shapes import Detection

Chosen = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int64]

PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_ .-]{0,99}")
"""A name that is written the same in every JSON."""
BLANK = r"\x20\x7f\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}"
"""What str.strip takes away and JSON need not escape; and DEL, which nobody reads."""
HEX = "[0-9A-Fa-f]"
SAME_ESCAPE = r'\\(?:["\\bfnrt]|u00(?:0[1-7bef]|1[0-9a-f]))'
"""Escapes as orjson writes them, except \\u0000, which is refused."""
OTHER_ESCAPE = rf"\\(?:/|u(?:[1-9A-Fa-f]{HEX}{{3}}|0[1-9A-Fa-f]{HEX}{{2}}|00[1-9A-Fa-f]{HEX}|000[1-9A-Fa-f]))"
LETTER = r'[^"\\\x00-\x1f]'
SAID = r'[^"\\\x00-\x1f' + BLANK + r']|\\["\\]'
"""A character that is not blank."""
SAID_ESCAPE = rf"\\u(?:0[1-9A-Fa-f]{HEX}{{2}}|30[4-9A-Fa-f]{HEX}|[4-9A-Ca-c]{HEX}{{3}})"
"""Those that are surely letters and no halves of one."""
TEXT = "␣"
"""Stands in a line's pattern for a text that says something."""
LOOKED_AT = 20
"""Lines of a block that its style is told from."""
MESSAGES = len('{"messages":[]}')
MESSAGE = len('{"role":"","content":""},')
TURN = len("user") + len("assistant")


@dataclass(frozen=True)
class Style:
    """One way of writing the white space between JSON's marks: with a blank after commas and colons, or without."""

    proof: str
    """Matches lines whose canonical form is made by `swaps`."""
    loose: str
    """Matches those, too, whose escapes have to be read and written again first."""
    swaps: tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True)
class Lane:
    """The lines of one shape and spelling."""

    columns: tuple[str, ...]
    """Columns that every proven line has."""
    tight: Style
    wide: Style
    chat: bool
    """Else text."""


@dataclass(frozen=True)
class Proven:
    block: Block
    same: Chosen
    """Lines that are proven and need nothing but the style's swaps."""
    loose: Chosen
    """Lines that are proven, but whose escapes have to be written as orjson writes them."""
    style: Style
    lane: Lane


def lane_for(detection: Detection, records: list[dict[str, Any]]) -> Lane | None:
    """The lane for rows like the first records; None where there is none."""
    mapping = detection.mapping
    make = next((make for field, make in LANES.items() if field in mapping), None)
    if make is None or "chosen" in mapping or not records or not all(map(PLAIN_NAME.fullmatch, mapping.values())):
        return None
    tight, wide = (make(mapping, records, gap) for gap in ("", " "))
    return Lane(tuple(records[0]), tight, wide, chat="text" not in mapping) if tight and wide else None


def _style(line: str, swaps: Iterable[tuple[str, str]]) -> Style:
    same = f'"(?:[{BLANK}]|{SAME_ESCAPE})*(?:{SAID})(?:{LETTER}|{SAME_ESCAPE})*"'
    any_escape = f"{SAME_ESCAPE}|{OTHER_ESCAPE}"
    loose = f'"(?:[{BLANK}]|{any_escape})*(?:{SAID}|{SAID_ESCAPE})(?:{LETTER}|{any_escape})*"'
    changed = tuple((before.encode(), after.encode()) for before, after in swaps if before != after)
    return Style(f"^{line.replace(TEXT, same)}\\n$", f"^{line.replace(TEXT, loose)}\\n$", changed)


def _conversations(mapping: dict[str, str], records: list[dict[str, Any]], gap: str) -> Style | None:
    """`{"messages": [{"role": ..., "content": ...}, ...]}` in whatever words the first records have."""
    name = mapping["messages"]
    lists = [value for record in records if isinstance(value := record.get(name), list)]
    messages = [message for each in lists for message in each]
    first = messages[0] if messages else None
    if not isinstance(first, dict) or tuple(first) not in (("role", "content"), ("from", "value")) or len(records[0]) != 1:
        return None
    role, content = first
    spelt = [message.get(role) for message in messages if isinstance(message, dict)]
    words = list(dict.fromkeys(word for word in spelt if isinstance(word, str) and word in ROLES and ROLES[word] != "tool"))
    by_role = {each: "|".join(word for word in words if ROLES[word] == each) for each in ("system", "user", "assistant")}
    if not by_role["user"] or not by_role["assistant"]:
        return None

    def said(each: str) -> str:
        return rf'\{{"{role}":{gap}"(?:{by_role[each]})",{gap}"{content}":{gap}␣\}}'

    turn = f"{said('user')},{gap}{said('assistant')}"
    system = f"(?:{said('system')},{gap})?" if by_role["system"] else ""
    line = rf'\{{"{re.escape(name)}":{gap}\[{system}{turn}(?:,{gap}{turn})*\]\}}'
    swaps = [
        (f'{{"{name}":{gap}[{{"{role}":{gap}"', '{"messages":[{"role":"'),
        (f'"}},{gap}{{"{role}":{gap}"', '"},{"role":"'),
    ]
    if all(ROLES[word] == word for word in words):
        swaps.append((f'",{gap}"{content}":{gap}"', '","content":"'))
    else:
        # The word stands before a quote that is not escaped, so it is the end of a role, and no role ends with another.
        swaps += [(f'"{word}",{gap}"{content}":{gap}"', f'"{ROLES[word]}","content":"') for word in words]
    return _style(line, swaps)


def _texts(mapping: dict[str, str], records: list[dict[str, Any]], gap: str) -> Style | None:
    name = mapping["text"]
    if len(records[0]) != 1:
        return None
    return _style(rf'\{{"{re.escape(name)}":{gap}␣\}}', [(f'{{"{name}":{gap}"', '{"text":"')])


def _answers(mapping: dict[str, str], records: list[dict[str, Any]], gap: str) -> Style | None:
    """A question, maybe what it is about, and its answer, each in a column of its own and in this order."""
    order = [mapping[field] for field in ("prompt", "context", "completion") if mapping.get(field) in records[0]]
    if list(records[0]) != order or mapping.get("prompt") not in order or mapping["completion"] not in order:
        return None
    prompt, context, completion = order[0], order[1] if len(order) == 3 else "", order[-1]
    answer = '"},{"role":"assistant","content":"'
    between = rf',{gap}"{re.escape(context)}":{gap}(?:""|␣)' if context else ""
    line = rf'\{{"{re.escape(prompt)}":{gap}␣{between},{gap}"{re.escape(completion)}":{gap}␣\}}'
    swaps = [(f'{{"{prompt}":{gap}"', '{"messages":[{"role":"user","content":"')]
    if context:
        swaps += [
            (f'",{gap}"{context}":{gap}"",{gap}"{completion}":{gap}"', answer),
            (f'",{gap}"{context}":{gap}"', "\\n\\n"),
        ]
    return _style(line, [*swaps, (f'",{gap}"{completion}":{gap}"', answer), ('"}\n', '"}]}\n')])


LANES: dict[str, Callable[[dict[str, str], list[dict[str, Any]], str], Style | None]] = {
    "messages": _conversations,
    "text": _texts,
    "completion": _answers,
}


def prove(lane: Lane, block: Block) -> Proven:
    """Which lines of a block are proven. Nearly all of it is done without the interpreter, so that it can go on in a thread."""
    lines, valid = _lines(block)
    first = lines.slice(0, LOOKED_AT)
    style = max(lane.tight, lane.wide, key=lambda style: _matches(first, style.loose).sum())
    same = _matches(lines, style.proof) & valid
    loose = np.zeros(len(same), dtype=bool)
    if not same.all():
        left = np.flatnonzero(valid & ~same)
        loose[left] = _matches(lines.take(pa.array(left)), style.loose)
    return Proven(block, same, loose, style, lane)


def _lines(block: Block) -> tuple[pa.StringArray, Chosen]:
    """The lines, and which of them may be matched: those in UTF-8 and within the limit."""
    valid = np.diff(block.bounds) <= LIMIT + 1
    text = block.text
    lines = pa.StringArray.from_buffers(len(block), pa.py_buffer(block.bounds.astype(np.int32)), pa.py_buffer(text))
    try:
        lines.validate(full=True)
    except pa.ArrowInvalid:
        each = [text[begin:end] for begin, end in pairwise(block.bounds.tolist())]
        good = [_is_utf8(line) for line in each]
        valid &= np.array(good)
        lines = pa.array([line.decode() if fit else "" for line, fit in zip(each, good, strict=True)], pa.string())
    return lines, valid


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _matches(lines: pa.StringArray, pattern: str) -> Chosen:
    found: Chosen = pc.match_substring_regex(lines, pattern).to_numpy(zero_copy_only=False)
    return found


def rows_of(proven: Proven) -> tuple[bytes, list[bytes | None] | None]:
    """The canonical rows: all after each other, each with a line end, where every line of the block is one; else b"" and one by one,
    None where a line is not proven after all."""
    block, same = proven.block, proven.same
    if same.all():
        return _swapped(proven.style, block.text), None
    lines = block.text.split(b"\n")
    rows: list[bytes | None] = [None] * len(block)
    _fill(rows, np.flatnonzero(same), proven.style, lines)
    loose, texts = [], []
    for place in np.flatnonzero(proven.loose).tolist():
        try:
            texts.append(orjson.dumps(orjson.loads(lines[place])))
        except orjson.JSONDecodeError:  # half of a surrogate pair
            continue
        loose.append(place)
    _fill(rows, np.array(loose, dtype=np.int64), proven.lane.tight, dict(zip(loose, texts, strict=True)))
    return b"", rows


def _fill(rows: list[bytes | None], places: Numbers, style: Style, lines: Any) -> None:
    chosen = places.tolist()
    made = _swapped(style, b"".join(lines[place] + b"\n" for place in chosen)).split(b"\n")
    for place, row in zip(chosen, made, strict=False):
        rows[place] = row


def _swapped(style: Style, text: bytes) -> bytes:
    for before, after in style.swaps:
        text = text.replace(before, after)
    return text


def measures(text: bytes, bounds: Numbers, *, chat: bool) -> tuple[Numbers, Numbers]:
    """(messages, characters of what they say) of each canonical row in `text`, without parsing it: what is not said is subtracted.

    Inside a text, a quote has a backslash before it. So {"r begins a message wherever it stands.
    """
    marks = np.frombuffer(text, np.uint8)
    escapes = _escapes(np.flatnonzero(marks == ord("\\")))
    unsaid = np.where(marks[escapes + 1] == ord("u"), len("u001b"), 1)
    said = np.diff(bounds) - 1 - np.diff(np.concatenate(([0], np.cumsum(unsaid)))[np.searchsorted(escapes, bounds)])
    if not text.isascii():
        said -= _each(np.flatnonzero(marks.view(np.int8) < -64), bounds)  # a letter's bytes after its first
    if not chat:
        return np.zeros(len(said), np.int64), said - len('{"text":""}')
    braces = np.flatnonzero(marks == ord("{"))
    messages = _each(braces[(marks[braces + 1] == ord('"')) & (marks[braces + 2] == ord("r"))], bounds)
    return messages, said - MESSAGES - messages * MESSAGE + 1 - messages // 2 * TURN - messages % 2 * len("system")


def _escapes(slashes: Numbers) -> Numbers:
    """Of all backslashes, in order, those that begin an escape: every second one of those that follow each other."""
    if not len(slashes):
        return slashes
    begins = np.concatenate(([True], np.diff(slashes) != 1))
    first = slashes[np.flatnonzero(begins)][np.cumsum(begins) - 1]
    return slashes[(slashes - first) % 2 == 0]


def _each(places: Numbers, bounds: Numbers) -> Numbers:
    """How many of the places lie in each row."""
    return np.diff(np.searchsorted(places, bounds))
