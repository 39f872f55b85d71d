"""Writes audit records. Called by the service that makes the change, inside its transaction."""

from typing import Any

from django.db import connection, models

from studio.audit.models import AuditRecord


def record(member: Any, verb: str, thing: models.Model, *, change: dict[str, Any] | None = None) -> AuditRecord:
    """One line of history. `member` is the workspaces.Member who acts; raises RuntimeError outside a transaction."""
    if not connection.in_atomic_block:
        raise RuntimeError("An audit record is written in the transaction of its change.")
    client = getattr(thing, "audit_client", None)
    return AuditRecord.objects.create(
        workspace=member.workspace,
        client=client,
        user=member.user,
        key=member.key.name if member.key else "",
        ip=member.ip,
        verb=verb,
        object_kind=thing._meta.model_name or "",
        object_id=str(thing.pk),
        label=str(thing)[:200],
        change=change or {},
    )


def history(member: Any) -> "models.QuerySet[AuditRecord]":
    """The records that a workspaces.Member may read: their workspace's, or those of the clients that bound them."""
    rows = AuditRecord.objects.filter(workspace=member.workspace).select_related("user", "client")
    clients = member.client_ids()
    return rows if clients is None else rows.filter(client__in=clients)
