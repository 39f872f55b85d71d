"""The settings of what work and storage cost."""

from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone

from studio.errors import UserError
from studio.orders.models import Slot, Usage
from studio.orders.usage import CPU, machine
from studio.workspaces import pricing
from studio.workspaces.models import Rate, Workspace
from studio.workspaces.rates import TOKENS, Rates

CURRENCIES = ("EUR", "USD", "GBP", "CHF", "SEK", "PLN", "JPY", "CAD", "AUD", "INR")
"""Proposed; any other can be typed."""


def page(request: HttpRequest) -> HttpResponse:
    """The currency and the price of storage are saved here; rates have addresses of their own."""
    if request.method != "POST":
        return shown(request)
    typed = request.POST
    try:
        price = pricing.price_typed(typed.get("storage_price", ""), field="storage_price")
        pricing.set_prices(request.member, currency=typed.get("currency", ""), storage_price=price)  # type: ignore[attr-defined]
    except UserError as error:
        return shown(request, error=error, part="prices")
    messages.success(request, "Saved.")
    return redirect("usage:rates")


def rate_new(request: HttpRequest) -> HttpResponse:
    typed = request.POST
    try:
        pricing.set_rate(
            request.member,  # type: ignore[attr-defined]
            kind=typed.get("kind", ""),
            per_hour=pricing.price_typed(typed.get("per_hour", ""), field="per_hour"),
            since=pricing.day_typed(typed.get("since", ""), field="since"),
        )
    except UserError as error:
        return shown(request, error=error, part="rate")
    messages.success(request, "Saved.")
    return redirect("usage:rates")


def rate_remove(request: HttpRequest, pk: str) -> HttpResponse:
    rate = get_object_or_404(Rate.objects.for_action(request, "usage.edit"), pk=pk)
    try:
        pricing.remove_rate(request.member, rate)  # type: ignore[attr-defined]
    except UserError as error:
        messages.error(request, error.message)
    else:
        messages.success(request, f"Removed the rate of {rate.kind}.")
    return redirect("usage:rates")


def shown(request: HttpRequest, *, error: UserError | None = None, part: str = "") -> HttpResponse:
    member = request.member  # type: ignore[attr-defined]
    workspace = Workspace.objects.get(pk=member.workspace_id)  # as it stands, also where the change was refused
    rates = Rates(workspace)
    rows = list(Rate.objects.for_action(request, "usage.view"))
    kinds = kinds_of(workspace) | {rate.kind for rate in rows}
    context: dict[str, Any] = {
        "section": "settings",
        "workspace": workspace,
        "storage_price": "" if workspace.storage_price is None else f"{workspace.storage_price.normalize():f}",
        "rates": rows,
        "kinds": sorted(kinds),
        "unpriced": [kind for kind in sorted(kinds - {TOKENS}) if rates.now(kind) is None],
        "tokens": TOKENS,
        "fallback": rates.fallback,
        "currencies": CURRENCIES,
        "today": timezone.now().astimezone(workspace.zone).date(),
        "typed": request.POST if error else {},
        "error": error,
        "part": part,
        "whole": member.client_ids() is None,
    }
    return render(request, "clients/rates.html", context, status=422 if error else 200)


def kinds_of(workspace: Workspace) -> set[str]:
    """Kinds of workers that have worked for the workspace, or are there now; always a CPU, and what the endpoint reads and writes."""
    seen = set(Usage.objects.filter(workspace=workspace).order_by().values_list("worker_kind", flat=True).distinct())
    return seen | {machine(slot.facts)[0] for slot in Slot.objects.all() if slot.is_alive} | {CPU, TOKENS}
