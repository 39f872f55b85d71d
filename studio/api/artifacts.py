"""The API's part about what training and building leave behind, and the files to take home."""

from datetime import datetime
from typing import Any
from uuid import UUID

from django.db.models import QuerySet
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404
from ninja import Query, Router, Schema

from studio.api.fields import Line
from studio.api.paging import ClientsPaging, Page, page
from studio.artifacts import downloads
from studio.artifacts.models import Artifact

router = Router(tags=["Artifacts"])


class File(Schema):
    name: str
    size: int
    sha256: str


class ArtifactOut(Schema):
    id: UUID
    kind: str
    name: str
    project: UUID
    run: UUID | None
    """The training that it comes from, also through a build."""
    base_model: UUID | None
    dataset_version: UUID | None
    parents: list[UUID]
    sha256: str
    size: int
    files: list[File]
    lineage: dict[str, Any]
    created_at: datetime


class ArtifactFilters(ClientsPaging):
    project: UUID | None = None
    run: UUID | None = None
    kind: Line | None = None


def artifact_out(artifact: Artifact) -> dict[str, Any]:
    return {
        "id": artifact.pk,
        "kind": artifact.kind,
        "name": artifact.name,
        "project": artifact.project_id,
        "run": artifact.lineage.get("run", {}).get("id"),
        "base_model": artifact.base_model_id,
        "dataset_version": artifact.dataset_version_id,
        "parents": [parent.pk for parent in artifact.parents.all()],
        "sha256": artifact.sha256,
        "size": artifact.size,
        "files": [{"name": name, **facts} for name, facts in artifact.files.items()],
        "lineage": artifact.lineage,
        "created_at": artifact.created_at,
    }


@router.get("/artifacts", response=Page[ArtifactOut], url_name="artifacts")
def list_artifacts(request: HttpRequest, filters: Query[ArtifactFilters]) -> dict[str, Any]:
    visible = Artifact.objects.for_action(request, "artifact.view").prefetch_related("parents")
    run = str(filters.run) if filters.run else None
    return page(request, filters.of(visible), filters, show=artifact_out, project=filters.project, kind=filters.kind, lineage__run__id=run)


@router.get("/artifacts/{uuid:pk}", response=ArtifactOut, url_name="artifact")
def get_artifact(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    return artifact_out(get_object_or_404(Artifact.objects.for_action(request, "artifact.view"), pk=pk))


def downloadable(request: HttpRequest) -> "QuerySet[Artifact]":
    return Artifact.objects.for_action(request, "artifact.download").select_related("order", "build", "project__client")


@router.api_operation(["GET", "HEAD"], "/artifacts/{uuid:pk}/download", response={200: None}, url_name="artifact_download")
def download_artifact(request: HttpRequest, pk: UUID) -> HttpResponseBase:
    """The one file of a GGUF, with ranges; of everything else a zip. A GGUF that has not been verified answers 409."""
    return downloads.artifact_response(request, get_object_or_404(downloadable(request), pk=pk))


@router.api_operation(["GET", "HEAD"], "/artifacts/{uuid:pk}/files/{path:name}", response={200: None}, url_name="artifact_file")
def download_file(request: HttpRequest, pk: UUID, name: str) -> HttpResponseBase:
    """One file by its name, with ranges."""
    return downloads.artifact_file_response(request, get_object_or_404(downloadable(request), pk=pk), name)


@router.api_operation(["GET", "HEAD"], "/artifacts/{uuid:pk}/bundle", response={200: None}, url_name="artifact_bundle")
def download_bundle(request: HttpRequest, pk: UUID) -> HttpResponseBase:
    """The file with all that lies beside it, as a zip: card, Modelfile, licences, SHA256SUMS."""
    return downloads.bundle_response(request, get_object_or_404(downloadable(request), pk=pk))
