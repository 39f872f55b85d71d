"""Audit records as a file, CSV or JSON, sent while it is read: flat memory, however many there are."""

import csv
import io
from collections.abc import Iterator
from typing import Any

import orjson

from studio.audit.finding import Rows
from studio.audit.models import AuditRecord
from studio.cells import cell

TYPES = {"csv": "text/csv; charset=utf-8", "json": "application/json"}
PIECE = 500
"""Records that are read at a time."""
COLUMNS = (
    "id",
    "at",
    "user",
    "key",
    "ip",
    "client",
    "client_name",
    "verb",
    "object_kind",
    "object_id",
    "label",
    "change",
    "place",
    "sha256",
)


def as_told(record: AuditRecord) -> dict[str, Any]:
    """A record as files and the API tell it."""
    return {
        "id": record.pk,
        "at": record.at,
        "user": record.user_email or None,
        "key": record.key,
        "ip": record.ip,
        "client": record.client_id,
        "client_name": record.client_name,
        "verb": record.verb,
        "object_kind": record.object_kind,
        "object_id": record.object_id,
        "label": record.label,
        "change": record.change,
        "place": record.place,
        "sha256": record.sha256,
    }


def pieces(rows: Rows, format: str) -> Iterator[bytes]:
    """The file, newest record first."""
    return as_csv(rows) if format == "csv" else as_json(rows)


def batches(rows: Rows) -> Iterator[list[AuditRecord]]:
    """By id rather than by a cursor: each batch is a query of its own, which holds nothing open while somebody's line is slow."""
    before: int | None = None
    while batch := list((rows if before is None else rows.filter(pk__lt=before)).order_by("-id")[:PIECE]):
        yield batch
        before = batch[-1].pk


def as_csv(rows: Rows) -> Iterator[bytes]:
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    for batch in batches(rows):
        for record in batch:
            told = as_told(record) | {"at": record.at.isoformat(), "client": str(record.client_id or "")}
            writer.writerow([cell(told[name]) for name in COLUMNS])
        yield file.getvalue().encode()
        file.seek(0)
        file.truncate()
    yield file.getvalue().encode()


def as_json(rows: Rows) -> Iterator[bytes]:
    """A list of objects, one on a line."""
    first = True
    for batch in batches(rows):
        lines = b",\n".join(orjson.dumps(as_told(record)) for record in batch)
        yield (b"[\n" if first else b",\n") + lines
        first = False
    yield b"[]\n" if first else b"\n]\n"
