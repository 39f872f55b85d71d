"""The API's part about what a run reads: datasets, their versions, rows and refused lines."""

from datetime import datetime
from functools import reduce
from typing import Any, Literal
from uuid import UUID

import numpy as np
from django.db.models import QuerySet
from django.http import HttpRequest
from django.shortcuts import get_object_or_404
from ninja import File, Form, Query, Router, Schema
from ninja.files import UploadedFile
from pydantic import Field, Json

from studio.api.fields import Input, Line, json_body, named
from studio.api.paging import ClientsPaging, Page, Paging, cut, next_url, page
from studio.basemodels.models import BaseModel
from studio.datasets import marking, rows, services, shaping, uploading
from studio.datasets.deleting import delete_dataset
from studio.datasets.flags import BY_NAME, flag_named
from studio.datasets.models import Dataset, DatasetVersion, Upload
from studio.datasets.pages.rows import SEARCHED
from studio.errors import UserError
from studio.workspaces.models import Project

router = Router(tags=["Datasets"])


class DatasetOut(Schema):
    id: UUID
    project: UUID = Field(validation_alias="project_id")
    name: str
    held_out: bool
    """Kept for gates and comparisons: runs may not train on it."""
    license: str
    """On what terms its rows may be used; empty where nobody has said."""
    created_at: datetime


class DatasetIn(Input):
    project: UUID
    name: Line


class DatasetChanges(Input):
    name: Line | None = None
    held_out: bool | None = None
    license: Line | None = None


class DatasetFilters(ClientsPaging):
    project: UUID | None = None


def dataset_out(dataset: Dataset) -> Dataset:
    return dataset


@router.get("/datasets", response=Page[DatasetOut], url_name="datasets")
def list_datasets(request: HttpRequest, filters: Query[DatasetFilters]) -> dict[str, Any]:
    visible = filters.of(Dataset.objects.for_action(request, "dataset.view"))
    return page(request, visible, filters, show=dataset_out, project=filters.project)


@router.post("/datasets", response={201: DatasetOut}, url_name="datasets")
def create_dataset(request: HttpRequest, payload: DatasetIn) -> Dataset:
    project = named(Project.objects.for_action(request, "dataset.create").select_related("client"), payload.project, field="project")
    return services.create_dataset(request.member, project=project, name=payload.name)  # type: ignore[attr-defined]


@router.get("/datasets/{uuid:pk}", response=DatasetOut, url_name="dataset")
def get_dataset(request: HttpRequest, pk: UUID) -> Dataset:
    return get_object_or_404(Dataset.objects.for_action(request, "dataset.view"), pk=pk)


@router.patch("/datasets/{uuid:pk}", response=DatasetOut, url_name="dataset")
def update_dataset(request: HttpRequest, pk: UUID, payload: DatasetChanges) -> Dataset:
    dataset = get_object_or_404(Dataset.objects.for_action(request, "dataset.create").select_related("project__client"), pk=pk)
    shaping.update_dataset(request.member, dataset, name=payload.name, held_out=payload.held_out, license=payload.license)  # type: ignore[attr-defined]
    return dataset


@router.delete("/datasets/{uuid:pk}", response={204: None}, url_name="dataset")
def remove_dataset(request: HttpRequest, pk: UUID) -> None:
    """Deletes a dataset with all its versions. One that something was made of stays, and the answer says what that is."""
    dataset = get_object_or_404(Dataset.objects.for_action(request, "dataset.delete").select_related("project__client"), pk=pk)
    delete_dataset(request.member, dataset)  # type: ignore[attr-defined]


class Tokens(Schema):
    """Lengths of the rows under one base model's tokenizer."""

    p50: int
    p95: int
    p99: int
    longest: int
    total: int
    supervised: int
    base_model: UUID


class VersionOut(Schema):
    id: UUID
    dataset: UUID
    number: int
    filename: str
    status: Literal["importing", "ready", "refused"]
    progress: float
    """0 to 1, while it is importing."""
    shape: str | None
    rows: int | None
    refused: int | None
    """Lines that could not become rows."""
    duplicates: int | None
    sha256: str
    """Of the canonical rows."""
    file_sha256: str
    split: dict[str, int] | None
    tokens: Tokens | None
    """Under the newest base model; null until they have been counted."""
    issues: list[dict[str, Any]]
    mapping: dict[str, str]
    validation_percent: float
    seed: int
    rules: dict[str, Any]
    """What the split goes by, beyond share and seed."""
    origin: dict[str, Any]
    """Where the rows come from when it is no upload."""
    parent: UUID | None
    """The version that this one was edited from."""
    note: str
    changes: dict[str, int] | None
    """Rows added, changed and dropped, where it was edited from another version."""
    created_at: datetime


def version_out(version: DatasetVersion, base: BaseModel | None) -> dict[str, Any]:
    """`base` is the newest one, under whose tokenizer lengths are told."""
    facts = version.facts or {}
    return {
        "id": version.pk,
        "dataset": version.dataset_id,
        "number": version.number,
        "filename": version.filename,
        "status": version.status,
        "progress": version.order.share if version.status == "importing" else 1.0,
        "shape": facts.get("shape"),
        "rows": facts.get("rows"),
        "refused": facts.get("refused"),
        "duplicates": facts.get("duplicates"),
        "sha256": version.sha256,
        "file_sha256": version.upload_sha256,
        "split": facts.get("split"),
        "tokens": tokens_out(version, base),
        "issues": issues_of(version),
        "mapping": version.mapping,
        "validation_percent": version.validation_percent,
        "seed": version.seed,
        "rules": version.rules,
        "origin": version.origin,
        "parent": version.parent_id,
        "note": version.note,
        "changes": facts.get("changes"),
        "created_at": version.created_at,
    }


def tokens_out(version: DatasetVersion, base: BaseModel | None) -> dict[str, Any] | None:
    facts = version.token_facts(base)
    return {**facts.model_dump(exclude={"histogram"}), "base_model": base.pk} if facts and base else None


def issues_of(version: DatasetVersion) -> list[dict[str, Any]]:
    """What the import noticed, the worst first; where it failed, why."""
    facts = version.facts or {}
    found = [("error", version.order.error)] if version.order.error and not version.is_ready else []
    found += [("warning", text) for text in facts.get("warnings", [])] + [("note", text) for text in facts.get("notices", [])]
    return [{"level": level, "message": text} for level, text in found]


def newest_base(request: HttpRequest) -> BaseModel | None:
    return services.newest_base(request.member.workspace)  # type: ignore[attr-defined]


def visible(request: HttpRequest) -> "QuerySet[DatasetVersion]":
    return DatasetVersion.objects.for_action(request, "dataset.view").select_related("order")


@router.get("/datasets/{uuid:pk}/versions", response=Page[VersionOut], url_name="dataset_versions")
def list_versions(request: HttpRequest, pk: UUID, filters: Query[Paging]) -> dict[str, Any]:
    dataset = get_object_or_404(Dataset.objects.for_action(request, "dataset.view"), pk=pk)
    base = newest_base(request)
    return page(request, visible(request), filters, show=lambda version: version_out(version, base), dataset=dataset)


class VersionIn(Input):
    upload: UUID | None = None
    """A file that has arrived at /uploads, instead of one in this request."""
    mapping: Json[dict[str, str]] | None = None
    """Canonical field -> column, as JSON, where the columns are not to be recognised: `{"prompt": "question"}`."""
    validation_percent: float | None = None
    seed: int | None = None
    reading: Json[dict[str, Any]] | None = None
    """How the file is read, as JSON: `encoding` (cp1252), `sheet`, `refused` (skip or stop)."""
    rules: Json[dict[str, Any]] | None = None
    """What the split goes by, as JSON: `stratify` and `together` name columns, `near_duplicates` (true) keeps those on one side."""


class VersionBody(VersionIn):
    """The same as a JSON body."""

    mapping: dict[str, str] | None = None
    reading: dict[str, Any] | None = None
    rules: dict[str, Any] | None = None


@router.post("/datasets/{uuid:pk}/versions", response={202: VersionOut}, url_name="dataset_versions")
def add_version(
    request: HttpRequest,
    pk: UUID,
    details: Form[VersionIn],
    file: UploadedFile | None = File(None),  # noqa: B008
) -> dict[str, Any]:
    """A new version, of a file in this request or of an `upload` that has arrived; the latter may also be told as a JSON body.

    Its rows are read afterwards: ask for the version until its status is ready or refused.
    """
    dataset = get_object_or_404(Dataset.objects.for_action(request, "dataset.create").select_related("project__client"), pk=pk)
    told = json_body(request, VersionBody) if request.content_type == "application/json" else details
    version = version_of(request, dataset, told, file)
    return version_out(version, newest_base(request))


def version_of(request: HttpRequest, dataset: Dataset, told: VersionIn, file: UploadedFile | None) -> DatasetVersion:
    chosen = told.model_dump(exclude_none=True, exclude={"upload"})
    member = request.member  # type: ignore[attr-defined]
    if told.upload is not None:
        if file is not None:
            raise UserError("Some values cannot be used.", fields={"upload": "Send a file or name an upload, not both."})
        uploads = Upload.objects.for_action(request, "dataset.create").filter(project=dataset.project_id)
        upload = named(uploads.select_related("project__client", "order"), told.upload, field="upload")
        wanted = services.Upload(filename=upload.filename, chunks=(), size=upload.length, **chosen)
        return uploading.import_upload(member, upload, dataset=dataset, name="", wanted=wanted)
    if file is None:
        raise UserError("Some values cannot be used.", fields={"file": "This is needed."})
    wanted = services.Upload(filename=file.name or "upload", chunks=file.chunks(), size=file.size or 0, **chosen)
    return services.add_version(member, dataset=dataset, upload=wanted)


@router.get("/dataset-versions/{uuid:pk}", response=VersionOut, url_name="dataset_version")
def get_version(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    return version_out(get_object_or_404(visible(request), pk=pk), newest_base(request))


class RowFilters(Input):
    split: Literal["train", "validation"] | None = None
    after: int = Field(-1, ge=-1, le=2**62)
    """Index of the last row that the caller has."""
    limit: int = Field(50, ge=1, le=500)
    finding: str | None = None
    """Only rows in which this was found, such as `secret`."""
    change: Literal["added", "changed"] | None = None
    """Only rows that this version added or changed."""
    mark: Literal["star", "look"] | None = None
    q: str = Field("", max_length=200)
    """Only rows with a text that holds this; capitals do not matter. A page may come empty while there is a next one."""


@router.get("/dataset-versions/{uuid:pk}/rows", response=Page[dict[str, Any]], url_name="dataset_rows")
def list_rows(request: HttpRequest, pk: UUID, filters: Query[RowFilters]) -> dict[str, Any]:
    """The canonical rows in the order of the file; none while the version is importing."""
    version = get_object_or_404(visible(request), pk=pk)
    if not version.is_ready:
        return {"items": [], "next": None}
    flags = [flag_of(name) for name in (filters.finding, filters.change) if name]
    wanted = [marking.marked(version, filters.mark)] if filters.mark else []
    if len(flags) > 1:
        wanted.append(np.flatnonzero(rows.known_column(version.rows_path, "flags") & np.uint32(flags[1])))
    found = rows.search(
        version.rows_path,
        split=filters.split,
        after=filters.after,
        limit=filters.limit + 1,
        flags=flags[0] if flags else 0,
        wanted=reduce(np.intersect1d, wanted) if wanted else None,
        query=filters.q,
        most=SEARCHED,
    )
    items = found.rows[: filters.limit]
    last = found.reached if found.reached is not None and len(found.rows) <= filters.limit else items[-1]["index"] if items else None
    return {"items": items, "next": next_url(request, after=last) if found.full and last is not None else None}


def flag_of(name: str) -> int:
    flag = flag_named(name)
    if flag is None:
        raise UserError("Some values cannot be used.", fields={"finding": f"There is no such finding. Use one of {', '.join(BY_NAME)}."})
    return int(flag)


class RefusalFilters(Input):
    after: int = Field(0, ge=0, le=1_000_000)
    """How many the caller has."""
    limit: int = Field(100, ge=1, le=1000)


@router.get("/dataset-versions/{uuid:pk}/refusals", response=Page[dict[str, Any]], url_name="dataset_refusals")
def list_refusals(request: HttpRequest, pk: UUID, filters: Query[RefusalFilters]) -> dict[str, Any]:
    """The lines that could not become rows: line, column, reason, excerpt."""
    version = get_object_or_404(visible(request), pk=pk)
    if not version.is_ready:
        return {"items": [], "next": None}
    items = rows.refusals(version.folder / "refusals.jsonl", filters.limit + 1, after=filters.after)
    return cut(request, items, limit=filters.limit, after=lambda: filters.after + filters.limit)
