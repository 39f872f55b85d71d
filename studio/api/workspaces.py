"""The API's part about who and for whom: the key itself, clients and projects."""

from datetime import datetime
from typing import Any
from uuid import UUID

from django.http import HttpRequest
from django.shortcuts import get_object_or_404
from ninja import Query, Router, Schema
from pydantic import Field

from studio.api.fields import Input, Line, named
from studio.api.paging import ClientsPaging, Page, Paging, page
from studio.serving.reach import asked_by
from studio.workspaces import services
from studio.workspaces.keys import Limits
from studio.workspaces.models import Client, Project

router = Router(tags=["Workspace"])


class Named(Schema):
    id: UUID
    name: str


class Me(Schema):
    workspace: Named
    user: str
    role: str
    key: str
    scopes: list[str]
    clients: list[UUID] | None
    """The only clients that the key reaches; null where it reaches all."""
    deployments: list[Named] | None
    """The only deployments that the key can ask, by the names that the endpoint takes as models; null where it is not narrowed to any."""
    requests_per_minute: int | None
    """At the endpoint; null sets no limit."""
    tokens_per_minute: int | None
    at_once: int | None
    expires_at: datetime | None


@router.get("/me", response=Me, url_name="me")
def me(request: HttpRequest) -> dict[str, Any]:
    """The key's workspace, role and scopes."""
    member = request.member  # type: ignore[attr-defined]
    asked = asked_by(member)
    return {
        "workspace": member.workspace,
        "user": member.user.email,
        "role": member.role,
        "key": member.key.name,
        "scopes": member.key.scopes,
        "clients": member.client_ids(),
        "deployments": None if asked is None else [{"id": deployment.pk, "name": str(deployment)} for deployment in asked],
        **vars(Limits.of(member.key)),
        "expires_at": member.key.expires_at,
    }


class ClientOut(Schema):
    id: UUID
    name: str
    slug: str
    storage_limit: int | None
    """Bytes that it may store; null where nothing is limited."""
    gpu_hours_limit: float | None
    """GPU hours that it may use in a calendar month."""
    run_limit: int | None
    """How many of its runs may run at once; null leaves it to the workspace."""
    created_at: datetime
    archived_at: datetime | None


class ClientIn(Input):
    name: Line
    slug: Line = ""


class Changes(Input):
    name: Line | None = None
    slug: Line | None = None


class ClientChanges(Changes):
    storage_limit: int | None = None
    gpu_hours_limit: float | None = None
    run_limit: int | None = None
    """Null takes a limit away."""


class ClientFilters(Paging):
    archived: bool = False


def client_out(client: Client) -> Client:
    return client


@router.get("/clients", response=Page[ClientOut], url_name="clients")
def list_clients(request: HttpRequest, filters: Query[ClientFilters]) -> dict[str, Any]:
    visible = Client.objects.for_action(request, "client.view")
    return page(request, visible, filters, show=client_out, archived_at__isnull=not filters.archived)


@router.post("/clients", response={201: ClientOut}, url_name="clients")
def create_client(request: HttpRequest, payload: ClientIn) -> Client:
    return services.create_client(request.member, name=payload.name, slug=payload.slug)  # type: ignore[attr-defined]


@router.get("/clients/{uuid:pk}", response=ClientOut, url_name="client")
def get_client(request: HttpRequest, pk: UUID) -> Client:
    return get_object_or_404(Client.objects.for_action(request, "client.view"), pk=pk)


@router.patch("/clients/{uuid:pk}", response=ClientOut, url_name="client")
def update_client(request: HttpRequest, pk: UUID, payload: ClientChanges) -> Client:
    client = get_object_or_404(Client.objects.for_action(request, "client.edit"), pk=pk)
    limits = {name: getattr(payload, name) for name in services.LIMITS if name in payload.model_fields_set}
    services.update_client(request.member, client, name=payload.name, slug=payload.slug, limits=limits)  # type: ignore[attr-defined]
    return client


@router.delete("/clients/{uuid:pk}", response={204: None}, url_name="client")
def archive_client(request: HttpRequest, pk: UUID) -> None:
    """Archives the client. Nothing that was made for it is deleted."""
    client = get_object_or_404(Client.objects.for_action(request, "client.edit"), pk=pk)
    services.archive_client(request.member, client)  # type: ignore[attr-defined]


class ProjectOut(Schema):
    id: UUID
    client: UUID = Field(validation_alias="client_id")
    name: str
    slug: str
    created_at: datetime


class ProjectIn(Input):
    client: UUID
    name: Line
    slug: Line = ""


class ProjectFilters(ClientsPaging):
    client: UUID | None = None


def project_out(project: Project) -> Project:
    return project


@router.get("/projects", response=Page[ProjectOut], url_name="projects")
def list_projects(request: HttpRequest, filters: Query[ProjectFilters]) -> dict[str, Any]:
    return page(request, filters.of(Project.objects.for_action(request, "project.view")), filters, show=project_out, client=filters.client)


@router.post("/projects", response={201: ProjectOut}, url_name="projects")
def create_project(request: HttpRequest, payload: ProjectIn) -> Project:
    client = named(Client.objects.for_action(request, "project.edit"), payload.client, field="client")
    return services.create_project(request.member, client=client, name=payload.name, slug=payload.slug)  # type: ignore[attr-defined]


@router.get("/projects/{uuid:pk}", response=ProjectOut, url_name="project")
def get_project(request: HttpRequest, pk: UUID) -> Project:
    return get_object_or_404(Project.objects.for_action(request, "project.view"), pk=pk)


@router.patch("/projects/{uuid:pk}", response=ProjectOut, url_name="project")
def update_project(request: HttpRequest, pk: UUID, payload: Changes) -> Project:
    project = get_object_or_404(Project.objects.for_action(request, "project.edit"), pk=pk)
    services.update_project(request.member, project, name=payload.name, slug=payload.slug)  # type: ignore[attr-defined]
    return project
