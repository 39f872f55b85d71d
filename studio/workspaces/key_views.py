"""Settings → API keys: one's own, those of others for whoever manages people, and the form that makes one."""

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from django.contrib import messages
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render

from studio.errors import UserError
from studio.workspaces import keys as services
from studio.workspaces.lists import page_of
from studio.workspaces.models import ApiKey, Client, Member
from studio.workspaces.people import offered_clients


@dataclass
class Typed:
    """What the form says of a new key, and what is wrong with it."""

    name: str = ""
    scopes: list[str] = field(default_factory=lambda: ["read"])
    everything: bool = True
    clients: set[str] = field(default_factory=set)
    days: str = str(services.DEFAULT_DAYS)
    error: UserError | None = None

    @classmethod
    def read(cls, request: HttpRequest) -> "Typed":
        form = request.POST
        days = form.get("days", str(services.DEFAULT_DAYS))
        return cls(form.get("name", ""), form.getlist("scopes"), form.get("sees", "all") == "all", set(form.getlist("clients")), days)

    @property
    def days_chosen(self) -> int | None:
        """0, which nobody offers, where it is no number."""
        return None if self.days == "" else int(self.days) if self.days.isdecimal() and len(self.days) < 5 else 0

    def chosen(self, offered: "QuerySet[Client]") -> list[Client] | None:
        """The clients that were ticked, None for all. An id that is not offered is not found, as what is another's."""
        if self.everything:
            return None
        try:
            wanted = {UUID(pk) for pk in self.clients}
        except ValueError as problem:
            raise Http404 from problem
        found = list(offered.filter(pk__in=wanted))
        if len(found) != len(wanted):
            raise Http404
        return found

    def choices(self, member: Member) -> dict[str, Any]:
        told = self.error.fields if self.error else {}
        return {
            "name": self.name,
            "scopes": [(scope, services.SCOPE_WORDS[scope], scope in self.scopes) for scope in services.offered_scopes(member)],
            "everything": self.everything,
            "clients": [(client, str(client.pk) in self.clients) for client in offered_clients(member)],
            "days": [(days or "", words, str(days or "") == self.days) for days, words in services.DAYS.items()],
            "error": self.error,
            **{f"{name}_error": told.get(name, "") for name in ("name", "scopes", "clients", "days")},
        }


@dataclass(frozen=True)
class Line:
    """A key as a member sees it: the clients that it reaches and that they see, None for all."""

    key: ApiKey
    clients: list[Client] | None
    ends: str
    soon: bool


def lines(member: Member, rows: Any) -> list[Line]:
    seen = member.client_ids()
    found = []
    for key in rows:
        clients = list(key.clients.all()) if key.narrowed or key.clients.all() else None
        if clients is not None and seen is not None:
            clients = [client for client in clients if client.pk in seen]
        found.append(Line(key, clients, services.end_words(key), services.ends_soon(key)))
    return found


def settings(request: HttpRequest, *, secret: str = "", typed: Typed | None = None, status: int = 200) -> HttpResponse:
    member: Member = request.member  # type: ignore[attr-defined]
    rows = services.keys(request, "key.view").filter(revoked_at=None).prefetch_related("clients").select_related("member__user")
    others = page_of(request, rows.exclude(member=member).order_by("member__user__email", "-created_at"))
    context = {
        "section": "settings",
        "keys": lines(member, rows.filter(member=member)),
        "others": lines(member, others),
        "page": others,
        "secret": secret,
        "form": (typed or Typed()).choices(member),
    }
    return render(request, "workspaces/settings.html", context, status=status)


def key_new(request: HttpRequest) -> HttpResponse:
    """The new key's secret is on the answer to this very request and nowhere else."""
    member: Member = request.member  # type: ignore[attr-defined]
    typed = Typed.read(request)
    clients = typed.chosen(offered_clients(member))
    try:
        _, secret = services.create(member, name=typed.name, scopes=typed.scopes, clients=clients, days=typed.days_chosen)
    except UserError as error:
        typed.error = error
        return settings(request, typed=typed, status=422)
    return settings(request, secret=secret)


def key_revoke(request: HttpRequest, pk: str) -> HttpResponse:
    key = get_object_or_404(services.keys(request, "key.revoke").select_related("member__user"), pk=pk)
    services.revoke(request.member, key)  # type: ignore[attr-defined]
    messages.success(request, f"Revoked {key.name}.")
    return redirect("settings:index")
