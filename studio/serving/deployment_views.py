"""The pages of deployments: what answers where, since when and by whom, and the buttons that change it. What may be is `deploying`'s."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from django.contrib import messages
from django.core.paginator import Paginator
from django.db.models import OuterRef, Subquery
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render

from studio.errors import UserError
from studio.releases.models import Release
from studio.serving import deploying
from studio.serving.models import Deployment, DeploymentState
from studio.serving.openai.using import ways
from studio.serving.traffic_views import of_deployment
from studio.workspaces.lists import options_of_projects, page_of
from studio.workspaces.models import Project, ScopedQuerySet

HISTORY = 20
OFFERED = 100
"""Approved releases that a form offers, the newest first."""


def deployments(request: HttpRequest) -> HttpResponse:
    visible = Deployment.objects.for_action(request, "deployment.view").current()
    away = request.GET.get("archived") == "1"
    rows = visible.filter(archived_at__isnull=not away).order_by("client__name", "client_id", "slug")
    page = page_of(request, rows.select_related("client", "project", "release", "canary"))
    put_there = last_put(list(page))
    context = {
        "section": "deployments",
        "page": page,
        "clients": [
            (client, [(deployment, put_there.get(deployment.pk)) for deployment in own])
            for client, own in groupby(page, key=lambda deployment: deployment.client)
        ],
        "away": away,
        "any_away": away or visible.filter(archived_at__isnull=False).exists(),
    }
    return render(request, "deployments/list.html", context)


def last_put(deployments: list[Deployment]) -> dict[Any, DeploymentState]:
    """The state with which what answers now came to each; a canary beside it changes nothing of that."""
    put = DeploymentState.objects.filter(deployment=OuterRef("pk")).exclude(change=DeploymentState.Change.CANARY).order_by("-number")
    wanted = Deployment.objects.filter(pk__in=[deployment.pk for deployment in deployments])
    states = DeploymentState.objects.filter(pk__in=wanted.values(last=Subquery(put.values("pk")[:1]))).select_related("user")
    return {state.deployment_id: state for state in states}


def new(request: HttpRequest) -> HttpResponse:
    projects = Project.objects.for_action(request, "deployment.create")
    typed, error = request.POST.get("project") or request.GET.get("project"), None
    chosen: Any = projects.select_related("client").named(typed) if typed or request.method == "POST" else None
    if request.method == "POST":
        try:
            made = deploying.create_deployment(
                request.member,  # type: ignore[attr-defined]
                project=chosen,
                slug=request.POST.get("slug", ""),
            )
        except UserError as problem:
            error = problem
        else:
            messages.success(request, f"Made {made}. Promote a release to it.")
            return redirect("deployments:detail", pk=made.pk)
    listed = options_of_projects(projects, chosen and chosen.pk)
    context = {"section": "deployments", "projects": listed, "error": error, "slug": request.POST.get("slug", "")}
    return render(request, "deployments/new.html", context, status=422 if error else 200)


def watched(request: HttpRequest, action: str) -> ScopedQuerySet:
    found: ScopedQuerySet = Deployment.objects.for_action(request, action)
    return found.select_related("client", "project__client", "release", "canary")


def detail(request: HttpRequest, pk: str) -> HttpResponse:
    return draw(request, get_object_or_404(watched(request, "deployment.view"), pk=pk))


@dataclass(frozen=True)
class Entry:
    """A state of the history, and whether it can be brought back."""

    state: DeploymentState
    is_now: bool
    same: bool
    """It points at what answers now."""

    @property
    def can_return(self) -> bool:
        return not self.same and self.state.release_id is not None


def draw(request: HttpRequest, found: Deployment, *, error: UserError | None = None, form: str = "", status: int = 200) -> HttpResponse:
    """The page; with an error, as the form named `form` was sent."""
    history = list(deploying.states_of(found))
    page, now = Paginator(history, HISTORY).get_page(request.GET.get("page")), deploying.Pointing.of(found)
    newest = history[0] if history else None
    entries = [Entry(state, is_now=state is newest, same=deploying.Pointing.of(state) == now) for state in page]
    releases = Release.objects.for_action(request, "release.view").filter(project=found.project_id, stage=Release.Stage.APPROVED)
    if answered := next((state.release for state in history if state.release is not None), None):
        releases = releases.filter(task=answered.task)
    context = {
        "section": "deployments",
        "deployment": found,
        "ways": ways(request.build_absolute_uri("/v1"), str(found)),
        "client": found.client,
        "project": found.project,
        "newest": newest,
        "put_there": next((state for state in history if state.change != DeploymentState.Change.CANARY), None),
        "back": None if found.archived_at else deploying.before(found, history),
        "page": page,
        "entries": entries,
        "releases": releases.exclude(pk__in=[found.release_id] if found.release_id else []).order_by("-created_at")[:OFFERED],
        "error": error,
        "form": form,
        "typed": request.POST,
        "traffic": of_deployment(request, found),
    }
    return render(request, "deployments/detail.html", context, status=status)


def changed(
    request: HttpRequest, pk: str, change: Callable[[Deployment], DeploymentState | None], told: Callable[[Deployment], str], *, form: str
) -> HttpResponse:
    """Does one change and leads back to the page, which says what was done, or that nothing had to be."""
    found = get_object_or_404(watched(request, "deployment.promote"), pk=pk)
    try:
        state = change(found)
    except UserError as problem:
        if not problem.fields:
            raise
        return draw(request, found, error=problem, form=form, status=422)
    if state is None:
        messages.info(request, f"{found} points there already. Nothing was changed.")
    else:
        messages.success(request, told(found))
    return redirect("deployments:detail", pk=found.pk)


def chosen_release(request: HttpRequest) -> Release:
    typed = request.POST.get("release", "")
    if not typed:
        raise UserError("Choose a release.", fields={"release": "Choose a release."})
    found: Release = Release.objects.for_action(request, "release.view").named(typed)
    return found


def promote(request: HttpRequest, pk: str) -> HttpResponse:
    def change(found: Deployment) -> DeploymentState | None:
        return deploying.promote(request.member, found, release=chosen_release(request), why=request.POST.get("why", ""))  # type: ignore[attr-defined]

    return changed(request, pk, change, lambda found: f"Promoted {found.release} to {found}.", form=request.POST.get("form", "promote"))


def canary(request: HttpRequest, pk: str) -> HttpResponse:
    """Begins a canary or changes its share; a share of 0 ends it."""
    member, why = request.member, request.POST.get("why", "")  # type: ignore[attr-defined]
    percent = typed_percent(request.POST.get("canary_percent", ""))

    def change(found: Deployment) -> DeploymentState | None:
        if percent == 0:
            return deploying.end_canary(member, found, why=why)
        return deploying.try_canary(member, found, release=chosen_release(request), percent=percent, why=why)

    def told(found: Deployment) -> str:
        if found.canary is None:
            return f"Ended the canary. {found.release} answers every request to {found}."
        return f"{found.canary} answers {found.canary_percent} % of the requests to {found}."

    return changed(request, pk, change, told, form="canary")


def typed_percent(typed: str) -> int:
    """-1 for what is no number, which no share may be."""
    text = typed.strip().removesuffix("%").strip()
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 4 else -1


def rollback(request: HttpRequest, pk: str) -> HttpResponse:
    """The button sends the number of the state that it names, so a second click finds nothing to do."""
    typed = request.POST.get("to", "")
    to = int(typed) if typed.isascii() and typed.isdecimal() and len(typed) < 10 else None if typed == "" else -1

    def told(found: Deployment) -> str:
        since = " It has been retired since; approve it again or promote another when there is time." if is_retired(found) else ""
        return f"Rolled {found} back to {found.release}.{since}"

    return changed(
        request,
        pk,
        lambda found: deploying.roll_back(request.member, found, to=to, why=request.POST.get("why", "")),  # type: ignore[attr-defined]
        told,
        form="rollback",
    )


def is_retired(deployment: Deployment) -> bool:
    return deployment.release is not None and deployment.release.stage == Release.Stage.RETIRED


def clear(request: HttpRequest, pk: str) -> HttpResponse:
    return changed(
        request,
        pk,
        lambda found: deploying.clear(request.member, found, why=request.POST.get("why", "")),  # type: ignore[attr-defined]
        lambda found: f"Cleared {found}. Nothing answers there now.",
        form="clear",
    )


def archive(request: HttpRequest, pk: str) -> HttpResponse:
    found = get_object_or_404(watched(request, "deployment.create"), pk=pk)
    if deploying.archive(request.member, found):  # type: ignore[attr-defined]
        messages.success(request, f"Archived {found}. It answers nothing until it is restored.")
    return redirect("deployments:detail", pk=found.pk)


def restore(request: HttpRequest, pk: str) -> HttpResponse:
    found = get_object_or_404(watched(request, "deployment.create"), pk=pk)
    if deploying.restore(request.member, found):  # type: ignore[attr-defined]
        messages.success(request, f"Restored {found}.")
    return redirect("deployments:detail", pk=found.pk)
