"""The pages of kept answers: the list, one with its judgement, adding them to a dataset, and whether a project keeps any."""

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse

from studio.datasets.models import Dataset
from studio.errors import UserError
from studio.releases.models import Release
from studio.serving import answers, keeping
from studio.serving.answers import Wanted
from studio.serving.models import Deployment, Keeping, KeptAnswer
from studio.workspaces.lists import page_of, query_of
from studio.workspaces.models import Member, Project

OFFERED = 100
"""Projects, deployments or releases that a filter lists."""
TURNS, LONGEST = 200, 20_000
"""Messages of a conversation that its page shows, and characters of each: the API has the rest."""
JUDGED = [("open", "Not judged"), ("good", "Good"), ("bad", "Bad"), ("corrected", "Corrected")]


def answers_list(request: HttpRequest) -> HttpResponse:
    member: Member = request.member  # type: ignore[attr-defined]
    wanted = Wanted.read(request)
    rows = answers.visible(request, "answer.view")
    listed = wanted.of(rows if wanted.project else rows.current(), member)
    page = page_of(request, listed.defer("messages", "answer", "words", "correction"))
    context = {
        "section": "deployments",
        "wanted": wanted,
        "page": page,
        "query": query_of(request),
        "judged": JUDGED,
        "keeping": keeping.keeping_of(wanted.project) if wanted.project else None,
        "datasets": answers.datasets_for(member, wanted.project.client) if wanted.project and page.object_list else [],
        **offered(request, wanted),
    }
    return render(request, "answers/list.html", context)


def offered(request: HttpRequest, wanted: Wanted) -> dict[str, Any]:
    """What the filters list: projects that keep answers, and of the chosen one its deployments and releases."""
    keepings = Keeping.objects.for_action(request, "answer.view").current().select_related("project__client")
    projects = [found.project for found in keepings.order_by("project__client__name", "project__name")[:OFFERED]]
    if wanted.project is None:
        return {"projects": projects}
    if wanted.project not in projects:
        projects.insert(0, wanted.project)
    deployments = Deployment.objects.for_action(request, "answer.view").filter(project=wanted.project).select_related("client")
    releases = Release.objects.for_action(request, "answer.view").filter(project=wanted.project).exclude(deployments=None, canaries=None)
    chosen = [wanted.release] if wanted.release else []
    slots = [wanted.deployment] if wanted.deployment else []
    return {
        "projects": projects,
        "deployments": [*slots, *deployments.exclude(pk__in=[row.pk for row in slots])[:OFFERED]],
        "releases": [*chosen, *releases.exclude(pk__in=[row.pk for row in chosen]).distinct().order_by("-created_at")[:OFFERED]],
    }


@dataclass(frozen=True)
class Turn:
    role: str
    text: str
    left_out: int
    """Characters that the page does not show."""


def turn(message: Any, role: str = "") -> Turn:
    text = keeping.text_of(message)
    return Turn((role or keeping.role_of(message))[:20] or "?", text[:LONGEST], max(0, len(text) - LONGEST))


def detail(request: HttpRequest, pk: str) -> HttpResponse:
    return draw(request, get_object_or_404(answers.visible(request, "answer.view").defer("words"), pk=pk))


def draw(
    request: HttpRequest, kept: KeptAnswer, *, error: UserError | None = None, typed: str | None = None, status: int = 200
) -> HttpResponse:
    member: Member = request.member  # type: ignore[attr-defined]
    newer, older = answers.beside(Wanted.read(request).of(answers.in_time(request, "answer.view"), member), kept)
    context = {
        "section": "deployments",
        "kept": kept,
        "project": kept.project,
        "client": kept.project.client,
        "turns": [turn(message) for message in kept.messages[-TURNS:]],
        "earlier": max(0, len(kept.messages) - TURNS),
        "answer": turn(kept.answer, "assistant"),
        "correction": kept.correction if typed is None else typed,
        "newer": newer,
        "older": older,
        "query": request.GET.urlencode(),
        "datasets": answers.datasets_for(member, kept.project.client),
        "error": error,
    }
    return render(request, "answers/detail.html", context, status=status)


def back_to(request: HttpRequest, kept: KeptAnswer) -> HttpResponse:
    """The answer's page, in the list that it was found in."""
    query = request.GET.urlencode()
    return redirect(reverse("answers:detail", args=[kept.pk]) + (f"?{query}" if query else ""))


def judge(request: HttpRequest, pk: str) -> HttpResponse:
    kept = get_object_or_404(answers.visible(request, "answer.judge").defer("words"), pk=pk)
    sent, correction = request.POST.get("thumb"), request.POST.get("correction")
    thumb = {"1": 1, "0": 0, "-1": -1}.get(sent, 2) if sent is not None else None
    try:
        answers.judge(request.member, kept, thumb=thumb, correction=correction)  # type: ignore[attr-defined]
    except UserError as error:
        return draw(request, kept, error=error, typed=correction, status=422)
    return back_to(request, kept)


def delete(request: HttpRequest, pk: str) -> HttpResponse:
    kept = get_object_or_404(answers.visible(request, "answer.keep").defer("words"), pk=pk)
    project = kept.project_id
    keeping.delete(request.member, kept)  # type: ignore[attr-defined]
    messages.success(request, "Deleted the answer.")
    return redirect(f"{reverse('answers:list')}?{urlencode({'project': str(project)})}")


def add(request: HttpRequest) -> HttpResponse:
    """One answer, or all good ones of a filter, as rows that a draft adds."""
    member: Member = request.member  # type: ignore[attr-defined]
    datasets = Dataset.objects.for_action(request, "dataset.create").filter(held_out=False).select_related("project__client")
    dataset = datasets.named(request.POST.get("dataset"))
    rows = answers.visible(request, "answer.view")
    if one := request.POST.get("answer"):
        kept = rows.named(one)
        try:
            answers.add(member, dataset, kept)
        except UserError as error:
            messages.error(request, next(iter(error.fields.values()), error.message))
        else:
            messages.success(request, f"Added to your draft of {dataset.name}.")
        return back_to(request, kept)
    wanted = Wanted.read(request)
    if wanted.project and wanted.project.client_id != dataset.project.client_id:
        raise Http404
    try:
        told = answers.add_all(member, dataset, wanted.of(rows, member))
    except UserError as error:
        messages.error(request, error.message)
    else:
        messages.success(request, told.as_words(dataset))
    return redirect(f"{reverse('answers:list')}?{request.GET.urlencode()}")


def setting(request: HttpRequest, pk: str) -> HttpResponse:
    """Whether a project keeps its endpoint's texts, and for how long."""
    project = get_object_or_404(Project.objects.for_action(request, "answer.keep").select_related("client"), pk=pk)
    now, error, typed = keeping.keeping_of(project), None, request.POST.get("days", "")
    if request.method == "POST":
        stops = request.POST.get("stop") == "true"
        days = None if stops else int(typed) if typed.isascii() and typed.isdecimal() and len(typed) < 5 else 0
        confirmed = stops or request.POST.get("confirm") == typed
        try:
            deleted = keeping.set_keeping(request.member, project, days=days, confirmed=confirmed)  # type: ignore[attr-defined]
        except UserError as problem:
            error = problem
        else:
            gone = f" {deleted:,} deleted." if deleted else ""
            messages.success(request, f"{'Keeps nothing any more' if stops else f'Keeps answers for {days} days'}.{gone}")
            return redirect("answers:setting", pk=project.pk)
    context = {
        "section": "deployments",
        "project": project,
        "client": project.client,
        "keeping": now,
        "days": typed or (now.days if now else 30),
        "kept": KeptAnswer.objects.filter(project=project).count(),
        "error": error,
        "asks": error is not None and error.code == "confirm",
        "longest": keeping.LONGEST_DAYS,
    }
    return render(request, "answers/setting.html", context, status=422 if error else 200)
