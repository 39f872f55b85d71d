"""The API's part about adapters that are taken out of a fully trained model, and what each of them keeps."""

from datetime import datetime
from typing import Any
from uuid import UUID

from django.http import HttpRequest
from django.shortcuts import get_object_or_404
from ninja import Query, Router, Schema
from pydantic import Field

from studio.api.fields import Input
from studio.api.paging import Page, Paging, page
from studio.artifacts.models import Artifact
from studio.comparisons import extracting as services
from studio.comparisons import extraction_pages as pages
from studio.comparisons.models import Extraction

router = Router(tags=["Extractions"])


class ExtractionIn(Input):
    ranks: list[int] | None = Field(None, max_length=services.MOST)
    """Each gives an adapter; 0 is the full rank. The usual ones where this is not given."""
    keeps_tables: bool = False
    """Whether the tables of words, which no product of a low rank holds, go into each adapter whole where they changed."""


class TakenOut(Schema):
    rank: int
    """0 for the full rank."""
    artifact: UUID | None
    size: int
    energy: float
    """Share of the squares of the linear layers' changes."""
    loss: float | None
    """Nats per token on the held-out rows."""
    kept: float | None
    """Share of what the model gained over its base there; null where it gained nothing, or where that was not measured."""
    low: float | None
    high: float | None
    """The 95 % interval over the rows."""
    why: str
    """Why it was not measured."""
    recommended: bool


class RestOut(Schema):
    part: str
    """words, output, norms, biases or other."""
    share: float
    """Of the squares of all changes."""
    kept: bool


class ExtractionLine(Schema):
    id: UUID
    source: UUID
    ranks: list[int]
    keeps_tables: bool
    status: str
    """queued, running, succeeded, failed or stopped, as every order."""
    progress: float
    error: str
    created_at: datetime


class ExtractionOut(ExtractionLine):
    rows: int | None
    """Held-out rows that it was measured on; null before it has ended."""
    base_loss: float | None
    source_loss: float | None
    adapters: list[TakenOut]
    rest: list[RestOut]
    """What changed outside of the linear layers."""
    advice: str


def line_of(extraction: Extraction) -> dict[str, Any]:
    order = extraction.order
    return {
        "id": extraction.pk,
        "source": extraction.source_id,
        "ranks": extraction.ranks,
        "keeps_tables": extraction.keeps_tables,
        "status": order.status,
        "progress": order.share if order.is_live else 1.0,
        "error": order.error,
        "created_at": extraction.created_at,
    }


def whole(extraction: Extraction) -> dict[str, Any]:
    result, rows = extraction.result or {}, pages.table(extraction)
    names = ("rank", "size", "energy", "loss", "kept", "low", "high", "why", "recommended")
    advice = pages.advice(extraction, rows) if rows else None
    return line_of(extraction) | {
        "rows": result.get("rows"),
        "base_loss": result.get("base_loss"),
        "source_loss": result.get("full_loss"),
        "adapters": [
            {name: getattr(row, name) for name in names} | {"artifact": row.artifact.pk if row.artifact else None} for row in rows
        ],
        "rest": result.get("rest", []),
        "advice": f"{advice.sentence}. {advice.reason}" if advice else "",
    }


def found_for(request: HttpRequest, action: str, pk: UUID) -> Extraction:
    related = ("order", "source__project__client__workspace")
    found: Extraction = get_object_or_404(Extraction.objects.for_action(request, action).select_related(*related), pk=pk)
    return found


def source_for(request: HttpRequest, action: str, pk: UUID) -> Artifact:
    visible = Artifact.objects.for_action(request, action).select_related("project__client__workspace", "base_model")
    found: Artifact = get_object_or_404(visible, pk=pk)
    return found


@router.get("/artifacts/{uuid:pk}/extractions", response=Page[ExtractionLine], url_name="artifact_extractions")
def list_extractions(request: HttpRequest, pk: UUID, filters: Query[Paging]) -> dict[str, Any]:
    """What was taken out of a model, or is on its way."""
    source = source_for(request, "build.view", pk)
    visible = Extraction.objects.for_action(request, "build.view").filter(source=source).select_related("order").defer("result")
    return page(request, visible, filters, show=line_of)


@router.post("/artifacts/{uuid:pk}/extractions", response={202: ExtractionLine}, url_name="artifact_extractions")
def create_extraction(request: HttpRequest, pk: UUID, payload: ExtractionIn) -> dict[str, Any]:
    """Takes adapters out of a fully trained model, in the background."""
    source = source_for(request, "build.create", pk)
    made = services.request(request.member, source, ranks=payload.ranks, keeps_tables=payload.keeps_tables)  # type: ignore[attr-defined]
    return line_of(made)


@router.get("/extractions/{uuid:pk}", response=ExtractionOut, url_name="extraction")
def get_extraction(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    return whole(found_for(request, "build.view", pk))


@router.post("/extractions/{uuid:pk}/stop", response={202: ExtractionLine}, url_name="extraction_stop")
def stop_extraction(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    """Nothing of it is kept."""
    services.stop(request.member, found_for(request, "build.create", pk))  # type: ignore[attr-defined]
    return line_of(found_for(request, "build.view", pk))


@router.delete("/extractions/{uuid:pk}", response={204: None}, url_name="extraction")
def delete_extraction(request: HttpRequest, pk: UUID) -> None:
    """One that failed or was stopped. What came of another stays."""
    services.delete(request.member, found_for(request, "build.create", pk))  # type: ignore[attr-defined]
