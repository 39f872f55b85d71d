"""The chain of a workspace's audit records: each is sealed with the hash of the one before it, so that one taken out by hand is noticed.

The rounds seal every few seconds; the request that writes a record does not. To seal in its transaction, requests of one workspace would
wait for each other until each has committed, and two that hold other rows besides could wait for each other for ever.
"""

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, timedelta
from typing import Any

from django.db import connection, transaction
from django.utils import timezone

from studio.audit import triggers
from studio.audit.models import AuditChain, AuditRecord

AT_ONCE = 200
"""Records that are sealed in one transaction: others write in between."""
PATIENCE = timedelta(minutes=10)
"""How old a record is at most before somebody should ask why it is not sealed."""


def digest(record: AuditRecord, before: str) -> str:
    """The seal of a record, as the database gives it, behind the one whose seal is `before`."""
    content = [
        before,
        record.place,
        *(record.pk, str(record.workspace_id), str(record.client_id or ""), record.client_name, record.user_id, record.user_email),
        *(record.key, record.at.astimezone(UTC).isoformat(timespec="microseconds"), record.ip, record.verb),
        *(record.object_kind, record.object_id, record.label, record.change),
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def seal() -> int:
    """Seals what has been written since the last time; returns how many records."""
    waiting = AuditRecord.objects.filter(place=None).order_by().values_list("workspace", flat=True).distinct()
    count = 0
    for workspace in list(waiting):
        while sealed := seal_some(workspace):
            count += sealed
    return count


def seal_some(workspace: Any) -> int:
    AuditChain.objects.get_or_create(workspace_id=workspace)
    with transaction.atomic():
        chain = AuditChain.objects.select_for_update().get(pk=workspace)
        rows = list(AuditRecord.objects.filter(workspace=workspace, place=None).order_by("id")[:AT_ONCE])
        for row in rows:
            chain.place += 1
            row.place = chain.place
            row.sha256 = chain.sha256 = digest(row, chain.sha256)
        if rows:
            AuditRecord.objects.bulk_update(rows, ["place", "sha256"])
            chain.save()
    return len(rows)


def faults(workspace: Any) -> Iterator[str]:
    """What is wrong with the records of a workspace, in sentences."""
    expected, before = 1, ""
    for row in AuditRecord.objects.filter(workspace=workspace, place__isnull=False).order_by("place").iterator(chunk_size=1000):
        whole = row.place == expected
        if not whole:
            yield missing_words(expected, (row.place or 0) - 1)
        elif digest(row, before) != row.sha256:
            yield f"Record {row.place} (id {row.pk}, {row.verb}, {row.at:%Y-%m-%d %H:%M}) is not as it was sealed."
        expected, before = (row.place or 0) + 1, row.sha256
    chain = AuditChain.objects.filter(pk=workspace).first()
    if chain is None:
        if expected > 1:
            yield "Nothing says where the chain ends."
    elif chain.place >= expected:
        yield missing_words(expected, chain.place)
    elif (chain.place, chain.sha256) != (expected - 1, before):
        yield "The chain does not end where it is said to end."
    late = AuditRecord.objects.filter(workspace=workspace, place=None, at__lt=timezone.now() - PATIENCE).count()
    if late:
        yield f"{late} records wait to be sealed. Look whether the rounds run."


def missing_words(first: int, last: int) -> str:
    return f"Record {first} is missing." if first == last else f"Records {first} to {last} are missing."


def unguarded() -> str:
    """Why records could be changed unnoticed; empty where the database refuses to."""
    if not triggers.missing(connection):
        return ""
    return "The database lets records be changed: its triggers are missing. Run manage.py check_audit --guard."
