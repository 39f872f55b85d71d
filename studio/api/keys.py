"""The API's part about its own keys. A key that makes another gives away no more than it has."""

from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

from django.http import HttpRequest
from django.shortcuts import get_object_or_404
from ninja import Query, Router, Schema
from pydantic import Field

from studio.api.fields import Input, Line, named
from studio.api.paging import Page, Paging, page
from studio.workspaces import keys as services
from studio.workspaces.models import ApiKey
from studio.workspaces.people import offered_clients

router = Router(tags=["Workspace"])


class KeyOut(Schema):
    id: UUID
    name: str
    user: str
    """Whose it is."""
    prefix: str
    """How the key begins."""
    scopes: list[str]
    clients: list[UUID] | None
    """The only clients that it reaches, of those that you do; null where it reaches all that its maker does."""
    created_at: datetime
    expires_at: datetime | None
    used_at: datetime | None


class KeyMade(KeyOut):
    secret: str | None
    """The key itself, in this answer alone; null where an Idempotency-Key is repeated."""


class KeyIn(Input):
    name: Line
    scopes: list[Line] = Field(max_length=20)
    clients: list[UUID] | None = Field(None, max_length=1000)
    """null reaches all that you do."""
    days: int | None = services.DEFAULT_DAYS
    """30, 90 or 365; null has no end."""


def key_out(key: ApiKey, *, bound: list[UUID] | None) -> dict[str, Any]:
    """`bound`: the clients that bound whoever asks, so that a colleague's key tells of no other."""
    clients = [client.pk for client in key.clients.all()]
    seen = [pk for pk in clients if bound is None or pk in bound]
    return {
        "id": key.pk,
        "name": key.name,
        "user": key.member.user.email,
        "prefix": key.prefix,
        "scopes": key.scopes,
        "clients": seen if key.narrowed or clients else None,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "used_at": key.used_at,
    }


@router.get("/keys", response=Page[KeyOut], url_name="keys")
def list_keys(request: HttpRequest, filters: Query[Paging]) -> dict[str, Any]:
    """Yours; for owners and admins, those of everybody whom they manage. Revoked ones are left out."""
    rows = services.keys(request, "key.view").select_related("member__user").prefetch_related("clients")
    show = partial(key_out, bound=request.member.client_ids())  # type: ignore[attr-defined]
    return page(request, rows, filters, show=show, revoked_at__isnull=True)


@router.post("/keys", response={201: KeyMade}, url_name="keys")
def create_key(request: HttpRequest, payload: KeyIn) -> dict[str, Any]:
    """A new key of yours. It has no scope, no client and no later end than the key that makes it."""
    member = request.member  # type: ignore[attr-defined]
    offered = offered_clients(member)
    clients = None if payload.clients is None else [named(offered, pk, field="clients") for pk in dict.fromkeys(payload.clients)]
    key, secret = services.create(member, name=payload.name, scopes=payload.scopes, clients=clients, days=payload.days)
    return key_out(key, bound=member.client_ids()) | {"secret": secret}


@router.delete("/keys/{uuid:pk}", response={204: None}, url_name="key")
def revoke_key(request: HttpRequest, pk: UUID) -> None:
    """The key is refused from the next call on. What it was used for stays on record."""
    services.revoke(request.member, get_object_or_404(services.keys(request, "key.revoke"), pk=pk))  # type: ignore[attr-defined]
