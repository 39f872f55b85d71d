"""The API's part about making datasets out of datasets: splits, mixes, and files to take home."""

from typing import Any, Literal
from uuid import UUID

from django.http import Http404, HttpRequest
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404
from ninja import Query, Router
from pydantic import Field

from studio.api.datasets import VersionOut, newest_base, version_out
from studio.api.fields import Input, Line, named
from studio.datasets import shaping
from studio.datasets.downloads import export_response
from studio.datasets.models import Dataset, DatasetVersion
from studio.workspaces.models import Project

router = Router(tags=["Datasets"])


class SplitIn(Input):
    validation_percent: float = 5.0
    seed: int = 42
    near_duplicates: bool = True
    """Whether rows that nearly repeat each other stay on one side."""


@router.post("/dataset-versions/{uuid:pk}/splits", response={202: VersionOut}, url_name="dataset_splits")
def split_version(request: HttpRequest, pk: UUID, payload: SplitIn) -> dict[str, Any]:
    """The same rows with another split, as the dataset's next version."""
    writable = DatasetVersion.objects.for_action(request, "dataset.create").select_related("order", "dataset__project__client")
    version = shaping.split_again(
        request.member,  # type: ignore[attr-defined]
        get_object_or_404(writable, pk=pk),
        percent=payload.validation_percent,
        seed=payload.seed,
        near_duplicates=payload.near_duplicates,
    )
    return version_out(version, newest_base(request))


class PartIn(Input):
    version: UUID
    times: float | None = None
    """So many times its rows to train on: 0.5 takes half of them, 2 takes each twice."""
    share: float | None = None
    """Per cent of all rows to train on, instead of `times`."""
    most: int | None = None
    """Rows that it gives at most."""


class MixIn(Input):
    project: UUID
    name: Line = ""
    """Of a new dataset; or name an existing one in `dataset`, whose next version it becomes."""
    dataset: UUID | None = None
    parts: list[PartIn] = Field(min_length=1, max_length=shaping.mixing.MOST_PARTS)
    seed: int = 42
    without_held_out: bool = False
    """Leaves out rows that a held-out set of the client has too."""


@router.post("/mixes", response={202: VersionOut}, url_name="mixes")
def create_mix(request: HttpRequest, payload: MixIn) -> dict[str, Any]:
    """A version made of several versions of one client. What they hold back for validation stays held back."""
    project = named(Project.objects.for_action(request, "dataset.create").select_related("client"), payload.project, field="project")
    datasets = Dataset.objects.for_action(request, "dataset.create").select_related("project__client")
    versions = DatasetVersion.objects.for_action(request, "dataset.view").select_related("dataset__project__client", "order")
    version = shaping.mix(
        request.member,  # type: ignore[attr-defined]
        project=project,
        parts=[
            shaping.Part(version=named(versions, part.version, field="parts"), times=part.times, share=part.share, most=part.most)
            for part in payload.parts
        ],
        name=payload.name,
        dataset=named(datasets, payload.dataset, field="dataset") if payload.dataset else None,
        seed=payload.seed,
        without_held_out=payload.without_held_out,
    )
    return version_out(version, newest_base(request))


class ExportFilters(Input):
    format: Literal["jsonl", "parquet", "csv"] = "jsonl"
    spelling: Literal["openai", "sharegpt", "alpaca"] = "openai"
    split: Literal["train", "validation"] | None = None


@router.get("/dataset-versions/{uuid:pk}/export", url_name="dataset_export")
def export_version(request: HttpRequest, pk: UUID, filters: Query[ExportFilters]) -> HttpResponseBase:
    """The rows as a file, sent while they are read."""
    readable = DatasetVersion.objects.for_action(request, "dataset.export").select_related("dataset", "order")
    version = get_object_or_404(readable, pk=pk)
    if not version.is_ready:
        raise Http404
    return export_response(version, format=filters.format, spelling=filters.spelling, split=filters.split or "")
