"""Writes audit records. Called by the service that makes the change, inside its transaction."""

from typing import Any

from django.db import connection, models

from studio.audit.models import AuditRecord


def record(member: Any, verb: str, thing: models.Model, *, change: dict[str, Any] | None = None, of_client: bool = True) -> AuditRecord:
    """One line of history. `member` is the workspaces.Member who acts; raises RuntimeError outside a transaction.

    `of_client` is False where it tells of more than the client of `thing`, so that nobody who is bound to that one may read it.
    """
    who = {"user": member.user, "user_email": member.user.email, "key": member.key.name if member.key else "", "ip": member.ip}
    client = getattr(thing, "audit_client", None) if of_client else None
    return _write(member.workspace, verb, thing, change, client=client, **who)


def record_of_a_link(
    workspace: Any, verb: str, thing: models.Model, *, ip: str | None, change: dict[str, Any] | None = None
) -> AuditRecord:
    """The same of somebody who is no member: whoever they are, they had a link."""
    return _write(workspace, verb, thing, change, client=getattr(thing, "audit_client", None), ip=ip)


def _write(workspace: Any, verb: str, thing: models.Model, change: dict[str, Any] | None, *, client: Any, **who: Any) -> AuditRecord:
    if not connection.in_atomic_block:
        raise RuntimeError("An audit record is written in the transaction of its change.")
    return AuditRecord.objects.create(
        workspace=workspace,
        client=client,
        client_name=client.name if client else "",
        verb=verb,
        object_kind=thing._meta.model_name or "",
        object_id=str(thing.pk),
        label=str(thing)[:200],
        change=change or {},
        **who,
    )


def history(member: Any) -> "models.QuerySet[AuditRecord]":
    """The records that a workspaces.Member may read: their workspace's, or those of the clients that bound them."""
    rows = AuditRecord.objects.filter(workspace=member.workspace)
    clients = member.client_ids()
    return rows if clients is None else rows.filter(client__in=clients)
