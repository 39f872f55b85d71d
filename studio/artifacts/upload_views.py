"""The pages on which an adapter that was trained elsewhere is brought, put on its base, and looked through."""

from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render

from studio.artifacts import taking_in
from studio.artifacts.models import AdapterUpload
from studio.basemodels.models import BaseModel
from studio.datasets import uploading
from studio.datasets.models import Upload
from studio.errors import UserError
from studio.orders.pages import render_live
from studio.workspaces.lists import options_of_projects
from studio.workspaces.models import Project


def new(request: HttpRequest) -> HttpResponse:
    """Where the file is dropped, for the project that the address names or the only one there is."""
    projects = Project.objects.for_action(request, "artifact.upload").order_by("client__name", "name")
    typed = request.GET.get("project")
    named = projects.select_related("client")
    project = named.named(typed) if typed else named.first()
    waiting = Upload.objects.for_action(request, "artifact.upload").filter(purpose=Upload.Purpose.ADAPTER)
    waiting = waiting.filter(created_by=request.member.user)  # type: ignore[attr-defined]
    context = {
        "section": "artifacts",
        "projects": options_of_projects(projects, project and project.pk) if projects[1:2].exists() else "",
        "project": project,
        "waiting": waiting.select_related("project__client")[:50],
        "bases": bases(request).exists(),
    }
    return render(request, "artifacts/upload_new.html", context)


def look(request: HttpRequest, pk: str) -> HttpResponse:
    """A file that has arrived: POST puts it on a base and has it looked through."""
    uploads = Upload.objects.for_action(request, "artifact.upload").select_related("project__client")
    upload: Upload = get_object_or_404(uploads.filter(purpose=Upload.Purpose.ADAPTER), pk=pk)
    error = None
    if request.method == "POST":
        typed, sent = request.POST.get("base_model", ""), request.FILES.get("config")
        base = bases(request).named(typed) if typed else None
        try:
            if base is None:
                raise UserError("The adapter needs a base model.", fields={"base_model": "Choose the one that it was trained on."})
            content = sent.read(taking_in.LARGEST_CONFIG + 1) if sent else b""
            asked = taking_in.take_in(request.member, upload, base=base, name=request.POST.get("name", ""), config=content)  # type: ignore[attr-defined]
        except UserError as problem:
            error = problem
        else:
            return redirect("adapters:detail", pk=asked.pk)
    context = {
        "section": "artifacts",
        "upload": upload,
        "project": upload.project,
        "complete": uploading.complete(upload),
        "bases": bases(request),
        "chosen": request.POST.get("base_model") or request.GET.get("base_model", ""),
        "name": request.POST.get("name") or uploading.stem(upload),
        "needs_config": not upload.filename.lower().endswith(".zip"),
        "tried": AdapterUpload.objects.for_action(request, "artifact.view").filter(upload=upload).select_related("order", "base_model"),
        "error": error,
    }
    return render(request, "artifacts/upload_look.html", context, status=422 if error else 200)


def bases(request: HttpRequest) -> Any:
    return BaseModel.objects.for_action(request, "base_model.view").filter(facts__isnull=False)


def discard(request: HttpRequest, pk: str) -> HttpResponse:
    uploads = Upload.objects.for_action(request, "artifact.upload").select_related("order", "project__client")
    upload: Upload = get_object_or_404(uploads.filter(purpose=Upload.Purpose.ADAPTER), pk=pk)
    uploading.discard(request.member, upload)  # type: ignore[attr-defined]
    return redirect("adapters:new")


def detail(request: HttpRequest, pk: str) -> HttpResponse:
    """How far the look has come; once it is taken, the page of the artifact says everything else."""
    asked = get_object_or_404(watched(request, "artifact.view"), pk=pk)
    if asked.artifact is not None and not request.headers.get("HX-Request"):
        return redirect("artifacts:detail", pk=asked.artifact.pk)
    context = {"section": "artifacts", "asked": asked, "order": asked.order, "project": asked.project}
    return render_live(request, "artifacts/upload.html", context, live=asked.order.is_live)


def stop(request: HttpRequest, pk: str) -> HttpResponse:
    asked = get_object_or_404(watched(request, "artifact.upload"), pk=pk)
    taking_in.stop(request.member, asked)  # type: ignore[attr-defined]
    return redirect("adapters:detail", pk=asked.pk)


def watched(request: HttpRequest, action: str) -> Any:
    rows = AdapterUpload.objects.for_action(request, action)
    return rows.select_related("order", "base_model", "project__client", "upload").prefetch_related("order__artifacts")
