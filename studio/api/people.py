"""The API's part about people: who is in the workspace, and who is invited."""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from django.http import HttpRequest
from django.shortcuts import get_object_or_404
from django.urls import reverse
from ninja import Query, Router, Schema
from pydantic import Field

from studio.api.fields import Input, Line
from studio.api.paging import Page, Paging, cut, page
from studio.errors import UserError
from studio.workspaces import inviting, people
from studio.workspaces.models import Invitation, Member
from studio.workspaces.people import EVERYTHING, Sight

router = Router(tags=["People"])
Role = Literal["owner", "admin", "member", "viewer", "guest"]


class MemberOut(Schema):
    id: int
    email: str
    role: str
    clients: list[UUID] | None
    """The only clients that they see; null where they see all."""
    created_at: datetime
    last_sign_in: datetime | None


class MemberFilters(Input):
    after: int = Field(0, ge=0, le=2**62)
    limit: int = Field(50, ge=1, le=200)


class MemberChanges(Input):
    role: Role | None = None
    clients: list[UUID] | None = Field(None, max_length=1000)
    """The only clients that they see; null for all. Left out, it stays as it is."""


def ids(row: Member | Invitation) -> list[UUID] | None:
    clients = people.clients_of(row)
    return None if clients is None else [client.pk for client in clients]


def member_out(row: Member) -> dict[str, Any]:
    return {
        "id": row.pk,
        "email": row.user.email,
        "role": row.role,
        "clients": ids(row),
        "created_at": row.created_at,
        "last_sign_in": row.user.last_login,
    }


def sight(member: Member, chosen: list[UUID] | None, assigned: Any = ()) -> Sight:
    """What a body says that somebody sees. A foreign id and one that never was are the same refusal."""
    if chosen is None:
        return EVERYTHING
    found: set[UUID] = set(people.offered_clients(member, assigned).filter(pk__in=chosen).values_list("pk", flat=True))
    if found != set(chosen):
        text = "There is no such thing here. Look at the ids."
        raise UserError("Something that the request names is not here.", fields={"clients": text}, code="unknown_id")
    return Sight(frozenset(found))


@router.get("/members", response=Page[MemberOut], url_name="members")
def list_members(request: HttpRequest, filters: Query[MemberFilters]) -> dict[str, Any]:
    """Who is in the workspace, and sees no client that the key does not reach; who has been here longest first."""
    rows = people.people(request, "member.view").filter(pk__gt=filters.after).order_by("pk").prefetch_related("clients")
    items = [member_out(row) for row in rows[: filters.limit + 1]]
    return cut(request, items, limit=filters.limit, after=lambda: items[filters.limit - 1]["id"])


@router.get("/members/{int:pk}", response=MemberOut, url_name="member")
def get_member(request: HttpRequest, pk: int) -> dict[str, Any]:
    return member_out(get_object_or_404(people.people(request, "member.view"), pk=pk))


@router.patch("/members/{int:pk}", response=MemberOut, url_name="member")
def change_member(request: HttpRequest, pk: int, payload: MemberChanges) -> dict[str, Any]:
    """Another role or other clients, from their next request on."""
    member: Member = request.member  # type: ignore[attr-defined]
    person = get_object_or_404(people.people(request, "member.edit"), pk=pk)
    told = "clients" in payload.model_fields_set
    people.change(member, person, role=payload.role, clients=sight(member, payload.clients, person.clients.all()) if told else None)
    return get_member(request, pk)


@router.delete("/members/{int:pk}", response={204: None}, url_name="member")
def remove_member(request: HttpRequest, pk: int) -> None:
    """Ends the membership. Their keys and invitations stop; what they made stays, and their runs go on."""
    people.remove(request.member, get_object_or_404(people.people(request, "member.edit"), pk=pk))  # type: ignore[attr-defined]


class InvitationOut(Schema):
    id: UUID
    role: str
    clients: list[UUID] | None
    email: str
    invited_by: str | None
    created_at: datetime
    expires_at: datetime
    sent_at: datetime | None


class InvitationMade(InvitationOut):
    link: str | None
    """Told this once, and null where the request is repeated. Whoever opens it first joins."""


class InvitationIn(Input):
    role: Role
    clients: list[UUID] | None = Field(None, max_length=1000)
    """The only clients that they will see; null for all. A guest needs at least one."""
    email: Line = ""
    """Where given, only this address can use the link, and it is sent there if the server sends mail."""
    days: int = 7
    """1, 7 or 30."""


def invitation_out(row: Invitation) -> dict[str, Any]:
    return {
        "id": row.pk,
        "role": row.role,
        "clients": ids(row),
        "email": row.email,
        "invited_by": row.created_by.email if row.created_by else None,
        "created_at": row.created_at,
        "expires_at": row.expires_at,
        "sent_at": row.sent_at,
    }


@router.get("/invitations", response=Page[InvitationOut], url_name="invitations")
def list_invitations(request: HttpRequest, filters: Query[Paging]) -> dict[str, Any]:
    """Those that are open."""
    rows = inviting.open_invitations(request, "member.edit").prefetch_related("clients")
    return page(request, rows, filters, show=invitation_out)


@router.post("/invitations", response={201: InvitationMade}, url_name="invitations")
def create_invitation(request: HttpRequest, payload: InvitationIn) -> dict[str, Any]:
    member: Member = request.member  # type: ignore[attr-defined]
    made = inviting.invite(
        member,
        role=payload.role,
        clients=sight(member, payload.clients),
        email=payload.email,
        days=payload.days,
        link_to=lambda token: request.build_absolute_uri(reverse("invitation", args=[token])),
    )
    return invitation_out(made.invitation) | {"link": made.link}


@router.delete("/invitations/{uuid:pk}", response={204: None}, url_name="invitation")
def revoke_invitation(request: HttpRequest, pk: UUID) -> None:
    """The link stops working. Who has joined by it stays."""
    inviting.revoke(request.member, get_object_or_404(inviting.open_invitations(request, "member.edit"), pk=pk))  # type: ignore[attr-defined]
