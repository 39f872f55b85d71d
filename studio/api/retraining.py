"""The API's part about retraining: releases trained anew on another base model, and the matrix of before and after."""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from django.http import HttpRequest
from django.shortcuts import get_object_or_404
from ninja import Query, Router, Schema
from pydantic import Field

from studio.api.fields import Input, Line, named
from studio.api.paging import Page, Paging, page
from studio.basemodels.models import BaseModel
from studio.comparisons import retraining as services
from studio.comparisons.models import Retrained, Retraining
from studio.comparisons.portfolio import MOST, Options, Portfolio
from studio.comparisons.retraining_matrix import Line as MatrixLine
from studio.comparisons.retraining_matrix import Matrix
from studio.comparisons.retraining_views import READ_AGAIN, visible
from studio.errors import UserError
from studio.orders.models import Order
from studio.releases.models import Release
from studio.workspaces.models import Client

router = Router(tags=["Retraining"])
PRIORITIES = {"low": Order.Priority.LOW, "normal": Order.Priority.NORMAL, "high": Order.Priority.HIGH}


class RetrainingIn(Input):
    base_model: UUID
    """The new one."""
    releases: list[UUID] | None = Field(None, max_length=MOST)
    """Where this is not given: what is in use, and of other tasks the newest that is approved, as far as it can be trained."""
    client: UUID | None = None
    """Whose releases alone, where `releases` is not given."""
    name: Line = ""
    settings: Literal["keep", "suits"] = "keep"
    """`keep` trains by the recipe as it is; `suits` takes learning rate and max length as the new base model is advised to have them."""
    rows: Literal["same", "newest"] = "same"
    """The version that each recipe names, or the newest of its dataset."""
    priority: Literal["low", "normal", "high"] = "low"
    at_night: bool = False


class RetrainingFilters(Paging):
    base_model: UUID | None = None
    client: UUID | None = None


class RetrainingLine(Schema):
    id: UUID
    name: str
    client: UUID | None
    """null where releases of several clients are trained."""
    base_model: UUID
    options: dict[str, Any]
    stopped_at: datetime | None
    created_at: datetime


class ConditionOut(Schema):
    text: str
    met: bool
    why: str


class RetrainedOut(Schema):
    client: UUID
    task: str
    before: UUID
    before_name: str
    run: UUID | None
    state: str
    """waiting, training, trained, failed, stopped, paused, or refused where it could not begin."""
    progress: float
    """Of the run, 0 to 1."""
    problem: str
    after: UUID | None
    after_name: str
    stage: str
    loss_before: float | None
    loss_after: float | None
    unit: str
    change: float | None
    """Per cent of the loss, with its 95 % interval from `low` to `high`."""
    low: float | None
    high: float | None
    outcome: str
    """better, same (surely not worse than the gate's margin), worse, unsure; empty where nothing was measured."""
    conditions: list[ConditionOut]
    """What the gate asks of the new release."""
    answers_with_before: list[str]
    """Deployments."""
    answers_with_after: list[str]


class RetrainingOut(RetrainingLine):
    summary: str
    releases: list[RetrainedOut]


def line_of(retraining: Retraining) -> dict[str, Any]:
    return {
        "id": retraining.pk,
        "name": retraining.name,
        "client": retraining.client_id,
        "base_model": retraining.base_model_id,
        "options": retraining.options,
        "stopped_at": retraining.stopped_at,
        "created_at": retraining.created_at,
    }


def retrained(line: MatrixLine) -> dict[str, Any]:
    row, result = line.row, line.result
    return {
        "client": line.client.pk,
        "task": row.before.task,
        "before": row.before_id,
        "before_name": row.before.name,
        "run": row.run_id,
        "state": line.state,
        "progress": 1.0 if line.state == "trained" else row.run.order.share if row.run else 0.0,
        "problem": row.problem,
        "after": row.after_id,
        "after_name": row.after.name if row.after else "",
        "stage": row.after.stage if row.after else "",
        "loss_before": result.get("before"),
        "loss_after": result.get("loss"),
        "unit": result.get("unit", ""),
        "change": result.get("change"),
        "low": result.get("low"),
        "high": result.get("high"),
        "outcome": line.outcome,
        "conditions": [vars(condition) for condition in line.conditions],
        "answers_with_before": [str(place) for place in line.before_at],
        "answers_with_after": [str(place) for place in line.after_at],
    }


def whole(request: HttpRequest, retraining: Retraining) -> dict[str, Any]:
    matrix = Matrix.of(retraining, request.member)  # type: ignore[attr-defined]
    return line_of(retraining) | {"summary": matrix.sentence, "releases": [retrained(line) for line in matrix.lines]}


@router.get("/retrainings", response=Page[RetrainingLine], url_name="retrainings")
def list_retrainings(request: HttpRequest, filters: Query[RetrainingFilters]) -> dict[str, Any]:
    rows = visible(request, "retraining.view")
    return page(request, rows, filters, show=line_of, base_model=filters.base_model, client=filters.client)


@router.post("/retrainings", response={202: RetrainingOut}, url_name="retrainings")
def create_retraining(request: HttpRequest, payload: RetrainingIn) -> dict[str, Any]:
    """Puts a run for each release into the queue; those that cannot be trained stand in the answer with the reason."""
    member = request.member  # type: ignore[attr-defined]
    bases = BaseModel.objects.for_action(request, "retraining.edit").select_related("order")
    base = named(bases, payload.base_model, field="base_model")
    client = named(Client.objects.for_action(request, "retraining.edit"), payload.client, field="client") if payload.client else None
    told = payload.model_dump(include={"settings", "rows", "at_night"})
    options = Options.model_validate(told | {"priority": PRIORITIES[payload.priority].value})
    releases = payload.releases
    if releases is None and base.is_ready:
        offered = Portfolio(member, base, options, client=client).offered
        releases = [each.release.pk for each in offered if each.is_proposed and not each.why_not]
    return whole(request, services.start(member, base=base, releases=releases or [], options=options, name=payload.name))


@router.get("/retrainings/{uuid:pk}", response=RetrainingOut, url_name="retraining")
def get_retraining(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    """The matrix."""
    return whole(request, get_object_or_404(visible(request, "retraining.view"), pk=pk))


@router.post("/retrainings/{uuid:pk}/stop", response={202: RetrainingLine}, url_name="retraining_stop")
def stop_retraining(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    """Ends what waits or trains of it; what has ended already goes on to its release."""
    retraining = get_object_or_404(visible(request, "retraining.edit"), pk=pk)
    services.stop(request.member, retraining)  # type: ignore[attr-defined]
    return line_of(retraining)


class AgainIn(Input):
    release: UUID | None = None
    """Must be given: the old one, `before` in the matrix."""


@router.post("/retrainings/{uuid:pk}/again", response={202: RetrainedOut}, url_name="retraining_again")
def train_again(request: HttpRequest, pk: UUID, payload: AgainIn) -> dict[str, Any]:
    """Trains a release once more of which nothing came: its run failed or was stopped, or could not begin."""
    member = request.member  # type: ignore[attr-defined]
    retraining = get_object_or_404(visible(request, "retraining.edit"), pk=pk)
    if payload.release is None:
        raise UserError("Choose which release is trained again.")
    rows = Retrained.objects.for_action(request, "retraining.edit").filter(retraining=retraining)
    before = named(Release.objects.filter(retrained__in=rows), payload.release, field="release")
    row = rows.select_related(*READ_AGAIN).get(before=before)
    services.again(member, row)
    return retrained(next(line for line in Matrix.of(retraining, member).lines if line.row.pk == row.pk))


class PromotedOut(Schema):
    deployments: list[UUID]
    """Those that answer with the new release now."""
    refused: list[str]
    """Why others do not, each in a sentence."""


@router.post("/retrainings/{uuid:pk}/promote", response=PromotedOut, url_name="retraining_promote")
def promote_retrained(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    """Points the deployments of old releases at the new ones that are approved. Each can be rolled back by itself."""
    retraining = get_object_or_404(visible(request, "deployment.promote"), pk=pk)
    done, refused = services.promote_all(request.member, retraining)  # type: ignore[attr-defined]
    return {"deployments": [place.pk for place in done], "refused": refused}
