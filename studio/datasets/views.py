"""Datasets: dropping a file, and seeing what is in it before anything is trained on it."""

from pathlib import PurePath
from typing import Any

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render

from studio.datasets import rows, services, uploading
from studio.datasets.deleting import delete_dataset
from studio.datasets.models import Dataset, DatasetVersion
from studio.datasets.pages import elsewhere, findings
from studio.datasets.pages.frame import MEANINGS, about, meant
from studio.datasets.pages.lengths import lengths
from studio.errors import UserError
from studio.orders.pages import render_live
from studio.streaming import sent
from studio.workspaces.models import Project

SHOWN_REFUSALS = 100


def project_of(request: HttpRequest, action: str, pk: str | None) -> Project:
    """The project that the query names."""
    found: Project = Project.objects.for_action(request, action).select_related("client").named(pk)
    return found


def uploaded(request: HttpRequest) -> services.Upload:
    """The file of this request, and how it is to be read."""
    file = request.FILES.get("file")
    if file is None:
        raise UserError("Choose a file.", fields={"file": "Choose a file."})
    typed = request.POST.get("validation_percent", "5").strip()
    if not typed.replace(".", "", 1).isdigit() or not typed.isascii():
        raise UserError("The validation share is off.", fields={"validation_percent": "Must be from 0 to 50 per cent."})
    mapping = {
        field: request.POST[f"map_{field}"].strip()
        for field in ("prompt", "answer", "text", "system")
        if request.POST.get(f"map_{field}", "").strip()
    }
    return services.Upload(
        filename=file.name or "upload",
        chunks=file.chunks(),
        size=file.size or 0,
        mapping=mapping,
        validation_percent=float(typed),
    )


def refuse(request: HttpRequest, error: UserError, context: dict[str, Any]) -> HttpResponse:
    return render(request, "datasets/new.html", context | {"error": error, "typed": request.POST}, status=422)


def new_page(request: HttpRequest, project: Project) -> dict[str, Any]:
    waiting = uploading.under_way(request.member, project)  # type: ignore[attr-defined]
    return {"section": "projects", "project": project, "waiting": waiting}


def new(request: HttpRequest) -> HttpResponse:
    project = project_of(request, "dataset.create", request.POST.get("project") or request.GET.get("project"))
    context = new_page(request, project)
    if request.method != "POST":
        return elsewhere.form(request, context) or render(request, "datasets/new.html", context)
    try:
        upload = uploaded(request)
        name = request.POST.get("name", "").strip() or PurePath(upload.filename).stem
        version = services.create_with_version(request.member, project=project, name=name, upload=upload)  # type: ignore[attr-defined]
    except UserError as error:
        return refuse(request, error, context)
    return redirect("datasets:version", pk=version.pk)


def version_new(request: HttpRequest, pk: str) -> HttpResponse:
    dataset = get_object_or_404(Dataset.objects.for_action(request, "dataset.create").select_related("project__client"), pk=pk)
    context = new_page(request, dataset.project) | {"dataset": dataset}
    if request.method != "POST":
        return elsewhere.form(request, context) or render(request, "datasets/new.html", context)
    try:
        version = services.add_version(request.member, dataset=dataset, upload=uploaded(request))  # type: ignore[attr-defined]
    except UserError as error:
        return refuse(request, error, context)
    return redirect("datasets:version", pk=version.pk)


def dataset(request: HttpRequest, pk: str) -> HttpResponse:
    found = get_object_or_404(Dataset.objects.for_action(request, "dataset.view").select_related("project__client"), pk=pk)
    newest = found.newest
    if newest is None:
        return redirect("datasets:version_new", pk=found.pk)
    return redirect("datasets:version", pk=newest.pk)


def delete(request: HttpRequest, pk: str) -> HttpResponse:
    found = get_object_or_404(Dataset.objects.for_action(request, "dataset.delete").select_related("project__client"), pk=pk)
    delete_dataset(request.member, found)  # type: ignore[attr-defined]
    messages.success(request, f"Deleted {found.name}.")
    return redirect("projects:detail", pk=found.project_id)


def version(request: HttpRequest, pk: str) -> HttpResponse:
    """One version: what was found, the refused lines, the lengths under a base model."""
    visible = DatasetVersion.objects.for_action(request, "dataset.view")
    found = get_object_or_404(visible.select_related("order", "dataset__project__client"), pk=pk)
    context = about(found) | {"tab": "overview"}
    if found.is_ready:
        context |= {"refusals": rows.refusals(found.folder / "refusals.jsonl", limit=SHOWN_REFUSALS)} | lengths(request, found)
        context |= findings.overview(request.member, found)  # type: ignore[attr-defined]
    measuring = context.get("measurement")
    live = found.order.is_live or (measuring is not None and measuring.order.is_live)
    return render_live(request, "datasets/version.html", context, live=live)


def map_columns(request: HttpRequest, pk: str) -> HttpResponse:
    """A refused file once more, now that a person has said what its columns mean."""
    writable = DatasetVersion.objects.for_action(request, "dataset.create")
    found = get_object_or_404(writable.select_related("order", "dataset__project__client"), pk=pk)
    chosen = [(name, request.POST.get(f"column_{number}", "")) for number, name in enumerate(found.columns)]
    named = [(name, field) for name, field in chosen if field in MEANINGS]
    try:
        if len({field for _, field in named}) < len(named):
            raise UserError("Two columns have the same meaning.", fields={"mapping": "Give each meaning to one column."})
        made = services.map_columns(request.member, found, mapping={field: name for name, field in named})  # type: ignore[attr-defined]
    except UserError as error:
        if found.status != "refused":  # then its page has no such form
            raise
        context = about(found) | {"columns": meant(found, dict(chosen)), "error": error}
        return render(request, "datasets/version.html", context, status=422)
    return redirect("datasets:version", pk=made.pk)


def refusals(request: HttpRequest, pk: str) -> HttpResponseBase:
    """Every refused line of a version, as JSON lines."""
    found = get_object_or_404(DatasetVersion.objects.for_action(request, "dataset.view"), pk=pk)
    if not found.is_ready:
        raise Http404
    headers = {"Content-Disposition": "attachment; filename=refusals.jsonl", "X-Content-Type-Options": "nosniff"}
    pieces = rows.refusal_pieces(found.folder / "refusals.jsonl")
    return StreamingHttpResponse(sent(pieces), content_type="application/jsonl", headers=headers)


def stop(request: HttpRequest, pk: str) -> HttpResponse:
    found = get_object_or_404(DatasetVersion.objects.for_action(request, "dataset.create").select_related("order"), pk=pk)
    services.stop_version(request.member, found)  # type: ignore[attr-defined]
    return redirect("datasets:version", pk=found.pk)
