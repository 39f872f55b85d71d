"""Settings → People and Roles: who is here, who is invited, and what each may do."""

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from django.contrib import messages
from django.db.models import Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse

from studio.errors import UserError
from studio.workspaces import inviting
from studio.workspaces import people as services
from studio.workspaces.lists import page_of
from studio.workspaces.models import Client, Member
from studio.workspaces.people import EVERYTHING, Sight
from studio.workspaces.policy import ROLE_ACTIONS, SCOPE_ACTIONS
from studio.workspaces.policy_words import policy_lines

MANY = 10
"""People from which on they can be searched."""


@dataclass
class Typed:
    """What a form says somebody may be and see, and what is wrong with it."""

    role: str = "member"
    everything: bool = True
    clients: set[str] = field(default_factory=set)
    email: str = ""
    days: str = "7"
    error: UserError | None = None

    @classmethod
    def of(cls, person: Member) -> "Typed":
        clients = services.clients_of(person)
        return cls(person.role, clients is None, {str(client.pk) for client in clients or ()})

    @classmethod
    def read(cls, request: HttpRequest) -> "Typed":
        form = request.POST
        role, days = form.get("role", "member"), form.get("days", "7")
        return cls(role, form.get("sees") == "all", set(form.getlist("clients")), form.get("email", ""), days)

    def sight(self, offered: "QuerySet[Client]") -> Sight:
        """Owners see everything, and guests what is named. An id that is not offered is not found, as what is another's."""
        if self.role == Member.Role.OWNER or (self.everything and self.role != Member.Role.GUEST):
            return EVERYTHING
        try:
            chosen = {UUID(pk) for pk in self.clients}
        except ValueError as problem:
            raise Http404 from problem
        if offered.filter(pk__in=chosen).count() != len(chosen):
            raise Http404
        return Sight(frozenset(chosen))

    def choices(self, member: Member, offered: "QuerySet[Client]") -> dict[str, Any]:
        """What the form offers."""
        told = self.error.fields if self.error else {}
        return {
            "roles": [
                (role, Member.Role(role).label, services.ROLE_WORDS[role], role == self.role) for role in services.offered_roles(member)
            ],
            "all_offered": services.sight_of(member) == EVERYTHING,
            "everything": self.everything,
            "clients": [(client, str(client.pk) in self.clients) for client in offered],
            "email": self.email,
            "days": [(days, words, str(days) == self.days) for days, words in inviting.DAYS.items()],
            "error": self.error,
            "role_error": told.get("role"),
            "clients_error": told.get("clients"),
            "email_error": told.get("email"),
        }


def people(
    request: HttpRequest,
    *,
    changing: tuple[Member, Typed] | None = None,
    invitation: Typed | None = None,
    made: inviting.Made | None = None,
    status: int = 200,
) -> HttpResponse:
    """Everybody, one of them perhaps with the form that changes them; who is invited; and the form that invites."""
    member: Member = request.member  # type: ignore[attr-defined]
    may_edit = member.may("member.edit")
    rows = services.people(request, "member.view").prefetch_related("clients")
    many, sought = rows.count() > MANY, request.GET.get("q", "").replace("\x00", "").strip()[:100]
    if sought:
        rows = rows.filter(Q(user__email__icontains=sought) | Q(clients__name__icontains=sought)).distinct()
    page = page_of(request, rows)
    if changing is None and may_edit and (pk := request.GET.get("change", "")).isdecimal():
        person = services.people(request, "member.edit").filter(pk=pk[:18]).first()
        changing = (person, Typed.of(person)) if person and editable(member, person) else None
    context = {
        "section": "settings",
        "page": page,
        "people": [(person, services.clients_of(person), may_edit and editable(member, person)) for person in page],
        "many": many,
        "sought": sought,
        "made": made,
    }
    if changing is not None:
        person, typed = changing
        context |= {"changed": person, "form": typed.choices(member, services.offered_clients(member, person.clients.all()))}
    elif may_edit:
        context["form"] = (invitation or Typed()).choices(member, services.offered_clients(member))
    if may_edit:
        open_ones = inviting.open_invitations(request, "member.edit").prefetch_related("clients")
        context["invitations"] = [(each, services.clients_of(each)) for each in open_ones[:200]]
        context["mailing"] = inviting.sends_mail()
    return render(request, "workspaces/people.html", context, status=status)


def editable(member: Member, person: Member) -> bool:
    """Whether there is anything about this person that `member` may change; an owner may at least step down."""
    owner = Member.Role.OWNER
    return member.role == owner or (person.role != owner and person.pk != member.pk)


def change(request: HttpRequest, pk: int) -> HttpResponse:
    member: Member = request.member  # type: ignore[attr-defined]
    person = get_object_or_404(services.people(request, "member.edit"), pk=pk)
    typed = Typed.read(request)
    sight = typed.sight(services.offered_clients(member, person.clients.all()))
    try:
        services.change(member, person, role=typed.role, clients=sight)
    except UserError as problem:
        typed.error = problem
        return people(request, changing=(person, typed), status=422)
    messages.success(request, f"Changed {person.user}.")
    return redirect("people:list" if person.pk != member.pk else "home")


def remove(request: HttpRequest, pk: int) -> HttpResponse:
    person = get_object_or_404(services.people(request, "member.edit"), pk=pk)
    services.remove(request.member, person)  # type: ignore[attr-defined]
    messages.success(request, f"Removed {person.user}.")
    return redirect("people:list")


def invite(request: HttpRequest) -> HttpResponse:
    """The new link is on the answer to this very request and nowhere else."""
    member: Member = request.member  # type: ignore[attr-defined]
    typed = Typed.read(request)
    sight = typed.sight(services.offered_clients(member))
    try:
        made = inviting.invite(
            member,
            role=typed.role,
            clients=sight,
            email=typed.email,
            days=int(typed.days) if typed.days.isdecimal() and len(typed.days) < 5 else 0,
            link_to=lambda token: request.build_absolute_uri(reverse("invitation", args=[token])),
        )
    except UserError as problem:
        typed.error = problem
        return people(request, invitation=typed, status=422)
    return people(request, made=made)


def invite_revoke(request: HttpRequest, pk: str) -> HttpResponse:
    found = get_object_or_404(inviting.open_invitations(request, "member.edit"), pk=pk)
    inviting.revoke(request.member, found)  # type: ignore[attr-defined]
    messages.success(request, "Revoked the invitation.")
    return redirect("people:list")


def roles(request: HttpRequest) -> HttpResponse:
    """The policy table itself."""
    context = {
        "section": "settings",
        "groups": policy_lines(),
        "roles": [(role, Member.Role(role).label, services.ROLE_WORDS[role]) for role in ROLE_ACTIONS],
        "scopes": list(SCOPE_ACTIONS),
    }
    return render(request, "workspaces/roles.html", context)
