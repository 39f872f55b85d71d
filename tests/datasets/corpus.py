"""Bad files and the exact sentence that each is answered with: (what it tries, file name, content, sentence)."""

import gzip
import io
import tarfile
import zipfile
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import xlsxwriter

GOOD = b'{"text": "a row that is fine"}\n'
LIMIT = 4 * 1024 * 1024


def table(**columns: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def chat(*messages: dict[str, Any]) -> bytes:
    return orjson.dumps({"messages": messages})


def said(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


ASKED = {"role": "user", "content": "2 + 2?"}
ANSWERED = said("4")
FOLLOWS = b"\n" + chat(ASKED, ANSWERED)
EXPORT = "Export the rows as JSONL, JSON, CSV, Parquet, Arrow, XLSX or plain text."


def zipped(*members: "tuple[str | zipfile.ZipInfo, bytes]", **how: Any) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **how) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


def link(name: str) -> zipfile.ZipInfo:
    """A member of an archive that is a symbolic link."""
    member = zipfile.ZipInfo(name)
    member.external_attr = 0o120777 << 16
    return member


def encrypted(archive: bytes) -> bytes:
    """The same archive with the mark that its first member has a password."""
    content = bytearray(archive)
    content[6] |= 1
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


def zstd(content: bytes) -> bytes:
    return bytes(pa.compress(content, "zstd", asbytes=True))


def tar(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def ipc(**columns: Any) -> bytes:
    """An Arrow file."""
    file, whole = io.BytesIO(), pa.table(columns)
    with pa.ipc.new_file(file, whole.schema) as writer:
        writer.write_table(whole)
    return file.getvalue()


def workbook(*rows: list[Any], sheets: tuple[str, ...] = ("Rows",)) -> bytes:
    """The rows in the first sheet; the others are empty."""
    file = io.BytesIO()
    with xlsxwriter.Workbook(file, {"in_memory": True}) as book:
        pages = [book.add_worksheet(name) for name in sheets]
        for number, row in enumerate(rows):
            pages[0].write_row(number, 0, row)
    return file.getvalue()


TABLE = workbook(["text", "id"], ["a row that is fine", 1])
EARLY = "ends too early; was the upload or export interrupted?"
ONE = "Upload one data file per archive; this one"
NAMELESS = zipped(("a", GOOD)).replace(b"\x1f\0\0\0\x01\0\0\0", b"\x1f\0\0\0\0\0\x01\0")  # its one letter is said to be no name
DECIMAL = "Column x has type decimal, not supported. It is left out."
TWICE = "The file is compressed twice. Unpack it once and upload what is inside."

# The whole file is refused.
FILES: list[tuple[str, str, bytes, str]] = [
    ("nothing at all", "a.jsonl", b"", "The file is empty."),
    ("only white space", "a.jsonl", b" \n\r\n\t\n", "The file is empty."),
    ("only a byte order mark", "a.csv", b"\xef\xbb\xbf", "The file is empty."),
    ("an empty array", "a.json", b"[]", "The file is empty."),
    ("a header alone", "a.csv", b"question,answer\n", "The file has a header, but no rows."),
    ("UTF-16 without mark", "a.jsonl", GOOD.decode().encode("utf-16-le"), "Not UTF-8 (looks like UTF-16). Save it as UTF-8."),
    (
        "UTF-16 that ends in half a letter",
        "a.txt",
        b"\xff\xfea\x00b",
        "The UTF-16-LE text is damaged before byte 5. Save the file as UTF-8.",
    ),
    ("the beginning of a ZIP", "a.jsonl", b"PK\x03\x04\x14\x00", f"The ZIP file {EARLY}"),
    ("an empty ZIP", "a.zip", zipped(), f"This is an empty ZIP file, not a dataset. {EXPORT}"),
    ("a ZIP of folders", "a.zip", zipped(("rows/", b"")), f"{ONE} is empty."),
    (
        "a ZIP with three files",
        "a.zip",
        zipped(("a.jsonl", GOOD), ("b.jsonl", GOOD), ("c.csv", GOOD)),
        f"{ONE} has 3: a.jsonl, b.jsonl, c.csv.",
    ),
    ("a ZIP that leads out", "a.zip", zipped(("../../a.jsonl", GOOD)), f"{ONE} has a path that leads out of it: ../../a.jsonl."),
    (
        "a ZIP that leads out by backslash",
        "a.zip",
        zipped(("x\\..\\a.jsonl", GOOD)),
        f"{ONE} has a path that leads out of it: x\\..\\a.jsonl.",
    ),
    ("a ZIP with a link", "a.zip", zipped((link("a.jsonl"), b"/etc/passwd")), f"{ONE} has a link: a.jsonl."),
    ("an encrypted ZIP", "a.zip", encrypted(zipped(("a.jsonl", GOOD))), f"{ONE} is encrypted. Pack it without a password."),
    ("a ZIP in a ZIP", "a.zip", zipped(("b.zip", zipped(("a.jsonl", GOOD)))), f"{ONE} has another archive inside: b.zip."),
    ("a gzip in a ZIP", "a.zip", zipped(("rows", gzip.compress(GOOD))), TWICE),
    ("a damaged ZIP", "a.zip", zipped(("a.jsonl", GOOD)).replace(b"fine", b"FINE"), "The ZIP file is damaged. Pack it again."),
    ("a gzip that ends early", "a.jsonl.gz", gzip.compress(GOOD * 9)[:-9], f"The gzip file {EARLY}"),
    ("a damaged gzip", "a.jsonl.gz", gzip.compress(GOOD)[:-8] + bytes(8), "The gzip file is damaged. Pack it again."),
    ("a gzip of gzip", "a.jsonl.gz", gzip.compress(gzip.compress(GOOD)), TWICE),
    ("a Zstandard that ends early", "a.jsonl.zst", zstd(GOOD * 9)[:-9], f"The Zstandard file {EARLY}"),
    ("a Zstandard of gzip", "a.jsonl.zst", zstd(gzip.compress(GOOD)), TWICE),
    ("nothing in a gzip", "a.jsonl.gz", gzip.compress(b""), "The file is empty."),
    (
        "a tar in a gzip",
        "a.tar.gz",
        gzip.compress(tar("a.jsonl", GOOD)),
        f"{ONE} is a tar archive. Upload the file inside, packed as .gz, .zst or .zip if it is large.",
    ),
    ("a PDF", "a.csv", b"%PDF-1.7\n%\xe2", f"This is a PDF file, not CSV. {EXPORT}"),
    ("a PNG", "a.txt", b"\x89PNG\r\n\x1a\n\x00\x00", f"This is a PNG image, not text. {EXPORT}"),
    ("a pickle", "a.jsonl", b"\x80\x04\x95\x10\x00\x00", f"This is a pickle file, not JSONL. {EXPORT}"),
    ("the beginning of a gzip", "rows", b"\x1f\x8b\x08\x00", f"The gzip file {EARLY}"),
    ("a bzip2", "rows.jsonl.bz2", b"BZh91AY&SY", "This is a bzip2 file, not a dataset. Unpack it and upload the file inside."),
    ("Excel 97", "a.csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "Excel 97 file: save as .xlsx or CSV."),
    (
        "a workbook with a password",
        "a.xlsx",
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(2000) + "EncryptedPackage".encode("utf-16-le"),
        "The Excel workbook is protected by a password. Save it without one.",
    ),
    (
        "a binary workbook",
        "a.xlsb",
        zipped(("xl/workbook.bin", b"")),
        "This is a binary Excel workbook, not a dataset. Save it as .xlsx or CSV.",
    ),
    ("a document", "a.docx", zipped(("word/document.xml", b"")), f"This is a Word document, not a dataset. {EXPORT}"),
    ("a workbook cut short", "a.xlsx", TABLE[:-40], f"The ZIP file {EARLY}"),
    (
        "a workbook without its sheets",
        "a.xlsx",
        zipped(("xl/workbook.xml", b"<workbook/>")),
        "The Excel workbook is damaged. Save it again.",
    ),
    ("an empty sheet", "a.xlsx", workbook(), "The sheet Rows is empty."),
    ("a header alone in a sheet", "a.xlsx", workbook(["text"]), "The file has a header, but no rows."),
    (
        "two columns of one name in a sheet",
        "a.xlsx",
        workbook(["text", "text"], ["a", "b"]),
        'Column name "text" appears twice. Rename one of them in the first row.',
    ),
    (
        "CSV named .xlsx in name only",
        "a.xlsx",
        b"text,id\na,1\n",
        "The XLSX file is damaged (its first bytes are not a ZIP's). Export it again.",
    ),
    (
        "an Arrow file cut short",
        "a.arrow",
        ipc(text=["a"] * 99)[:-900],
        "The Arrow file ends too early; was the upload or export interrupted?",
    ),
    ("an Arrow file of eight bytes", "a.arrow", b"ARROW1\x00\x00", "The Arrow file ends too early; was the upload or export interrupted?"),
    ("an Arrow file without rows", "a.arrow", ipc(text=pa.array([], pa.string())), "The file is empty."),
    ("Windows-1252", "a.jsonl", b'{"text": "it\x92s"}\n', "Line 1, byte 13: 0x92 is not UTF-8. Convert from Windows-1252?"),
    ("Windows-1252 in a table", "a.csv", b"text,id\nit\x92s,1\nb,2\n", "Line 2, byte 3: 0x92 is not UTF-8. Convert from Windows-1252?"),
    ("Windows-1252 in a text", "a.txt", b"it\x92s\nfine\n", "Line 1, byte 3: 0x92 is not UTF-8. Convert from Windows-1252?"),
    ("noise", "a.jsonl", bytes(range(32)) * 40 + b"\xff" * 99, f"This is a binary file, not JSONL. {EXPORT}"),
    (
        "pretty-printed objects one after the other",
        "a.jsonl",
        b'{\n "a": 1,\n "b": 2,\n "c": 3,\n "d": 4,\n "e": 5,\n "f": 6,\n "g": 7\n}\n{\n "a": 1\n}\n',
        "One object per line, or one array, please (object starts on line 1, ends on line 9).",
    ),
    ("no usable column", "a.jsonl", b'{"a": "x", "b": "y"}\n', "Found: a, b. Need messages, or prompt + completion, or text."),
    (
        "a table without training text",
        "a.csv",
        b"id,first_name,city\n1,Ana,Rome\n",
        "Found: id, first_name, city. Need messages, or prompt + completion, or text.",
    ),
    ("prompts only", "a.jsonl", b'{"turns": ["a", "b"]}\n', "Found: turns. Need messages, or prompt + completion, or text."),
    (
        "an unclosed quote",
        "a.csv",
        b'text,id\n"begins, 1\nb,2\nc,3\n',
        "The quote opened on line 2 never closes. Write a quote inside a value twice.",
    ),
    (
        "a quote that swallows all",
        "a.csv",
        b'text,id\n"fine",1\n"begins, 1\n' + b"b,2\n" * 1_500_000,
        "The quote opened on line 3 never closes. Write a quote inside a value twice.",
    ),
    ("two columns of one name", "a.csv", b"text,text\na,b\n", 'Column name "text" appears twice. Rename one of them in the first line.'),
    ("a header without end", "a.csv", b",".join(b"c%d" % n for n in range(300)) + b"\n1\n", "The header has more than 200 columns."),
    (
        "an object that swallows the rest",
        "a.json",
        b'[\n{"text": "a"},\n{"text": ' + b'["b"],\n' * 1_000_000,
        "The object that starts on line 3 is longer than 4 MB. Is a quote or a bracket missing in it?",
    ),
    (
        "a Parquet without its end",
        "a.parquet",
        table(text=["a"])[:-10],
        "The Parquet file is damaged (footer). Was the upload or export interrupted?",
    ),
    ("a Parquet of four bytes", "a.parquet", b"PAR1", "The Parquet file is damaged (footer). Was the upload or export interrupted?"),
    (
        "a Parquet column whose name is not UTF-8",
        "a.parquet",
        table(some_name=["a"]).replace(b"some_name", b"some\xffname"),
        "The Parquet file is damaged (footer). Was the upload or export interrupted?",
    ),
    ("an encrypted Parquet", "a.parquet", b"PARE" + b"\x00" * 40 + b"PARE", "The Parquet file is encrypted. Export it without encryption."),
    ("a Parquet without rows", "a.parquet", table(text=pa.array([], pa.string())), "The file is empty."),
    ("text named .parquet", "a.parquet", GOOD, "The Parquet file is damaged (its first bytes are not PAR1). Export it again."),
    (
        "a Parquet map",
        "a.parquet",
        table(x=pa.array([[("k", "v")]], pa.map_(pa.string(), pa.string()))),
        "Column x has type map, not supported.",
    ),
    ("a Parquet of bytes", "a.parquet", table(x=pa.array([b"v"])), "Column x has type binary, not supported."),
]

# Line 1 is refused; the good row after it is taken.
LINES: list[tuple[str, str, bytes, str]] = [
    ("a line of more than 4 MB", "a.jsonl", b'{"text": "' + b"a" * (LIMIT + 10) + b'"}\n', "Line 1 is longer than 4 MB."),
    ("NaN", "a.jsonl", b'{"text": "a", "n": NaN}\n', "Line 1: NaN is not valid JSON."),
    ("minus infinity", "a.jsonl", b'{"text": "a", "n": -Infinity}\n', "Line 1: -Infinity is not valid JSON."),
    ("a number without bounds", "a.jsonl", b'{"text": "a", "n": 1e400}\n', "Line 1: 1e400 is not valid JSON."),
    ("a key twice", "a.jsonl", b'{"text": "a", "text" : "b"}\n', 'Line 1: "text" appears twice.'),
    ("a key twice, hidden by a text", "a.jsonl", b'{"text": "\\":", "text" : "b"}\n', 'Line 1: "text" appears twice.'),
    ("a key twice, further in", "a.jsonl", b'{"text": "a", "m": [{"x": 1, "x": 2}]}\n', 'Line 1: "x" appears twice.'),
    ("depth of 100,000", "a.jsonl", b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", "Line 1: nested deeper than 64."),
    ("depth of 70", "a.jsonl", b'{"text": ' + b"[" * 70 + b"]" * 70 + b"}\n", "Line 1: nested deeper than 64."),
    ("5,000 digits", "a.jsonl", b'{"text": "a", "n": ' + b"1" * 5000 + b"}\n", "Line 1: number too long."),
    ("2^63", "a.jsonl", b'{"text": "a", "n": 9223372036854775808}\n', "Line 1: number too large."),
    ("2^64", "a.jsonl", b'{"text": "a", "n": 18446744073709551616}\n', "Line 1: number too large."),
    ("half an escape", "a.jsonl", b'{"text": "\\ud800"}\n', "Line 1: broken Unicode escape."),
    ("NUL", "a.jsonl", b'{"text": "a\\u0000b"}\n', "Line 1: contains a NUL character."),
    ("a comment", "a.jsonl", b'{"text": "a", // why\n', "Line 1, column 15: comments are not JSON. Remove it."),
    ("single quotes", "a.jsonl", b"{'text': 'a'}\n", "Line 1, column 2: single quotes are not JSON. Use double quotes."),
    ("a trailing comma", "a.jsonl", b'{"text": "a",}\n', "Line 1, column 13: a comma before the closing bracket is not JSON. Remove it."),
    (
        "a raw control character",
        "a.jsonl",
        b'{"text": "a\x01"}\n',
        "Line 1, column 12: a raw control character (0x01) inside text. Write it as an escape, such as \\n or \\t.",
    ),
    (
        "two objects on a line",
        "a.jsonl",
        b'{"text": "a"} {"text": "b"}\n',
        "Line 1, column 15: the object ends before this. One object per line, please.",
    ),
    ("a list", "a.jsonl", b"[1]\n", "Line 1 must be an object {…}, found a list."),
    ("a text", "a.jsonl", b'"hello"\n', "Line 1 must be an object {…}, found text."),
    ("a number", "a.jsonl", b"5\n", "Line 1 must be an object {…}, found a number."),
    ("null", "a.jsonl", b"null\n", "Line 1 must be an object {…}, found null."),
    ("10,000 keys", "a.jsonl", orjson.dumps({f"k{n}": 1 for n in range(10_000)}) + b"\n", "Line 1: more than 200 columns."),
    ("a name of 1 MB", "a.jsonl", orjson.dumps({"k" * 1_000_000: 1}) + b"\n", "Line 1: column name longer than 200 characters."),
    ("text that is a number", "a.jsonl", b'{"text": 5}\n', "Line 1: text must be text, found number."),
    ("text that is blank", "a.jsonl", b'{"text": "  "}\n', "Line 1: text is empty, there is nothing to learn."),
    ("an element that is a list", "a.json", b'[["a"],\n' + GOOD + b"]", "Line 1 must be an object {…}, found a list."),
    ("a broken element", "a.json", b'[{"text": nope},\n' + GOOD + b"]", "Line 1, column 10: expecting value, found 'n'."),
    ("ragged", "a.csv", b"text,id\na,1,2\nb,2\n", "Line 2: 3 values, expected 2."),
    ("NUL in a cell", "a.csv", b"text,id\na\x00b,1\nb,2\n", "Line 2: contains a NUL character."),
    (
        "text behind a closing quote",
        "a.csv",
        b'text,id\n"a"b,1\nb,2\n',
        "Line 2: text follows a closing quote. Write a quote inside a value twice.",
    ),
    ("ragged in a sheet", "a.xlsx", workbook(["text"], ["a", "b"], ["c"]), "Row 2: 2 values, expected 1."),
    (
        "a sheet's cell of nothing",
        "a.xlsx",
        workbook(["text", "id"], ["", 1], ["a", 2]),
        "Row 2: text is empty, there is nothing to learn.",
    ),
    ("an empty cell", "a.csv", b"question,answer\n2 + 2?,\n1 + 1?,2\n", "Line 2: answer is empty, there is nothing to learn."),
    ("an empty value in Parquet", "a.parquet", table(text=[None, "b"]), "Row 1: text is missing, there is nothing to learn."),
    (
        "an unknown role",
        "a.jsonl",
        chat(ASKED, {"role": "bot", "content": "4"}) + b"\n" + chat(ASKED, {"role": "assistant", "content": "4"}),
        'Line 1, message 2: role "bot" is unknown. Use system, user, assistant or tool.',
    ),
    ("no messages", "a.jsonl", chat() + FOLLOWS, "Line 1: no messages."),
    ("two questions in a row", "a.jsonl", chat(ASKED, ASKED, ANSWERED) + FOLLOWS, "Line 1, message 2: expected assistant after user."),
    ("a blank answer", "a.jsonl", chat(ASKED, said(" ")) + FOLLOWS, "Line 1: the assistant message is empty, there is nothing to learn."),
    ("an answer that is a number", "a.jsonl", chat(ASKED, said(4)) + FOLLOWS, "Line 1, message 2: content must be text, found number."),
    (
        "an image",
        "a.jsonl",
        chat({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, ANSWERED) + FOLLOWS,
        "Line 1, message 1: Images are not supported by this base model.",
    ),
    (
        "a tool's result that nobody asked for",
        "a.jsonl",
        chat(ASKED, {"role": "tool", "tool_call_id": "call_7", "content": "4"}, ANSWERED) + FOLLOWS,
        "Line 1, message 2: no tool call with id call_7.",
    ),
    (
        "two answers that are one",
        "a.json",
        b'{"prompt": "p", "chosen": "a", "rejected": "a"}\n{"prompt": "p", "chosen": "a", "rejected": "b"}\n',
        "Line 1: chosen and rejected are identical, they teach nothing.",
    ),
    ("the last line cut off", "a.json", GOOD + b'{"text": "b', "Line 2 is cut off; was the upload or export interrupted?"),
    (
        "a question without answer",
        "a.jsonl",
        chat(ASKED) + b"\n" + chat(ASKED, {"role": "assistant", "content": "4"}),
        "Line 1 ends with a question. Every chat must end with an answer.",
    ),
]

ROW = GOOD.rstrip()
# Taken as it is or as it is meant, and the notice (if any) that tells so: (what it tries, file name, content, rows, notice).
ODD: list[tuple[str, str, bytes, int, str]] = [
    ("a byte order mark", "a.jsonl", b"\xef\xbb\xbf" + GOOD, 1, ""),
    ("UTF-16 with mark", "a.jsonl", GOOD.decode().encode("utf-16"), 1, "UTF-16 was read as UTF-8."),
    ("UTF-32 with mark", "a.jsonl", GOOD.decode().encode("utf-32"), 1, "UTF-32 was read as UTF-8."),
    ("all line ends at once", "a.jsonl", ROW + b"\r\n" + ROW + b"\r" + ROW + b"\n" + ROW, 4, ""),
    ("line ends that are text", "a.jsonl", '{"text": "a\u2028b\u0085c"}\n'.encode(), 1, ""),
    ("no line end at the end", "a.jsonl", GOOD + ROW, 2, ""),
    (
        "messages that are text",
        "a.jsonl",
        orjson.dumps({"messages": orjson.dumps([ASKED, ANSWERED]).decode()}) + b"\n",
        1,
        "messages is text containing JSON and was parsed (1 time).",
    ),
    ("blank lines", "a.jsonl", GOOD + b"\n \n\n" + GOOD, 2, "3 blank lines skipped."),
    ("a JSON array", "a.jsonl", b"[" + ROW + b"," + ROW + b"]", 2, ""),
    ("one JSON object", "a.json", b'{\n  "text": "a"\n}', 1, ""),
    ("keys that come and go", "a.jsonl", GOOD + b'{"text": "b", "x": 1}\n', 2, "Column x is missing in 1 row."),
    ("semicolons", "a.csv", b"text;id\na;1,5\nb;2,5\n", 2, "Values are separated by a semicolon."),
    ("tabs", "a.tsv", b"text\tid\na\t1\nb\t2\n", 2, "Values are separated by a tab."),
    ("Excel's first line", "a.csv", b"sep=;\ntext;id\na;1\nb;2\n", 2, "Values are separated by a semicolon."),
    ("single quotes", "a.csv", b"'text','id'\n'a, b','1'\n'c','2'\n", 2, "Values stand in single quotes."),
    (
        "backslashes before quotes",
        "a.csv",
        b'text,id\n"say \\"a, b\\" to them",1\n"c",2\n',
        2,
        "A backslash before a quote makes it part of the value.",
    ),
    ("quoted line ends and quotes", "a.csv", b'text,id\n"a\nb ""c""",1\nd,2\n', 2, ""),
    ("a cell of 200 kB", "a.csv", b"text,id\n" + b"a" * 200_000 + b",1\nb,2\n", 2, ""),
    ("formulas in a table", "a.csv", b'text,id\n"=HYPERLINK(""x"")",+1\n@SUM(A1),-1\n', 2, ""),
    ("no name for a column", "a.csv", b"text,\na,1\nb,2\n", 2, "Column 2 has no name."),
    ("columns named like code", "a.csv", b"text,__class__,constructor,pk__in,id\na,1,2,3,4\n", 1, ""),
    ("a Parquet column of decimals", "a.parquet", table(text=["a"], x=pa.array([1], pa.decimal128(5))), 1, DECIMAL),
    ("a gzip of two members", "a.jsonl.gz", gzip.compress(GOOD) + gzip.compress(GOOD), 2, ""),
    ("a Zstandard of two frames", "a.jsonl.zst", zstd(GOOD) + zstd(GOOD), 2, ""),
    ("a ZIP as macOS makes it", "a.zip", zipped(("a.jsonl", GOOD), ("__MACOSX/._a.jsonl", b"\0"), (".DS_Store", b"\0")), 1, ""),
    ("a ZIP whose file has no name", "a.zip", NAMELESS, 1, ""),
    ("a gzip named otherwise", "a.jsonl", gzip.compress(GOOD), 1, "The file is packed with gzip. It was unpacked."),
    ("no gzip named so", "a.jsonl.gz", GOOD, 1, "The file is named as gzip, but is not packed. It was read as it is."),
    ("a workbook named .csv", "a.csv", TABLE, 1, "The file is named as CSV, but holds XLSX. It was read as XLSX."),
    ("a table named .jsonl", "a.jsonl", b"text,id\na,1\nb,2\n", 2, "The file is named as JSONL, but holds CSV. It was read as CSV."),
    (
        "a workbook of three sheets",
        "a.xlsx",
        workbook(["text"], ["a"], sheets=("Rows", "Notes", "2024")),
        1,
        "The sheet Rows was read. Others are: Notes, 2024.",
    ),
]
NAMES = [
    "../../x.jsonl",
    "..\\..\\x.jsonl",
    "a" * 300 + ".jsonl",
    "CON.jsonl",
    "\u202egnp.jsonl",
    "😀.jsonl",
    "<b>&.jsonl",
    ".jsonl",
    "%2e%2e%2fx",
]
"""Names that people and attackers give to files."""
