"""New dataset, from elsewhere: what a hub's dataset offers, an object of a store, and having one fetched."""

from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse

from studio.datasets import elsewhere
from studio.datasets.models import Connection, Dataset, Upload
from studio.errors import UserError
from studio.workspaces.models import Project

TEMPLATES = {"hub": "datasets/hub.html", "object": "datasets/object.html"}
KINDS = {"hub": (Connection.Kind.HUB,), "object": elsewhere.STORES}


def form(request: HttpRequest, context: dict[str, Any], *, error: UserError | None = None) -> HttpResponse | None:
    """The page of the source that the address or the form names; None where a file is uploaded."""
    told = request.POST if request.method == "POST" else request.GET
    source = told.get("from", "")
    if source not in TEMPLATES:
        return None
    context |= {"typed": told, "connections": elsewhere.connections(request.member, *KINDS[source]), "hub": elsewhere.hub_url()}  # type: ignore[attr-defined]
    if source == "hub" and told.get("repository"):
        try:
            context["snapshot"] = looked_at(request, told)
        except UserError as problem:
            error = error or problem
    return render(request, TEMPLATES[source], context | {"error": error}, status=422 if error else 200)


def looked_at(request: HttpRequest, told: Any) -> elsewhere.Snapshot:
    connection = connection_named(request, told, "hub")
    return elsewhere.look_at_hub(told.get("repository", ""), revision=told.get("commit") or told.get("revision", ""), connection=connection)


def connection_named(request: HttpRequest, told: Any, source: str) -> Connection | None:
    """The connection that was chosen; None where none was. A foreign one is none that exists."""
    typed = told.get("connection")
    if not typed:
        return None
    found: Connection = Connection.objects.for_action(request, "dataset.create").filter(kind__in=KINDS[source]).named(typed)
    return found


def fetch(request: HttpRequest) -> HttpResponse:
    """Has the chosen file fetched; its page shows how far it is."""
    projects = Project.objects.for_action(request, "dataset.create").select_related("client")
    project: Project = projects.named(request.POST.get("project"))
    dataset = None
    if request.POST.get("dataset"):
        datasets = Dataset.objects.for_action(request, "dataset.create").filter(project=project)
        dataset = datasets.select_related("project__client").named(request.POST["dataset"])
    try:
        upload = begun(request, project)
    except UserError as error:
        page = form(request, {"section": "projects", "project": project, "dataset": dataset}, error=error)
        if page is None:
            raise
        return page
    where = reverse("datasets:upload", args=[upload.pk])
    return redirect(f"{where}?dataset={dataset.pk}" if dataset else where)


def begun(request: HttpRequest, project: Project) -> Upload:
    member = request.member  # type: ignore[attr-defined]
    if request.POST.get("from") == "hub":
        snapshot, connection = looked_at(request, request.POST), connection_named(request, request.POST, "hub")
        return elsewhere.fetch_from_hub(
            member, project=project, snapshot=snapshot, name=request.POST.get("file", ""), connection=connection
        )
    store = connection_named(request, request.POST, "object")
    if store is None:
        raise UserError("Choose a connection.", fields={"connection": "Choose where the object lies."})
    return elsewhere.fetch_object(member, project=project, connection=store, key=request.POST.get("key", ""))
