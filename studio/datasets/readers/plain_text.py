"""Plain text and Markdown: one row per line, or per group of paragraphs where blank lines set paragraphs apart."""

import re
from collections.abc import Iterator

from studio.datasets.readers.lines import LIMIT, Line, Reading, Refusal
from studio.datasets.readers.strict_json import not_utf8
from studio.datasets.readers.text_stream import numbered

JOINED = 2000
"""Characters up to which neighbouring paragraphs are joined to one row."""
LOOK = 2000
"""Lines that are looked at to find out whether blank lines set paragraphs apart."""

FENCE = re.compile(r" {0,3}(```|~~~)")
"""What code stands between in Markdown; blank lines inside do not end a paragraph."""
TITLE = re.compile("#{1,6} .*")


def read(reading: Reading) -> Iterator[Line | Refusal]:
    if _has_paragraphs(reading):
        reading.note(f"Blank lines end a paragraph; neighbouring paragraphs are joined to rows of up to {JOINED} characters.")
        return _joined(reading)
    reading.note("Each line is one row.")
    return _lines(reading)


def _has_paragraphs(reading: Reading) -> bool:
    """True where a blank line stands between two lines of text near the beginning."""
    blank_since_text = text_seen = False
    for number, raw, _ in numbered(reading):
        has_text = raw is None or bool(raw.strip())
        if has_text and blank_since_text and text_seen:
            return True
        text_seen = text_seen or has_text
        blank_since_text = not has_text
        if number == LOOK:
            break
    return False


def _lines(reading: Reading) -> Iterator[Line | Refusal]:
    for number, text in _decoded(reading):
        if isinstance(text, Refusal):
            yield text
        elif text.strip():
            yield Line(number, {"text": text})
        else:
            reading.blank += 1


def _joined(reading: Reading) -> Iterator[Line | Refusal]:
    started, held = 0, ""
    for number, paragraph in _with_titles(_paragraphs(reading)) if reading.format == "Markdown" else _paragraphs(reading):
        if isinstance(paragraph, Refusal):
            yield paragraph
        elif held and len(held) + len(paragraph) + 2 > JOINED:
            yield Line(started, {"text": held})
            started, held = number, paragraph
        elif held:
            held += "\n\n" + paragraph
        else:
            started, held = number, paragraph
    if held:
        yield Line(started, {"text": held})


def _with_titles(paragraphs: Iterator[tuple[int, str | Refusal]]) -> Iterator[tuple[int, str | Refusal]]:
    """A title and what follows it are one paragraph: neither says much alone."""
    started, title = 0, ""
    for number, paragraph in paragraphs:
        if isinstance(paragraph, Refusal):
            yield number, paragraph
        elif TITLE.fullmatch(paragraph) and len(title) < JOINED:
            started, title = started if title else number, f"{title}\n\n{paragraph}" if title else paragraph
        elif title:
            yield started, f"{title}\n\n{paragraph}"
            title = ""
        else:
            yield number, paragraph
    if title:
        yield started, title


def _paragraphs(reading: Reading) -> Iterator[tuple[int, str | Refusal]]:
    started, lines, size, fence = 0, list[str](), 0, ""
    for number, text in _decoded(reading):
        if isinstance(text, Refusal):
            yield number, text
            continue
        if reading.format == "Markdown" and (found := FENCE.match(text)) and found[1] == (fence or found[1]):
            fence = "" if fence else found[1]
        ends = not text.strip() and not (fence and lines)
        if lines and (ends or size + len(text) > LIMIT // 4):
            yield started, "\n".join(lines)
            lines, size = [], 0
        if not ends:
            started = started if lines else number
            lines.append(text.rstrip())
            size += len(text)
    if lines:
        yield started, "\n".join(lines)


def _decoded(reading: Reading) -> Iterator[tuple[int, str | Refusal]]:
    for number, raw, _ in numbered(reading):
        if raw is None:
            yield number, Refusal(number, "", f"Line {number} is longer than {LIMIT // 1024 // 1024} MB.", "")
            continue
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            yield number, not_utf8(reading, number, raw, error)
            continue
        yield number, text
