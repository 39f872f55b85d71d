"""Uploads for the browser: where a file's pieces go, and the page that shows what is in it before a version is made."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.urls import reverse

from studio.datasets import tus, uploading
from studio.datasets.models import Upload
from studio.workspaces.models import Project


def create(request: HttpRequest) -> HttpResponse:
    """Begins an upload to the project that the address names."""
    if request.method == "OPTIONS":
        return tus.options()
    projects = Project.objects.for_action(request, "dataset.create").select_related("client")
    project = projects.named(request.GET.get("project"))

    def do() -> HttpResponse:
        tus.refuse_other_versions(request)
        told = tus.metadata(request)
        length = tus.announced_length(request)
        upload = uploading.begin(
            request.member,  # type: ignore[attr-defined]
            project=project,
            filename=told.get("filename", ""),
            length=length,
            sha256=told.get("sha256", ""),
        )
        return tus.created(upload, location=reverse("uploads:piece", args=[upload.pk]))

    return tus.answering(do, refusal=tus.as_text)


def look(request: HttpRequest, pk: str) -> HttpResponse:
    """The page about a file that has arrived."""
    upload = get_object_or_404(Upload.objects.for_action(request, "dataset.create"), pk=pk)
    return redirect(f"{reverse('datasets:new')}?project={upload.project_id}")


def discard(request: HttpRequest, pk: str) -> HttpResponse:
    """Throws a file away that no version was made of."""
    upload = get_object_or_404(Upload.objects.for_action(request, "dataset.create").select_related("project__client", "order"), pk=pk)
    uploading.discard(request.member, upload)  # type: ignore[attr-defined]
    return redirect(f"{reverse('datasets:new')}?project={upload.project_id}")


def piece(request: HttpRequest, pk: str) -> HttpResponse:
    """HEAD asks how much is here, PATCH sends more, DELETE ends it; GET leads to the page about it."""
    upload = get_object_or_404(Upload.objects.for_action(request, "dataset.create").select_related("project__client", "order"), pk=pk)

    def do() -> HttpResponse:
        if request.method == "HEAD":
            return tus.head(upload)
        if request.method == "PATCH":
            return tus.patch(request, upload)
        if request.method == "DELETE":
            uploading.discard(request.member, upload)  # type: ignore[attr-defined]
            return HttpResponse(status=204)
        return redirect("datasets:upload", pk=upload.pk)

    return tus.answering(do, refusal=tus.as_text)
