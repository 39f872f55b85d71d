"""What a person's file holds, line by line, in flat memory. Which columns mean what is decided in `studio.datasets.shapes`."""

from pathlib import Path

from studio.datasets.readers import csv_table, json_elements, jsonl, parquet, plain_text
from studio.datasets.readers.formats import recognise
from studio.datasets.readers.lines import LIMIT, Line, Reading, Refusal

READERS = {
    "JSONL": jsonl.read,
    "JSON": json_elements.read,
    "CSV": csv_table.read,
    "Parquet": parquet.read,
    "text": plain_text.read,
}


def open_file(path: Path, *, filename: str) -> Reading:
    """Recognises the format by content first, then by `filename`. Nothing but the head is read before `lines` is iterated.

    Raises UserError where the file is empty or of no format that can be read.
    """
    reading = recognise(path, filename=filename)
    reading.lines = READERS[reading.format](reading)
    return reading


__all__ = ["LIMIT", "Line", "Reading", "Refusal", "open_file"]
