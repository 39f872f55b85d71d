"""Settings → Connections: places outside that the workspace may ask."""

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render

from studio.datasets import connections as services
from studio.datasets.models import Connection
from studio.errors import UserError


def connections(request: HttpRequest) -> HttpResponse:
    """What there is, and the form of the kind that is to be added."""
    error = None
    kind = request.POST.get("kind") or request.GET.get("kind", "openai")
    if request.method == "POST":
        typed = {name: str(text) for name, text in request.POST.items()}
        try:
            made = services.add(request.member, kind=kind, name=typed.get("name", ""), typed=typed, secret=typed.get("secret", ""))  # type: ignore[attr-defined]
            messages.success(request, f"{made.name} is connected.")
            return redirect("connections:list")
        except UserError as problem:
            error = problem
    kind = kind if kind in services.FORMS else "openai"
    form = services.FORMS[kind]
    told = error.fields if error else {}
    context = {
        "section": "settings",
        "connections": Connection.objects.for_action(request, "connection.edit"),
        "kinds": Connection.Kind.choices,
        "kind": kind,
        "form": form,
        "fields": [(field, request.POST.get(field.name, ""), told.get(field.name, "")) for field in form.fields],
        "secret_error": told.get("secret", ""),
        "name": request.POST.get("name", ""),
        "name_error": told.get("name", ""),
        "error": error,
    }
    return render(request, "datasets/connections.html", context, status=422 if error else 200)


def attempt(request: HttpRequest, pk: str) -> HttpResponse:
    found = get_object_or_404(Connection.objects.for_action(request, "connection.edit"), pk=pk)
    try:
        messages.success(request, f"{found.name}: {services.attempt(request.member, found)}")  # type: ignore[attr-defined]
    except UserError as problem:
        messages.error(request, f"{found.name}: {problem.message}")
    return redirect("connections:list")


def remove(request: HttpRequest, pk: str) -> HttpResponse:
    found = get_object_or_404(Connection.objects.for_action(request, "connection.edit"), pk=pk)
    services.remove(request.member, found)  # type: ignore[attr-defined]
    messages.success(request, f"{found.name} was removed.")
    return redirect("connections:list")
