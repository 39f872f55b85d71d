"""The list of clients, the page of one, and what it may take."""

from decimal import Decimal, InvalidOperation
from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render

from studio.clients import overview
from studio.clients.erasing import certificates
from studio.errors import UserError
from studio.workspaces.lists import page_of, query_of
from studio.workspaces.logos import remove_logo, set_logo
from studio.workspaces.models import Client, Logo
from studio.workspaces.searching import matching, words_of
from studio.workspaces.services import update_client

ON_A_PAGE = 25
GB = Decimal(10**9)
LARGEST = Decimal(10**9)
"""What is beyond is no limit that somebody means."""
FIELDS = ("storage_limit", "gpu_hours_limit", "run_limit")


def clients(request: HttpRequest) -> HttpResponse:
    member = request.member  # type: ignore[attr-defined]
    visible = Client.objects.for_action(request, "client.view")
    archived, wanted = request.GET.get("archived") == "1", " ".join(request.GET.get("q", "").split())[:80]
    rows = visible.filter(matching(Client, words_of(wanted), names=("name", "slug")), archived_at__isnull=not archived)
    page = page_of(request, rows.order_by("name", "pk"), per=ON_A_PAGE)
    context = {
        "section": "clients",
        "page": page,
        "rows": overview.rows_of(member, list(page)),
        "currency": member.workspace.currency,
        "archived": archived,
        "archived_count": 0 if archived else visible.filter(archived_at__isnull=False).count(),
        "wanted": wanted,
        "query": query_of(request),
        "erasures": certificates(request)[:20],
    }
    return render(request, "clients/list.html", context)


def client(request: HttpRequest, pk: str) -> HttpResponse:
    found = get_object_or_404(Client.objects.for_action(request, "client.view").select_related("workspace"), pk=pk)
    return shown(request, found)


def shown(request: HttpRequest, found: Client, *, error: UserError | None = None) -> HttpResponse:
    limited = error is not None and "file" not in error.fields
    typed = {name: request.POST.get(name, "") for name in FIELDS} if limited else as_typed(found)
    context = {
        "section": "clients",
        "client": found,
        "currency": found.workspace.currency,
        "workspace_limit": found.workspace.run_limit,
        "typed": typed,
        "logo": Logo.objects.filter(client=found).first(),
        "error": error,
    }
    page = overview.page_of(request.member, found)  # type: ignore[attr-defined]
    return render(request, "clients/detail.html", context | page, status=422 if error else 200)


def quotas(request: HttpRequest, pk: str) -> HttpResponse:
    """Sets all three limits; an empty field takes one away."""
    found = get_object_or_404(Client.objects.for_action(request, "client.edit").select_related("workspace"), pk=pk)
    try:
        update_client(request.member, found, limits=typed_limits(request.POST))  # type: ignore[attr-defined]
    except UserError as error:
        found.refresh_from_db()
        return shown(request, found, error=error)
    messages.success(request, "Saved.")
    return redirect("clients:detail", pk=found.pk)


def logo(request: HttpRequest, pk: str) -> HttpResponse:
    """Sets the client's logo, or takes it away."""
    found = get_object_or_404(Client.objects.for_action(request, "client.logo").select_related("workspace"), pk=pk)
    member = request.member  # type: ignore[attr-defined]
    try:
        if "remove" in request.POST:
            remove_logo(member, found)
        else:
            set_logo(member, found, request.FILES.get("file"))
    except UserError as error:
        return shown(request, found, error=error)
    messages.success(request, "Removed the logo." if "remove" in request.POST else "Saved the logo.")
    return redirect("clients:detail", pk=found.pk)


def as_typed(client: Client) -> dict[str, str]:
    storage = f"{(Decimal(client.storage_limit) / GB).normalize():f}" if client.storage_limit is not None else ""
    hours = f"{client.gpu_hours_limit:.10g}" if client.gpu_hours_limit is not None else ""
    return {"storage_limit": storage, "gpu_hours_limit": hours, "run_limit": str(client.run_limit or "")}


def typed_limits(typed: Any) -> dict[str, Any]:
    """As the form has them: storage in GB, hours, and a whole number of runs."""
    numbers = {name: number_typed(typed.get(name, ""), name) for name in FIELDS}
    storage, hours, runs = (numbers[name] for name in FIELDS)
    if runs is not None and runs != int(runs):
        raise UserError("The limit cannot be used.", fields={"run_limit": "Give a whole number, such as 2."})
    return {
        "storage_limit": None if storage is None else int(storage * GB),
        "gpu_hours_limit": None if hours is None else float(hours),
        "run_limit": None if runs is None else int(runs),
    }


def number_typed(text: str, name: str) -> Decimal | None:
    """None where nothing was typed. Raises UserError beside the field for what is no number."""
    text = text.strip()
    try:
        number = Decimal(text) if len(text) <= 20 else Decimal("NaN")
    except InvalidOperation:
        number = Decimal("NaN")
    if text and not (number.is_finite() and abs(number) < LARGEST):
        raise UserError("The limit cannot be used.", fields={name: "Give a number, such as 100, or nothing for no limit."})
    return number if text else None
