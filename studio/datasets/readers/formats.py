"""Which format and encoding a file has, told from its first bytes; the file name only breaks ties. Reads one head, no rows."""

import codecs
import csv
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from studio.datasets.readers import packed
from studio.datasets.readers.lines import Reading
from studio.errors import UserError

HEAD = 1024 * 1024
EXTENSIONS = {
    ".jsonl": "JSONL", ".ndjson": "JSONL", ".json": "JSON", ".csv": "CSV", ".tsv": "CSV", ".tab": "CSV", ".parquet": "Parquet",
    ".pq": "Parquet", ".arrow": "Arrow", ".feather": "Arrow", ".ipc": "Arrow", ".xlsx": "XLSX", ".xlsm": "XLSX", ".txt": "text",
    ".text": "text", ".md": "Markdown", ".markdown": "Markdown",
}  # fmt: skip
UNPACK = "Unpack it and upload the file inside."
EXPORT = "Export the rows as JSONL, JSON, CSV, Parquet, Arrow, XLSX or plain text."
SAVE = "Save it as .xlsx or CSV."
FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (b"PK\x05\x06", "an empty ZIP file", EXPORT),
    (b"BZh", "a bzip2 file", UNPACK),
    (b"\xfd7zXZ\x00", "an xz file", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip file", UNPACK),
    (b"Rar!", "a RAR file", UNPACK),
    (b"%PDF", "a PDF file", EXPORT),
    (b"{\\rtf", "an RTF document", EXPORT),
    (b"\x89PNG", "a PNG image", EXPORT),
    (b"\xff\xd8\xff", "a JPEG image", EXPORT),
    (b"GIF8", "a GIF image", EXPORT),
    (b"GGUF", "a GGUF model", EXPORT),
    (b"FEA1", "a Feather file of version 1", "Write it as version 2, or as Parquet."),
    (b"ORC", "an ORC file", EXPORT),
    (b"SQLite format 3\x00", "an SQLite database", EXPORT),
    (b"\x7fELF", "a program", EXPORT),
    (b"\x93NUMPY", "a NumPy file", EXPORT),
    *((bytes((0x80, version)), "a pickle file", EXPORT) for version in range(2, 6)),
)
INSIDE_ZIP: tuple[tuple[str, str, str], ...] = (
    ("xl/workbook.bin", "a binary Excel workbook", SAVE),
    ("content.xml", "an OpenDocument file", SAVE),
    ("word/document.xml", "a Word document", EXPORT),
    ("ppt/presentation.xml", "a presentation", EXPORT),
    ("META-INF/MANIFEST.MF", "a Java archive", EXPORT),
)
"""What a ZIP is besides an archive, by a file in it."""
COMPRESSED = (*packed.MAGIC, b"BZh", b"\xfd7zXZ\x00", b"7z\xbc\xaf\x27\x1c", b"Rar!")
ENCODINGS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
DELIMITERS = ",;\t|"
NAMED_DELIMITER = re.compile(r'"?sep=([,;\t|])"?\n')
CONTROLS = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
STREAM = re.compile(rb"\xff{4}[^\xff]...", re.DOTALL)
"""How an Arrow stream begins: a mark, and how long what follows is."""


def recognise(path: Path, *, filename: str, encoding: str = "", sheet: str = "", work: Path | None = None) -> Reading:
    """Format, encoding and size of a file. Raises UserError for what is empty or cannot be read as rows."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    reading = Reading(path, "", encoding or "utf-8", path.stat().st_size, sheet=sheet, asks=not encoding, work=work)
    suffix = Path(filename).suffix.lower()
    called = filename[: -len(suffix)] if suffix in packed.SUFFIXES else filename
    packing = None if _is_workbook(path, head) else packed.look_inside(path, head, filename=filename)
    if packing is not None:
        reading.unpacked, called = packing.open, packing.inner or called
        with reading.open() as inside:
            head = inside.read(HEAD)
        if head.startswith(COMPRESSED) and not _is_workbook_inside(head):
            raise UserError("The file is compressed twice. Unpack it once and upload what is inside.")
    _note_packing(reading, packing, suffix=suffix)
    named = EXTENSIONS.get(Path(called).suffix.lower(), "")
    _refuse_foreign(head, named or "a dataset")
    whole = len(head) < HEAD
    reading.format = _binary_format(head, whole=whole, named=named) or _text_format(reading, head, whole=whole, called=called)
    reading.unit = "Row" if reading.format in ("Parquet", "Arrow", "XLSX") else "Line"
    alike = {reading.format, named} in ({"JSON", "JSONL"}, {"text", "Markdown"})
    if named and named != reading.format and not alike:
        reading.note(f"The file is named as {named}, but holds {reading.format}. It was read as {reading.format}.")
    return reading


def _note_packing(reading: Reading, packing: packed.Packing | None, *, suffix: str) -> None:
    expected = packed.SUFFIXES.get(suffix, "")
    if packing is None:
        if expected:
            reading.note(f"The file is named as {expected}, but is not packed. It was read as it is.")
    elif packing.kind != expected:
        reading.note(f"The file is packed with {packing.kind}. It was unpacked.")


def _is_workbook(path: Path, head: bytes) -> bool:
    """Whether the file is an Excel workbook, which is a ZIP as well. Raises UserError for other documents of that kind."""
    if not head.startswith(b"PK\x03\x04"):
        return False
    with path.open("rb") as file:
        names = set(packed.listed(file).namelist())
    if "xl/workbook.xml" in names:
        return True
    for name, what, advice in INSIDE_ZIP:
        if name in names:
            raise UserError(f"This is {what}, not a dataset. {advice}")
    return False


def _is_workbook_inside(head: bytes) -> bool:
    return head.startswith(b"PK\x03\x04") and (b"xl/" in head or b"[Content_Types].xml" in head[:4096])


def _refuse_foreign(head: bytes, wanted: str) -> None:
    if head.startswith(b"\xd0\xcf\x11\xe0"):
        if "EncryptedPackage".encode("utf-16-le") in head:
            raise UserError("The Excel workbook is protected by a password. Save it without one.")
        raise UserError("Excel 97 file: save as .xlsx or CSV.")
    if head[257:262] == b"ustar":
        raise UserError(f"{packed.ONE_FILE} is a tar archive. Upload the file inside, packed as .gz, .zst or .zip if it is large.")
    for magic, what, advice in FOREIGN:
        if head.startswith(magic):
            raise UserError(f"This is {what}, not {wanted}. {advice}")


def _binary_format(head: bytes, *, whole: bool, named: str) -> str:
    if head.startswith((b"PAR1", b"PARE")):
        return "Parquet"
    if head.startswith(b"ARROW1") or STREAM.match(head):
        return "Arrow"
    if head.startswith(b"PK\x03\x04"):
        return "XLSX"
    if whole and not head.strip():
        raise UserError("The file is empty.")
    first = {"Parquet": "PAR1", "Arrow": "ARROW1", "XLSX": "a ZIP's"}.get(named)
    if first:
        raise UserError(f"The {named} file is damaged (its first bytes are not {first}). Export it again.")
    return ""


def _text_format(reading: Reading, head: bytes, *, whole: bool, called: str) -> str:
    """Which format the text has; sets its encoding and how its values are cut."""
    named = EXTENSIONS.get(Path(called).suffix.lower(), "")
    mark, marked = next(((mark, name) for mark, name in ENCODINGS if head.startswith(mark)), (b"", ""))
    reading.encoding = marked or ("cp1252" if reading.encoding == "cp1252" else "utf-8")
    if not mark:
        _refuse_binary(head, named or "a dataset")
    text = codecs.getincrementaldecoder(reading.encoding)(errors="replace").decode(head[len(mark) :])
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if whole and not text.strip():
        raise UserError("The file is empty.")
    if reading.encoding == "cp1252":
        reading.note("Windows-1252 was converted to UTF-8.")
    elif reading.encoding != "utf-8":
        reading.note(f"{reading.encoding.upper()[:6]} was read as UTF-8.")
    found = _kind_of_text(text, named=named, whole=whole)
    if found == "CSV":
        cut = dialect(text, whole=whole) or Dialect("\t" if called.lower().endswith((".tsv", ".tab")) else ",")
        reading.delimiter, reading.quote, reading.escape = cut.delimiter, cut.quote, cut.escape
    return found


def _refuse_binary(head: bytes, wanted: str) -> None:
    sample = head[:4096]
    if len(sample) >= 4 and max(sample[::2].count(0), sample[1::2].count(0)) > len(sample) * 0.15:
        raise UserError("Not UTF-8 (looks like UTF-16). Save it as UTF-8.")
    if len(CONTROLS.findall(sample)) > len(sample) * 0.1:
        raise UserError(f"This is a binary file, not {wanted}. {EXPORT}")


def _kind_of_text(text: str, *, named: str, whole: bool) -> str:
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
    if named in ("CSV", "text", "Markdown"):
        return named
    if dialect(text, whole=whole):
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


@dataclass(frozen=True)
class Dialect:
    """How a table's values are cut, quoted, and freed of what quoting means."""

    delimiter: str
    quote: str = '"'
    escape: str = ""


def dialect(text: str, *, whole: bool) -> Dialect | None:
    """What cuts the first records into equally many (at least two) values; nothing where nothing does.

    Single quotes and backslashes count only where they are plainly meant: most records are quoted so, or cannot be cut otherwise.
    """
    sample = text[:65536]
    if len(sample) < len(text) or not whole:
        sample = sample[: sample.rfind("\n") + 1] or sample
    if named := NAMED_DELIMITER.match(sample):
        return Dialect(named[1])
    best, most = None, (0.0, 1)
    for candidate in _candidates(sample):
        widths = _widths(sample, candidate)
        if len(widths) < 2 or widths[0] < 2:
            continue
        agreeing = sum(width == widths[0] for width in widths) / len(widths)
        if agreeing > 0.6 and (agreeing, widths[0]) > most:
            best, most = candidate, (agreeing, widths[0])
    return best


def _candidates(sample: str) -> list[Dialect]:
    lines = [line for line in sample.split("\n", 50)[:50] if line.strip()]
    found = []
    for delimiter in DELIMITERS:
        quoted = sum(line.startswith("'") or f"{delimiter}'" in line for line in lines if line.count("'") >= 2)
        quote = "'" if lines and quoted > 0.6 * len(lines) else '"'
        found.append(Dialect(delimiter, quote, "\\" if f"\\{quote}" in sample and _needs_escape(sample, delimiter, quote) else ""))
    return found


def _needs_escape(sample: str, delimiter: str, quote: str) -> bool:
    """True where a quote behind a backslash cuts a value short, and the records are whole once it does not."""
    plain, escaped = _widths(sample, Dialect(delimiter, quote)), _widths(sample, Dialect(delimiter, quote, "\\"))
    return len(escaped) > len(plain) or (len(set(escaped)) == 1 and len(set(plain)) > 1)


def reader(lines: Iterable[str], cut: Dialect) -> Iterator[list[str]]:
    return csv.reader(
        lines,
        delimiter=cut.delimiter,
        quotechar=cut.quote,
        escapechar=cut.escape or None,
        doublequote=True,
        strict=True,
    )


def _widths(sample: str, candidate: Dialect) -> list[int]:
    """Values in each of the first records; what cannot be parsed ends the count."""
    widths: list[int] = []
    try:
        for record in reader(io.StringIO(sample, newline=""), candidate):
            if record:
                widths.append(len(record))
            if len(widths) == 50:
                break
    except csv.Error:
        pass  # a broken record further down is refused by the reader, which knows its line
    return widths
