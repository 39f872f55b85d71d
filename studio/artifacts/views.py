"""The registry's pages: what was made, from what, and the file to take home."""

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render

from studio.artifacts import services
from studio.artifacts.downloads import artifact_response
from studio.artifacts.models import Artifact, Build
from studio.artifacts.quantizations import choices
from studio.orders.pages import render_live


def artifacts(request: HttpRequest) -> HttpResponse:
    rows = Artifact.objects.for_action(request, "artifact.view").select_related("project__client", "base_model", "dataset_version__dataset")
    kind = request.GET.get("kind", "")
    if kind in Artifact.Kind.values:
        rows = rows.filter(kind=kind)
    return render(
        request, "artifacts/list.html", {"section": "artifacts", "artifacts": rows[:200], "kinds": Artifact.Kind.choices, "kind": kind}
    )


def artifact(request: HttpRequest, pk: str) -> HttpResponse:
    visible = Artifact.objects.for_action(request, "artifact.view")
    found = get_object_or_404(visible.select_related("project__client", "base_model", "dataset_version__dataset", "order"), pk=pk)
    builds = Build.objects.for_action(request, "build.view").filter(source=found).select_related("order", "artifact")
    context = {
        "section": "artifacts",
        "artifact": found,
        "project": found.project,
        "builds": builds,
        "build": getattr(found, "build", None),
        "quantizations": {name: (name, sentence) for name, sentence in choices("gguf").items()},
        "run": getattr(found.order, "run", None),
    }
    return render(request, "artifacts/detail.html", context)


def download(request: HttpRequest, pk: str) -> HttpResponseBase:
    found = get_object_or_404(Artifact.objects.for_action(request, "artifact.download").select_related("order", "project__client"), pk=pk)
    return artifact_response(request, found)


def build_new(request: HttpRequest, pk: str) -> HttpResponse:
    found = get_object_or_404(Artifact.objects.for_action(request, "build.create").select_related("project__client"), pk=pk)
    builds = services.request_builds(
        request.member,  # type: ignore[attr-defined]
        source=found,
        project=found.project,
        quantizations=request.POST.getlist("quantization"),
    )
    return redirect("builds:detail", pk=builds[0].pk)


def build(request: HttpRequest, pk: str) -> HttpResponse:
    visible = Build.objects.for_action(request, "build.view")
    found = get_object_or_404(visible.select_related("order", "artifact", "source__base_model", "base_model", "project__client"), pk=pk)
    context = {"section": "artifacts", "build": found, "order": found.order, "project": found.project, "source": found.source}
    return render_live(request, "artifacts/build.html", context, live=found.order.is_live)


def build_stop(request: HttpRequest, pk: str) -> HttpResponse:
    found = get_object_or_404(Build.objects.for_action(request, "build.create").select_related("order"), pk=pk)
    services.stop_build(request.member, found)  # type: ignore[attr-defined]
    return redirect("builds:detail", pk=found.pk)
