"""The API's part about files to take home in the making: what can be built, what is being built, and how the files compare."""

from dataclasses import fields
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from django.http import HttpRequest
from django.shortcuts import get_object_or_404
from ninja import Query, Router, Schema
from pydantic import Field

from studio.api.fields import Input, Line, named
from studio.api.paging import ClientsPaging, Page, page
from studio.artifacts import buildable, quantizations, services
from studio.artifacts.ladder import Rung, rungs
from studio.artifacts.models import Artifact, Build
from studio.basemodels.models import BaseModel
from studio.errors import UserError
from studio.orders.models import Order
from studio.workspaces.models import Member, Project

router = Router(tags=["Builds"])


class PlainOut(Schema):
    mean_kl: float | None = None
    perplexity: float | None = None
    size: int | None = None


class RungOut(Schema):
    build: UUID
    artifact: UUID
    quantization: str
    importance: bool
    size: int
    bits: float
    """Per weight, about."""
    mean_kl: float | None
    """Nats per token from the merged model."""
    max_kl: float | None
    perplexity: float | None
    perplexity_reference: float | None
    top1: float | None
    """Share of tokens of which the likeliest next one is the same."""
    tokens_per_second: float | None
    memory: int
    """Bytes that it needs to run."""
    devices: list[str]
    plain: PlainOut | None
    """The same type without measured importance."""
    recommended: bool
    reason: str


class LadderOut(Schema):
    rungs: list[RungOut]
    """From the largest to the smallest."""


def rung_out(rung: Rung) -> dict[str, Any]:
    build = rung.build
    shown = {field.name: getattr(rung, field.name) for field in fields(rung) if field.name not in ("build", "wins")}
    artifact = build.artifact.pk if build.artifact else None
    return shown | {"build": build.pk, "artifact": artifact, "quantization": rung.quantization, "importance": rung.importance}


@router.get("/artifacts/{uuid:pk}/ladder", response=LadderOut, url_name="artifact_ladder")
def get_ladder(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    """The GGUF files of an adapter or a model that passed, beside each other; one of them is recommended."""
    artifact = get_object_or_404(Artifact.objects.for_action(request, "build.view").select_related("base_model"), pk=pk)
    return {"rungs": [rung_out(rung) for rung in rungs(request.member, artifact)]}  # type: ignore[attr-defined]


@router.get("/base-models/{uuid:pk}/ladder", response=LadderOut, url_name="base_model_ladder")
def get_base_ladder(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    """The same of a base model as it is: the files that the caller may see."""
    base = get_object_or_404(BaseModel.objects.for_action(request, "build.view"), pk=pk)
    return {"rungs": [rung_out(rung) for rung in rungs(request.member, base)]}  # type: ignore[attr-defined]


class TypeOut(Schema):
    kind: str
    quantization: str
    sentence: str
    size: int | None
    """Bytes that it is expected to have; null where nobody can say."""
    importance: bool
    """Whether measured importance changes it."""
    recommended: bool


class TypesOut(Schema):
    types: list[TypeOut]


def types_out(source: Artifact | None, base: BaseModel | None) -> dict[str, Any]:
    facts = buildable.facts_of(source, base)
    quantizations.refuse_unsupported(facts)
    types = [
        {
            "kind": kind,
            "quantization": name,
            "sentence": sentence,
            "size": quantizations.expected_size(facts, kind, name),
            "importance": quantizations.uses_importance(kind, name),
            "recommended": name == quantizations.recommended(kind, facts),
        }
        for kind in buildable.kinds_of(source)
        for name, sentence in quantizations.choices(kind).items()
    ]
    return {"types": types}


@router.get("/artifacts/{uuid:pk}/build-types", response=TypesOut, url_name="artifact_build_types")
def get_build_types(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    """What can be built of an adapter or a model, each with the size that it is expected to have."""
    sources = Artifact.objects.for_action(request, "build.create").select_related("base_model")
    return types_out(get_object_or_404(sources, pk=pk), None)


@router.get("/base-models/{uuid:pk}/build-types", response=TypesOut, url_name="base_model_build_types")
def get_base_build_types(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    """The same of a base model as it is."""
    return types_out(None, get_object_or_404(BaseModel.objects.for_action(request, "build.create"), pk=pk))


class BuildOut(Schema):
    id: UUID
    project: UUID
    source: UUID | None
    """The adapter or the model that it is built from; null for a base model as it is."""
    base_model: UUID | None
    """The base model that it is built from as it is."""
    kind: str
    quantization: str
    importance: bool
    order: UUID
    """The same for what was asked for together; it is stopped together."""
    status: str
    progress: float
    """0 to 1."""
    phase: str
    artifact: UUID | None
    """The file, once it is there."""
    verification: dict[str, Any] | None
    error: str
    created_at: datetime


class BuildsOut(Schema):
    builds: list[BuildOut]
    """In the order of `quantizations`."""


class BuildIn(Input):
    artifact: UUID | None = None
    """An adapter or a model; or give `base_model`."""
    base_model: UUID | None = None
    """A base model as it is."""
    project: UUID | None = None
    """Where what is built from a base model goes; the in-house one where this is not given."""
    kind: Literal["gguf", "gguf_adapter", "merged"] = "gguf"
    quantization: Line | None = None
    """One type; or give `quantizations`."""
    quantizations: list[Line] | None = Field(default=None, min_length=1, max_length=20)
    """Several, which are made in one pass over the weights."""
    importance: bool = False
    """Measure on the training rows which weights matter, and round those with more care."""


class BuildFilters(ClientsPaging):
    artifact: UUID | None = None
    base_model: UUID | None = None
    project: UUID | None = None
    kind: Line | None = None


def build_out(build: Build) -> dict[str, Any]:
    order = build.order
    return {
        "id": build.pk,
        "project": build.project_id,
        "source": build.source_id,
        "base_model": build.base_model_id,
        "kind": build.kind,
        "quantization": build.quantization,
        "importance": build.importance,
        "order": order.pk,
        "status": order.status,
        "progress": 1.0 if order.status == Order.Status.SUCCEEDED else order.share,
        "phase": order.phase_text or order.phase,
        "artifact": build.artifact.pk if build.artifact else None,
        "verification": build.verification,
        "error": order.error,
        "created_at": build.created_at,
    }


@router.get("/builds", response=Page[BuildOut], url_name="builds")
def list_builds(request: HttpRequest, filters: Query[BuildFilters]) -> dict[str, Any]:
    visible = Build.objects.for_action(request, "build.view").select_related("order", "artifact")
    wanted = {"source": filters.artifact, "base_model": filters.base_model, "project": filters.project, "kind": filters.kind}
    return page(request, filters.of(visible), filters, show=build_out, **wanted)


@router.post("/builds", response={201: BuildOut | BuildsOut}, url_name="builds")
def request_build(request: HttpRequest, payload: BuildIn) -> dict[str, Any]:
    """Begins to build files to take home. What is there or on its way answers instead of another.

    With `quantization` it answers with the one build, with `quantizations` with `{"builds": [...]}`.
    """
    refuse_unclear(payload)
    member = request.member  # type: ignore[attr-defined]
    builds = services.request_builds(
        member,
        **named_source(member, payload),
        kind=payload.kind,
        quantizations=payload.quantizations or [payload.quantization or ""],
        importance=payload.importance,
    )
    shown = [build_out(build) for build in builds]
    return shown[0] if payload.quantizations is None else {"builds": shown}


def refuse_unclear(payload: BuildIn) -> None:
    """What a body says twice, or not at all."""
    faults = {}
    if (payload.artifact is None) == (payload.base_model is None):
        faults["artifact"] = "Give either an artifact or a base_model."
    if (payload.quantization is None) == (payload.quantizations is None):
        faults["quantization"] = "Give either quantization or quantizations."
    if payload.artifact is not None and payload.project is not None:
        faults["project"] = "What is built from an artifact stays in its project. Leave this out."
    if faults:
        raise UserError("Some values cannot be used.", fields=faults)


def named_source(member: Member, payload: BuildIn) -> dict[str, Any]:
    if payload.artifact is not None:
        sources = Artifact.objects.for_action(member, "build.create").select_related("project__client", "base_model", "dataset_version")
        return {"source": named(sources, payload.artifact, field="artifact")}
    assert payload.base_model is not None  # refused before
    base = named(BaseModel.objects.for_action(member, "build.create"), payload.base_model, field="base_model")
    projects = Project.objects.for_action(member, "build.create").select_related("client")
    return {"base_model": base, "project": named(projects, payload.project, field="project") if payload.project else None}


def visible_build(request: HttpRequest, pk: UUID, action: str) -> Build:
    related = (
        "order",
        "artifact",
        "source__base_model",
        "source__dataset_version",
        "source__project__client",
        "base_model",
        "project__client",
    )
    found: Build = get_object_or_404(Build.objects.for_action(request, action).select_related(*related), pk=pk)
    return found


@router.get("/builds/{uuid:pk}", response=BuildOut, url_name="build")
def get_build(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    return build_out(visible_build(request, pk, "build.view"))


@router.post("/builds/{uuid:pk}/stop", response=BuildOut, url_name="build_stop")
def stop_build(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    """Stops it, and all that was asked for with it."""
    build = visible_build(request, pk, "build.create")
    services.stop_build(request.member, build)  # type: ignore[attr-defined]
    return build_out(visible_build(request, pk, "build.create"))


@router.post("/builds/{uuid:pk}/retry", response=BuildOut, url_name="build_retry")
def retry_build(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    """Builds again what failed or was stopped, going on from what was written. A file that did not pass answers with another build."""
    build = services.retry_build(request.member, visible_build(request, pk, "build.create"))  # type: ignore[attr-defined]
    return build_out(visible_build(request, build.pk, "build.create"))


@router.delete("/builds/{uuid:pk}", response={204: None}, url_name="build")
def delete_build(request: HttpRequest, pk: UUID) -> None:
    """Deletes a build that failed, with its file. One that passed stays."""
    services.delete_build(request.member, visible_build(request, pk, "build.create"))  # type: ignore[attr-defined]
