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

OFFERED = 100
"""Deployments that the form lists, besides those that are ticked."""


@dataclass
class Typed:
    """What the form says of a new key, and what is wrong with it."""

    name: str = ""
    scopes: list[str] = field(default_factory=lambda: ["read"])
    everything: bool = True
    clients: set[str] = field(default_factory=set)
    days: str = str(services.DEFAULT_DAYS)
    by_deployment: bool = False
    deployments: set[str] = field(default_factory=set)
    limits: dict[str, str] = field(default_factory=dict)
    error: UserError | None = None

    @classmethod
    def read(cls, request: HttpRequest) -> "Typed":
        form = request.POST
        days = form.get("days", str(services.DEFAULT_DAYS))
        sees = form.get("sees", "all")
        return cls(
            form.get("name", ""),
            form.getlist("scopes"),
            sees == "all",
            set(form.getlist("clients")),
            days,
            sees == "deployments",
            set(form.getlist("deployments")),
            {name: form.get(name, "") for name in services.LARGEST},
        )

    @classmethod
    def for_deployment(cls, wanted: str | None, offered: Any) -> "Typed":
        """The form as a deployment's own page opens it."""
        return cls(by_deployment=True, everything=False, deployments={str(offered.named(wanted).pk)}) if wanted else cls()

    @property
    def days_chosen(self) -> int | None:
        """0, which nobody offers, where it is no number."""
        return None if self.days == "" else int(self.days) if self.days.isdecimal() and len(self.days) < 5 else 0

    def chosen(self, offered: "QuerySet[Client]") -> list[Client] | None:
        """The clients that were ticked, None for all."""
        return None if self.everything or self.by_deployment else ticked(self.clients, offered)

    def asked(self, offered: "QuerySet[Any]") -> list[Any] | None:
        """The deployments that were ticked; None where the key is not narrowed to any."""
        return ticked(self.deployments, offered) if self.by_deployment else None

    def offers(self, offered: "QuerySet[Any]") -> list[tuple[Any, bool]]:
        """Deployments by name, the ticked ones first: there may be more than a form can show."""
        known = {pk for pk in self.deployments if is_id(pk)}
        first = list(offered.filter(pk__in=known).order_by("client__slug", "slug"))
        others = offered.exclude(pk__in=known).order_by("client__slug", "slug")[: OFFERED + 1]
        return [(deployment, True) for deployment in first] + [(deployment, False) for deployment in others]

    def choices(self, member: Member) -> dict[str, Any]:
        told = self.error.fields if self.error else {}
        deployments = self.offers(services.offered_deployments(member))
        return {
            "name": self.name,
            "scopes": [(scope, services.SCOPE_WORDS[scope], scope in self.scopes) for scope in services.offered_scopes(member)],
            "everything": self.everything,
            "clients": [(client, str(client.pk) in self.clients) for client in offered_clients(member)],
            "days": [(days or "", words, str(days or "") == self.days) for days, words in services.DAYS.items()],
            "by_deployment": self.by_deployment,
            "deployments": deployments[: OFFERED + len(self.deployments)],
            "more_deployments": len(deployments) > OFFERED + len(self.deployments),
            "limits": limit_fields(self.limits, told),
            "error": self.error,
            "elsewhere": self.error is not None and not told,
            **{f"{name}_error": told.get(name, "") for name in ("name", "scopes", "clients", "deployments", "days")},
        }


def ticked(pks: set[str], offered: "QuerySet[Any]") -> list[Any]:
    """The rows of these ids. An id that is not offered is not found, as what is another's."""
    if not all(map(is_id, pks)):
        raise Http404
    wanted = {UUID(pk) for pk in pks}
    found = list(offered.filter(pk__in=wanted))
    if len(found) != len(wanted):
        raise Http404
    return found


def is_id(typed: str) -> bool:
    try:
        UUID(typed)
    except ValueError:
        return False
    return True


LIMIT_WORDS = {
    "requests_per_minute": ("Requests a minute", ""),
    "tokens_per_minute": ("Tokens a minute", "Read and written together."),
    "at_once": ("Answers at once", ""),
}


def limit_fields(typed: dict[str, str], told: dict[str, str]) -> list[dict[str, str]]:
    return [
        {"name": name, "label": label, "help": hint, "value": typed.get(name, ""), "error": told.get(name, "")}
        for name, (label, hint) in LIMIT_WORDS.items()
    ]


def limits_typed(typed: dict[str, str]) -> services.Limits:
    """Nothing typed is no limit; 0, which nothing may be, stands for what is no number."""
    plain = {name: text.strip().replace(",", "") for name, text in typed.items()}
    return services.Limits(**{name: whole(text) if text else None for name, text in plain.items()})


def whole(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 12 else 0


@dataclass(frozen=True)
class Line:
    """A key as a member sees it: the clients that it reaches and that they see, None for all."""

    key: ApiKey
    clients: list[Client] | None
    ends: str
    soon: bool
    limits: str
    deployments: list[Any] | None
    """At work, of those clients; None where it is not narrowed to any."""


def lines(member: Member, rows: Any) -> list[Line]:
    seen = member.client_ids()
    found = []
    for key in rows:
        clients = list(key.clients.all()) if key.narrowed or key.clients.all() else None
        if clients is not None and seen is not None:
            clients = [client for client in clients if client.pk in seen]
        asked = [deployment for deployment in key.deployments.all() if deployment.archived_at is None] if key.by_deployment else None
        if asked is not None and seen is not None:
            asked = [deployment for deployment in asked if deployment.client_id in seen]
        limits = services.Limits.of(key).as_words()
        found.append(Line(key, clients, services.end_words(key), services.ends_soon(key), limits, asked))
    return found


def settings(request: HttpRequest, *, secret: str = "", typed: Typed | None = None, status: int = 200) -> HttpResponse:
    member: Member = request.member  # type: ignore[attr-defined]
    typed = typed or Typed.for_deployment(request.GET.get("deployment"), services.offered_deployments(member))
    rows = services.keys(request, "key.view").filter(revoked_at=None).prefetch_related("clients", "deployments__client")
    rows = rows.select_related("member__user")
    own = page_of(request, rows.filter(member=member), named="own")
    others = page_of(request, rows.exclude(member=member).order_by("member__user__email", "-created_at"))
    context = {
        "section": "settings",
        "keys": lines(member, own),
        "own": own,
        "others": lines(member, others),
        "page": others,
        "secret": secret,
        "form": typed.choices(member),
    }
    return render(request, "workspaces/settings.html", context, status=status)


def key_new(request: HttpRequest) -> HttpResponse:
    """The new key's secret is on the answer to this very request and nowhere else."""
    member: Member = request.member  # type: ignore[attr-defined]
    typed = Typed.read(request)
    clients, deployments = typed.chosen(offered_clients(member)), typed.asked(services.offered_deployments(member))
    try:
        _, secret = services.create(
            member,
            name=typed.name,
            scopes=[] if typed.by_deployment else typed.scopes,
            clients=clients,
            deployments=deployments,
            limits=limits_typed(typed.limits),
            days=typed.days_chosen,
        )
    except UserError as error:
        typed.error = error
        return settings(request, typed=typed, status=422)
    return settings(request, secret=secret)


def key_limits(request: HttpRequest, pk: str) -> HttpResponse:
    rows = services.keys(request, "key.create").filter(revoked_at=None).select_related("member__user")
    key, error = get_object_or_404(rows, pk=pk), None
    typed = {name: str(number or "") for name, number in vars(services.Limits.of(key)).items()}
    if request.method == "POST":
        typed = {name: request.POST.get(name, "") for name in services.LARGEST}
        try:
            changed = services.change_limits(request.member, key, limits_typed(typed))  # type: ignore[attr-defined]
        except UserError as problem:
            error = problem
        else:
            if changed:
                messages.success(request, f"Changed the limits of {key.name}.")
            return redirect("settings:index")
    context = {"section": "settings", "key": key, "fields": limit_fields(typed, error.fields if error else {}), "error": error}
    return render(request, "workspaces/key_limits.html", context, status=422 if error else 200)


def key_revoke(request: HttpRequest, pk: str) -> HttpResponse:
    key = get_object_or_404(services.keys(request, "key.revoke").select_related("member__user"), pk=pk)
    services.revoke(request.member, key)  # type: ignore[attr-defined]
    messages.success(request, f"Revoked {key.name}.")
    return redirect("settings:index")
