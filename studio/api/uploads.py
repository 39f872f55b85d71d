"""The API's part about files that arrive in pieces: the tus protocol, and the same in JSON for whoever has no client for it."""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from ninja import Query, Router, Schema
from pydantic import Field

from studio.api.fields import Input, Line, named
from studio.api.paging import Page, Paging, page
from studio.datasets import elsewhere, previews, tus, uploading
from studio.datasets.models import Connection, Upload
from studio.errors import UserError
from studio.workspaces.middleware import api_error
from studio.workspaces.models import Project

router = Router(tags=["Uploads"])


class UploadOut(Schema):
    id: UUID
    project: UUID
    purpose: str
    filename: str
    length: int
    offset: int
    """Bytes that have arrived."""
    status: str
    """arriving, complete or failed."""
    sha256: str
    """Of the whole file, once it is complete."""
    origin: dict[str, Any]
    error: str
    expires_at: datetime
    created_at: datetime


class UploadIn(Input):
    project: UUID
    filename: Line
    length: int = Field(ge=1, le=2**62)
    """Bytes."""
    sha256: Line = ""
    """Of the whole file. What arrives is compared with it."""
    purpose: Literal["dataset", "adapter"] = "dataset"
    """What is to become of it."""


class UploadFilters(Paging):
    project: UUID | None = None


def upload_out(upload: Upload) -> dict[str, Any]:
    order = upload.order
    failed = order is not None and not order.is_live and not upload.is_complete
    return {
        "id": upload.pk,
        "project": upload.project_id,
        "purpose": upload.purpose,
        "filename": upload.filename,
        "length": upload.length,
        "offset": upload.offset,
        "status": "complete" if upload.is_complete else "failed" if failed else "arriving",
        "sha256": upload.sha256,
        "origin": upload.origin,
        "error": order.error if order else "",
        "expires_at": upload.touched_at + uploading.KEPT,
        "created_at": upload.created_at,
    }


def refusal(status: int, error: UserError) -> HttpResponse:
    words = {400: "bad_request", 403: "forbidden", 409: "offset_conflict", 410: "gone", 412: "tus_version", 413: "too_large"}
    words |= {415: "content_type", 423: "locked", 460: "checksum"}
    return api_error(status, words[status], error.message, error.fields)


def reachable(request: HttpRequest) -> "QuerySet[Upload]":
    return Upload.objects.for_action(request, "dataset.create").select_related("project__client", "order")


def projects(request: HttpRequest) -> "QuerySet[Project]":
    return Project.objects.for_action(request, "dataset.create").select_related("client")


@router.get("/uploads", response=Page[UploadOut], url_name="uploads")
def list_uploads(request: HttpRequest, filters: Query[UploadFilters]) -> dict[str, Any]:
    """What is under way, or has arrived and is not a version yet."""
    return page(request, reachable(request), filters, show=upload_out, project=filters.project)


@router.post("/uploads", response={201: UploadOut}, url_name="uploads")
def create_upload(request: HttpRequest, payload: UploadIn | None = None) -> Any:
    """Begins an upload: as JSON, or as the tus protocol has it, with Upload-Length and `project`, `filename`, `sha256`,
    `purpose` (dataset or adapter) in Upload-Metadata.

    Its address is in the header Location. Send the bytes there by PATCH as application/offset+octet-stream with Upload-Offset, in
    pieces of at most 64 MiB, then name the upload in POST /datasets/{id}/versions.
    """
    if payload is not None:
        project = named(projects(request), payload.project, field="project")
        upload = begun(request, project, payload.filename, payload.length, payload.sha256, payload.purpose)
        response = HttpResponse(UploadOut.model_validate(upload_out(upload)).model_dump_json(), status=201, content_type="application/json")
        response["Location"] = place(request, upload)
        return response

    def do() -> HttpResponse:
        tus.refuse_other_versions(request)
        told, length = tus.metadata(request), tus.announced_length(request)
        try:
            project = named(projects(request), UUID(told.get("project", "")), field="project")
        except ValueError:
            raise tus.Refused(400, "Say in Upload-Metadata which project the file is for.") from None
        upload = begun(request, project, told.get("filename", ""), length, told.get("sha256", ""), told.get("purpose") or "dataset")
        return tus.created(upload, location=place(request, upload))

    return tus.answering(do, refusal=refusal)


def begun(request: HttpRequest, project: Project, filename: str, length: int, sha256: str, purpose: str) -> Upload:
    member = request.member  # type: ignore[attr-defined]
    return uploading.begin(member, project=project, filename=filename, length=length, sha256=sha256.lower(), purpose=purpose)


def place(request: HttpRequest, upload: Upload) -> str:
    return request.build_absolute_uri(reverse("api:upload", args=[upload.pk]))


class FetchIn(Input):
    project: UUID
    connection: UUID | None = None
    """In whose name; for an object of a store, the store."""
    repository: Line = ""
    """A dataset of the hub, owner/name."""
    revision: Line = ""
    """A branch, a tag or a commit; it is pinned to its commit."""
    file: Line = ""
    """One of the dataset's files, or of its splits; may be left out where there is only one."""
    key: Line = ""
    """An object of the store."""


@router.post("/uploads/fetch", response={201: UploadOut}, url_name="upload_fetch")
def fetch_upload(request: HttpRequest, payload: FetchIn) -> dict[str, Any]:
    """Has the studio fetch a file: of a dataset of the hub, or an object of a store. Ask for the upload until it is complete."""
    member = request.member  # type: ignore[attr-defined]
    project = named(projects(request), payload.project, field="project")
    kinds = elsewhere.STORES if payload.key else (Connection.Kind.HUB,)
    allowed = Connection.objects.for_action(request, "dataset.create").filter(kind__in=kinds)
    connection = named(allowed, payload.connection, field="connection") if payload.connection else None
    if not payload.key:
        snapshot = elsewhere.look_at_hub(payload.repository, revision=payload.revision, connection=connection)
        name = payload.file or only_one(snapshot)
        return upload_out(elsewhere.fetch_from_hub(member, project=project, snapshot=snapshot, name=name, connection=connection))
    if connection is None:
        raise UserError("Some values cannot be used.", fields={"connection": "This is needed."})
    return upload_out(elsewhere.fetch_object(member, project=project, connection=connection, key=payload.key))


def only_one(snapshot: elsewhere.Snapshot) -> str:
    names = [offer.name for offer in snapshot.offers]
    if len(names) > 1:
        raise UserError("Choose a file.", fields={"file": f"Use one of: {', '.join(names[:20])}."})
    return names[0]


class PreviewFilters(Input):
    encoding: Line = ""
    sheet: Line = ""


@router.get("/uploads/{uuid:pk}/preview", response=dict[str, Any], url_name="upload_preview")
def preview_upload(request: HttpRequest, pk: UUID, filters: Query[PreviewFilters]) -> dict[str, Any]:
    """What is in a file that has arrived: format, shape with the reason, columns, the first rows, the first lines that would be refused."""
    upload = get_object_or_404(reachable(request), pk=pk)
    if not uploading.complete(upload):
        raise UserError("The file has not arrived completely yet. Wait until it has.")
    return previews.preview(upload, reading=filters.model_dump(exclude_defaults=True))


@router.get("/uploads/{uuid:pk}", response=UploadOut, url_name="upload")
def get_upload(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    upload = get_object_or_404(reachable(request), pk=pk)
    uploading.complete(upload)
    return upload_out(upload)


@router.api_operation(["HEAD"], "/uploads/{uuid:pk}", response={200: None}, url_name="upload")
def ask_upload(request: HttpRequest, pk: UUID) -> HttpResponse:
    """How much has arrived, in Upload-Offset."""
    upload = get_object_or_404(reachable(request), pk=pk)
    return tus.answering(lambda: tus.head(upload), refusal=refusal)


@router.patch("/uploads/{uuid:pk}", response={204: None}, url_name="upload")
def send_piece(request: HttpRequest, pk: UUID) -> HttpResponse:
    """A piece, at most 64 MiB, as application/offset+octet-stream. Upload-Checksum may carry its digest."""
    upload = get_object_or_404(reachable(request), pk=pk)
    return tus.answering(lambda: tus.patch(request, upload), refusal=refusal)


@router.delete("/uploads/{uuid:pk}", response={204: None}, url_name="upload")
def discard_upload(request: HttpRequest, pk: UUID) -> HttpResponse:
    """Throws away what has arrived."""
    uploading.discard(request.member, get_object_or_404(reachable(request), pk=pk))  # type: ignore[attr-defined]
    return HttpResponse(status=204)
