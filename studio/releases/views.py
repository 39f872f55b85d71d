"""The pages of releases: the list, a new one, one of them with all that can be done to it, and a project's gate."""

from collections.abc import Callable
from typing import Any

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render

from studio.artifacts.models import Artifact
from studio.datasets.models import Dataset
from studio.errors import UserError
from studio.releases import evaluating, gates, gating, releasing, staging
from studio.releases.forms import GateForm, ReleaseForm, Typed
from studio.releases.models import Release
from studio.releases.pages import release_page
from studio.workspaces.lists import page_of, query_of
from studio.workspaces.models import Client, Project, ScopedQuerySet
from studio.workspaces.searching import matching, words_of

OFFERED = 200
"""Adapters and models of a project that the form offers, the newest first."""


def releases(request: HttpRequest) -> HttpResponse:
    rows = Release.objects.for_action(request, "release.view").select_related("project__client", "artifact", "base_model")
    clients = Client.objects.for_action(request, "client.view")
    chosen = next((client for client in clients if str(client.pk) == request.GET.get("client")), None)
    stage, typed = request.GET.get("stage", ""), request.GET.get("q", "")
    rows = rows.filter(project__client=chosen) if chosen else rows.current()
    if stage in Release.Stage.values:
        rows = rows.filter(stage=stage)
    names = ("name", "project__name", "project__client__name", "base_model__name")
    rows = rows.filter(matching(Release, words_of(typed), names=names, hashes=("artifact__sha256",)))
    rows = rows.order_by("project__client__name", "project__client_id", "task", "-major", "-minor", "-patch", "pk")
    context = {
        "section": "releases",
        "page": page_of(request, rows.prefetch_related("deployments__client")),
        "clients": clients,
        "chosen": chosen,
        "stage": stage,
        "stages": Release.Stage.choices,
        "q": typed,
        "query": query_of(request),
    }
    return render(request, "releases/list.html", context)


def new(request: HttpRequest) -> HttpResponse:
    """What to release, which number it gets, and what it is asked with. `preview` only says what the rule makes of what was typed."""
    artifact, project = named_things(request)
    if project is None:
        projects = Project.objects.for_action(request, "release.create").select_related("client").order_by("client__name", "name")
        typed = request.GET.get("q", "")
        page = page_of(request, projects.filter(matching(Project, words_of(typed), names=("name", "client__name"))))
        choice = {"section": "releases", "page": page, "query": query_of(request), "typed": typed}
        return render(request, "releases/choose_project.html", choice)
    kinds = (Artifact.Kind.ADAPTER, Artifact.Kind.MODEL)
    offered = artifacts(request).filter(project=project, kind__in=kinds).order_by("-created_at")[:OFFERED]
    answering = [each for each in offered if each.is_chattable]
    if artifact is None and "artifact" not in request.POST:
        artifact = answering[0] if answering else None
    form = ReleaseForm.read(request, project, answering, artifact)
    preview = "preview" in request.GET
    if request.method == "POST" and not preview:
        try:
            return redirect("releases:detail", pk=make(request, form).pk)
        except UserError as problem:
            form.error = problem
    context = {"section": "releases", "form": form, "project": project}
    return render(request, "releases/new.html", context, status=422 if form.error and not preview and request.method == "POST" else 200)


def named_things(request: HttpRequest) -> tuple[Artifact | None, Project | None]:
    """What the request names of an artifact and a project; the artifact's own project where only that is named."""
    typed = request.POST.get("artifact") or request.GET.get("artifact")
    artifact = artifacts(request).named(typed) if typed else None
    wanted = request.POST.get("project") or request.GET.get("project")
    projects = Project.objects.for_action(request, "release.create").select_related("client")
    if wanted:
        return artifact, projects.named(wanted)
    return artifact, projects.named(artifact.project_id) if artifact else None


def artifacts(request: HttpRequest) -> ScopedQuerySet:
    found: ScopedQuerySet = Artifact.objects.for_action(request, "release.create")
    return found.select_related("project__client", "base_model", "dataset_version__dataset")


def make(request: HttpRequest, form: ReleaseForm) -> Release:
    if form.artifact is None:
        raise UserError("Choose what to release.", fields={"artifact": "Choose an adapter or a model."})
    made = releasing.create_release(
        request.member,  # type: ignore[attr-defined]
        project=form.project,
        artifact=form.artifact,
        task=form.task,
        bump=form.bump,
        asked_with=form.asked,
        notes=form.notes,
    )
    messages.success(request, f"Made {made}. It is a draft.")
    return made


def watched(request: HttpRequest, action: str) -> ScopedQuerySet:
    found: ScopedQuerySet = Release.objects.for_action(request, action)
    return found.select_related(
        "project__client__workspace",
        "artifact__base_model",
        "artifact__dataset_version__dataset",
        "base_model",
        "previous__artifact__dataset_version__dataset",
        "previous__base_model",
        "created_by",
    ).prefetch_related("approvals")


def release(request: HttpRequest, pk: str) -> HttpResponse:
    found = get_object_or_404(watched(request, "release.view"), pk=pk)
    return render(request, "releases/detail.html", release_page(found, member=request.member))  # type: ignore[attr-defined]


def done(request: HttpRequest, pk: str, action: str, do: Callable[[Any, Release], str]) -> HttpResponse:
    """Does something to a release and shows it again, with what was refused beside what was typed."""
    found = get_object_or_404(watched(request, action), pk=pk)
    member = request.member  # type: ignore[attr-defined]
    try:
        said = do(member, found)
    except UserError as problem:
        again = get_object_or_404(watched(request, "release.view"), pk=pk)
        typed = {name: request.POST.get(name, "") for name in ("form", "comment", "notes")}
        return render(request, "releases/detail.html", release_page(again, member=member, error=problem, typed=typed), status=422)
    if said:
        messages.success(request, said)
    return redirect("releases:detail", pk=pk)


def stage(request: HttpRequest, pk: str) -> HttpResponse:
    def move(member: Any, found: Release) -> str:
        staging.move(member, found, to=request.POST.get("to", ""), comment=request.POST.get("comment", ""))
        return f"{found} is {found.standing} now."

    return done(request, pk, "release.approve", move)


def approve(request: HttpRequest, pk: str) -> HttpResponse:
    def say(member: Any, found: Release) -> str:
        told = request.POST.get("approves", "")
        if told not in ("true", "false"):
            raise UserError("Choose whether you approve it.")
        seen = request.POST.get("evaluation")
        gates.say(member, found, approves=told == "true", comment=request.POST.get("comment", ""), evaluation=seen)
        return f"You {'approved' if told == 'true' else 'refused'} {found}."

    return done(request, pk, "release.approve", say)


def evaluate(request: HttpRequest, pk: str) -> HttpResponse:
    def begin(member: Any, found: Release) -> str:
        evaluating.request_evaluation(member, found)
        return ""

    return done(request, pk, "release.evaluate", begin)


def stop_evaluation(request: HttpRequest, pk: str) -> HttpResponse:
    def stop(member: Any, found: Release) -> str:
        evaluating.stop_evaluation(member, found)
        return ""

    return done(request, pk, "release.evaluate", stop)


def share(request: HttpRequest, pk: str) -> HttpResponse:
    def let_them_see(member: Any, found: Release) -> str:
        releasing.share(member, found)
        return f"The people of {found.project.client} see it now."

    return done(request, pk, "release.create", let_them_see)


def edit(request: HttpRequest, pk: str) -> HttpResponse:
    def note(member: Any, found: Release) -> str:
        releasing.edit_notes(member, found, notes=request.POST.get("notes", ""))
        return "Saved the notes."

    return done(request, pk, "release.create", note)


def gate(request: HttpRequest, pk: str) -> HttpResponse:
    project = get_object_or_404(Project.objects.for_action(request, "gate.edit").select_related("client"), pk=pk)
    held_out = Dataset.objects.for_action(request, "dataset.view").filter(project__client=project.client_id, held_out=True)
    datasets = held_out.select_related("project").order_by("project__name", "name")
    form = GateForm(project, gating.gate_for(project), list(datasets[:200]))
    if request.method == "POST":
        form.typed = request.POST
        try:
            wanted = request.POST.get("held_out")
            values = Typed(request.POST).values | {"held_out": datasets.named(wanted) if wanted else None}
            gating.edit_gate(request.member, project, **values)  # type: ignore[attr-defined]
        except Http404:
            form.error = UserError("Some values cannot be used.", fields={"held_out": "Choose rows that are held out for this client."})
        except UserError as problem:
            form.error = problem
        else:
            messages.success(request, "Saved what a release must meet.")
            return redirect("projects:gate", pk=project.pk)
    context = {"section": "projects", "project": project, "form": form}
    return render(request, "releases/gate.html", context, status=422 if form.error else 200)
