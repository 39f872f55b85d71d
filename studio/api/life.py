"""The API's part about the life of a client's data: restored, exported, erased with a certificate. Archiving is DELETE of a client."""

from datetime import datetime
from typing import Any
from uuid import UUID

from django.db.models import F
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404
from ninja import Query, Router, Schema

from studio.api.fields import Input, Line
from studio.api.paging import Page, Paging, page
from studio.api.workspaces import ClientOut
from studio.clients import erasing
from studio.clients.exporting import export_response
from studio.workspaces.models import Client, Erasure
from studio.workspaces.services import restore_client

router = Router(tags=["Workspace"])


class ErasureIn(Input):
    name: Line = ""
    """Of the client, as it stands there: what is erased cannot be brought back. Without it nothing is."""
    reason: Line = ""


class ErasureOut(Schema):
    id: UUID
    client: UUID
    client_name: str
    erased_at: datetime
    """When it was asked for."""
    finished_at: datetime | None
    """Null until nothing is left."""
    sha256: str
    """Of the certificate, as JSON with its keys sorted and no spaces."""
    certificate: dict[str, Any]


def erasure_out(erasure: Erasure) -> Erasure:
    return erasure


@router.post("/clients/{uuid:pk}/restore", response=ClientOut, url_name="client_restore")
def restore(request: HttpRequest, pk: UUID) -> Client:
    """Brings an archived client back, with everything that was made for it."""
    client: Client = get_object_or_404(Client.objects.for_action(request, "client.edit"), pk=pk)
    restore_client(request.member, client)  # type: ignore[attr-defined]
    return client


@router.get("/clients/{uuid:pk}/export", url_name="client_export")
def export(request: HttpRequest, pk: UUID) -> HttpResponseBase:
    """Everything of the client as one zip. That it was taken is on record."""
    client = get_object_or_404(Client.objects.for_action(request, "client.export"), pk=pk)
    return export_response(request, request.member, client)  # type: ignore[attr-defined]


@router.post("/clients/{uuid:pk}/erase", response={202: ErasureOut}, url_name="client_erase")
def erase(request: HttpRequest, pk: UUID, payload: ErasureIn) -> Erasure:
    """Deletes everything of the client for good, and leaves a certificate."""
    client = get_object_or_404(Client.objects.for_action(request, "client.erase").select_related("workspace"), pk=pk)
    return erasing.erase(request.member, client, typed=payload.name, reason=payload.reason)  # type: ignore[attr-defined]


@router.get("/erasures", response=Page[ErasureOut], url_name="erasures")
def list_erasures(request: HttpRequest, filters: Query[Paging]) -> dict[str, Any]:
    return page(request, erasing.certificates(request).annotate(created_at=F("erased_at")), filters, show=erasure_out)


@router.get("/erasures/{uuid:pk}", response=ErasureOut, url_name="erasure")
def get_erasure(request: HttpRequest, pk: UUID) -> Erasure:
    return get_object_or_404(erasing.certificates(request), pk=pk)
