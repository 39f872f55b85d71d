"""The API's part about rows that a model writes: asked for, decided about one by one, and added to a dataset."""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from django.http import HttpRequest
from django.shortcuts import get_object_or_404
from ninja import Query, Router, Schema
from pydantic import Field

from studio.api.datasets import VersionOut, newest_base, version_out
from studio.api.fields import Input, Line
from studio.api.paging import Page, Paging, page
from studio.datasets import synthesis as services
from studio.datasets.models import DatasetVersion, Synthesis, SyntheticRow
from studio.datasets.writers import writers_for
from studio.errors import UserError

router = Router(tags=["Datasets"])


class WriterOut(Schema):
    key: str
    """What a request names as `writer`."""
    name: str
    group: str


class SynthesisIn(Input):
    writer: Line = ""
    """The key of one of the version's writers; empty takes the first of them."""
    instruction: str = Field("", max_length=services.LONGEST_INSTRUCTION)
    target: int = 20
    seeds: int = 12
    starred: bool = False
    """Only rows that are marked as good examples are shown to the model."""
    temperature: float = 0.9
    model: Line = ""
    """For an endpoint, where it is another than its connection names."""
    seed: int = Field(42, ge=0, le=4_294_967_295)


class SynthesisOut(Schema):
    id: UUID
    dataset: UUID
    dataset_version: UUID | None
    writer: str
    instruction: str
    target: int
    status: str
    """Where the order stands: queued, running, succeeded, failed, stopped, ..."""
    progress: float
    rows: dict[str, int]
    """By decision: waiting, accepted, rejected, saved."""
    error: str
    created_at: datetime


class SyntheticRowOut(Schema):
    number: int
    row: dict[str, Any]
    state: str
    edited: bool


class DecisionIn(Input):
    number: int = Field(ge=1)
    state: Literal["accepted", "rejected", "waiting"] | None = None
    row: dict[str, Any] | None = None
    """The row as it is to be; this accepts it."""


class SaveIn(Input):
    note: str = Field("", max_length=500)


def synthesis_out(made: Synthesis) -> dict[str, Any]:
    return {
        "id": made.pk,
        "dataset": made.dataset_id,
        "dataset_version": made.version_id,
        "writer": made.settings["name"],
        "instruction": made.settings["instruction"],
        "target": made.settings["target"],
        "status": made.order.status,
        "progress": made.order.share if made.order.is_live else 1.0,
        "rows": services.counts(made),
        "error": made.order.error,
        "created_at": made.created_at,
    }


def found(request: HttpRequest, action: str, pk: UUID) -> Synthesis:
    visible = Synthesis.objects.for_action(request, action).select_related("order", "connection", "version", "dataset__project__client")
    synthesis: Synthesis = get_object_or_404(visible, pk=pk)
    return synthesis


def version_of(request: HttpRequest, pk: UUID) -> DatasetVersion:
    visible = DatasetVersion.objects.for_action(request, "dataset.create").select_related("order", "dataset__project__client")
    version: DatasetVersion = get_object_or_404(visible, pk=pk)
    return version


@router.get("/dataset-versions/{uuid:pk}/writers", response=Page[WriterOut], url_name="dataset_writers")
def list_writers(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    """Who can write rows after those of this version; all of them in one page."""
    version = version_of(request, pk)
    return {"items": writers_for(request.member, version.audit_client), "next": None}  # type: ignore[attr-defined]


@router.get("/dataset-versions/{uuid:pk}/syntheses", response=Page[SynthesisOut], url_name="dataset_syntheses")
def list_syntheses(request: HttpRequest, pk: UUID, filters: Query[Paging]) -> dict[str, Any]:
    version = get_object_or_404(DatasetVersion.objects.for_action(request, "dataset.view"), pk=pk)
    visible = Synthesis.objects.for_action(request, "dataset.view").select_related("order")
    return page(request, visible, filters, show=synthesis_out, version=version)


@router.post("/dataset-versions/{uuid:pk}/syntheses", response={202: SynthesisOut}, url_name="dataset_syntheses")
def ask_for_rows(request: HttpRequest, pk: UUID, payload: SynthesisIn) -> dict[str, Any]:
    """Has a model write rows after those of this version. None of them comes into the dataset before somebody accepts it."""
    wish = services.Wish(**payload.model_dump())
    return synthesis_out(services.begin(request.member, version_of(request, pk), wish))  # type: ignore[attr-defined]


@router.get("/syntheses/{uuid:pk}", response=SynthesisOut, url_name="synthesis")
def get_synthesis(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    return synthesis_out(found(request, "dataset.view", pk))


@router.post("/syntheses/{uuid:pk}/stop", response=SynthesisOut, url_name="synthesis_stop")
def stop_synthesis(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    """Ends it; what is written by then is kept."""
    synthesis = found(request, "dataset.create", pk)
    services.stop(request.member, synthesis)  # type: ignore[attr-defined]
    return synthesis_out(synthesis)


@router.get("/syntheses/{uuid:pk}/rows", response=Page[SyntheticRowOut], url_name="synthesis_rows")
def list_written_rows(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    """All rows that were written, at most 500, in one page."""
    return {"items": list(found(request, "dataset.view", pk).rows.all()), "next": None}


@router.patch("/syntheses/{uuid:pk}/rows", response=SyntheticRowOut, url_name="synthesis_rows")
def decide_about_row(request: HttpRequest, pk: UUID, payload: DecisionIn) -> SyntheticRow:
    synthesis = found(request, "dataset.create", pk)
    if payload.row is not None:
        services.edit(request.member, synthesis, payload.number, payload.row)  # type: ignore[attr-defined]
    elif payload.state is not None:
        do = {"accepted": "accept", "rejected": "reject", "waiting": "wait"}[payload.state]
        services.decide(request.member, synthesis, payload.number, do=do)  # type: ignore[attr-defined]
    else:
        raise UserError("Say what to do.", fields={"state": "Give a state, or the row as it is to be."})
    return services.row_of(synthesis, payload.number)


@router.post("/syntheses/{uuid:pk}/save", response={202: VersionOut}, url_name="synthesis_save")
def save_rows(request: HttpRequest, pk: UUID, payload: SaveIn) -> dict[str, Any]:
    """Adds what was accepted to the dataset's newest version, as the next one."""
    synthesis = found(request, "dataset.create", pk)
    return version_out(services.save(request.member, synthesis, note=payload.note), newest_base(request))  # type: ignore[attr-defined]
