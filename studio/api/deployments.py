"""The API's part about named slots: what answers where, and every change of that."""

from datetime import datetime
from typing import Any
from uuid import UUID

from django.http import HttpRequest
from django.shortcuts import get_object_or_404
from ninja import Query, Router, Schema
from pydantic import Field

from studio.api.fields import Input, Line, named
from studio.api.paging import Page, Paging, page
from studio.errors import UserError
from studio.releases.models import Release
from studio.serving import deploying
from studio.serving.models import Deployment, DeploymentState
from studio.workspaces.models import Project, ScopedQuerySet

router = Router(tags=["Deployments"])


class Pointed(Schema):
    id: UUID
    name: str
    stage: str


class StateOut(Schema):
    number: int
    change: str
    """promote, canary, rollback or clear."""
    release: Pointed | None
    canary: Pointed | None
    canary_percent: int
    back_to: int | None
    """The number of the state that a rollback brought back."""
    why: str
    user: str | None
    key: str
    """Name of the API key that was used, if one was."""
    at: datetime


class DeploymentOut(Schema):
    id: UUID
    name: str
    """`{client}/{slug}`, as the serving endpoint takes it."""
    project: UUID
    client: UUID
    slug: str
    release: Pointed | None
    canary: Pointed | None
    canary_percent: int
    changed_at: datetime
    created_at: datetime
    archived_at: datetime | None


class DeploymentWithHistory(DeploymentOut):
    history: list[StateOut]
    """The newest first; at most 200."""
    changed: bool = True
    """False in the answer to a change that was not needed: it points there already."""


HISTORY = 200


class DeploymentIn(Input):
    project: UUID
    slug: Line


class DeploymentFilters(Paging):
    project: UUID | None = None
    client: UUID | None = None
    archived: bool = False


class Promotion(Input):
    release: UUID | None = None
    """Must be given."""
    canary_percent: int = Field(0, ge=0, le=99)
    """0 promotes it to all requests; 1 to 99 tries it on so many per cent of them."""
    why: str = Field("", max_length=deploying.LONGEST_WHY)


class Rollback(Input):
    to: int | None = Field(None, ge=1, le=2**31 - 1)
    """The number of a state of the history; left out, the last one in which what is taken back did not answer yet."""
    why: str = Field("", max_length=deploying.LONGEST_WHY)


class Reason(Input):
    why: str = Field("", max_length=deploying.LONGEST_WHY)


def deployment_out(deployment: Deployment) -> dict[str, Any]:
    return {
        "id": deployment.pk,
        "name": str(deployment),
        "project": deployment.project_id,
        "client": deployment.client_id,
        "slug": deployment.slug,
        "release": deployment.release,
        "canary": deployment.canary,
        "canary_percent": deployment.canary_percent,
        "changed_at": deployment.changed_at,
        "created_at": deployment.created_at,
        "archived_at": deployment.archived_at,
    }


def state_out(state: DeploymentState) -> dict[str, Any]:
    return {
        "number": state.number,
        "change": state.change,
        "release": state.release,
        "canary": state.canary,
        "canary_percent": state.canary_percent,
        "back_to": state.back_to.number if state.back_to else None,
        "why": state.why,
        "user": state.user.email if state.user else None,
        "key": state.key,
        "at": state.at,
    }


def whole(deployment: Deployment, *, changed: bool = True) -> dict[str, Any]:
    history = [state_out(state) for state in deploying.states_of(deployment)[:HISTORY]]
    return deployment_out(deployment) | {"history": history, "changed": changed}


def visible(request: HttpRequest, action: str) -> ScopedQuerySet:
    found: ScopedQuerySet = Deployment.objects.for_action(request, action)
    return found.select_related("client", "project", "release", "canary")


@router.get("/deployments", response=Page[DeploymentOut], url_name="deployments")
def list_deployments(request: HttpRequest, filters: Query[DeploymentFilters]) -> dict[str, Any]:
    return page(
        request,
        visible(request, "deployment.view"),
        filters,
        show=deployment_out,
        project=filters.project,
        client=filters.client,
        archived_at__isnull=not filters.archived,
    )


@router.post("/deployments", response={201: DeploymentWithHistory}, url_name="deployments")
def create_deployment(request: HttpRequest, payload: DeploymentIn) -> dict[str, Any]:
    """A slot that points at nothing yet."""
    projects = Project.objects.for_action(request, "deployment.create").select_related("client")
    project = named(projects, payload.project, field="project")
    return whole(deploying.create_deployment(request.member, project=project, slug=payload.slug))  # type: ignore[attr-defined]


@router.get("/deployments/{uuid:pk}", response=DeploymentWithHistory, url_name="deployment")
def get_deployment(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    return whole(get_object_or_404(visible(request, "deployment.view"), pk=pk))


@router.delete("/deployments/{uuid:pk}", response={204: None}, url_name="deployment")
def archive_deployment(request: HttpRequest, pk: UUID) -> None:
    """Archives it: it answers nothing until it is restored. Its history stays."""
    deploying.archive(request.member, get_object_or_404(visible(request, "deployment.create"), pk=pk))  # type: ignore[attr-defined]


@router.post("/deployments/{uuid:pk}/restore", response=DeploymentWithHistory, url_name="deployment_restore")
def restore_deployment(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    """Brings an archived deployment back; it points at what it pointed at."""
    found = get_object_or_404(visible(request, "deployment.create"), pk=pk)
    return whole(found, changed=deploying.restore(request.member, found))  # type: ignore[attr-defined]


@router.post("/deployments/{uuid:pk}/promote", response=DeploymentWithHistory, url_name="deployment_promote")
def promote(request: HttpRequest, pk: UUID, payload: Promotion) -> dict[str, Any]:
    """Points it at an approved release of its project, or tries one on a share of the requests. Either ends the canary before."""
    found, member = get_object_or_404(visible(request, "deployment.promote"), pk=pk), request.member  # type: ignore[attr-defined]
    if payload.release is None:
        raise UserError("Choose a release.", fields={"release": "Say which release to promote, by its id."})
    release = named(Release.objects.for_action(request, "deployment.promote"), payload.release, field="release")
    if payload.canary_percent:
        state = deploying.try_canary(member, found, release=release, percent=payload.canary_percent, why=payload.why)
    else:
        state = deploying.promote(member, found, release=release, why=payload.why)
    return whole(found, changed=state is not None)


@router.delete("/deployments/{uuid:pk}/canary", response=DeploymentWithHistory, url_name="deployment_canary")
def end_canary(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    """All requests go to the release again."""
    found = get_object_or_404(visible(request, "deployment.promote"), pk=pk)
    return whole(found, changed=deploying.end_canary(request.member, found) is not None)  # type: ignore[attr-defined]


@router.post("/deployments/{uuid:pk}/rollback", response=DeploymentWithHistory, url_name="deployment_rollback")
def rollback(request: HttpRequest, pk: UUID, payload: Rollback) -> dict[str, Any]:
    """Brings back what an earlier state pointed at, also where that was retired since. A repeat that names no state goes back further."""
    found = get_object_or_404(visible(request, "deployment.promote"), pk=pk)
    state = deploying.roll_back(request.member, found, to=payload.to, why=payload.why)  # type: ignore[attr-defined]
    return whole(found, changed=state is not None)


@router.post("/deployments/{uuid:pk}/clear", response=DeploymentWithHistory, url_name="deployment_clear")
def clear(request: HttpRequest, pk: UUID, payload: Reason) -> dict[str, Any]:
    """Lets nothing answer. A rollback brings back what did."""
    found = get_object_or_404(visible(request, "deployment.promote"), pk=pk)
    return whole(found, changed=deploying.clear(request.member, found, why=payload.why) is not None)  # type: ignore[attr-defined]
