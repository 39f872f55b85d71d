"""Which format and encoding a file has, told from its first bytes; the file name only breaks ties. Reads one head, no rows."""

import codecs
import csv
import io
import re
from pathlib import Path

import orjson

from studio.datasets.readers.lines import Reading
from studio.errors import UserError

HEAD = 1024 * 1024
EXTENSIONS = {
    ".jsonl": "JSONL", ".ndjson": "JSONL", ".json": "JSON", ".csv": "CSV", ".tsv": "CSV", ".tab": "CSV", ".parquet": "Parquet",
    ".pq": "Parquet", ".txt": "text", ".text": "text", ".md": "text", ".markdown": "text",
}  # fmt: skip
UNPACK = "Unpack it and upload the file inside."
EXPORT = "Export the rows as JSONL, JSON, CSV, Parquet or plain text."
FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (b"PK\x03\x04", "a ZIP file", UNPACK),
    (b"PK\x05\x06", "an empty ZIP file", EXPORT),
    (b"\x1f\x8b", "a gzip file", UNPACK),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file", UNPACK),
    (b"BZh", "a bzip2 file", UNPACK),
    (b"\xfd7zXZ\x00", "an xz file", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip file", UNPACK),
    (b"Rar!", "a RAR file", UNPACK),
    (b"%PDF", "a PDF file", EXPORT),
    (b"\x89PNG", "a PNG image", EXPORT),
    (b"\xff\xd8\xff", "a JPEG image", EXPORT),
    (b"GIF8", "a GIF image", EXPORT),
    (b"GGUF", "a GGUF model", EXPORT),
    (b"ARROW1", "an Arrow file", EXPORT),
    (b"SQLite format 3\x00", "an SQLite database", EXPORT),
    (b"\x7fELF", "a program", EXPORT),
    (b"\x93NUMPY", "a NumPy file", EXPORT),
    *((bytes((0x80, version)), "a pickle file", EXPORT) for version in range(2, 6)),
)
ENCODINGS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
DELIMITERS = ",;\t|"
CONTROLS = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


def recognise(path: Path, *, filename: str) -> Reading:
    """Format, encoding and size of a file. Raises UserError for what is empty or cannot be read as rows."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    named = EXTENSIONS.get(Path(filename).suffix.lower(), "")
    _refuse_foreign(head, named or "a dataset")
    size = path.stat().st_size
    if head.startswith((b"PAR1", b"PARE")):
        return _noticed(Reading(path, "Parquet", "", size, unit="Row"), named)
    mark, encoding = next(((mark, name) for mark, name in ENCODINGS if head.startswith(mark)), (b"", "utf-8"))
    whole = len(head) == size
    if not mark:
        _refuse_binary(head, named or "a dataset")
    text = codecs.getincrementaldecoder(encoding)(errors="replace").decode(head[len(mark) :])
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if whole and not text.strip():
        raise UserError("The file is empty.")
    if named == "Parquet":
        raise UserError("The Parquet file is damaged (its first bytes are not PAR1). Export it again.")
    reading = _noticed(Reading(path, _text_format(text, named=named, whole=whole), encoding, size), named)
    if encoding != "utf-8":
        reading.note(f"{encoding.upper()[:6]} was read as UTF-8.")
    if reading.format == "CSV":
        reading.delimiter = delimiter(text, whole=whole) or ("\t" if filename.lower().endswith((".tsv", ".tab")) else ",")
    return reading


def _noticed(reading: Reading, named: str) -> Reading:
    alike = {reading.format, named} == {"JSON", "JSONL"}
    if named and named != reading.format and not alike:
        reading.note(f"The file is named as {named}, but holds {reading.format}. It was read as {reading.format}.")
    return reading


def _refuse_foreign(head: bytes, wanted: str) -> None:
    if head.startswith(b"\xd0\xcf\x11\xe0"):
        raise UserError(f"This is an Excel 97 file, not {wanted}. Save it as CSV.")
    if head.startswith(b"PK\x03\x04") and (b"xl/" in head[:8192] or b"[Content_Types].xml" in head[:8192]):
        raise UserError(f"This is an Excel workbook, not {wanted}. Save it as CSV.")
    for magic, what, advice in FOREIGN:
        if head.startswith(magic):
            raise UserError(f"This is {what}, not {wanted}. {advice}")


def _refuse_binary(head: bytes, wanted: str) -> None:
    sample = head[:4096]
    if len(sample) >= 4 and max(sample[::2].count(0), sample[1::2].count(0)) > len(sample) * 0.15:
        raise UserError("Not UTF-8 (looks like UTF-16). Save it as UTF-8.")
    if len(CONTROLS.findall(sample)) > len(sample) * 0.1:
        raise UserError(f"This is a binary file, not {wanted}. {EXPORT}")


def _text_format(text: str, *, named: str, whole: bool) -> str:
    start = text.lstrip()
    first, _, rest = start.partition("\n")
    if start.startswith("{"):
        found = _object_format(first, rest, certain=named in ("JSON", "JSONL"))
    elif start.startswith("["):
        found = _array_format(start, first, rest, certain=named in ("JSON", "JSONL"))
    else:
        found = ""
    if found:
        return found
    if named in ("CSV", "text"):
        return named
    if delimiter(text, whole=whole):
        return "CSV"
    return "JSONL" if named in ("JSON", "JSONL") else "text"


def _object_format(first: str, rest: str, *, certain: bool) -> str:
    """JSONL where the first or the second line is an object by itself, JSON where the first line opens one that goes on."""
    if _parses(first):
        return "JSONL"
    following = rest.lstrip().partition("\n")[0]
    if not certain:
        # A template or a set in braces is text; an object's first name stands in quotes.
        return "JSON" if re.match(r'\{\s*"', first + rest) else ""
    if not rest.strip() or _parses(following):
        return "JSONL"
    opens = first.count("{") + first.count("[") > first.count("}") + first.count("]")
    return "JSON" if opens else "JSONL"


def _array_format(start: str, first: str, rest: str, *, certain: bool) -> str:
    """JSONL where each line is a list by itself (its rows are refused one by one), else one array."""
    if _parses(first) and rest.strip():
        return "JSONL" if certain else ""
    return "JSON" if certain or re.match(r'\[\s*(\{\s*"|\]\s*$)', start) else ""


def _parses(line: str) -> bool:
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return True


def delimiter(text: str, *, whole: bool) -> str:
    """The character that cuts the first records into equally many (at least two) values; nothing where none does."""
    sample = text[:65536]
    if len(sample) < len(text) or not whole:
        sample = sample[: sample.rfind("\n") + 1] or sample
    best, most = "", (0.0, 1)
    for candidate in DELIMITERS:
        widths = _widths(sample, candidate)
        if len(widths) < 2 or widths[0] < 2:
            continue
        agreeing = sum(width == widths[0] for width in widths) / len(widths)
        if agreeing > 0.6 and (agreeing, widths[0]) > most:
            best, most = candidate, (agreeing, widths[0])
    return best


def _widths(sample: str, candidate: str) -> list[int]:
    """Values in each of the first records; what cannot be parsed ends the count."""
    widths: list[int] = []
    try:
        for record in csv.reader(io.StringIO(sample, newline=""), delimiter=candidate, strict=True):
            if record:
                widths.append(len(record))
            if len(widths) == 50:
                break
    except csv.Error:
        pass  # a broken record further down is refused by the reader, which knows its line
    return widths
