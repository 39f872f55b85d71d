"""The API's part about what a run starts from."""

from datetime import datetime
from typing import Any
from uuid import UUID

from django.http import HttpRequest
from django.shortcuts import get_object_or_404
from ninja import Query, Router, Schema

from studio.api.fields import Input, Line
from studio.api.paging import Page, Paging, page
from studio.basemodels import services
from studio.basemodels.models import BaseModel

router = Router(tags=["Base models"])


class BaseModelOut(Schema):
    id: UUID
    name: str
    source: str
    revision: str
    license: str
    status: str
    """ready, or where the fetching stands: queued, starting, running, recovering, failed, stopped."""
    progress: float
    """0 to 1."""
    phase: str
    facts: dict[str, Any] | None
    tokenizer_proof: dict[str, Any]
    sha256: str
    size: int
    error: str
    created_at: datetime


class BaseModelIn(Input):
    source: Line
    """package:NAME, path:FOLDER or hub:OWNER/NAME@REVISION."""
    name: Line = ""


def base_model_out(model: BaseModel) -> dict[str, Any]:
    return {
        "id": model.pk,
        "name": model.name,
        "source": model.source,
        "revision": model.revision,
        "license": model.license,
        "status": model.status,
        "progress": 1.0 if model.is_ready else model.order.share,
        "phase": model.order.phase_text or model.order.phase,
        "facts": model.facts,
        "tokenizer_proof": model.proof,
        "sha256": model.sha256,
        "size": model.size,
        "error": model.order.error,
        "created_at": model.created_at,
    }


@router.get("/base-models", response=Page[BaseModelOut], url_name="base_models")
def list_base_models(request: HttpRequest, filters: Query[Paging]) -> dict[str, Any]:
    return page(request, BaseModel.objects.for_action(request, "base_model.view").select_related("order"), filters, show=base_model_out)


@router.post("/base-models", response={201: BaseModelOut}, url_name="base_models")
def register_base_model(request: HttpRequest, payload: BaseModelIn) -> dict[str, Any]:
    """Begins to fetch a base model. The same source while it is here or on its way answers with that one."""
    return base_model_out(services.register(request.member, source=payload.source, name=payload.name))  # type: ignore[attr-defined]


@router.get("/base-models/{uuid:pk}", response=BaseModelOut, url_name="base_model")
def get_base_model(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    return base_model_out(get_object_or_404(BaseModel.objects.for_action(request, "base_model.view").select_related("order"), pk=pk))
