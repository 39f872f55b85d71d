"""The same rows are read from every format, packed in every way and written in every usual encoding, in flat memory."""

import csv
import gzip
import io
import json
import random
import subprocess
import sys
from collections.abc import Callable
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xlsxwriter

from studio.datasets.readers import Line, Reading, Refusal, arrow, columnar, open_file, packed, xlsx
from studio.errors import UserError
from tests.datasets.corpus import zipped, zstd

ROWS = [{"question": f"What is {n} + 1, Zoë?\nThink.", "answer": f'"{n + 1}"; 007'} for n in range(300)]


def as_table(delimiter: str) -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, ["question", "answer"], delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(ROWS)
    return file.getvalue().encode()


def as_workbook() -> bytes:
    file = io.BytesIO()
    with xlsxwriter.Workbook(file) as book:
        sheet = book.add_worksheet("Replies")
        sheet.write_row(0, 0, ["question", "answer"])
        for number, row in enumerate(ROWS, start=1):
            sheet.write_row(number, 0, list(row.values()))
    return file.getvalue()


def as_parquet() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), file, row_group_size=128)
    return file.getvalue()


def as_arrow(kind: Callable[..., Any], **options: Any) -> bytes:
    file, whole = io.BytesIO(), pa.Table.from_pylist(ROWS)
    with kind(file, whole.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(whole, max_chunksize=100)
    return file.getvalue()


FILES: dict[str, tuple[str, bytes]] = {
    "rows.jsonl": ("JSONL", "".join(json.dumps(row) + "\n" for row in ROWS).encode()),
    "array.json": ("JSON", json.dumps(ROWS, indent=1, ensure_ascii=False).encode()),
    "comma.csv": ("CSV", as_table(",")),
    "semicolon.csv": ("CSV", as_table(";")),
    "tab.tsv": ("CSV", as_table("\t")),
    "rows.parquet": ("Parquet", as_parquet()),
    "file.arrow": ("Arrow", as_arrow(pa.ipc.new_file)),
    "compressed.feather": ("Arrow", as_arrow(pa.ipc.new_file, compression="zstd")),
    "stream.arrow": ("Arrow", as_arrow(pa.ipc.new_stream, compression="lz4")),
    "rows.xlsx": ("XLSX", as_workbook()),
}
PACKINGS: dict[str, Callable[[str, bytes], tuple[str, bytes]]] = {
    "as it is": lambda name, content: (name, content),
    "gzip": lambda name, content: (f"{name}.gz", gzip.compress(content)),
    "Zstandard": lambda name, content: (f"{name}.zst", zstd(content)),
    "ZIP": lambda name, content: ("rows.zip", zipped((f"folder/{name}", content), compression=8)),
}


def read(path: Path, **how: Any) -> tuple[Reading, list[Line | Refusal]]:
    reading = open_file(path, filename=path.name, **how)
    return reading, list(reading.lines)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("name", FILES)
def test_the_same_rows_come_from_every_format_and_packing(write: Any, tmp_path: Path, name: str, packing: str) -> None:
    kind, content = FILES[name]
    work = tmp_path / "work"
    work.mkdir()
    reading, lines = read(write(*PACKINGS[packing](name, content)), work=work)
    assert (reading.format, reading.notices[1:]) == (kind, [])
    assert [line.columns for line in lines if isinstance(line, Line)] == ROWS
    assert len(lines) == len(ROWS)
    assert 0 < reading.position <= reading.size
    assert not list(work.iterdir())


@pytest.mark.parametrize("name", ["rows.jsonl", "array.json", "comma.csv", "tab.tsv", "text.txt", "text.md"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_text_of_any_kind_says_its_encoding_by_a_mark(write: Any, name: str, encoding: str) -> None:
    content = FILES[name][1].decode() if name in FILES else "Zoë said\nhello.\n"
    plain = read(write(name, content.encode()))[1]
    assert read(write(name, content.encode(encoding)))[1] == plain


def test_a_file_in_windows_1252_asks_shows_and_is_then_read_so(write: Any) -> None:
    path = write("a.csv", "question,answer\nWhat?,plain\nHow much?,5 € – “cheap”\nWho?,Zoë\n".encode("cp1252"))
    with pytest.raises(UserError) as asked:
        read(path)
    assert asked.value.message == "Line 3, byte 13: 0x80 is not UTF-8. Convert from Windows-1252?"
    assert asked.value.code == "not_utf8"
    assert asked.value.facts == {"preview": ["How much?,5 € – “cheap”", "Who?,Zoë"]}
    reading, lines = read(path, encoding="cp1252")
    assert [line.columns["answer"] for line in lines if isinstance(line, Line)] == ["plain", "5 € – “cheap”", "Zoë"]
    assert "Windows-1252 was converted to UTF-8." in reading.notices
    _, lines = read(path, encoding="utf-8")
    assert [type(line) for line in lines] == [Line, Refusal, Refusal]


def test_what_is_not_windows_1252_either_says_so(write: Any) -> None:
    with pytest.raises(UserError, match="The Windows-1252 text is damaged before byte 4"):
        read(write("a.txt", b"a\x81b\n"), encoding="cp1252")


def test_a_mark_is_worth_more_than_what_a_person_chose(write: Any) -> None:
    _, lines = read(write("a.txt", "Zoë\n".encode("utf-16")), encoding="cp1252")
    assert lines == [Line(1, {"text": "Zoë"})]


def sheet_of(tmp_path: Path, fill: Callable[[Any, Any], None], **options: Any) -> Path:
    path = tmp_path / "a.xlsx"
    with xlsxwriter.Workbook(path, options) as book:
        fill(book, book.add_worksheet("Replies"))
    return path


def test_cells_are_text_as_a_person_sees_them(tmp_path: Path) -> None:
    cells: list[tuple[Any, str, str]] = [
        ("007", "", "007"), (7, "000", "007"), (1234.5, "#,##0.00", "1234.50"), (0.25, "0%", "25%"), (-1.5, "0.0", "-1.5"), (3, "", "3"),
        (0.1 + 0.2, "", "0.3"), (123456789012345, "", "123456789012345"), (1e21, "", "1e+21"), (True, "", "TRUE"), (False, "", "FALSE"),
        (date(2024, 11, 2), "yyyy-mm-dd", "2024-11-02"), (date(1900, 1, 2), "d. mmm yy", "1900-01-02"),
        (datetime(2024, 11, 2, 9, 5), "d/m/yy h:mm", "2024-11-02 09:05:00"),
        (time(9, 5), "h:mm AM/PM", "09:05:00"), (1.5, "[h]:mm", "36:00:00"), (5, '0 "days"', "5"), ("=1+1", "", "=1+1"),
        ("a\r\nb", "", "a\r\nb"), (" x ", "", " x "),
    ]  # fmt: skip

    def fill(book: Any, sheet: Any) -> None:
        sheet.write_row(0, 0, ["text", "cell"])
        for number, (value, pattern, _) in enumerate(cells, start=1):
            sheet.write(number, 0, "row")
            how = book.add_format({"num_format": pattern}) if pattern else None
            if isinstance(value, str):
                sheet.write_string(number, 1, value, how)
            elif isinstance(value, bool):
                sheet.write_boolean(number, 1, value)
            elif isinstance(value, int | float):
                sheet.write_number(number, 1, value, how)
            else:
                sheet.write_datetime(number, 1, value, how)

    _, lines = read(sheet_of(tmp_path, fill))
    assert [line.columns["cell"] for line in lines if isinstance(line, Line)] == [shown for _, _, shown in cells]


def test_formulas_give_their_values_and_merged_cells_stand_once(tmp_path: Path) -> None:
    def fill(book: Any, sheet: Any) -> None:
        sheet.write_row(2, 1, ["text", "sum", "note"])  # a table need not begin in the corner
        sheet.write(3, 1, "a")
        sheet.write_formula(3, 2, "=1+1", None, 2)
        sheet.merge_range(3, 3, 4, 3, "both")
        sheet.write(4, 1, "b")
        sheet.write_rich_string(6, 1, "rich ", book.add_format({"bold": True}), "text", " here")

    reading, lines = read(sheet_of(tmp_path, fill))
    assert [line.columns for line in lines if isinstance(line, Line)] == [
        {"text": "a", "sum": "2", "note": "both"}, {"text": "b", "sum": "", "note": ""}, {"text": "rich text here", "sum": "", "note": ""},
    ]  # fmt: skip
    assert [line.number for line in lines if isinstance(line, Line)] == [4, 5, 7]
    assert reading.notices == ["Formulas in 1 cells: the values that Excel stored for them were read."]


def test_a_person_chooses_the_sheet(tmp_path: Path) -> None:
    def fill(book: Any, sheet: Any) -> None:
        sheet.hide()
        for name, text in (("Replies 2024", "new"), ("Old & gone", "old")):
            other = book.add_worksheet(name)
            other.write_column(0, 0, ["text", text])
            other.activate()

    path = sheet_of(tmp_path, fill)
    reading, lines = read(path)
    assert lines == [Line(2, {"text": "new"})]
    assert (reading.sheet, reading.sheets) == ("Replies 2024", ["Replies", "Replies 2024", "Old & gone"])
    assert reading.notices == ["The sheet Replies 2024 was read. Others are: Replies, Old & gone."]
    assert read(path, sheet="Old & gone")[1] == [Line(2, {"text": "old"})]
    with pytest.raises(UserError) as refused:
        read(path, sheet="Neu")
    assert refused.value.message == 'The workbook has no sheet "Neu". It has: Replies, Replies 2024, Old & gone.'
    assert (refused.value.code, refused.value.facts["sheets"][1]) == ("unknown_sheet", "Replies 2024")


SHEET = b'<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>%s</sheetData></worksheet>'


def workbook_of(sheet: bytes, texts: bytes = b"") -> bytes:
    """A workbook made by hand, as an attacker makes it."""
    kind = b"http://schemas.openxmlformats.org/officeDocument/2006/relationships/worksheet"
    return zipped(
        ("xl/workbook.xml", b'<workbook xmlns:r="r"><sheets><sheet name="A" sheetId="1" r:id="x"/></sheets></workbook>'),
        ("xl/_rels/workbook.xml.rels", b'<Relationships><Relationship Id="x" Type="%s" Target="worksheets/a.xml"/></Relationships>' % kind),
        ("xl/worksheets/a.xml", sheet),
        *([("xl/sharedStrings.xml", texts)] if texts else []),
        compression=8,
    )


def inline(place: str, text: str) -> bytes:
    return f'<c r="{place}" t="inlineStr"><is><t>{text}</t></is></c>'.encode()


HEADED = b'<row r="1">' + inline("A1", "text") + b"</row>"


def test_a_cell_in_the_last_corner_takes_no_memory(write: Any) -> None:
    sheet = SHEET % (HEADED + b'<row r="1048576">' + inline("XFD1048576", "far") + b"</row>")
    _, (refusal,) = read(write("a.xlsx", workbook_of(sheet)))
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "Row 1048576: 16384 values, expected 1."


@pytest.mark.parametrize(
    "sheet",
    [
        b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>' + SHEET % (HEADED + b'<row r="2">' + inline("A2", "&b;") + b"</row>"),
        SHEET % (HEADED + b'<row r="2"><c r="A2" t="s"><v>7</v></c></row>'),
        SHEET % (HEADED + b"<row>" * 1000),
        SHEET % (HEADED + b'<row r="2"><c r="A2" t="' + b"a" * 20_000_000 + b'"/></row>'),
        b"not XML",
        b"",
    ],
    ids=["entities", "a text that is not there", "rows in rows", "an attribute of 20 MB", "no XML", "nothing"],
)
def test_a_workbook_that_was_tampered_with_is_damaged(write: Any, sheet: bytes) -> None:
    with pytest.raises(UserError, match=r"The Excel workbook is damaged\. Save it again\."):
        read(write("a.xlsx", workbook_of(sheet)))


def test_rows_without_measure_are_refused_one_by_one(write: Any) -> None:
    wide = b"".join(inline(f"{chr(65 + n // 26)}{chr(65 + n % 26)}2", "x") for n in range(300))
    long = inline("A3", "a" * 5_000_000)
    sheet = SHEET % (HEADED + b'<row r="2">' + wide + b'</row><row r="3">' + long + b'</row><row r="4">' + inline("A4", "fine") + b"</row>")
    _, lines = read(write("a.xlsx", workbook_of(sheet)))
    assert [line.reason for line in lines if isinstance(line, Refusal)] == ["Row 2: more than 200 columns.", "Row 3 is longer than 4 MB."]
    assert lines[-1] == Line(4, {"text": "fine"})


def test_a_text_that_every_cell_points_to_is_not_multiplied(write: Any) -> None:
    texts = b"<sst><si><t>text</t></si><si><t>" + b"a" * 3_000_000 + b"</t></si></sst>"
    cells = b"".join(b'<row r="%d"><c r="A%d" t="s"><v>1</v></c><c r="B%d" t="s"><v>1</v></c></row>' % (n, n, n) for n in range(2, 60))
    sheet = SHEET % (b'<row r="1"><c r="A1" t="s"><v>0</v></c>' + inline("B1", "id") + b"</row>" + cells)
    _, lines = read(write("a.xlsx", workbook_of(sheet, texts)))
    assert {line.reason for line in lines if isinstance(line, Refusal)} == {f"Row {n} is longer than 4 MB." for n in range(2, 60)}


def test_a_workbook_that_claims_to_be_huge_is_not_begun(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xlsx, "TEXTS", 1 << 20)
    texts = b"<sst><si><t>" + b"a" * 2_000_000 + b"</t></si></sst>"
    with pytest.raises(UserError, match=r"The Excel workbook expands beyond 0.00098 GB\. Save the sheet as CSV\."):
        read(write("a.xlsx", workbook_of(SHEET % HEADED, texts)))


@pytest.mark.parametrize("packing", ["gzip", "Zstandard", "ZIP"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_a_bomb_ends_at_the_limit(write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, packing: str) -> None:
    monkeypatch.setattr(packed, "EXPANDED", 3 << 20)
    content = FILES[name][1] + bytes(40 << 20)
    path = write(*PACKINGS[packing](name, content))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(UserError) as refused:
        read(path, work=tmp_path)
    assert refused.value.message == f"The {packing} file expands beyond 0 GB. Split it."


def test_a_file_that_needs_more_room_than_there_is_says_so(write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "SPARE", 1 << 60)
    with pytest.raises(UserError, match="takes more room when it is unpacked than the server has left"):
        read(write("a.parquet.gz", gzip.compress(FILES["rows.parquet"][1])), work=tmp_path)


def test_an_arrow_batch_that_claims_a_terabyte_is_not_believed(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow, "BODY", 1 << 20)
    file, whole = io.BytesIO(), pa.table({"text": ["a" * 2_000_000]})
    with pa.ipc.new_file(file, whole.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(whole)
    assert len(file.getvalue()) < 10_000
    with pytest.raises(UserError, match="A batch of the Arrow file is larger than 1 GB"):
        read(write("a.arrow", file.getvalue()))


def test_values_that_rows_share_count_for_each_of_them(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columnar, "EXPANDED", 100 << 20)
    bomb = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), ["a" * 1_000_000])
    for name, content in (("a.parquet", io.BytesIO()), ("a.arrow", io.BytesIO())):
        whole = pa.table({"text": bomb})
        if name.endswith("parquet"):
            pq.write_table(whole, content)
        else:
            with pa.ipc.new_file(content, whole.schema) as writer:
                writer.write_table(whole)
        assert len(content.getvalue()) < 2_000_000
        with pytest.raises(UserError, match="expands beyond the limit of 0 GB"):
            read(write(name, content.getvalue()))


def test_categories_and_views_are_text_like_any_other(write: Any) -> None:
    names = [f"category {n} " + "x" * 3000 for n in range(3000)]  # together more than a row may have
    whole = pa.table({
        "text": pa.array(names).dictionary_encode(),
        "view": pa.array(names, pa.string_view()),
        "large": pa.array(names, pa.large_string()),
    })  # fmt: skip
    file = io.BytesIO()
    with pa.ipc.new_file(file, whole.schema) as writer:
        writer.write_table(whole)
    _, lines = read(write("a.arrow", file.getvalue()))
    assert [line.columns for line in lines if isinstance(line, Line)] == whole.to_pylist()


def test_markdown_keeps_code_whole_and_titles_with_what_follows(write: Any) -> None:
    code = "```python\nfirst = 1\n\n\nsecond = 2\n```"
    text = f"# One\n\n{'a' * 1990}\n\n## Two\n\n{code}\n\nlast\n"
    reading, lines = read(write("a.md", text))
    assert reading.format == "Markdown"
    assert [line.columns["text"] for line in lines if isinstance(line, Line)] == [f"# One\n\n{'a' * 1990}", f"## Two\n\n{code}\n\nlast"]


MEASURE = """
import resource, sys
from pathlib import Path
from studio.datasets.readers import open_file
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
count = sum(1 for _ in open_file(Path(sys.argv[1]), filename=sys.argv[1], work=Path(sys.argv[2])).lines)
print(count, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.zst", "a.zip", "a.arrow", "a.parquet.gz"])
def test_memory_stays_flat_however_large_a_file_unpacks(tmp_path: Path, name: str) -> None:
    """400 MB of rows, read by a process of its own whose memory grows by less than a third of that."""
    words = random.Random(1).choices(["and", "the", "of", "to", "in", "is", "was", "for", "on", "that", "with"], k=1100)
    row, count = {"text": " ".join(words)}, 80_000
    if name == "a.jsonl.gz":
        with gzip.open(tmp_path / name, "wb", compresslevel=1) as file:
            file.write((json.dumps(row) + "\n").encode() * count)
    elif name == "a.csv.zst":
        (tmp_path / name).write_bytes(zstd(b"text,id\n" + (row["text"] + ",1\n").encode() * count))
    elif name == "a.zip":
        (tmp_path / name).write_bytes(zipped(("a.jsonl", (json.dumps(row) + "\n").encode() * count), compression=8, compresslevel=1))
    else:
        batch = pa.RecordBatch.from_pylist([row] * 1000)
        if name == "a.arrow":
            with pa.ipc.new_file(tmp_path / name, batch.schema) as writer:
                for _ in range(count // 1000):
                    writer.write_batch(batch)
        else:
            with gzip.open(tmp_path / name, "wb", compresslevel=1) as file, pq.ParquetWriter(file, batch.schema) as writer:
                for _ in range(count // 1000):
                    writer.write_batch(batch)
    done = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path / name), str(tmp_path)], capture_output=True, text=True, check=True)
    found, megabytes = map(int, done.stdout.split())
    assert found == count
    assert megabytes < 130
