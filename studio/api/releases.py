"""The API's part about releases: their numbers, stages, what a project asks before one is approved, and what was measured and said."""

from datetime import datetime
from typing import Any
from uuid import UUID

from django.http import HttpRequest
from django.shortcuts import get_object_or_404
from ninja import Query, Router, Schema
from pydantic import Field

from studio.api.fields import Input, Line, named
from studio.api.paging import Page, Paging, page
from studio.artifacts.models import Artifact
from studio.datasets.models import Dataset
from studio.errors import UserError
from studio.releases import evaluating, gates, gating, releasing, staging
from studio.releases.models import Approval, Evaluation, Gate, Release
from studio.workspaces.models import Project, ScopedQuerySet

router = Router(tags=["Releases"])


class ReleaseOut(Schema):
    id: UUID
    name: str
    """`{client}-{task}-{base}-v{major}.{minor}.{patch}`"""
    version: str
    bump: str
    project: UUID
    client: UUID
    task: str
    artifact: UUID
    base_model: UUID | None
    previous: UUID | None
    """What the bump was counted from."""
    stage: str
    """draft, candidate, approved or retired."""
    asked_with: dict[str, Any]
    notes: str
    shared_at: datetime | None
    """Since when the client's own people see it."""
    approved_at: datetime | None
    retired_at: datetime | None
    created_at: datetime


class ConditionOut(Schema):
    text: str
    met: bool
    why: str


class ApprovalOut(Schema):
    email: str
    role: str
    """The role that they had then."""
    approves: bool
    counts: bool
    """Whether it counts towards the gate."""
    comment: str
    at: datetime


class EvaluationOut(Schema):
    id: UUID
    status: str
    progress: float
    """0 to 1."""
    dataset_version: UUID
    against: UUID | None
    """The release that was in production then."""
    result: dict[str, Any] | None
    error: str
    created_at: datetime


class ReleaseWithGate(ReleaseOut):
    conditions: list[ConditionOut]
    """What must be met before it is approved."""
    approvals: list[ApprovalOut]
    evaluation: EvaluationOut | None
    """The newest."""


class AskedWithIn(Input):
    system: str = ""
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: list[str] = []


class ReleaseIn(Input):
    project: UUID
    artifact: UUID
    """An adapter or a model of that project."""
    task: Line = ""
    """As it stands in the name; the project's short name where this is not given."""
    bump: Line = ""
    """major, minor or patch: the rule's or a higher one. The rule's where this is not given."""
    asked_with: AskedWithIn | None = None
    """Where this is not given it is asked as the release before it."""
    notes: str = Field("", max_length=releasing.LONGEST_NOTES)


class ReleaseChanges(Input):
    notes: str | None = Field(None, max_length=releasing.LONGEST_NOTES)


class Move(Input):
    to: Line = ""
    comment: str = Field("", max_length=staging.LONGEST_COMMENT)


class Opinion(Input):
    approves: bool | None = None
    """Must be given; false refuses it."""
    evaluation: UUID | None = None
    """The one whose answers were looked at; the newest where this is not given."""
    comment: str = Field("", max_length=gates.LONGEST_COMMENT)


class ReleaseFilters(Paging):
    project: UUID | None = None
    client: UUID | None = None
    artifact: UUID | None = None
    task: Line | None = None
    stage: Line | None = None
    name: Line | None = None


def release_out(release: Release) -> dict[str, Any]:
    return {
        "id": release.pk,
        "name": release.name,
        "version": release.version,
        "bump": release.bump,
        "project": release.project_id,
        "client": release.project.client_id,
        "task": release.task,
        "artifact": release.artifact_id,
        "base_model": release.base_model_id,
        "previous": release.previous_id,
        "stage": release.stage,
        "asked_with": release.asked_with,
        "notes": release.notes,
        "shared_at": release.shared_at,
        "approved_at": release.approved_at,
        "retired_at": release.retired_at,
        "created_at": release.created_at,
    }


def evaluation_out(evaluation: Evaluation) -> dict[str, Any]:
    order = evaluation.order
    return {
        "id": evaluation.pk,
        "status": order.status,
        "progress": 1.0 if evaluation.result else order.share,
        "dataset_version": evaluation.dataset_version_id,
        "against": evaluation.against_id,
        "result": evaluation.result,
        "error": order.error,
        "created_at": evaluation.created_at,
    }


def approval_out(approval: Approval, release: Release) -> dict[str, Any]:
    told = {name: getattr(approval, name) for name in ("email", "role", "approves", "comment", "at")}
    return told | {"counts": gates.counts(approval, release)}


def whole(release: Release) -> dict[str, Any]:
    newest = release.evaluations.select_related("order").order_by("-created_at").first()
    return release_out(release) | {
        "conditions": [vars(condition) for condition in gates.conditions(release)],
        "approvals": [approval_out(approval, release) for approval in release.approvals.all()],
        "evaluation": evaluation_out(newest) if newest else None,
    }


def visible(request: HttpRequest, action: str) -> ScopedQuerySet:
    found: ScopedQuerySet = Release.objects.for_action(request, action)
    return found.select_related("project__client", "artifact__base_model", "artifact__dataset_version__dataset")


def shown(request: HttpRequest, pk: UUID, action: str) -> dict[str, Any]:
    """As it stands, read anew. A key that may change it is told what came of that, also where it may not read others."""
    return whole(get_object_or_404(visible(request, action), pk=pk))


@router.get("/releases", response=Page[ReleaseOut], url_name="releases")
def list_releases(request: HttpRequest, filters: Query[ReleaseFilters]) -> dict[str, Any]:
    rows = Release.objects.for_action(request, "release.view").select_related("project")
    wanted = {name: getattr(filters, name) for name in ("project", "artifact", "task", "stage", "name")}
    return page(request, rows, filters, show=release_out, project__client=filters.client, **wanted)


@router.post("/releases", response={201: ReleaseWithGate}, url_name="releases")
def create_release(request: HttpRequest, payload: ReleaseIn) -> dict[str, Any]:
    """A draft with the next number of its task. A bump below the rule's is refused, and so is one of which nothing changed."""
    member = request.member  # type: ignore[attr-defined]
    projects = Project.objects.for_action(request, "release.create").select_related("client")
    artifacts = Artifact.objects.for_action(request, "release.create").select_related("base_model")
    asked = payload.asked_with
    release = releasing.create_release(
        member,
        project=named(projects, payload.project, field="project"),
        artifact=named(artifacts, payload.artifact, field="artifact"),
        task=payload.task,
        bump=payload.bump,
        asked_with=asked.model_dump() if asked else None,
        notes=payload.notes,
    )
    return whole(release)


@router.get("/releases/{uuid:pk}", response=ReleaseWithGate, url_name="release")
def get_release(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    return shown(request, pk, "release.view")


@router.patch("/releases/{uuid:pk}", response=ReleaseWithGate, url_name="release")
def update_release(request: HttpRequest, pk: UUID, payload: ReleaseChanges) -> dict[str, Any]:
    """Changes its notes. What it answers, and what it is asked with, never changes: make another release of it."""
    release = get_object_or_404(visible(request, "release.create"), pk=pk)
    if payload.notes is not None:
        releasing.edit_notes(request.member, release, notes=payload.notes)  # type: ignore[attr-defined]
    return shown(request, pk, "release.create")


@router.post("/releases/{uuid:pk}/stage", response=ReleaseWithGate, url_name="release_stage")
def move_release(request: HttpRequest, pk: UUID, payload: Move) -> dict[str, Any]:
    """Moves it to another stage; to approved only where everything that the project asks for is met."""
    release = get_object_or_404(visible(request, "release.approve"), pk=pk)
    staging.move(request.member, release, to=payload.to, comment=payload.comment)  # type: ignore[attr-defined]
    return shown(request, pk, "release.approve")


@router.post("/releases/{uuid:pk}/approve", response=ReleaseWithGate, url_name="release_approve")
def approve_release(request: HttpRequest, pk: UUID, payload: Opinion) -> dict[str, Any]:
    """Says what the key's owner thinks of a candidate, instead of what they said before."""
    release = get_object_or_404(visible(request, "release.approve"), pk=pk)
    if payload.approves is None:
        raise UserError("Say whether you approve it.", fields={"approves": "Must be true or false."})
    seen = payload.evaluation
    gates.say(request.member, release, approves=payload.approves, comment=payload.comment, evaluation=seen)  # type: ignore[attr-defined]
    return shown(request, pk, "release.approve")


@router.post("/releases/{uuid:pk}/evaluate", response={202: EvaluationOut}, url_name="release_evaluate")
def evaluate_release(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    """Begins to measure it on held-out rows, beside the release in production. The evaluation that is on its way answers instead."""
    release = get_object_or_404(visible(request, "release.evaluate"), pk=pk)
    return evaluation_out(evaluating.request_evaluation(request.member, release))  # type: ignore[attr-defined]


@router.post("/releases/{uuid:pk}/evaluate/stop", response=ReleaseWithGate, url_name="release_stop_evaluation")
def stop_release_evaluation(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    release = get_object_or_404(visible(request, "release.evaluate"), pk=pk)
    evaluating.stop_evaluation(request.member, release)  # type: ignore[attr-defined]
    return shown(request, pk, "release.evaluate")


@router.post("/releases/{uuid:pk}/share", response=ReleaseWithGate, url_name="release_share")
def share_release(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    """Lets the client's own people see it, and sign it off."""
    release = get_object_or_404(visible(request, "release.create"), pk=pk)
    releasing.share(request.member, release)  # type: ignore[attr-defined]
    return shown(request, pk, "release.create")


class GateOut(Schema):
    evaluated: bool
    """It must not be worse than the release in production by more than `margin`."""
    held_out: UUID | None
    """The dataset of held-out rows; null takes the validation rows of what it learnt from."""
    margin: float
    """Per cent of the loss."""
    approvals: int
    roles: list[str]
    """Whose approval counts; all of them where the list is empty."""
    guest_sign_off: bool


class GateChanges(Input):
    evaluated: bool | None = None
    held_out: UUID | None = None
    margin: float | None = None
    approvals: int | None = None
    roles: list[Line] | None = None
    guest_sign_off: bool | None = None


def gate_out(gate: Gate) -> dict[str, Any]:
    told = {name: getattr(gate, name) for name in ("evaluated", "margin", "approvals", "roles", "guest_sign_off")}
    return told | {"held_out": gate.held_out_id}


@router.get("/projects/{uuid:pk}/gate", response=GateOut, url_name="project_gate")
def get_gate(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    """What a release of this project must meet before it is approved."""
    return gate_out(gating.gate_for(get_object_or_404(Project.objects.for_action(request, "project.view"), pk=pk)))


@router.patch("/projects/{uuid:pk}/gate", response=GateOut, url_name="project_gate")
def update_gate(request: HttpRequest, pk: UUID, payload: GateChanges) -> dict[str, Any]:
    """Changes what is named. What was approved stays so."""
    project = get_object_or_404(Project.objects.for_action(request, "gate.edit").select_related("client"), pk=pk)
    wanted = payload.model_dump(exclude_unset=True)
    if wanted.get("held_out") is not None:
        datasets = Dataset.objects.for_action(request, "gate.edit").select_related("project")
        wanted["held_out"] = named(datasets, wanted["held_out"], field="held_out")
    wanted = {name: value for name, value in wanted.items() if value is not None or name == "held_out"}
    return gate_out(gating.edit_gate(request.member, project, **wanted))  # type: ignore[attr-defined]
