"""One sheet of an Excel workbook, row by row from its XML. Cells are text as a person sees them: 007, TRUE, 2024-11-02, 12.50.

Values only: formulas give the result that Excel stored. The shared texts are the one thing that is held in memory.
"""

import zipfile
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from posixpath import join, normpath
from typing import IO, Any
from xml.parsers import expat

from studio.datasets.readers.cells import Styles, shown_number, unescaped
from studio.datasets.readers.lines import COLUMNS, LIMIT, Line, Reading, Refusal, excerpt
from studio.datasets.readers.packed import BROKEN, listed, seekable
from studio.datasets.readers.strict_json import width_problem
from studio.errors import UserError

SMALL = 32 * 1024 * 1024
"""Bytes of XML that the list of sheets or the styles may have."""
TEXTS = 1024**3
"""Bytes of XML that the shared texts may have; they are held in memory."""
SHEET = 20 * 1024**3
PIECE = 256 * 1024
DAMAGED = "The Excel workbook is damaged. Save it again."
DEPTH = 64


def read(reading: Reading) -> Iterator[Line | Refusal]:
    with seekable(reading) as file:
        archive = listed(file)
        sheet = _chosen(reading, _sheets(archive))
        yield from _lines(reading, _rows(reading, archive, sheet))


def _lines(reading: Reading, rows: Iterator[tuple[int, dict[int, str] | Refusal]]) -> Iterator[Line | Refusal]:
    """The rows under the first one that is not empty, which names the columns."""
    filled = _filled(reading, rows)
    _, first = next(filled, (0, None))
    if first is None:
        raise UserError(f"The sheet {reading.sheet[:60]} is empty." + (" Choose another." if len(reading.sheets) > 1 else ""))
    if isinstance(first, Refusal):
        raise UserError(first.reason)
    columns, number = _header(reading, first), 0
    for number, row in filled:
        if isinstance(row, Refusal):
            yield row
        elif max(row) > max(columns):
            reason = f"Row {number}: {max(row) + 1} values, expected {max(columns) + 1}."
            yield Refusal(number, "", reason, excerpt(" | ".join(row.values())))
        else:
            yield Line(number, {name: row.get(place, "") for place, name in columns.items()})
    if not number:
        raise UserError("The file has a header, but no rows.")


def _filled(reading: Reading, rows: Iterator[tuple[int, dict[int, str] | Refusal]]) -> Iterator[tuple[int, dict[int, str] | Refusal]]:
    """The rows in which something stands."""
    for number, row in rows:
        if isinstance(row, Refusal):
            yield number, row
        elif any(text.strip() for text in row.values()):
            yield number, {place: text for place, text in row.items() if text}
        else:
            reading.blank += 1


def _header(reading: Reading, cells: dict[int, str]) -> dict[int, str]:
    """`{place: name}`; a column without a name between others is counted by its place."""
    names = {place: cells.get(place, "").strip() for place in range(min(cells), max(cells) + 1)}
    if problem := width_problem(list(names.values())):
        raise UserError(f"The header has {problem}" if problem.startswith("more") else f"Header: {problem}")
    for place, name in names.items():
        if not name:
            names[place] = f"column {place + 1}"
            reading.note(f"Column {place + 1} has no name.")
    taken = list(names.values())
    twice = next((name for name in taken if taken.count(name) > 1), None)
    if twice is not None:
        raise UserError(f'Column name "{twice}" appears twice. Rename one of them in the first row.')
    return names


# The workbook: which sheets there are, and where.


def _sheets(archive: zipfile.ZipFile) -> list[tuple[str, str, bool]]:
    """(name, member of the archive, whether it is shown) of each sheet that has cells."""
    targets: dict[str, str] = {}
    found: list[tuple[str, str, bool]] = []

    def relation(name: str, attributes: dict[str, str]) -> None:
        if name == "Relationship" and attributes.get("Type", "").endswith("/worksheet"):
            targets[attributes.get("Id", "")] = normpath(join("/xl", attributes.get("Target", ""))).lstrip("/")

    def sheet(name: str, attributes: dict[str, str]) -> None:
        member = targets.get(next((value for key, value in attributes.items() if bare(key) == "id"), ""))
        if name == "sheet" and member:
            found.append((attributes.get("name", ""), member, attributes.get("state", "visible") == "visible"))

    _parse(archive, "xl/_rels/workbook.xml.rels", SMALL, start=relation)
    _parse(archive, "xl/workbook.xml", SMALL, start=sheet)
    if not found:
        raise UserError("The Excel workbook has no sheet with cells.")
    return found


def _chosen(reading: Reading, sheets: list[tuple[str, str, bool]]) -> str:
    """The member of the archive that holds the sheet which a person chose, else the first that is shown."""
    reading.sheets = [name for name, _, _ in sheets]
    others = ", ".join(excerpt(name)[:40] for name in reading.sheets[:20])
    if reading.sheet:
        wanted = next((sheet for sheet in sheets if sheet[0] == reading.sheet), None)
        if wanted is None:
            text = f'The workbook has no sheet "{excerpt(reading.sheet)[:60]}". It has: {others}.'
            raise UserError(text, code="unknown_sheet", facts={"sheets": reading.sheets[:200]})
    else:
        wanted = next((sheet for sheet in sheets if sheet[2]), sheets[0])
    reading.sheet = wanted[0]
    if len(sheets) > 1:
        rest = ", ".join(excerpt(name)[:40] for name in reading.sheets if name != wanted[0])
        reading.note(f"The sheet {excerpt(wanted[0])[:40]} was read. Others are: {rest[:400]}.")
    return wanted[1]


# The sheet: its rows, one at a time.


def _rows(reading: Reading, archive: zipfile.ZipFile, member: str) -> Iterator[tuple[int, dict[int, str] | Refusal]]:
    texts = SharedTexts(archive)
    styles = _styles(archive)
    sheet = Sheet(texts, styles)
    with _opened(archive, member, SHEET) as file:
        parser = _parser(sheet.start, sheet.end, sheet.text)
        size, done = max(1, archive.getinfo(member).file_size), 0
        for piece in _pieces(file):
            done += len(piece)
            _feed(parser, piece, done)
            reading.position = min(reading.size, reading.size * done // size)
            yield from sheet.taken()
        _feed(parser, b"", done)
        yield from sheet.taken()
    if sheet.formulas:
        reading.note(f"Formulas in {sheet.formulas} cells: the values that Excel stored for them were read.")


class Sheet:
    """What the parser of a sheet's XML is told, gathered to rows."""

    def __init__(self, texts: "SharedTexts", styles: Styles):
        self.texts, self.styles = texts, styles
        self.rows: list[tuple[int, dict[int, str] | Refusal]] = []
        self.number = self.place = self.size = self.formulas = 0
        self.cells: dict[int, str] = {}
        self.problem = ""
        self.kind = self.style = ""
        self.value: list[str] = []
        self.inside = self.phonetic = False
        """Whether text is a cell's value, and whether it only tells how another is spoken."""

    def taken(self) -> Iterator[tuple[int, dict[int, str] | Refusal]]:
        rows, self.rows = self.rows, []
        return iter(rows)

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "c":
            self.place = column(attributes.get("r", "")) if "r" in attributes else self.place + 1
            self.kind, self.style = attributes.get("t", "n"), attributes.get("s", "")
            self.value = []
        elif name in ("v", "t"):
            self.inside = not self.phonetic
        elif name == "row":
            given = attributes.get("r", "")
            self.number = int(given) if given.isascii() and given.isdigit() and len(given) < 9 else self.number + 1
            self.cells, self.size, self.problem, self.place = {}, 0, "", -1
        elif name == "rPh":
            self.phonetic = True
        elif name == "f":
            self.formulas += 1

    def text(self, text: str) -> None:
        if self.inside:
            self.size += len(text)
            if self.size <= LIMIT:
                self.value.append(text)

    def end(self, name: str) -> None:
        if name == "c" and self.value:
            self._keep("".join(self.value))
        elif name in ("v", "t"):
            self.inside = False
        elif name == "rPh":
            self.phonetic = False
        elif name == "row":
            if self.size > LIMIT:
                self.problem = f"Row {self.number} is longer than {LIMIT // 1024 // 1024} MB."
            self.rows.append((self.number, Refusal(self.number, "", self.problem, "") if self.problem else self.cells))
            self.cells = {}

    def _keep(self, value: str) -> None:
        text = self._shown(value)
        self.size += len(text) if self.kind == "s" else 0
        if len(self.cells) > COLUMNS:
            self.problem = f"Row {self.number}: more than {COLUMNS} columns."
        elif self.size <= LIMIT and self.place >= 0:
            self.cells[self.place] = text

    def _shown(self, value: str) -> str:
        if self.kind == "s":
            return self.texts.at(value)
        if self.kind in ("str", "inlineStr"):
            return unescaped(value)
        if self.kind == "b":
            return "FALSE" if value.strip() in ("0", "false") else "TRUE"
        return shown_number(value, self.styles, self.style) if self.kind == "n" else value


def column(reference: str) -> int:
    """The place of a cell such as AB12, from 0: A is 0. Excel's last column is XFD."""
    place = 0
    for letter in reference[:4]:
        if not "A" <= letter <= "Z":
            break
        place = place * 26 + ord(letter) - 64
    return min(place, 16384) - 1


class SharedTexts:
    """The texts that cells point to by number, one after the other in one piece of memory."""

    def __init__(self, archive: zipfile.ZipFile):
        self.content = bytearray()
        self.ends = array("Q")
        self.inside = self.phonetic = False
        self.item: list[str] = []
        if "xl/sharedStrings.xml" in archive.namelist():
            _parse(archive, "xl/sharedStrings.xml", TEXTS, start=self._start, end=self._end, text=self._text)

    def at(self, number: str) -> str:
        """Raises UserError where there is no such text: the cell would be somebody else's."""
        place = int(number) if number.isascii() and number.isdigit() and len(number) < 12 else len(self.ends)
        if place >= len(self.ends):
            raise UserError(DAMAGED)
        begin = self.ends[place - 1] if place else 0
        return self.content[begin : self.ends[place]].decode()

    def _start(self, name: str, _: dict[str, str]) -> None:
        if name == "t":
            self.inside = not self.phonetic
        elif name == "rPh":
            self.phonetic = True

    def _text(self, text: str) -> None:
        if self.inside:
            self.item.append(text)

    def _end(self, name: str) -> None:
        if name == "t":
            self.inside = False
        elif name == "rPh":
            self.phonetic = False
        elif name == "si":
            self.content += unescaped("".join(self.item)).encode(errors="replace")
            self.ends.append(len(self.content))
            self.item = []


def _styles(archive: zipfile.ZipFile) -> Styles:
    styles = Styles()
    if "xl/styles.xml" in archive.namelist():
        _parse(archive, "xl/styles.xml", SMALL, start=styles.start, end=styles.end)
    _parse(archive, "xl/workbook.xml", SMALL, start=styles.workbook)
    return styles


# XML: bounded, without a DTD, names without their prefix.


def bare(name: str) -> str:
    """A name without its prefix; a sheet of millions of cells asks for it where there is one alone."""
    return name.rpartition(":")[2]


def _parse(archive: zipfile.ZipFile, member: str, limit: int, *, start: Any, end: Any = None, text: Any = None) -> None:
    parser, done = _parser(start, end, text), 0
    with _opened(archive, member, limit) as file:
        for piece in _pieces(file):
            done += len(piece)
            _feed(parser, piece, done)
        _feed(parser, b"", done)


@contextmanager
def _opened(archive: zipfile.ZipFile, member: str, limit: int) -> Iterator[IO[bytes]]:
    """A file of the workbook, if what it claims to unpack to is within the limit; zipfile unpacks no more than that."""
    try:
        found = archive.getinfo(member)
    except KeyError:
        raise UserError(DAMAGED) from None
    if found.file_size > limit:
        raise UserError(f"The Excel workbook expands beyond {limit / 1024**3:.2g} GB. Save the sheet as CSV.")
    try:
        file = archive.open(found)
    except BROKEN as error:
        raise UserError(DAMAGED) from error
    with file:
        yield file


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    try:
        while piece := file.read(PIECE):
            yield piece
    except BROKEN as error:
        raise UserError(DAMAGED) from error


def _parser(start: Callable[..., None], end: Callable[..., None] | None, text: Callable[..., None] | None) -> Any:
    parser = expat.ParserCreate()
    depth = 0

    def opened(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > DEPTH:
            raise UserError(DAMAGED)
        start(bare(name) if ":" in name else name, attributes)

    def closed(name: str) -> None:
        nonlocal depth
        depth -= 1
        if end is not None:
            end(bare(name) if ":" in name else name)

    def no_dtd(*_: Any) -> None:
        raise UserError(DAMAGED)  # entities could multiply text without measure

    parser.StartElementHandler, parser.EndElementHandler = opened, closed
    parser.StartDoctypeDeclHandler = no_dtd
    if text is not None:
        parser.buffer_text = True
        parser.CharacterDataHandler = text
    return parser


def _feed(parser: Any, piece: bytes, done: int) -> None:
    """Gives the parser its next piece; none is the end. A tag that never ends would be held in memory."""
    try:
        parser.Parse(piece, not piece)
    except (expat.ExpatError, LookupError, ValueError) as error:
        raise UserError(DAMAGED) from error
    if done - parser.CurrentByteIndex > 2 * LIMIT:
        raise UserError(DAMAGED)
