"""The words that all readers share: a line, a refused line, and the file being read."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

LIMIT = 4 * 1024 * 1024
"""Bytes of the longest line, record or JSON element that is read."""
DEPTH = 64
COLUMNS = 200
NAME = 200
"""Characters of the longest column name."""
NOTICES = 50
EXCERPT = 160
POINTED = 80
"""Characters shown on each side of a mistake, once what hides is written out."""

# Controls, bidirectional overrides and zero-width characters: shown as escapes, so that nothing hides or reorders a message.
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Line:
    """One record of the file: its line (row, in Parquet), counted from 1, and its columns."""

    number: int
    columns: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why one record is not a row. `reason` is the whole sentence; `column` is a column's name or a character position."""

    line: int
    column: str
    reason: str
    excerpt: str

    def as_dict(self) -> dict[str, Any]:
        return {"line": self.line, "column": self.column, "reason": self.reason, "excerpt": self.excerpt}


@dataclass
class Reading:
    """A file that is being read. `position` and `blank` follow the iteration of `lines`."""

    path: Path
    format: str
    """JSONL, JSON, CSV, Parquet, Arrow, XLSX, Markdown or text."""
    encoding: str
    size: int
    unit: str = "Line"
    """What `Line.number` counts: Line, or Row in Parquet, Arrow and XLSX."""
    delimiter: str = ","
    quote: str = '"'
    escape: str = ""
    """What makes the next character of a value plain text, beside a doubled quote; usually nothing does."""
    sheet: str = ""
    """The sheet of a workbook that a person chose; once it is read, the one that is."""
    sheets: list[str] = field(default_factory=list)
    """All sheets of the workbook, once it is read."""
    asks: bool = True
    """Whether text that is not UTF-8 stops the reading, so that a person can say how to read it; else its lines are refused."""
    unpacked: Callable[[], BinaryIO] | None = None
    """Opens what is inside a packed file."""
    work: Path | None = None
    """Folder for what has to be unpacked before it can be read."""
    position: int = 0
    """Bytes read so far."""
    expanded: int = 0
    """Bytes that the values have taken so far, once unpacked: counted for columnar files."""
    blank: int = 0
    """Blank lines skipped so far."""
    notices: list[str] = field(default_factory=list)
    lines: Iterator[Line | Refusal] = field(default_factory=lambda: iter(()))

    def open(self) -> BinaryIO:
        """The bytes of the file, or of the one inside it, from the first on; some of these cannot be sought in."""
        return self.unpacked() if self.unpacked else self.path.open("rb")

    def follow(self, file: BinaryIO) -> None:
        """Sets `position` to how far an opened file has been read."""
        self.position = getattr(file, "packed", file).tell()

    def note(self, text: str) -> None:
        """Tells a person what was done with the file; a file with thousands of oddities is told of by the first."""
        if len(self.notices) < NOTICES and text not in self.notices:
            self.notices.append(text if len(self.notices) < NOTICES - 1 else "There is more like this.")


def visible(text: str) -> str:
    """`text` with everything that hides or reorders written as an escape, such as \\u202E."""
    return HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04X}", text)


def excerpt(text: str) -> str:
    """The beginning of a refused record, safe to show on one line."""
    shown = visible(text[: EXCERPT + 1].replace("\n", "⏎").replace("\t", " "))
    return shown if len(shown) <= EXCERPT else shown[:EXCERPT] + "…"


def pointed(text: str, at: int) -> str:
    """The surroundings of one character and, on a second line, a caret under it."""
    first = max(0, at - 60)
    before, after = visible(text[first:at].replace("\n", " ").replace("\t", " ")), visible(text[at : at + 40].replace("\n", " "))
    if len(before) > POINTED:
        first, before = 1, before[-POINTED:]
    lead = "…" if first else ""
    return f"{lead}{before}{after[:POINTED]}\n{' ' * (len(lead) + len(before))}^"


def refuse(reading: Reading, number: int, text: str, *, shown: str = "", column: str = "") -> Refusal:
    """A refusal whose sentence begins with its place: "Line 7: ..."."""
    return Refusal(number, column, f"{reading.unit} {number}: {text}", shown)
