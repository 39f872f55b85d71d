"""A JSON array of objects, or one single object: found element by element, never held as a whole."""

import re
from collections.abc import Iterator

from studio.datasets.readers.lines import LIMIT, Line, Reading, Refusal, excerpt
from studio.datasets.readers.strict_json import cut_off, parse
from studio.datasets.readers.text_stream import chunks
from studio.errors import UserError

TEXT = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
STEP = re.compile(rb'(?:[^"\[\]{}]++|"(?:[^"\\]++|\\.)*+")*+[\[\]{}]', re.DOTALL)
"""All up to and with the next bracket that is in no text."""
BARE = re.compile(rb"[^,\]\n]*+(?=[,\]\n])")
NOT_SPACE = re.compile(rb"[^ \t\n]")


def read(reading: Reading) -> Iterator[Line | Refusal]:
    window = Window(reading)
    if window.peek() == b"{":
        yield from _single_object(reading, window)
        return
    window.position += 1  # the opening bracket
    yield from _array(reading, window)


def _single_object(reading: Reading, window: "Window") -> Iterator[Line | Refusal]:
    first, raw, complete = window.element()
    last = window.line
    if window.peek():
        raise UserError(f"One object per line, or one array, please (object starts on line {first}, ends on line {last}).")
    yield parse(reading, first, raw, last=not complete)


def _array(reading: Reading, window: "Window") -> Iterator[Line | Refusal]:
    comma_due = False
    while (mark := window.peek()) != b"]":
        if not mark:
            line = window.line
            yield Refusal(line, "", f"Line {line} is cut off; was the upload or export interrupted?", "The array never closes.")
            return
        if mark == b",":
            line, window.position = window.line, window.position + 1
            if not comma_due or window.peek() == b"]":
                reading.note(f"A comma too many on line {line} was passed over.")
            comma_due = False
            continue
        number, raw, complete = window.element()
        if not complete:
            yield cut_off(reading, number, raw.decode(errors="replace"))
            return
        if comma_due:
            shown = excerpt(raw[:2000].decode(errors="replace"))
            yield Refusal(number, "", f"Line {number}: the comma before this object is missing.", shown)
        else:
            yield parse(reading, number, raw)
        comma_due = True
    window.position += 1  # the closing bracket
    if window.peek():
        line = window.line
        yield Refusal(line, "", f"Line {line}: the array has ended before this. One array per file, please.", "")


class Window:
    """The part of the file that holds the element at hand."""

    def __init__(self, reading: Reading):
        self.pieces = chunks(reading)
        self.buffer = b""
        self.position = 0
        self.end = 0
        """How far the element at `position` has been searched for its end."""
        self.line = 1
        """The line of `position`, once `peek` or `element` has returned."""

    def peek(self) -> bytes:
        """Skips white space; the next byte, or nothing at the end of the file."""
        while True:
            found = NOT_SPACE.search(self.buffer, self.position)
            end = found.start() if found else len(self.buffer)
            self.line += self.buffer.count(b"\n", self.position, end)
            self.position = end
            if found:
                return found[0]
            if not self._more():
                return b""

    def element(self) -> tuple[int, bytes, bool]:
        """(its first line, its bytes, whether it is complete). Raises UserError where it exceeds the limit."""
        first = self.line
        complete = self._find_end()
        start, self.position = self.position, self.end
        raw = self.buffer[start : self.end]
        self.line += raw.count(b"\n")
        return first, raw, complete

    def _find_end(self) -> bool:
        """Sets `end` behind the element at `position`: where its brackets close, or before the next comma for a bare word."""
        self.end, depth, first = self.position, 0, self.buffer[self.position : self.position + 1]
        bracketed = first in b"[{"
        step = STEP if bracketed else TEXT if first == b'"' else BARE
        while True:
            found = step.match(self.buffer, self.end)
            if found is None:
                if not self._more():
                    self.end = len(self.buffer)
                    return False
                continue
            self.end = found.end()
            if bracketed:
                depth += 1 if self.buffer[self.end - 1] in b"[{" else -1
            if depth <= 0:
                return True

    def _more(self) -> bool:
        """Reads on, dropping what lies before `position`. False at the end of the file."""
        if len(self.buffer) - self.position > LIMIT:
            begun = f"The object that starts on line {self.line} is longer than {LIMIT // 1024 // 1024} MB."
            raise UserError(f"{begun} Is a quote or a bracket missing in it?")
        piece = next(self.pieces, b"")
        self.end -= self.position
        self.buffer = self.buffer[self.position :] + piece
        self.position = 0
        return bool(piece)
