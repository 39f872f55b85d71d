"""The API's part about its own keys. A key that makes another gives away no more than it has."""

from dataclasses import replace
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
    deployments: list[UUID] | None
    """The only deployments at work that it can ask, of those that you reach; null where it is not narrowed to any."""
    requests_per_minute: int | None
    """At the endpoint; null sets no limit."""
    tokens_per_minute: int | None
    """Read and written together."""
    at_once: int | None
    """Answers under way."""
    created_at: datetime
    expires_at: datetime | None
    used_at: datetime | None


class KeyMade(KeyOut):
    secret: str | None
    """The key itself, in this answer alone; null where an Idempotency-Key is repeated."""


class LimitsIn(Input):
    requests_per_minute: int | None = None
    """Of the endpoint, 1 to 1,000,000; null sets no limit, or that of the key that makes this one."""
    tokens_per_minute: int | None = None
    """Read and written together."""
    at_once: int | None = None
    """Answers under way, 1 to 1000."""

    def limits(self, before: services.Limits = services.NO_LIMITS) -> services.Limits:
        """With what stands for those that are not named."""
        named = {name: getattr(self, name) for name in services.LARGEST if name in self.model_fields_set}
        return replace(before, **named)


class KeyIn(LimitsIn):
    name: Line
    scopes: list[Line] = Field([], max_length=20)
    """Needed, but for a key that is narrowed to deployments: that one has the scope inference."""
    clients: list[UUID] | None = Field(None, max_length=1000)
    """null reaches all that you do."""
    deployments: list[UUID] | None = Field(None, max_length=1000)
    """The key can ask these at the endpoint, and do nothing else."""
    days: int | None = services.DEFAULT_DAYS
    """30, 90 or 365; null has no end."""


def key_out(key: ApiKey, *, bound: list[UUID] | None) -> dict[str, Any]:
    """`bound`: the clients that bound whoever asks, so that a colleague's key tells of no other."""
    clients = [client.pk for client in key.clients.all()]
    seen = [pk for pk in clients if bound is None or pk in bound]
    at_work = [deployment for deployment in key.deployments.all() if deployment.archived_at is None]
    asked = [deployment.pk for deployment in at_work if bound is None or deployment.client_id in bound]
    return {
        "id": key.pk,
        "name": key.name,
        "user": key.member.user.email,
        "prefix": key.prefix,
        "scopes": key.scopes,
        "clients": seen if key.narrowed or clients else None,
        "deployments": asked if key.by_deployment else None,
        **vars(services.Limits.of(key)),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "used_at": key.used_at,
    }


@router.get("/keys", response=Page[KeyOut], url_name="keys")
def list_keys(request: HttpRequest, filters: Query[Paging]) -> dict[str, Any]:
    """Yours; for owners and admins, those of everybody whom they manage. Revoked ones are left out."""
    rows = services.keys(request, "key.view").select_related("member__user").prefetch_related("clients", "deployments")
    show = partial(key_out, bound=request.member.client_ids())  # type: ignore[attr-defined]
    return page(request, rows, filters, show=show, revoked_at__isnull=True)


@router.post("/keys", response={201: KeyMade}, url_name="keys")
def create_key(request: HttpRequest, payload: KeyIn) -> dict[str, Any]:
    """A new key of yours. It has no scope, no client, no later end and no higher limit than the key that makes it."""
    member = request.member  # type: ignore[attr-defined]
    offered = offered_clients(member)
    clients = None if payload.clients is None else [named(offered, pk, field="clients") for pk in dict.fromkeys(payload.clients)]
    rows, asked = services.offered_deployments(member), payload.deployments
    deployments = None if asked is None else [named(rows, pk, field="deployments") for pk in dict.fromkeys(asked)]
    key, secret = services.create(
        member,
        name=payload.name,
        scopes=payload.scopes,
        clients=clients,
        deployments=deployments,
        limits=payload.limits(),
        days=payload.days,
    )
    return key_out(key, bound=member.client_ids()) | {"secret": secret}


@router.patch("/keys/{uuid:pk}", response=KeyOut, url_name="key")
def update_key(request: HttpRequest, pk: UUID, payload: LimitsIn) -> dict[str, Any]:
    """Changes its limits, from the next request on. The key itself stays as it is."""
    member = request.member  # type: ignore[attr-defined]
    rows = services.keys(request, "key.create").filter(revoked_at=None).select_related("member__user")
    key = get_object_or_404(rows, pk=pk)
    services.change_limits(member, key, payload.limits(services.Limits.of(key)))
    return key_out(key, bound=member.client_ids())


@router.delete("/keys/{uuid:pk}", response={204: None}, url_name="key")
def revoke_key(request: HttpRequest, pk: UUID) -> None:
    """The key is refused from the next call on. What it was used for stays on record."""
    services.revoke(request.member, get_object_or_404(services.keys(request, "key.revoke"), pk=pk))  # type: ignore[attr-defined]
