"""Uploads for the browser: where a file's pieces go, and the page that shows what is in it before a version is made."""

from typing import Any

from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse

from studio.datasets import previews, tus, uploading
from studio.datasets.models import Dataset, DatasetVersion, Upload
from studio.datasets.pages.choosing import Choices, chosen
from studio.datasets.pages.frame import MEANINGS, version_for
from studio.errors import UserError
from studio.orders.pages import render_live
from studio.workspaces.models import Project

SHOWN_ROWS = 5
ENCODINGS = {"cp1252": "Windows-1252", "utf-8": "UTF-8, and refuse the lines that are not"}


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
            purpose=request.GET.get("purpose") or Upload.Purpose.DATASET,
        )
        return tus.created(upload, location=reverse("uploads:piece", args=[upload.pk]))

    return tus.answering(do, refusal=tus.as_text)


def piece(request: HttpRequest, pk: str) -> HttpResponse:
    """HEAD asks how much is here, PATCH sends more, DELETE ends it; GET leads to the page about it."""
    upload = found(request, pk)

    def do() -> HttpResponse:
        if request.method == "HEAD":
            return tus.head(upload)
        if request.method == "PATCH":
            return tus.patch(request, upload)
        if request.method == "DELETE":
            uploading.discard(request.member, upload)  # type: ignore[attr-defined]
            return HttpResponse(status=204)
        if upload.purpose == Upload.Purpose.ADAPTER:
            return redirect("adapters:look", pk=upload.pk)
        query = f"?{request.GET.urlencode()}" if request.GET else ""
        return redirect(reverse("datasets:upload", args=[upload.pk]) + query)

    return tus.answering(do, refusal=tus.as_text)


def found(request: HttpRequest, pk: str) -> Upload:
    uploads = Upload.objects.for_action(request, "dataset.create").select_related("project__client", "order")
    upload: Upload = get_object_or_404(uploads, pk=pk)
    return upload


def discard(request: HttpRequest, pk: str) -> HttpResponse:
    """Throws a file away that no version was made of."""
    upload = found(request, pk)
    uploading.discard(request.member, upload)  # type: ignore[attr-defined]
    return redirect(f"{reverse('datasets:new')}?project={upload.project_id}")


def again(request: HttpRequest, pk: str) -> HttpResponse:
    """The file of a version, to be looked at once more and read in another way."""
    version = version_for(request, "dataset.create", pk)
    upload = uploading.again(request.member, version)  # type: ignore[attr-defined]
    return redirect(f"{reverse('datasets:upload', args=[upload.pk])}?dataset={version.dataset_id}")


def dataset_of(request: HttpRequest, upload: Upload) -> Dataset | None:
    """The dataset that gets the version, where it is not to be a new one."""
    typed = request.POST.get("dataset") or request.GET.get("dataset")
    if not typed:
        return None
    datasets = Dataset.objects.for_action(request, "dataset.create").filter(project=upload.project_id)
    dataset: Dataset = datasets.select_related("project__client").named(typed)
    return dataset


def look(request: HttpRequest, pk: str) -> HttpResponse:
    """What is in a file that has arrived; POST makes a version of it."""
    try:
        upload = found(request, pk)
    except Http404:
        # The version has taken the file over: a second click, or the browser's way back, leads to it.
        versions = DatasetVersion.objects.for_action(request, "dataset.create")
        made: DatasetVersion = get_object_or_404(versions, upload=str(pk).replace("-", ""))
        return redirect("datasets:version", pk=made.pk)
    if upload.purpose == Upload.Purpose.ADAPTER:
        return redirect("adapters:look", pk=upload.pk)
    dataset = dataset_of(request, upload)
    if not uploading.complete(upload):
        live = upload.order is not None and upload.order.is_live
        return render_live(
            request, "datasets/arriving.html", about(request, upload, dataset) | {"share": upload.offset / upload.length}, live=live
        )
    if request.method == "POST":
        return make_version(request, upload, dataset)
    if request.headers.get("HX-Request"):  # the page that waited for it
        return HttpResponse(headers={"HX-Refresh": "true"})
    return render(request, "datasets/preview.html", about(request, upload, dataset) | shown(upload, chosen(request.GET)))


def preview(request: HttpRequest, pk: str) -> HttpResponse:
    """The page's part that changes with what is chosen. Changes nothing itself."""
    upload = found(request, pk)
    if upload.purpose == Upload.Purpose.ADAPTER:
        raise Http404
    context = about(request, upload, dataset_of(request, upload))
    if not uploading.complete(upload):
        raise UserError("The file has not arrived completely yet. Wait until it has.")
    part = "#form" if request.POST.get("whole") else "#look"
    try:
        context |= shown(upload, chosen(request.POST))
    except UserError as error:
        context |= {"error": error}
    return render(request, f"datasets/preview.html{part}", context)


def make_version(request: HttpRequest, upload: Upload, dataset: Dataset | None) -> HttpResponse:
    choices = Choices()
    try:
        choices = chosen(request.POST)
        version = uploading.import_upload(
            request.member,  # type: ignore[attr-defined]
            upload,
            dataset=dataset,
            name=choices.typed["name"] or uploading.stem(upload),
            wanted=choices.wanted(filename=upload.filename, size=upload.length),
        )
    except UserError as error:
        context = about(request, upload, dataset) | {"refused": error, "typed": request.POST}
        return render(request, "datasets/preview.html", context | shown(upload, choices), status=422)
    return redirect("datasets:version", pk=version.pk)


def about(request: HttpRequest, upload: Upload, dataset: Dataset | None) -> dict[str, Any]:
    return {
        "section": "projects",
        "upload": upload,
        "project": upload.project,
        "dataset": dataset,
        "order": upload.order,
        "name": uploading.stem(upload),
        "same": uploading.same_bytes(request.member, upload) if upload.is_complete else None,  # type: ignore[attr-defined]
        "meanings": MEANINGS,
        "encodings": ENCODINGS,
        "typed": request.POST,
    }


def shown(upload: Upload, choices: Choices) -> dict[str, Any]:
    """What a look found, or why nothing can be shown, and what was chosen."""
    context: dict[str, Any] = {"choices": choices}
    try:
        seen = previews.preview(upload, mapping=choices.mapping, reading=choices.reading)
    except UserError as error:
        return context | {
            "error": error,
            "asks_encoding": error.code == "not_utf8",
            "asks_columns": True,
            "columns": meant(error.facts.get("columns", {}), choices.mapping),
            "sheets": error.facts.get("sheets", []),
        }
    mapping = choices.mapping or seen["mapping"]
    return context | {
        "seen": seen,
        "sheets": seen["sheets"],
        "rows": seen["rows"][:SHOWN_ROWS],
        "refusals": seen["refusals"],
        "columns": meant(seen["columns"], mapping),
        "unsure": not choices.by_hand and not seen["sure"],
        "asks_columns": choices.by_hand or not seen["sure"],
    }


def meant(columns: dict[str, str], mapping: dict[str, str]) -> list[dict[str, str]]:
    """The columns, each with its first value and what it means."""
    fields = {column: meaning for meaning, column in mapping.items()}
    return [{"name": name, "example": value, "meaning": fields.get(name, "")} for name, value in columns.items()]
