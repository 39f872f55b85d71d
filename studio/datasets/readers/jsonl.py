"""One JSON object per line."""

from collections.abc import Iterator

from studio.datasets.readers.lines import LIMIT, Line, Reading, Refusal
from studio.datasets.readers.strict_json import parse
from studio.datasets.readers.text_stream import numbered


def read(reading: Reading) -> Iterator[Line | Refusal]:
    for number, raw, ended in numbered(reading):
        if raw is None:
            yield Refusal(number, "", f"Line {number} is longer than {LIMIT // 1024 // 1024} MB.", "")
        elif not raw.strip():
            reading.blank += 1
        else:
            yield parse(reading, number, raw, last=not ended)
