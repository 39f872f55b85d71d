"""What a person's file holds, line by line, in flat memory. Which columns mean what is decided in `studio.datasets.shapes`."""

from pathlib import Path

from studio.datasets.readers import arrow, csv_table, json_elements, jsonl, parquet, plain_text, xlsx
from studio.datasets.readers.formats import recognise
from studio.datasets.readers.lines import LIMIT, Line, Reading, Refusal

READERS = {
    "JSONL": jsonl.read,
    "JSON": json_elements.read,
    "CSV": csv_table.read,
    "Parquet": parquet.read,
    "Arrow": arrow.read,
    "XLSX": xlsx.read,
    "Markdown": plain_text.read,
    "text": plain_text.read,
}


def open_file(path: Path, *, filename: str, encoding: str = "", sheet: str = "", work: Path | None = None) -> Reading:
    """Recognises the format by content first, then by `filename`. Nothing but the head is read before `lines` is iterated.

    `encoding` is how the person chose to read text ("utf-8" refuses lines of another encoding, "cp1252" converts them);
    `sheet` the sheet of a workbook; `work` a folder for what must be unpacked.
    Raises UserError where the file is empty or of no format that can be read, and with the code "not_utf8" where text is not
    UTF-8 and no encoding was chosen.
    """
    reading = recognise(path, filename=filename, encoding=encoding, sheet=sheet, work=work)
    reading.lines = READERS[reading.format](reading)
    return reading


__all__ = ["LIMIT", "Line", "Reading", "Refusal", "open_file"]
