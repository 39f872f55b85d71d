"""Small valid files of every format, ways to damage them, and what a reader may answer: rows, refused rows or one sentence.

Stands under the property tests and under the fuzz run of `scripts/nightly`.
"""

import csv
import gzip
import io
import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from studio.datasets.readers import LIMIT, Line, Refusal, open_file
from studio.datasets.readers.lines import COLUMNS, NAME
from studio.errors import UserError
from tests.datasets.corpus import workbook, zipped, zstd

ROWS = [
    {"question": f"What is {n} + 1, Zoë?\nThink.", "answer": f'"{n + 1}"; 007', "turns": [{"n": n, "deep": ["a", None]}]} for n in range(12)
]
FLAT = [{name: str(value) for name, value in row.items()} for row in ROWS]


def table(delimiter: str, quote: str = '"') -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(FLAT[0]), delimiter=delimiter, quotechar=quote, lineterminator="\n")
    writer.writeheader()
    writer.writerows(FLAT)
    return file.getvalue().encode()


def parquet(**options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), file, row_group_size=5, **options)
    return file.getvalue()


def ipc(make: Callable[..., Any], compression: str | None = None) -> bytes:
    file, whole = io.BytesIO(), pa.Table.from_pylist(ROWS)
    whole = whole.append_column("kind", pa.array(["a", "b"] * 6).dictionary_encode())
    with make(file, whole.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(whole, max_chunksize=5)
    return file.getvalue()


LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
MARKDOWN = b"# Title\n\nSome *text*.\n\n```\na\n\nb\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"
VALID: dict[str, tuple[str, bytes]] = {
    "JSONL": ("a.jsonl", LINES),
    "JSON array": ("a.json", json.dumps(ROWS, indent=1, ensure_ascii=False).encode()),
    "JSON object": ("a.json", json.dumps(ROWS[0], indent=1).encode()),
    "CSV": ("a.csv", table(",")),
    "CSV by semicolon": ("a.csv", table(";", "'")),
    "TSV": ("a.tsv", table("\t")),
    "text": ("a.txt", b"One line.\nAnother one.\n\nA paragraph.\n"),
    "Markdown": ("a.md", MARKDOWN),
    "UTF-16": ("a.jsonl", LINES.decode().encode("utf-16")),
    "Windows-1252": ("a.csv", table(",").decode().encode("cp1252")),
    "Parquet": ("a.parquet", parquet()),
    "Parquet by Zstandard": ("a.parquet", parquet(compression="zstd", data_page_version="2.0", use_dictionary=False)),
    "Arrow file": ("a.arrow", ipc(pa.ipc.new_file)),
    "Arrow stream": ("a.arrow", ipc(pa.ipc.new_stream, "zstd")),
    "XLSX": ("a.xlsx", workbook(list(FLAT[0]), *[list(row.values()) for row in FLAT], [1, True, 2.5], sheets=("A", "B"))),
    "gzip": ("a.jsonl.gz", gzip.compress(LINES)),
    "Zstandard": ("a.csv.zst", zstd(table(","))),
    "ZIP": ("a.zip", zipped(("a.jsonl", LINES))),
}
"""A valid file of each kind: what it is, its name, its bytes."""
TOKENS = [
    *(b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff\x00", b"\r", b"\n", b"\n" * 40, b'"', b"'", b"\\", b'\\"', b"\\ud800"),
    *(b"\\u0000", b",", b";", b"\t", b"{", b"}", b"[", b"]", b"[" * 70, b"NaN", b"-Infinity", b"1e999", b"9" * 30, b"//", b"```"),
    *(b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80", b"\xff" * 8, b"\x00" * 16, b"PAR1", b"ARROW1\x00\x00", b"PK\x03\x04"),
    *(b"PK\x01\x02", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"<row>", b"</c>", b"<!DOCTYPE x>", b"&#x0;", b"&lt;", b'r="XFD9999999"'),
    *(b't="s"', b"a" * 300, b"sep=;\n"),
]  # fmt: skip
"""What parsers stumble over."""


def damaged(content: bytes, chance: random.Random) -> bytes:
    """The same bytes after one to six small accidents."""
    whole = bytearray(content)
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(whole) + 1)
        some = chance.choice((1, 2, 4, 8, chance.randint(1, 64)))
        accident = chance.randrange(7)
        if accident == 0:
            whole[at : at + 1] = bytes((chance.randrange(256),))
        elif accident == 1:
            whole[at : at + 1] = bytes((whole[at] ^ (1 << chance.randrange(8)),)) if at < len(whole) else b""
        elif accident == 2:
            del whole[at : at + some]
        elif accident == 3:
            whole[at:at] = whole[at : at + some] * chance.choice((1, 2, 50))
        elif accident == 4:
            whole[at:at] = chance.choice(TOKENS)
        elif accident == 5:
            token = chance.choice(TOKENS)
            whole[at : at + len(token)] = token
        elif chance.random() < 0.3:
            del whole[at:]
    return bytes(whole)


def damaged_inside(content: bytes, chance: random.Random) -> bytes:
    """A packed file or a workbook whose content is damaged, and then packed as it should be."""
    if content.startswith(b"\x1f\x8b"):
        return gzip.compress(damaged(gzip.decompress(content), chance))
    if content.startswith(b"\x28\xb5\x2f\xfd"):
        with pa.CompressedInputStream(pa.BufferReader(content), "zstd") as inside:
            return zstd(damaged(inside.read(), chance))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    chosen = chance.choice(list(members))
    members[chosen] = damaged(members[chosen], chance)
    return zipped(*members.items(), compression=8)


def can_be_damaged_inside(content: bytes) -> bool:
    return content.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PK"))


def answer(path: Path, name: str, *, encoding: str = "", work: Path | None = None) -> str:
    """What a file was answered with: its format, or "refused". Raises AssertionError for what no reader may answer."""
    try:
        reading = open_file(path, filename=name, encoding=encoding, work=work)
        for outcome in reading.lines:
            check_outcome(outcome)
    except UserError as refused:
        check_sentence(refused.message)
        orjson.dumps(refused.facts)
        return "refused"
    assert 0 <= reading.position <= reading.size
    assert len(reading.notices) < 60
    for notice in reading.notices:
        check_sentence(notice)
    return reading.format


def check_outcome(outcome: Line | Refusal) -> None:
    if isinstance(outcome, Refusal):
        check_sentence(outcome.reason)
        assert len(outcome.excerpt) < 400, outcome
        outcome.excerpt.encode()  # nothing that a database or a page could not take
        assert "\0" not in outcome.excerpt, outcome
    else:
        assert len(outcome.columns) <= COLUMNS
        assert all(isinstance(column, str) and len(column) <= NAME for column in outcome.columns), outcome
        assert sum(len(value) for value in outcome.columns.values() if isinstance(value, str)) <= LIMIT


def check_sentence(text: str) -> None:
    assert 5 < len(text) < 3000, text[:3000]
    assert text.endswith((".", "?")), text
    text.encode()
