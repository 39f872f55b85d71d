"""The pages of extractions: choosing ranks, watching, and what each adapter keeps. What may be is `extracting`'s."""

from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render

from studio.artifacts.models import Artifact
from studio.comparisons import extracting as services
from studio.comparisons import extraction_pages as pages
from studio.comparisons.models import Extraction
from studio.errors import UserError
from studio.orders.models import Order
from studio.orders.pages import render_live
from studio.training.extraction import FULL, expected_size, highest_rank

SHOWN = 20
"""Earlier extractions that the form lists."""


def new(request: HttpRequest, pk: str) -> HttpResponse:
    """The ranks to choose, and what was taken out of the model before."""
    visible = Artifact.objects.for_action(request, "build.create").select_related("project__client__workspace", "base_model")
    source: Artifact = get_object_or_404(visible, pk=pk)
    error, obstacle = None, services.obstacle(source)
    if request.method == "POST":
        try:
            ranks, tables = typed_ranks(request), "tables" in request.POST
            made = services.request(request.member, source, ranks=ranks, keeps_tables=tables)  # type: ignore[attr-defined]
        except UserError as problem:
            error = problem
        else:
            return redirect("extractions:detail", pk=made.pk)
    context: dict[str, Any] = {
        "section": "artifacts",
        "source": source,
        "project": source.project,
        "obstacle": obstacle,
        "error": error,
        "other": request.POST.get("other", ""),
        "tables": "tables" in request.POST,
        "extractions": extractions_of(request, source),
    }
    if not obstacle and source.base_model:
        facts = source.base_model.model_facts
        chosen = services.usual_ranks(source) if request.method != "POST" else plain_ranks(request.POST.getlist("rank"))
        context["choices"] = pages.choices(source, chosen=chosen)
        context["highest"] = highest_rank(facts) - 1
        context["table_size"] = expected_size(facts, 0, tables=True) - expected_size(facts, 0)
    return render(request, "comparisons/extract.html", context, status=422 if error else 200)


def typed_ranks(request: HttpRequest) -> list[int]:
    """Those that were ticked, and those that were typed. Raises UserError for what is no number."""
    text = request.POST.get("other", "")
    typed = text.replace(",", " ").split()
    ticked = request.POST.getlist("rank")
    if not all(each.isascii() and each.isdecimal() and len(each) < 8 for each in (*ticked, *typed)) or any(int(each) < 1 for each in typed):
        raise UserError("These ranks cannot be taken.", fields={"other": "Type whole numbers above 0, with commas between them."})
    return [int(each) for each in (*ticked, *typed)]


def plain_ranks(ticked: list[str]) -> list[int]:
    return [int(each) for each in ticked if each.isascii() and each.isdecimal() and len(each) < 8]


def extractions_of(request: HttpRequest, source: Artifact) -> list[Extraction]:
    found = Extraction.objects.for_action(request, "build.view").filter(source=source).select_related("order", "order__created_by")
    return list(found.defer("result")[:SHOWN])


def found_for(request: HttpRequest, action: str, pk: str) -> Extraction:
    related = ("order", "order__created_by", "source__project__client__workspace", "source__base_model")
    found: Extraction = get_object_or_404(Extraction.objects.for_action(request, action).select_related(*related), pk=pk)
    return found


def detail(request: HttpRequest, pk: str) -> HttpResponse:
    extraction = found_for(request, "build.view", pk)
    rows = pages.table(extraction)
    context = {
        "section": "artifacts",
        "extraction": extraction,
        "source": extraction.source,
        "project": extraction.source.project,
        "order": extraction.order,
        "rows": rows,
        "result": extraction.result,
        "advice": pages.advice(extraction, rows) if rows else None,
        "chart": pages.kept_chart(rows),
        "rest": pages.rest_rows(extraction),
        "kinds": pages.by_kind(extraction),
        "named_full": any(rank == FULL for rank in extraction.ranks),
        "can_go": extraction.order.status in (Order.Status.FAILED, Order.Status.STOPPED),
    }
    return render_live(request, "comparisons/extraction.html", context, live=extraction.order.is_live)


def stop(request: HttpRequest, pk: str) -> HttpResponse:
    extraction = found_for(request, "build.create", pk)
    services.stop(request.member, extraction)  # type: ignore[attr-defined]
    return redirect("extractions:detail", pk=extraction.pk)


def delete(request: HttpRequest, pk: str) -> HttpResponse:
    extraction = found_for(request, "build.create", pk)
    services.delete(request.member, extraction)  # type: ignore[attr-defined]
    messages.success(request, "Deleted.")
    return redirect("extractions:new", pk=extraction.source_id)
