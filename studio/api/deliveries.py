"""The API's part about deliveries: handing a release over by a link, taking it back, and who fetched it."""

from datetime import datetime
from typing import Any
from uuid import UUID

from django.http import HttpRequest
from django.shortcuts import get_object_or_404
from django.urls import reverse
from ninja import Query, Router, Schema
from pydantic import Field

from studio.api.fields import Input, Line, named
from studio.api.paging import ClientsPaging, Page, page
from studio.artifacts.models import Build
from studio.releases import delivering
from studio.releases.models import Delivery, Release
from studio.workspaces.models import ScopedQuerySet

router = Router(tags=["Deliveries"])
LOGGED = 200


class DownloadOut(Schema):
    at: datetime
    ip: str | None
    user: str | None
    """E-mail of whoever was signed in."""
    agent: str
    resumed: bool
    """It went on with a download that had broken off, so it was not counted."""


class DeliveryOut(Schema):
    id: UUID
    release: UUID
    build: UUID
    recipient: str
    signed_in: bool
    """Whether the link opens only for guests of the client and members."""
    limit: int | None
    downloads: int
    state: str
    """open, revoked, expired or spent."""
    expires_at: datetime
    revoked_at: datetime | None
    created_at: datetime


class DeliveryWithLog(DeliveryOut):
    log: list[DownloadOut]
    """The newest first; at most 200."""


class DeliveryMade(DeliveryOut):
    link: str | None
    """Told this once, also where the request is repeated with its Idempotency-Key: only its hash is kept."""


class DeliveryIn(Input):
    release: UUID
    build: UUID | None = None
    """A file that was built of the release and passed; the one that its ladder recommends where none is named."""
    recipient: Line = ""
    """For whom, in words."""
    days: int = Field(7, ge=1, le=90)
    limit: int | None = Field(None, ge=1, le=delivering.MOST_DOWNLOADS)
    """How many times it can be fetched; null sets no limit."""
    signed_in: bool = False


class DeliveryFilters(ClientsPaging):
    client: UUID | None = None
    release: UUID | None = None


def delivery_out(delivery: Delivery) -> dict[str, Any]:
    names = ("recipient", "signed_in", "limit", "downloads", "state", "expires_at", "revoked_at", "created_at")
    shown = {name: getattr(delivery, name) for name in names}
    return shown | {"id": delivery.pk, "release": delivery.release_id, "build": delivery.build_id}


@router.get("/deliveries", response=Page[DeliveryOut], url_name="deliveries")
def list_deliveries(request: HttpRequest, filters: Query[DeliveryFilters]) -> dict[str, Any]:
    visible = filters.of(Delivery.objects.for_action(request, "delivery.view"))
    return page(request, visible, filters, show=delivery_out, release__project__client=filters.client, release=filters.release)


@router.post("/deliveries", response={201: DeliveryMade}, url_name="deliveries")
def create_delivery(request: HttpRequest, payload: DeliveryIn) -> tuple[int, dict[str, Any]]:
    """Hands an approved release over by a link. The client's guests see the release from then on."""
    member = request.member  # type: ignore[attr-defined]
    releases = Release.objects.for_action(member, "delivery.create").select_related("project__client__workspace", "artifact__base_model")
    release = named(releases, payload.release, field="release")
    made, secret = delivering.create_delivery(
        member,
        release=release,
        build=named_build(request, payload, release),
        recipient=payload.recipient,
        days=payload.days,
        limit=payload.limit,
        signed_in=payload.signed_in,
    )
    return 201, delivery_out(made) | {"link": request.build_absolute_uri(reverse("delivery", args=[secret]))}


def named_build(request: HttpRequest, payload: DeliveryIn, release: Release) -> Build:
    builds = Build.objects.for_action(request, "build.view").select_related("artifact")
    if payload.build is not None:
        return named(builds, payload.build, field="build")
    return delivering.first_file(request.member, release)  # type: ignore[attr-defined]


def visible_delivery(request: HttpRequest, pk: UUID, action: str) -> Delivery:
    found: ScopedQuerySet = Delivery.objects.for_action(request, action)
    delivery: Delivery = get_object_or_404(found.select_related("release__project__client"), pk=pk)
    return delivery


@router.get("/deliveries/{uuid:pk}", response=DeliveryWithLog, url_name="delivery")
def get_delivery(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    delivery = visible_delivery(request, pk, "delivery.view")
    log = [
        {
            "at": one.at,
            "ip": one.ip,
            "user": one.user.email if one.user else None,
            "agent": one.agent,
            "resumed": one.goes_on_id is not None,
        }
        for one in delivery.log.select_related("user")[:LOGGED]
    ]
    return delivery_out(delivery) | {"log": log}


@router.delete("/deliveries/{uuid:pk}", response={204: None}, url_name="delivery")
def revoke_delivery(request: HttpRequest, pk: UUID) -> tuple[int, None]:
    """Revokes it: the link answers nobody from then on. What was fetched stays where it is."""
    delivering.revoke_delivery(request.member, visible_delivery(request, pk, "delivery.create"))  # type: ignore[attr-defined]
    return 204, None
