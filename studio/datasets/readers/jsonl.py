"""One JSON object per line."""

from collections.abc import Iterator

from studio.datasets.readers.lines import LIMIT, Line, Reading, Refusal
from studio.datasets.readers.strict_json import parse
from studio.datasets.readers.text_stream import numbered


def read(reading: Reading) -> Iterator[Line | Refusal]:
    for number, raw, ended in numbered(reading):
        if (outcome := judged(reading, number, raw, last=not ended)) is not None:
            yield outcome


def judged(reading: Reading, number: int, raw: bytes | None, *, last: bool) -> Line | Refusal | None:
    """One line, or None where it is blank. `raw` is None for a line over the limit; `last` where no line end follows."""
    if raw is None:
        return Refusal(number, "", f"Line {number} is longer than {LIMIT // 1024 // 1024} MB.", "")
    if not raw.strip():
        reading.blank += 1
        return None
    return parse(reading, number, raw, last=last)
