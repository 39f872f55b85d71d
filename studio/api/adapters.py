"""The API's part about adapters that were trained elsewhere: brought, looked through, and taken into the registry.

It shares an address with the list of artifacts, and so its router.
"""

from datetime import datetime
from typing import Any
from uuid import UUID

from django.http import HttpRequest
from django.shortcuts import get_object_or_404
from ninja import File, Form, Schema, UploadedFile
from pydantic import Field

from studio.api.artifacts import router
from studio.api.fields import Input, Line, json_body, named, validated
from studio.artifacts import taking_in
from studio.artifacts.models import AdapterUpload
from studio.basemodels.models import BaseModel
from studio.datasets.models import Upload
from studio.errors import UserError
from studio.workspaces.models import Project


class AdapterUploadOut(Schema):
    id: UUID
    project: UUID
    base_model: UUID
    name: str
    filename: str
    sha256: str
    """Of the file as it came."""
    status: str
    error: str
    artifact: UUID | None
    """The adapter as it is kept, once it has been looked through."""
    created_at: datetime


class AdapterForm(Input):
    project: UUID | None = None
    base_model: UUID | None = None
    """What it was trained on."""
    name: Line = ""
    config: str = Field("", max_length=taking_in.LARGEST_CONFIG)
    """The text of adapter_config.json, where the file is adapter_model.safetensors alone."""
    upload: UUID | None = None
    """A file that has arrived in pieces, with the purpose adapter."""


class AdapterIn(AdapterForm):
    project: UUID
    base_model: UUID


def adapter_out(asked: AdapterUpload) -> dict[str, Any]:
    artifact = asked.artifact
    return {
        "id": asked.pk,
        "project": asked.project_id,
        "base_model": asked.base_model_id,
        "name": asked.name,
        "filename": asked.filename,
        "sha256": asked.sha256,
        "status": asked.order.status,
        "error": asked.order.error,
        "artifact": artifact.pk if artifact else None,
        "created_at": asked.created_at,
    }


@router.post("/artifacts", response={202: AdapterUploadOut}, url_name="artifacts")
def upload_adapter(
    request: HttpRequest,
    details: Form[AdapterForm],
    file: UploadedFile | None = File(None),  # noqa: B008
) -> dict[str, Any]:
    """An adapter that PEFT, Unsloth, Axolotl or LLaMA-Factory trained: a .zip of its folder, or safetensors beside its config.

    It is looked through in a locked-in process: ask GET /adapter-uploads/{id} until its status is succeeded or failed.
    """
    is_json = request.content_type == "application/json"
    told = json_body(request, AdapterIn) if is_json else validated(AdapterIn, details.model_dump(exclude_none=True))
    member = request.member  # type: ignore[attr-defined]
    project = named(Project.objects.for_action(request, "artifact.upload").select_related("client"), told.project, field="project")
    base = named(BaseModel.objects.for_action(request, "base_model.view"), told.base_model, field="base_model")
    if (file is None) == (told.upload is None):
        raise UserError("Some values cannot be used.", fields={"file": "Send a file or name an upload: one of the two."})
    config = told.config.encode()
    if file is not None:
        sent: dict[str, Any] = {"filename": file.name or "adapter", "pieces": file.chunks(), "length": file.size or 0}
        return adapter_out(taking_in.take_in_whole(member, project=project, base=base, name=told.name, config=config, **sent))
    assert told.upload is not None  # one of the two is there
    uploads = Upload.objects.for_action(request, "artifact.upload").filter(project=project).select_related("project__client", "order")
    upload = named(uploads, told.upload, field="upload")
    return adapter_out(taking_in.take_in(member, upload, base=base, name=told.name, config=config))


@router.get("/adapter-uploads/{uuid:pk}", response=AdapterUploadOut, url_name="adapter_upload")
def get_adapter_upload(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    rows = AdapterUpload.objects.for_action(request, "artifact.view").select_related("order").prefetch_related("order__artifacts")
    return adapter_out(get_object_or_404(rows, pk=pk))
