"""Bytes of a file as UTF-8 with \\n at the end of each line, whatever encoding and line ends it has. Flat memory."""

import codecs
from collections.abc import Iterator

from studio.datasets.readers.lines import LIMIT, Reading, excerpt
from studio.errors import UserError

CHUNK = 256 * 1024
MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
TITLES = {"cp1252": "Windows-1252"}
PREVIEWED = 5
"""Lines that are shown as they would read in Windows-1252."""
PREVIEWED_WITHIN = 10_000
"""Lines after the first of them among which the others are looked for."""


def chunks(reading: Reading) -> Iterator[bytes]:
    """Pieces of the file in UTF-8. Bytes that are not UTF-8 are handed on as they are: only a line knows where it is."""
    decoder = None if reading.encoding == "utf-8" else codecs.getincrementaldecoder(reading.encoding)()
    pending_return = False
    with reading.open() as file:
        raw = file.read(CHUNK)
        raw = raw[next((len(mark) for mark in MARKS if raw.startswith(mark)), 0) :]
        ended = False
        while not ended:
            ended = not raw
            reading.follow(file)
            piece = _utf8(decoder, raw, reading) if decoder else raw
            if pending_return and not piece.startswith(b"\n"):
                piece = b"\n" + piece
            # A \r at the very end may be half of \r\n; it is decided with the next piece.
            pending_return = piece.endswith(b"\r") and not ended
            if b"\r" in piece:
                piece = (piece[:-1] if pending_return else piece).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            if piece:
                yield piece
            if not ended:
                raw = file.read(CHUNK)


def _utf8(decoder: codecs.IncrementalDecoder, raw: bytes, reading: Reading) -> bytes:
    try:
        return decoder.decode(raw, final=not raw).encode("utf-8")
    except UnicodeError as error:
        name = TITLES.get(reading.encoding, reading.encoding.upper())
        raise UserError(f"The {name} text is damaged before byte {reading.position}. Save the file as UTF-8.") from error


def numbered(reading: Reading) -> Iterator[tuple[int, bytes | None, bool]]:
    """(number from 1, the line without its end, whether an end followed). None stands for a line over the limit.

    Lines end at \\n only: U+2028 and U+0085 are text.
    """
    number, carry, skipping = 1, b"", False
    for piece in chunks(reading):
        first, *rest = piece.split(b"\n")
        if not skipping:
            carry += first
            if len(carry) > LIMIT:
                carry, skipping = b"", True
        if not rest:
            continue
        yield number, None if skipping else carry, True
        skipping = False
        carry = rest.pop()
        for line in rest:
            number += 1
            yield number, line, True
        number += 1
    if carry or skipping:
        yield number, None if skipping else carry, False


def windows_1252(reading: Reading) -> list[str]:
    """The first lines that are not UTF-8, as they would read in Windows-1252."""
    found, last = list[str](), 0
    position = reading.position
    for number, raw, _ in numbered(reading):
        if raw is not None and (at := _first_bad_byte(raw)) is not None:
            last = last or number + PREVIEWED_WITHIN
            around = raw[max(0, at - 60) : at + 100]
            found.append(excerpt(around.decode("cp1252", errors="replace")))
        if len(found) == PREVIEWED or (last and number >= last):
            break
    reading.position = position
    return found


def _first_bad_byte(raw: bytes) -> int | None:
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return error.start
    return None
