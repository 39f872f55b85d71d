"""The API's part about comparisons: arms that differ in one thing, their runs, and what was measured of them."""

from datetime import datetime
from typing import Any
from uuid import UUID

from django.db.models import Count, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from ninja import Query, Router, Schema
from pydantic import Field

from studio.api.fields import Input, Line, named
from studio.api.paging import ClientsPaging, Page, page
from studio.api.runs import PRIORITIES, Priority, Prompts
from studio.basemodels.models import BaseModel
from studio.comparisons import services, written
from studio.comparisons.built import with_built
from studio.comparisons.figures import Verdict
from studio.comparisons.models import Arm, ArmRun, Comparison
from studio.comparisons.recipe import recipe_of, recipe_response
from studio.comparisons.views import HEAVY
from studio.datasets.models import DatasetVersion
from studio.runs.queue import When
from studio.workspaces.models import Project

router = Router(tags=["Comparisons"])


class ArmIn(written.WrittenArm):
    base_model: UUID | None = None
    """None takes that of the comparison."""
    dataset_version: UUID | None = None


class ComparisonIn(written.Written):
    project: UUID
    dataset_version: UUID
    base_model: UUID
    arms: list[ArmIn] = Field(min_length=1, max_length=services.MOST_ARMS)  # type: ignore[assignment]
    """At least two; one alone where a sweep draws from it. What a config leaves out is the plugin's own default."""
    probe: UUID | None = None
    """A dataset version of the client to measure forgetting on; null takes the studio's own rows."""
    prompts: Prompts = []
    priority: Priority = "normal"


class ComparisonFilters(ClientsPaging):
    project: UUID | None = None
    client: UUID | None = None
    state: Line | None = None


class ComparisonLine(Schema):
    id: UUID
    project: UUID
    name: str
    differs: str
    state: str
    """running, measuring, done, stopped or failed."""
    arm_count: int
    seeds: list[int]
    sentence: str
    """The verdict in a sentence; empty before anything was measured, and where an older studio found it."""
    error: str
    created_at: datetime
    ended_at: datetime | None


class ArmRunOut(Schema):
    id: UUID
    """The run's."""
    seed: int
    status: str
    ended_early: str
    """Why the comparison stopped it; empty where it did not."""


class ArmOut(Schema):
    id: UUID
    number: int
    name: str
    plugin: str
    config: dict[str, Any]
    base_model: UUID
    dataset_version: UUID
    is_reference: bool
    runs: list[ArmRunOut]


class ComparisonOut(ComparisonLine):
    shared_settings: dict[str, Any]
    sweep: dict[str, Any] | None
    metrics: list[dict[str, Any]]
    probe: UUID | None
    stops_hopeless: bool
    arms: list[ArmOut]
    verdict: dict[str, Any] | None
    """Every figure that was measured, with its 95 % interval; null ends where there was one seed, which tells nothing of another.

    Null before anything was measured, and where an older studio found it.
    """


def line_of(comparison: Comparison) -> dict[str, Any]:
    return {
        "id": comparison.pk,
        "project": comparison.project_id,
        "name": comparison.name,
        "differs": comparison.differs,
        "state": comparison.state,
        "arm_count": comparison.arm_count,  # type: ignore[attr-defined]
        "seeds": comparison.seeds,
        "sentence": comparison.sentence,
        "error": comparison.error,
        "created_at": comparison.created_at,
        "ended_at": comparison.ended_at,
    }


def whole(comparison: Comparison) -> dict[str, Any]:
    runs: dict[Any, list[ArmRun]] = {}
    for each in ArmRun.objects.filter(arm__comparison=comparison).select_related("run__order").order_by("seed"):
        runs.setdefault(each.arm_id, []).append(each)
    return line_of(comparison) | {
        "shared_settings": comparison.shared_settings,
        "sweep": comparison.sweep,
        "metrics": comparison.metrics,
        "probe": comparison.probe_id,
        "stops_hopeless": comparison.stops_hopeless,
        "arms": [arm_out(arm, runs.get(arm.pk, [])) for arm in comparison.arms.all()],
        "verdict": verdict_out(comparison),
    }


def verdict_out(comparison: Comparison) -> dict[str, Any] | None:
    """As it was found, with the sizes of files that were built since instead of estimates."""
    verdict = with_built(comparison, Verdict.of(comparison))
    return verdict.model_dump(mode="json") if verdict else None


def arm_out(arm: Arm, runs: list[ArmRun]) -> dict[str, Any]:
    return {
        "id": arm.pk,
        "number": arm.number,
        "name": arm.name,
        "plugin": arm.plugin,
        "config": arm.config,
        "base_model": arm.base_model_id,
        "dataset_version": arm.dataset_version_id,
        "is_reference": arm.is_reference,
        "runs": [{"id": each.run_id, "seed": each.seed, "status": each.run.order.status, "ended_early": each.ended_early} for each in runs],
    }


def visible(request: HttpRequest, action: str = "comparison.view") -> "QuerySet[Comparison]":
    rows: QuerySet[Comparison] = Comparison.objects.for_action(request, action)
    return rows.annotate(arm_count=Count("arms")).select_related("project__client__workspace")


def found_for(request: HttpRequest, action: str, pk: UUID) -> Comparison:
    found: Comparison = get_object_or_404(visible(request, action), pk=pk)
    return found


@router.get("/comparisons", response=Page[ComparisonLine], url_name="comparisons")
def list_comparisons(request: HttpRequest, filters: Query[ComparisonFilters]) -> dict[str, Any]:
    rows = visible(request).defer(*HEAVY)
    return page(
        request,
        filters.of(rows),
        filters,
        show=line_of,
        project=filters.project,
        project__client=filters.client,
        state=filters.state,
    )


@router.post("/comparisons", response={201: ComparisonOut}, url_name="comparisons")
def create_comparison(request: HttpRequest, payload: ComparisonIn) -> dict[str, Any]:
    """Queues a run for each arm and seed. Once all have ended, what they learnt is measured and the verdict stands here."""
    projects = Project.objects.for_action(request, "comparison.edit").select_related("client")
    project = named(projects, payload.project, field="project")
    bases = BaseModel.objects.for_action(request, "run.create")
    known = DatasetVersion.objects.for_action(request, "run.create").select_related("dataset__project__client")
    versions = known.filter(dataset__project=project)
    base = named(bases, payload.base_model, field="base_model")
    version = named(versions, payload.dataset_version, field="dataset_version")
    own_bases = [named(bases, arm.base_model, field="arms") if arm.base_model else base for arm in payload.arms]
    own_versions = [named(versions, arm.dataset_version, field="arms") if arm.dataset_version else version for arm in payload.arms]
    made = written.begin(
        request.member,  # type: ignore[attr-defined]
        payload,
        project=project,
        base=own_bases.__getitem__,
        version=own_versions.__getitem__,
        probe=named(known, payload.probe, field="probe") if payload.probe else None,
        prompts=payload.prompts,
        when=When(priority=PRIORITIES[payload.priority]),
    )
    return whole(found_for(request, "comparison.edit", made.pk))


@router.get("/comparisons/{uuid:pk}", response=ComparisonOut, url_name="comparison")
def get_comparison(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    return whole(found_for(request, "comparison.view", pk))


class ComparisonChange(Input):
    name: Line = Field(min_length=1, max_length=120)


@router.patch("/comparisons/{uuid:pk}", response=ComparisonOut, url_name="comparison")
def rename_comparison(request: HttpRequest, pk: UUID, payload: ComparisonChange) -> dict[str, Any]:
    services.rename(request.member, found_for(request, "comparison.edit", pk), payload.name)  # type: ignore[attr-defined]
    return whole(found_for(request, "comparison.edit", pk))


@router.delete("/comparisons/{uuid:pk}", response={204: None}, url_name="comparison")
def delete_comparison(request: HttpRequest, pk: UUID) -> None:
    """With its verdict and ratings. Its runs stay, and so does what they made. One that goes on is stopped first."""
    services.delete_comparison(request.member, found_for(request, "comparison.edit", pk))  # type: ignore[attr-defined]


@router.get("/comparisons/{uuid:pk}/comparison.yaml", response={200: None}, url_name="comparison_recipe")
def download_comparison_recipe(request: HttpRequest, pk: UUID) -> HttpResponse:
    """The comparison as a file that `manage.py compare` starts again."""
    found = found_for(request, "comparison.view", pk)
    return recipe_response(found, recipe_of(found))


@router.post("/comparisons/{uuid:pk}/stop", response={202: ComparisonOut}, url_name="comparison_stop")
def stop_comparison(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    """Stops its runs; what they learnt is kept. Runs that were done are measured, where they are of two arms or more."""
    services.stop(request.member, found_for(request, "comparison.edit", pk))  # type: ignore[attr-defined]
    return whole(found_for(request, "comparison.edit", pk))


@router.post("/comparisons/{uuid:pk}/measure", response={202: ComparisonOut}, url_name="comparison_measure")
def measure_comparison(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    """Measures once more what its runs have learnt."""
    services.again(request.member, found_for(request, "comparison.edit", pk))  # type: ignore[attr-defined]
    return whole(found_for(request, "comparison.edit", pk))


class SeedsIn(Input):
    seeds: list[int] = Field(default=[], max_length=services.MOST_SEEDS)
    """New ones; none takes the next two numbers."""


@router.post("/comparisons/{uuid:pk}/seeds", response={202: ComparisonOut}, url_name="comparison_seeds")
def add_comparison_seeds(request: HttpRequest, pk: UUID, payload: SeedsIn | None = None) -> dict[str, Any]:
    """Trains each arm with more seeds, then measures anew: for a verdict that could not tell."""
    found = found_for(request, "comparison.edit", pk)
    services.add_seeds(request.member, found, payload.seeds if payload else [])  # type: ignore[attr-defined]
    return whole(found_for(request, "comparison.edit", pk))
