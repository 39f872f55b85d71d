"""The API's part about what a run starts from."""

from datetime import datetime
from typing import Any
from uuid import UUID

from django.http import HttpRequest
from django.shortcuts import get_object_or_404
from ninja import Query, Router, Schema

from studio.api.fields import Input, Line, named
from studio.api.paging import Page, Paging, page
from studio.basemodels import services
from studio.basemodels.models import BaseModel
from studio.errors import UserError

router = Router(tags=["Base models"])


class BaseModelOut(Schema):
    id: UUID
    name: str
    source: str
    new_tokens: list[str]
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
    """package:NAME, path:FOLDER or hub:OWNER/NAME@REVISION; base:ID with `new_tokens`."""
    name: Line = ""
    new_tokens: list[Line] = []
    """Added to the vocabulary of base:ID, which becomes a base model of its own."""


def base_model_out(model: BaseModel) -> dict[str, Any]:
    return {
        "id": model.pk,
        "name": model.name,
        "source": model.source,
        "new_tokens": model.new_tokens,
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
    if payload.source.startswith("base:"):
        visible = BaseModel.objects.for_action(request, "base_model.create").select_related("order")
        base = named(visible, identity(payload.source.removeprefix("base:")), field="source")
        return base_model_out(services.add_tokens(request.member, base, tokens=payload.new_tokens, name=payload.name))  # type: ignore[attr-defined]
    return base_model_out(services.register(request.member, source=payload.source, name=payload.name))  # type: ignore[attr-defined]


def identity(typed: str) -> UUID:
    try:
        return UUID(typed)
    except ValueError:
        text = "Write base: and the id of a base model."
        raise UserError(text, fields={"source": text}) from None


@router.get("/base-models/{uuid:pk}", response=BaseModelOut, url_name="base_model")
def get_base_model(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    return base_model_out(get_object_or_404(BaseModel.objects.for_action(request, "base_model.view").select_related("order"), pk=pk))
