"""The API's part about clients' logos: set, looked at as the PNG that is kept, and removed."""

import base64
from typing import Any
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from ninja import File, Router, Schema
from ninja.files import UploadedFile
from pydantic import Field

from studio.workspaces.logos import remove_logo, set_logo
from studio.workspaces.models import Client, Logo

router = Router(tags=["Workspace"])


class LogoOut(Schema):
    client: UUID = Field(validation_alias="client_id")
    width: int
    """Pixels, as it is kept: at most 1,024 wide and 256 high."""
    height: int


@router.get("/clients/{uuid:pk}/logo", url_name="client_logo")
def get_logo(request: HttpRequest, pk: UUID) -> HttpResponse:
    """The picture, as image/png."""
    client = get_object_or_404(Client.objects.for_action(request, "client.view"), pk=pk)
    logo = get_object_or_404(Logo, client=client)
    return HttpResponse(base64.b64decode(logo.image), content_type="image/png", headers={"X-Content-Type-Options": "nosniff"})


@router.post("/clients/{uuid:pk}/logo", response={201: LogoOut}, url_name="client_logo")
def set_client_logo(
    request: HttpRequest,
    pk: UUID,
    file: UploadedFile | None = File(None),  # noqa: B008
) -> Any:
    """A PNG or JPEG of up to 5 MB as `file` of a form, in place of the one before. It is made small; nothing of the file itself is kept."""
    client = get_object_or_404(Client.objects.for_action(request, "client.logo").select_related("workspace"), pk=pk)
    return set_logo(request.member, client, file)  # type: ignore[attr-defined]


@router.delete("/clients/{uuid:pk}/logo", response={204: None}, url_name="client_logo")
def delete_logo(request: HttpRequest, pk: UUID) -> None:
    client = get_object_or_404(Client.objects.for_action(request, "client.logo").select_related("workspace"), pk=pk)
    remove_logo(request.member, client)  # type: ignore[attr-defined]
