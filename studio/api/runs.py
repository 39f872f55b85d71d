"""The API's part about trainings: start one, follow it, stop it, start another like it."""

from dataclasses import replace
from datetime import UTC, datetime, time
from typing import Annotated, Any, Literal
from uuid import UUID

from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404
from ninja import Query, Router, Schema
from pydantic import AfterValidator, AwareDatetime, ConfigDict, Field, StringConstraints

from studio.api.fields import Input, Line, named
from studio.api.paging import ClientsPaging, Page, cut, page
from studio.basemodels.models import BaseModel
from studio.datasets.models import DatasetVersion
from studio.orders.models import Event, Order
from studio.runs import queue, services
from studio.runs.exports import events_response, recipe_response
from studio.runs.models import Run
from studio.runs.queue import When
from studio.workspaces.models import Client, Project

router = Router(tags=["Runs"])
Prompt = Annotated[str, StringConstraints(min_length=1, max_length=2000)]
Prompts = Annotated[list[Prompt], Field(max_length=8)]
Priority = Literal["low", "normal", "high"]
PRIORITIES: dict[str, int] = {label.lower(): value for value, label in Order.Priority.choices}
Clock = Annotated[time, AfterValidator(lambda at: at.replace(tzinfo=None))]
"""A time of day on the workspace's clocks, whatever zone is said beside it."""
Limit = Annotated[int, Field(ge=1, le=queue.LARGEST_LIMIT)]


class RunOut(Schema):
    id: UUID
    project: UUID
    name: str
    plugin: str
    config: dict[str, Any]
    base_model: UUID
    dataset_version: UUID
    prompts: list[str]
    status: str
    phase: str
    attempt: int
    step: int
    total_steps: int
    metrics: dict[str, Any]
    """The last value of each."""
    estimate: dict[str, Any] | None
    """What was predicted before it started."""
    usage: dict[str, Any]
    """seconds, peak_memory (bytes), tokens, tokens_per_second, energy (joules; null where it was not measured)."""
    artifact: UUID | None
    error: str
    priority: Priority
    start_at: datetime | None
    at_night: bool
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None


class RunIn(Input):
    project: UUID
    name: Line = ""
    plugin: Line
    config: dict[str, Any] = {}
    base_model: UUID
    dataset_version: UUID
    prompts: Prompts = []
    """Asked at every evaluation; a few general ones where none are named."""
    priority: Priority = "normal"
    """A higher one goes first, and pauses a run of a lower one where no worker is free."""
    start_at: AwareDatetime | None = None
    """Not before this moment."""
    at_night: bool = False
    """Only in the hours that the queue's rules call night."""


class RunFilters(ClientsPaging):
    project: UUID | None = None
    status: Line | None = None


def run_out(run: Run) -> dict[str, Any]:
    order, estimate = run.order, run.estimate or {}
    return {
        "id": run.pk,
        "project": run.project_id,
        "name": run.name,
        "plugin": run.plugin,
        "config": run.config,
        "base_model": run.base_model_id,
        "dataset_version": run.dataset_version_id,
        "prompts": run.prompts,
        "status": run.status,
        "phase": order.phase_text or order.phase,
        "attempt": order.attempt,
        "step": order.latest.get("step", 0),
        "total_steps": order.latest.get("total") or estimate.get("steps") or 0,
        "metrics": order.latest,
        "estimate": run.estimate,
        "usage": {"energy": order.latest.get("energy")} | run.usage,
        "artifact": run.artifact.pk if run.artifact else None,
        "error": order.error,
        "priority": order.get_priority_display().lower(),
        "start_at": order.start_at and order.start_at.astimezone(UTC),
        "at_night": order.at_night,
        "created_at": run.created_at,
        "started_at": order.started_at,
        "ended_at": order.ended_at,
    }


def visible(request: HttpRequest, action: str = "run.view") -> "QuerySet[Run]":
    return Run.objects.for_action(request, action).select_related("order").prefetch_related("order__artifacts")


@router.get("/runs", response=Page[RunOut], url_name="runs")
def list_runs(request: HttpRequest, filters: Query[RunFilters]) -> dict[str, Any]:
    return page(request, filters.of(visible(request)), filters, show=run_out, project=filters.project, order__status=filters.status)


@router.post("/runs", response={201: RunOut}, url_name="runs")
def create_run(request: HttpRequest, payload: RunIn) -> dict[str, Any]:
    run = services.create_run(
        request.member,  # type: ignore[attr-defined]
        project=named(Project.objects.for_action(request, "run.create"), payload.project, field="project"),
        name=payload.name,
        plugin_name=payload.plugin,
        config=payload.config,
        base=base_named(request, payload.base_model),
        version=version_named(request, payload.dataset_version),
        prompts=payload.prompts,
        when=When(priority=PRIORITIES[payload.priority], start_at=payload.start_at, at_night=payload.at_night),
    )
    return run_out(run)


def base_named(request: HttpRequest, pk: UUID) -> BaseModel:
    return named(BaseModel.objects.for_action(request, "run.create"), pk, field="base_model")


def version_named(request: HttpRequest, pk: UUID) -> DatasetVersion:
    return named(DatasetVersion.objects.for_action(request, "run.create").select_related("dataset"), pk, field="dataset_version")


@router.get("/runs/{uuid:pk}", response=RunOut, url_name="run")
def get_run(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    return run_out(get_object_or_404(visible(request), pk=pk))


class EventFilters(Input):
    after: int = Field(0, ge=0, le=2**31 - 1)
    """Number of the last event that the caller has."""
    limit: int = Field(500, ge=1, le=2000)


@router.get("/runs/{uuid:pk}/events", response=Page[dict[str, Any]], url_name="run_events")
def list_events(request: HttpRequest, pk: UUID, filters: Query[EventFilters]) -> dict[str, Any]:
    """What the worker reported, in order and without gaps: seq, attempt, at, type, and what belongs to the type."""
    run = get_object_or_404(Run.objects.for_action(request, "run.view"), pk=pk)
    events = Event.objects.filter(order=run.order_id, seq__gt=filters.after)[: filters.limit + 1]
    items = [event.wire() for event in events]
    return cut(request, items, limit=filters.limit, after=lambda: items[filters.limit - 1]["seq"])


@router.get("/runs/{uuid:pk}/events.jsonl", response={200: None}, url_name="run_events_file")
def download_events(request: HttpRequest, pk: UUID) -> HttpResponseBase:
    """Everything that the worker reported up to now, one event a line, sent piece by piece."""
    return events_response(get_object_or_404(visible(request), pk=pk))


@router.get("/runs/{uuid:pk}/run.yaml", response={200: None}, url_name="run_recipe")
def download_recipe(request: HttpRequest, pk: UUID) -> HttpResponse:
    """The run as a file that `manage.py train` starts again, with the unit and the meaning of each setting."""
    runs = visible(request).select_related("project__client", "base_model", "dataset_version__dataset")
    return recipe_response(get_object_or_404(runs, pk=pk), download=True)


class StopIn(Input):
    discard: bool = False
    """Throw away what was learnt."""


@router.post("/runs/{uuid:pk}/stop", response={202: RunOut}, url_name="run_stop")
def stop_run(request: HttpRequest, pk: UUID, payload: StopIn | None = None) -> dict[str, Any]:
    """Asks the run to end. What was learnt is kept, unless it is to be discarded."""
    run = get_object_or_404(Run.objects.for_action(request, "run.stop").select_related("order"), pk=pk)
    services.stop_run(request.member, run, discard=payload.discard if payload else False)  # type: ignore[attr-defined]
    return run_out(visible(request, "run.stop").get(pk=pk))


@router.post("/runs/{uuid:pk}/pause", response={202: RunOut}, url_name="run_pause")
def pause_run(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    """Frees the worker: the run saves a state and ends as paused. It can be resumed from there, without a trace in its losses."""
    run = get_object_or_404(Run.objects.for_action(request, "run.pause").select_related("order"), pk=pk)
    services.pause_run(request.member, run)  # type: ignore[attr-defined]
    return run_out(visible(request, "run.pause").get(pk=pk))


@router.post("/runs/{uuid:pk}/resume", response={202: RunOut}, url_name="run_resume")
def resume_run(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    """Queues a run again that was paused, or failed after a state was saved. It goes on from the last one."""
    run = get_object_or_404(Run.objects.for_action(request, "run.resume").select_related("order"), pk=pk)
    services.resume_run(request.member, run)  # type: ignore[attr-defined]
    return run_out(visible(request, "run.resume").get(pk=pk))


@router.post("/runs/{uuid:pk}/discard", response={202: RunOut}, url_name="run_discard")
def discard_run(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    """Throws away what a paused or failed run could go on from. No artifact is touched."""
    run = get_object_or_404(Run.objects.for_action(request, "run.stop").select_related("order"), pk=pk)
    queue.discard_run(request.member, run)  # type: ignore[attr-defined]
    return run_out(visible(request, "run.stop").get(pk=pk))


class WhenIn(Input):
    """What is to change; the rest stays."""

    priority: Priority | None = None
    start_at: AwareDatetime | None = None
    """null takes the moment away."""
    at_night: bool | None = None


@router.patch("/runs/{uuid:pk}", response=RunOut, url_name="run")
def update_run(request: HttpRequest, pk: UUID, payload: WhenIn) -> dict[str, Any]:
    """Changes how urgent a run is that has not ended, and when it may run."""
    run = get_object_or_404(Run.objects.for_action(request, "run.queue").select_related("order", "project__client"), pk=pk)
    order = run.order
    when = When(
        priority=PRIORITIES[payload.priority] if payload.priority else order.priority,
        start_at=payload.start_at if "start_at" in payload.model_fields_set else order.start_at,
        at_night=order.at_night if payload.at_night is None else payload.at_night,
    )
    queue.change_when(request.member, run, when)  # type: ignore[attr-defined]
    return run_out(visible(request, "run.queue").get(pk=pk))


class PlaceOut(Schema):
    run: UUID
    place: int | None
    """1 for the next one, counting everybody's runs; null while it is passed over."""
    starts_at: datetime | None
    """When it is expected to start; null where that cannot be told."""
    waits: str
    """For what, in words."""


class WorkingOut(Schema):
    run: UUID
    seconds_left: float | None


class QueueOut(Schema):
    items: list[PlaceOut]
    """What waits, in the order in which it is expected to start."""
    next: None = None
    working: list[WorkingOut]
    hidden: int
    """How many more wait that the key does not reach."""
    workers: int


@router.get("/queue", response=QueueOut, url_name="queue")
def get_queue(request: HttpRequest) -> dict[str, Any]:
    """What the workers do, what waits, and for what."""
    seen = queue.Queue.seen_by(request.member)  # type: ignore[attr-defined]
    return {
        "items": [place_out(row) for row in seen.rows],
        "working": [{"run": each.run.pk, "seconds_left": each.seconds_left} for each in seen.working],
        "hidden": seen.hidden,
        "workers": seen.workers,
    }


def place_out(row: queue.Row) -> dict[str, Any]:
    return {"run": row.run.pk, "place": row.prospect.place, "starts_at": row.prospect.starts_at, "waits": row.words}


class MoveIn(Input):
    before: UUID | None = None
    """The run that it is to stand before; null puts it last."""


class MoveOut(Schema):
    note: str
    """Why others go first all the same; empty where none does."""
    items: list[PlaceOut]


@router.post("/runs/{uuid:pk}/move", response=MoveOut, url_name="run_move")
def move_run(request: HttpRequest, pk: UUID, payload: MoveIn | None = None) -> dict[str, Any]:
    """Puts a run that waits at another place in the queue."""
    runs = Run.objects.for_action(request, "run.queue").select_related("order", "project__client")
    run = get_object_or_404(runs, pk=pk)
    before = named(runs, payload.before, field="before") if payload and payload.before else None
    note = queue.move(request.member, run, before=before)  # type: ignore[attr-defined]
    return {"note": note, "items": [place_out(row) for row in queue.Queue.seen_by(request.member).rows]}  # type: ignore[attr-defined]


class RulesOut(Schema):
    run_limit: int | None
    """How many runs of one client may run at once; null sets no limit."""
    night_from: time
    night_until: time
    time_zone: str
    clients: dict[str, int | None]
    """Limits of single clients; null leaves it to `run_limit`."""


class RulesIn(Input):
    """What is to change; the rest stays. null takes a limit away, and leaves all else as it is."""

    run_limit: Limit | None = None
    night_from: Clock | None = None
    night_until: Clock | None = None
    time_zone: Line | None = None
    clients: dict[UUID, Limit | None] = {}


def rules_out(request: HttpRequest) -> dict[str, Any]:
    rules = queue.Rules.of(request.member.workspace)  # type: ignore[attr-defined]
    clients = Client.objects.for_action(request, "run.view").filter(archived_at=None)
    return vars(rules) | {"clients": {str(client.pk): client.run_limit for client in clients}}


@router.get("/queue/rules", response=RulesOut, url_name="queue_rules")
def get_rules(request: HttpRequest) -> dict[str, Any]:
    """How many runs of a client may run at once, and when it is night."""
    return rules_out(request)


@router.patch("/queue/rules", response=RulesOut, url_name="queue_rules")
def update_rules(request: HttpRequest, payload: RulesIn) -> dict[str, Any]:
    member = request.member  # type: ignore[attr-defined]
    reached = Client.objects.for_action(request, "queue.edit")
    limits = {named(reached, pk, field="clients"): limit for pk, limit in payload.clients.items()}
    sent = {name: getattr(payload, name) for name in payload.model_fields_set - {"clients"}}
    given = {name: value for name, value in sent.items() if value is not None or name == "run_limit"}
    with transaction.atomic():
        if given:
            queue.change_rules(member, replace(queue.Rules.of(member.workspace), **given))
        for client, limit in limits.items():
            queue.change_client_limit(member, client, limit)
    return rules_out(request)


class RunChanges(Input):
    """What differs from the run that is cloned: these, and any setting of its plugin by its name."""

    model_config = ConfigDict(extra="allow")

    name: Line = ""
    plugin: Line = ""
    """Another way to train: settings that it has go along, and the learning rate is rescaled between adapters and all weights."""
    base_model: UUID | None = None
    dataset_version: UUID | None = None
    prompts: Prompts = []


class CloneIn(Input):
    changes: RunChanges = RunChanges()


class CloneOut(RunOut):
    notices: list[str]
    """What had to change for another way to train: the learning rate, and settings that it does not have."""


@router.post("/runs/{uuid:pk}/clone", response={201: CloneOut}, url_name="run_clone")
def clone_run(request: HttpRequest, pk: UUID, payload: CloneIn | None = None) -> dict[str, Any]:
    """Starts another run like this one, with `{"changes": {"rank": 32}}`."""
    runs = Run.objects.for_action(request, "run.create").select_related("project", "base_model", "dataset_version__dataset")
    run = get_object_or_404(runs, pk=pk)
    changes = payload.changes if payload else RunChanges()
    copy, notices = services.clone_run(
        request.member,  # type: ignore[attr-defined]
        run,
        settings=changes.model_extra or {},
        name=changes.name,
        plugin_name=changes.plugin,
        base=base_named(request, changes.base_model) if changes.base_model else None,
        version=version_named(request, changes.dataset_version) if changes.dataset_version else None,
        prompts=changes.prompts,
    )
    return run_out(copy) | {"notices": notices}
