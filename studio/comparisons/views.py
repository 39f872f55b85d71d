"""The list of comparisons, and what can be done with one. What may be is `services`'s; how one is made is `new_views`'s."""

from typing import Any

from django.contrib import messages
from django.db.models import Count
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render

from studio.comparisons import services
from studio.comparisons.models import Comparison
from studio.errors import UserError
from studio.workspaces.lists import page_of, query_of
from studio.workspaces.models import Client
from studio.workspaces.searching import matching, words_of

HEAVY = ("metrics", "sweep")
"""What lists do not read."""


def comparisons(request: HttpRequest) -> HttpResponse:
    clients = Client.objects.for_action(request, "client.view")
    chosen = clients.named(wanted) if (wanted := request.GET.get("client")) else None
    state, typed = request.GET.get("state", ""), request.GET.get("q", "")
    visible = Comparison.objects.for_action(request, "comparison.view")
    rows = visible.filter(project__client=chosen) if chosen else visible.current()
    if state in Comparison.State.values:
        rows = rows.filter(state=state)
    rows = rows.filter(matching(Comparison, words_of(typed), names=("name", "project__name", "project__client__name")))
    page = page_of(request, rows.select_related("project__client", "created_by").defer(*HEAVY))
    context = {
        "section": "comparisons",
        "page": page,
        "query": query_of(request),
        "typed": typed,
        "clients": clients,
        "chosen": chosen,
        "state": state,
        "states": Comparison.State.choices,
        "any_live": any(comparison.is_live for comparison in page),
    }
    with_counts(page.object_list)
    return render(request, "comparisons/list.html", context)


def with_counts(found: Any) -> None:
    """Gives each comparison its `arm_count`; counted apart, so that no joined row counts twice."""
    counts = dict(Comparison._base_manager.filter(pk__in=[each.pk for each in found]).order_by().values_list("pk").annotate(Count("arms")))
    for each in found:
        each.arm_count = counts.get(each.pk, 0)


def found_for(request: HttpRequest, action: str, pk: str) -> Comparison:
    visible = Comparison.objects.for_action(request, action).select_related("project__client__workspace", "order")
    found: Comparison = get_object_or_404(visible, pk=pk)
    return found


def changed(request: HttpRequest, comparison: Comparison, change: Any, told: str) -> HttpResponse:
    """Back to its page, with what was done or why it was not."""
    try:
        change()
    except UserError as problem:
        messages.error(request, " ".join([problem.message, *dict.fromkeys(problem.fields.values())]))
    else:
        messages.success(request, told)
    return redirect("comparisons:detail", pk=comparison.pk)


def stop(request: HttpRequest, pk: str) -> HttpResponse:
    found = found_for(request, "comparison.edit", pk)
    told = "Stopping. What its runs have learnt so far is kept."
    return changed(request, found, lambda: services.stop(request.member, found), told)  # type: ignore[attr-defined]


def again(request: HttpRequest, pk: str) -> HttpResponse:
    found = found_for(request, "comparison.edit", pk)
    return changed(request, found, lambda: services.again(request.member, found), "It is measured once more.")  # type: ignore[attr-defined]


def rename(request: HttpRequest, pk: str) -> HttpResponse:
    found = found_for(request, "comparison.edit", pk)
    name = request.POST.get("name", "")
    return changed(request, found, lambda: services.rename(request.member, found, name), "Saved the name.")  # type: ignore[attr-defined]


def seeds(request: HttpRequest, pk: str) -> HttpResponse:
    found = found_for(request, "comparison.edit", pk)
    return changed(request, found, lambda: services.add_seeds(request.member, found), "Each arm is trained with two more seeds.")  # type: ignore[attr-defined]


def delete(request: HttpRequest, pk: str) -> HttpResponse:
    found = found_for(request, "comparison.edit", pk)
    try:
        services.delete_comparison(request.member, found)  # type: ignore[attr-defined]
    except UserError as problem:
        messages.error(request, problem.message)
        return redirect("comparisons:detail", pk=found.pk)
    messages.success(request, f"Deleted {found.name}. Its runs stay.")
    return redirect("comparisons:list")
