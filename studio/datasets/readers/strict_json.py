"""One JSON value, parsed fast and judged strictly: what other programs would read differently is refused with its place.

orjson parses; what it accepts too kindly (duplicate keys, deep nesting, huge integers) is found by counting, and only a
suspicious value is parsed a second time by the standard library, which can say where and why.
"""

import json
import re
from collections import Counter
from typing import Any, NoReturn

import orjson

from studio.datasets.readers.lines import COLUMNS, DEPTH, NAME, Line, Reading, Refusal, excerpt, pointed, refuse
from studio.datasets.readers.text_stream import windows_1252
from studio.errors import UserError

KEY = re.compile(rb'"\s*:')
# A text without end is matched as well: searching on behind its opening quote would take quadratic time.
BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)
SURROGATE = re.compile("[\ud800-\udfff]")
LARGEST = 2**63
KINDS = {list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number", type(None): "null"}


class Unfit(Exception):
    """What is wrong with a value; `at` is a character position where one is known."""

    def __init__(self, text: str, at: int | None = None):
        super().__init__(text)
        self.text, self.at = text, at


def parse(reading: Reading, number: int, raw: bytes, *, last: bool = False) -> Line | Refusal:
    """The object in `raw`, which begins on line `number`. `last` is true where the file ends without a line end after it."""
    try:
        value = orjson.loads(raw)
        if _keys(value, 1) != len(KEY.findall(raw)):
            value = _slowly(raw.decode())
        return _line(reading, number, value, raw)
    except (orjson.JSONDecodeError, Unfit):
        return _explained(reading, number, raw, last=last)


def _line(reading: Reading, number: int, value: Any, raw: bytes) -> Line | Refusal:
    if not isinstance(value, dict):
        text = f"{reading.unit} {number} must be an object {{…}}, found {KINDS[type(value)]}."
        return Refusal(number, "", text, excerpt(raw[:2000].decode(errors="replace")))
    problem = width_problem(list(value))
    return refuse(reading, number, problem) if problem else Line(number, value)


def width_problem(names: list[str]) -> str:
    """A sentence where there are too many columns or a name is too long, else nothing."""
    if len(names) > COLUMNS:
        return f"more than {COLUMNS} columns."
    longest = max(names, key=len, default="")
    return f"column name longer than {NAME} characters." if len(longest) > NAME else ""


def _keys(value: Any, depth: int) -> int:
    """How many keys there are, at all levels. Raises Unfit for what only a second look can name."""
    if depth > DEPTH:
        raise Unfit(f"nested deeper than {DEPTH}.")
    total = 0
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else (value,):
        if isinstance(child, dict | list):
            total += _keys(child, depth + 1)
        elif isinstance(child, int | float) and not -LARGEST <= child < LARGEST:
            raise Unfit("number too large.")
    return total + len(value) if isinstance(value, dict) else total


def _explained(reading: Reading, number: int, raw: bytes, *, last: bool) -> Line | Refusal:
    """The second, slow look at a value that the fast one refused."""
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        return not_utf8(reading, number, raw, error)
    try:
        return _line(reading, number, _slowly(text), raw)
    except json.JSONDecodeError as error:
        if last and _ends_early(text, error):
            return cut_off(reading, number, text)
        at, problem = _place(text, error), _syntax(text, error)
    except Unfit as error:
        if error.at is None:
            return refuse(reading, number, error.text, shown=excerpt(text))
        at, problem = error.at, error.text
    lines_before, column = text.count("\n", 0, at), at - text.rfind("\n", 0, at)
    place = f"{reading.unit} {number + lines_before}, column {column}"
    return Refusal(number, str(column), f"{place}: {problem}", pointed(text, at))


def not_utf8(reading: Reading, number: int, raw: bytes, error: UnicodeDecodeError) -> Refusal:
    """A refusal that shows how the line would read in Windows-1252, the usual culprit.

    Raises UserError with a preview where nobody has said yet how such a file is to be read.
    """
    sentence = f"Line {number}, byte {error.start + 1}: 0x{raw[error.start]:02x} is not UTF-8. Convert from Windows-1252?"
    if reading.asks:
        raise UserError(sentence, code="not_utf8", facts={"preview": windows_1252(reading)})
    around = raw[max(0, error.start - 60) : error.start + 60]
    return Refusal(number, "", sentence, excerpt(around.decode("cp1252", errors="replace")))


def cut_off(reading: Reading, number: int, text: str) -> Refusal:
    sentence = f"{reading.unit} {number} is cut off; was the upload or export interrupted?"
    return Refusal(number, "", sentence, excerpt(text[-120:]))


def _slowly(text: str) -> Any:
    """The standard library's parser with every leniency taken out. Raises JSONDecodeError or Unfit."""
    if _depth(text) > DEPTH:
        raise Unfit(f"nested deeper than {DEPTH}.")
    value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite, parse_int=_bounded)
    _no_surrogates(value)
    return value


def _depth(text: str) -> int:
    depth = deepest = 0
    for token in BRACKETS.finditer(text):
        mark = text[token.start()]
        if mark in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif mark in "]}":
            depth -= 1
    return deepest


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = Counter(name for name, _ in pairs)
        twice = next(name for name, number in names.items() if number > 1)
        raise Unfit(f'"{twice[:NAME]}" appears twice.')
    return found


def _no_constant(name: str) -> NoReturn:
    raise Unfit(f"{name} is not valid JSON.")


def _finite(literal: str) -> float:
    value = float(literal)
    if value in (float("inf"), float("-inf")):
        raise Unfit(f"{literal[:20]} is not valid JSON.")
    return value


def _bounded(literal: str) -> int:
    if len(literal) > 1000:
        raise Unfit("number too long.")
    if not -LARGEST <= (value := int(literal)) < LARGEST:
        raise Unfit("number too large.")
    return value


def _no_surrogates(value: Any) -> None:
    if isinstance(value, str):
        if SURROGATE.search(value):
            raise Unfit("broken Unicode escape.")
    elif isinstance(value, dict):
        for name, child in value.items():
            _no_surrogates(name)
            _no_surrogates(child)
    elif isinstance(value, list):
        for child in value:
            _no_surrogates(child)


def _ends_early(text: str, error: json.JSONDecodeError) -> bool:
    return error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")


def _place(text: str, error: json.JSONDecodeError) -> int:
    """Where the mistake is: for a trailing comma the comma, as Python 3.13 says; 3.11 and 3.12 point at the bracket after it."""
    before = text[: error.pos].rstrip()
    return len(before) - 1 if text[error.pos : error.pos + 1] in ("}", "]") and before.endswith(",") else error.pos


def _syntax(text: str, error: json.JSONDecodeError) -> str:
    """The parser's complaint in words that say what to do."""
    found, before = text[error.pos : error.pos + 1], text[: error.pos].rstrip()
    if error.msg.startswith("Invalid control character"):
        return f"a raw control character (0x{ord(found):02x}) inside text. Write it as an escape, such as \\n or \\t."
    if error.msg.startswith("Invalid \\"):
        return 'a broken escape. After a backslash JSON knows " \\ / b f n r t and u with four digits.'
    if error.msg.startswith("Unterminated string"):
        return "the text that opens here never closes."
    if error.msg.startswith("Extra data"):
        return "the object ends before this. One object per line, please."
    if not found:
        return "the object is not finished."
    if found == "'":
        return "single quotes are not JSON. Use double quotes."
    if text.startswith(("//", "/*"), error.pos) or found == "#":
        return "comments are not JSON. Remove it."
    if error.msg.startswith("Illegal trailing comma") or (found in "}]" and before.endswith(",")):
        return "a comma before the closing bracket is not JSON. Remove it."
    return f"{error.msg[:1].lower()}{error.msg[1:]}, found {found!r}."
