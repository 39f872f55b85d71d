"""A table with a header line: CSV, or cut by ; tab or |. Cells stay text: 007, TRUE and =1+1 are not interpreted."""

import csv
from collections.abc import Iterator

from studio.datasets.readers.formats import DELIMITERS, Dialect, reader
from studio.datasets.readers.lines import LIMIT, NAME, Line, Reading, Refusal, excerpt
from studio.datasets.readers.strict_json import not_utf8, width_problem
from studio.datasets.readers.text_stream import numbered
from studio.errors import UserError

NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}


def read(reading: Reading) -> Iterator[Line | Refusal]:
    csv.field_size_limit(LIMIT)
    feed = Feed(reading)
    records = _records(feed, reader(feed, Dialect(reading.delimiter, reading.quote, reading.escape)))
    header = _header(reading, records)
    if reading.delimiter != ",":
        reading.note(f"Values are separated by a {NAMES[reading.delimiter]}.")
    if reading.quote != '"':
        reading.note("Values stand in single quotes.")
    if reading.escape:
        reading.note("A backslash before a quote makes it part of the value.")
    for number, record in records:
        if feed.problem:
            yield feed.problem
        elif isinstance(record, Refusal):
            yield record
        elif not record:
            reading.blank += 1
        elif len(record) != len(header):
            shown = excerpt(reading.delimiter.join(record))
            yield Refusal(number, "", f"Line {number}: {len(record)} values, expected {len(header)}.", shown)
        else:
            yield Line(number, dict(zip(header, record, strict=True)))


def _header(reading: Reading, records: Iterator[tuple[int, "list[str] | Refusal"]]) -> list[str]:
    for _, record in records:
        if isinstance(record, Refusal):
            raise UserError(record.reason)
        if record and "".join(record).strip(DELIMITERS) == "sep=":
            continue  # Excel's way of naming the delimiter
        if record:
            break
        reading.blank += 1
    else:
        raise UserError("The file is empty.")
    names = [name.strip() for name in record]
    if problem := width_problem(names):
        raise UserError(f"The header has {problem}" if problem.startswith("more") else f"Header: {problem}")
    for number, name in enumerate(names, start=1):
        if not name:
            names[number - 1] = f"column {number}"
            reading.note(f"Column {number} has no name.")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f'Column name "{twice[:NAME]}" appears twice. Rename one of them in the first line.')
    return names


class Feed:
    """The lines that csv.reader asks for, remembered until a record is whole, so that a problem can be placed."""

    def __init__(self, reading: Reading):
        self.reading, self.numbered = reading, numbered(reading)
        self.number = 0
        """Line last handed out."""
        self.record: list[str] = []
        self.size = 0
        self.problem: Refusal | None = None

    def __iter__(self) -> "Feed":
        return self

    def __next__(self) -> str:
        self.number, raw, _ = next(self.numbered)
        if raw is None:
            self.problem = Refusal(self.number, "", f"Line {self.number} is longer than {LIMIT // 1024 // 1024} MB.", "")
            raw = b""
        try:
            line = raw.decode()
        except UnicodeDecodeError as error:
            line = raw.decode(errors="replace")
            self.problem = not_utf8(self.reading, self.number, raw, error)
        self.record.append(line)
        self.size += len(line)
        if self.size > LIMIT and len(self.record) > 1:
            raise csv.Error("field larger than field limit")
        return line + "\n"

    def start(self) -> None:
        """Forgets the last record."""
        self.record, self.size, self.problem = [], 0, None


def _records(feed: Feed, reader: Iterator[list[str]]) -> Iterator[tuple[int, "list[str] | Refusal"]]:
    """(first line, values or why there are none). Raises UserError where a quote swallows the rest of the file."""
    while True:
        feed.start()
        first = feed.number + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            text = "\n".join(feed.record)
            if "unexpected end" in str(error) or "field limit" in str(error):
                opened = first + opening_line(feed.record, feed.reading)
                raise UserError(f"The quote opened on line {opened} never closes. Write a quote inside a value twice.") from None
            sentence = f"Line {first}: text follows a closing quote. Write a quote inside a value twice."
            yield first, Refusal(first, "", sentence, excerpt(text))
            continue
        yield first, record


def opening_line(record: list[str], reading: Reading) -> int:
    """Which of the lines of an unfinished record (from 0) opened the quote that is still open at its end."""
    is_open, opened = False, 0
    for index, line in enumerate(record):
        quotes = line.count(reading.quote) - (line.count(reading.escape + reading.quote) if reading.escape else 0)
        for _ in range(quotes):
            is_open = not is_open
            if is_open:
                opened = index
    return opened
