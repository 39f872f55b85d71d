"""The pages on which a client is archived, restored and exported."""

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render

from studio.clients import life
from studio.clients.exporting import contents, export_response
from studio.errors import UserError
from studio.workspaces.models import Client
from studio.workspaces.services import restore_client


def archive(request: HttpRequest, pk: str) -> HttpResponse:
    client = get_object_or_404(Client.objects.for_action(request, "client.edit"), pk=pk)
    error, was_in_use = None, client.archived_at is None
    if request.method == "POST":
        try:
            life.archive(request.member, client, stop=request.POST.get("running") == "stop")  # type: ignore[attr-defined]
        except UserError as problem:
            error = problem
        else:
            messages.success(request, f"Archived {client.name}." if was_in_use else f"Stopped what ran for {client.name}.")
            return redirect("clients:detail", pk=client.pk)
    context = {"section": "clients", "client": client, "live": life.live_orders(client).count(), "error": error}
    return render(request, "clients/archive.html", context, status=422 if error else 200)


def restore(request: HttpRequest, pk: str) -> HttpResponse:
    client = get_object_or_404(Client.objects.for_action(request, "client.edit"), pk=pk)
    restore_client(request.member, client)  # type: ignore[attr-defined]
    messages.success(request, f"Restored {client.name}.")
    return redirect("clients:detail", pk=client.pk)


def export(request: HttpRequest, pk: str) -> HttpResponseBase:
    """What the archive will hold; a POST is the archive."""
    client = get_object_or_404(Client.objects.for_action(request, "client.export"), pk=pk)
    if request.method == "POST":
        return export_response(request, request.member, client)  # type: ignore[attr-defined]
    return render(request, "clients/export.html", {"section": "clients", "client": client, "holds": contents(client)})
