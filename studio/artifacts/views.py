"""The registry's pages: what was made, from what, and the files to take home."""

from typing import Any

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse

from studio.artifacts import services
from studio.artifacts.downloads import artifact_response, bundle_response, main_file
from studio.artifacts.forms import BuildForm
from studio.artifacts.models import Artifact, Build
from studio.artifacts.pages import builds_of, ladder_page, seconds_left
from studio.artifacts.runners import running_it
from studio.basemodels.models import BaseModel
from studio.errors import UserError
from studio.orders.pages import render_live
from studio.workspaces.lists import options_of_projects, page_of, query_of
from studio.workspaces.models import Project, ScopedQuerySet
from studio.workspaces.searching import matching, words_of


def artifacts(request: HttpRequest) -> HttpResponse:
    rows = Artifact.objects.for_action(request, "artifact.view").current().select_related("project__client", "base_model", "build")
    kind, typed = request.GET.get("kind", ""), request.GET.get("q", "")
    if kind in Artifact.Kind.values:
        rows = rows.filter(kind=kind)
    names = ("name", "project__name", "project__client__name", "base_model__name")
    rows = rows.filter(matching(Artifact, words_of(typed), names=names, hashes=("sha256",)))
    context = {
        "section": "artifacts",
        "page": page_of(request, rows),
        "query": query_of(request),
        "kinds": Artifact.Kind.choices,
        "kind": kind,
        "typed": typed,
    }
    return render(request, "artifacts/list.html", context)


def artifact(request: HttpRequest, pk: str) -> HttpResponse:
    found = get_object_or_404(sources(request, "artifact.view"), pk=pk)
    builds = list(builds_of(request, found))
    form = BuildForm.of(found, builds=builds) if found.is_chattable else None
    return render(request, "artifacts/detail.html", artifact_page(found, builds=builds, form=form))


def sources(request: HttpRequest, action: str) -> ScopedQuerySet:
    found: ScopedQuerySet = Artifact.objects.for_action(request, action)
    return found.select_related("project__client", "base_model", "dataset_version__dataset", "order", "build")


def artifact_page(found: Artifact, *, builds: list[Build], form: BuildForm | None) -> dict[str, Any]:
    children = list(found.children.all())
    return {
        "section": "artifacts",
        "artifact": found,
        "project": found.project,
        "builds": builds,
        "children": [child for child in children if child.was_built],
        "extracted": [child for child in children if child.kind == Artifact.Kind.ADAPTER],
        "build": getattr(found, "build", None),
        "form": form,
        "run": getattr(found.order, "run", None),
    }


def download(request: HttpRequest, pk: str) -> HttpResponseBase:
    return artifact_response(request, get_object_or_404(sources(request, "artifact.download"), pk=pk))


def bundle(request: HttpRequest, pk: str) -> HttpResponseBase:
    return bundle_response(request, get_object_or_404(sources(request, "artifact.download"), pk=pk))


def build_new(request: HttpRequest, pk: str) -> HttpResponse:
    found = get_object_or_404(sources(request, "build.create"), pk=pk)
    form = BuildForm.of(found, builds=builds_of(request, found), typed=request.POST)
    try:
        builds = services.request_builds(
            request.member,  # type: ignore[attr-defined]
            source=found,
            kind=form.kind,
            quantizations=form.asked,
            importance=form.importance,
        )
    except UserError as problem:
        form.error = problem
        return render(request, "artifacts/detail.html", artifact_page(found, builds=form.builds, form=form), status=422)
    return to_builds(builds)


def build_base(request: HttpRequest, pk: str) -> HttpResponse:
    """A base model as it is: the form, with the project that its file is to stand in."""
    base = get_object_or_404(BaseModel.objects.for_action(request, "base_model.view"), pk=pk)
    projects = projects_of(request)
    form = BuildForm.of(base, builds=builds_of(request, base), typed=request.POST)
    typed = request.POST.get("project") or request.GET.get("project")
    project = projects.named(typed) if typed else None
    if request.method == "POST":
        try:
            builds = services.request_builds(
                request.member,  # type: ignore[attr-defined]
                base_model=base,
                project=project,
                kind=form.kind,
                quantizations=form.asked,
                importance=form.importance,
            )
        except UserError as problem:
            form.error = problem
        else:
            return to_builds(builds)
    context = {"section": "basemodels", "base": base, "form": form, "projects": options_of_projects(projects, project and project.pk)}
    return render(request, "artifacts/base.html", context, status=422 if form.error else 200)


def projects_of(request: HttpRequest) -> ScopedQuerySet:
    """Where what is built from a base model may stand."""
    found: ScopedQuerySet = Project.objects.for_action(request, "build.create").filter(client__archived_at=None)
    return found.select_related("client")


def to_builds(builds: list[Build]) -> HttpResponse:
    """To the one that was asked for; several are looked at on their ladder."""
    if len(builds) == 1 or builds[0].kind != Build.Kind.GGUF:
        return redirect("builds:detail", pk=builds[0].pk)
    return redirect(ladder_of(builds[0]))


def ladder_of(build: Build) -> str:
    return (
        reverse("builds:ladder", args=[build.source_id]) if build.source_id else reverse("builds:base_ladder", args=[build.base_model_id])
    )


def build(request: HttpRequest, pk: str) -> HttpResponse:
    found = get_object_or_404(watched(request, "build.view"), pk=pk)
    file = main_file(found.artifact) if found.artifact else None
    context = {
        "section": "artifacts",
        "build": found,
        "order": found.order,
        "project": found.project,
        "source": found.source,
        "together": found.order.builds.select_related("artifact").order_by("created_at"),
        "ladder_url": ladder_of(found) if found.kind == Build.Kind.GGUF else "",
        "seconds_left": seconds_left(found.order),
        "file": file,
        "sha256": found.artifact.files[file]["sha256"] if found.artifact and file else "",
        "steps": running_it(found, file),
    }
    return render_live(request, "artifacts/build.html", context, live=found.order.is_live)


def watched(request: HttpRequest, action: str) -> ScopedQuerySet:
    found: ScopedQuerySet = Build.objects.for_action(request, action)
    return found.select_related("order", "artifact", "source__base_model", "source__project__client", "base_model", "project__client")


def build_stop(request: HttpRequest, pk: str) -> HttpResponse:
    found = get_object_or_404(watched(request, "build.create"), pk=pk)
    services.stop_build(request.member, found)  # type: ignore[attr-defined]
    return redirect("builds:detail", pk=found.pk)


def build_retry(request: HttpRequest, pk: str) -> HttpResponse:
    found = get_object_or_404(watched(request, "build.create"), pk=pk)
    return redirect("builds:detail", pk=services.retry_build(request.member, found).pk)  # type: ignore[attr-defined]


def build_delete(request: HttpRequest, pk: str) -> HttpResponse:
    found = get_object_or_404(watched(request, "build.create"), pk=pk)
    ladder = ladder_of(found)
    services.delete_build(request.member, found)  # type: ignore[attr-defined]
    return redirect(ladder)


def ladder(request: HttpRequest, pk: str) -> HttpResponse:
    found = get_object_or_404(sources(request, "build.view"), pk=pk)
    return show_ladder(request, ladder_page(request, found) | {"source": found, "project": found.project})


def base_ladder(request: HttpRequest, pk: str) -> HttpResponse:
    base = get_object_or_404(BaseModel.objects.for_action(request, "base_model.view"), pk=pk)
    return show_ladder(request, ladder_page(request, base) | {"base": base, "projects": options_of_projects(projects_of(request))})


def show_ladder(request: HttpRequest, context: dict[str, Any]) -> HttpResponse:
    """The page refreshes what is on its way alone, until something of it has come or ended: then the whole page is another."""
    return render_live(request, "artifacts/ladder.html", context, live=request.GET.get("coming") == str(len(context["live"])))
