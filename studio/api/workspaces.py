"""The API's part about who and for whom: the key itself, clients, projects, and what was done."""

from datetime import datetime
from typing import Any
from uuid import UUID

from django.http import HttpRequest
from django.shortcuts import get_object_or_404
from ninja import Query, Router, Schema
from pydantic import Field

from studio.api.fields import Input, Line, named
from studio.api.paging import Page, Paging, cut, page
from studio.audit.models import AuditRecord
from studio.audit.services import history
from studio.workspaces import services
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
    expires_at: datetime | None


@router.get("/me", response=Me, url_name="me")
def me(request: HttpRequest) -> dict[str, Any]:
    """The key's workspace, role and scopes."""
    member = request.member  # type: ignore[attr-defined]
    return {
        "workspace": member.workspace,
        "user": member.user.email,
        "role": member.role,
        "key": member.key.name,
        "scopes": member.key.scopes,
        "clients": member.client_ids(),
        "expires_at": member.key.expires_at,
    }


class ClientOut(Schema):
    id: UUID
    name: str
    slug: str
    created_at: datetime
    archived_at: datetime | None


class ClientIn(Input):
    name: Line
    slug: Line = ""


class Changes(Input):
    name: Line | None = None
    slug: Line | None = None


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
def update_client(request: HttpRequest, pk: UUID, payload: Changes) -> Client:
    client = get_object_or_404(Client.objects.for_action(request, "client.edit"), pk=pk)
    services.update_client(request.member, client, name=payload.name, slug=payload.slug)  # type: ignore[attr-defined]
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


class ProjectFilters(Paging):
    client: UUID | None = None


def project_out(project: Project) -> Project:
    return project


@router.get("/projects", response=Page[ProjectOut], url_name="projects")
def list_projects(request: HttpRequest, filters: Query[ProjectFilters]) -> dict[str, Any]:
    return page(request, Project.objects.for_action(request, "project.view"), filters, show=project_out, client=filters.client)


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


class AuditOut(Schema):
    id: int
    at: datetime
    user: str | None
    key: str
    ip: str | None
    client: UUID | None
    verb: str
    object_kind: str
    object_id: str
    label: str
    change: dict[str, Any]


class AuditFilters(Input):
    after: int = Field(0, ge=0, le=2**62)
    limit: int = Field(100, ge=1, le=500)


def audit_out(line: AuditRecord) -> dict[str, Any]:
    return {
        "id": line.pk,
        "at": line.at,
        "user": line.user.email if line.user else None,
        "key": line.key,
        "ip": line.ip,
        "client": line.client_id,
        "verb": line.verb,
        "object_kind": line.object_kind,
        "object_id": line.object_id,
        "label": line.label,
        "change": line.change,
    }


@router.get("/audit", response=Page[AuditOut], url_name="audit")
def list_audit(request: HttpRequest, filters: Query[AuditFilters]) -> dict[str, Any]:
    """Who did what, when and from where: the oldest record after `after` first, so that a copy can be kept up to date."""
    rows = history(request.member).filter(pk__gt=filters.after).order_by("pk")[: filters.limit + 1]  # type: ignore[attr-defined]
    items = [audit_out(row) for row in rows]
    return cut(request, items, limit=filters.limit, after=lambda: items[filters.limit - 1]["id"])
