"""The pages of retraining: the list, what would be trained anew, and the matrix. What may be is `retraining`'s."""

from contextlib import suppress
from typing import Any
from uuid import UUID

from django.contrib import messages
from django.core.paginator import Paginator
from django.db.models import Count, Exists, OuterRef, Q
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.text import slugify

from studio.basemodels.models import BaseModel
from studio.comparisons import retraining as services
from studio.comparisons.models import Retrained, Retraining
from studio.comparisons.portfolio import Offered, Options, Portfolio
from studio.comparisons.retraining_chart import chart_of
from studio.comparisons.retraining_matrix import FILTERS, Matrix, as_csv
from studio.errors import UserError
from studio.orders.models import Order
from studio.orders.pages import render_live
from studio.streaming import sent
from studio.workspaces.lists import page_of, query_of
from studio.workspaces.models import Client, ScopedQuerySet

ON_A_PAGE = 25
OFTEN = 5
"""Seconds between two refreshes while something goes on; more where there is more to read."""
READ_AGAIN = ("retraining__base_model", "retraining__workspace", "before__project__client", "run__order")
"""What is read of a row that is trained again."""


def visible(who: Any, action: str) -> ScopedQuerySet:
    """Those of which the member sees a release: one of several clients is nothing to whoever sees none of these."""
    rows = Retrained.objects.for_action(who, action).filter(retraining=OuterRef("pk"))
    found: ScopedQuerySet = Retraining.objects.for_action(who, action).filter(Exists(rows))
    return found.select_related("base_model", "client", "created_by")


def retrainings(request: HttpRequest) -> HttpResponse:
    page = page_of(request, visible(request, "retraining.view").order_by("-created_at", "-pk"))
    counts = counts_of(request, list(page))
    context = {
        "section": "releases",
        "page": page,
        "query": query_of(request),
        "lines": [(each, counts.get(each.pk, {})) for each in page],
    }
    return render(request, "retraining/list.html", context)


def counts_of(who: Any, retrainings: list[Retraining]) -> dict[UUID, dict[str, Any]]:
    """Of what the member sees of each: how many releases, and how far they are."""
    rows = Retrained.objects.for_action(who, "retraining.view").filter(retraining__in=retrainings).order_by()
    live = Q(run__order__status__in=Order.LIVE) | Q(run=None, problem="")
    figures = {
        "many": Count("pk"),
        "trained": Count("pk", filter=Q(run__order__status=Order.Status.SUCCEEDED)),
        "live": Count("pk", filter=live),
        "releases": Count("after"),
    }
    found: list[Any] = list(rows.values("retraining").annotate(**figures))
    return {each["retraining"]: each for each in found}


def new(request: HttpRequest) -> HttpResponse:
    """Which base model, which releases, how; and what it will take."""
    form = form_of(request)
    error = None
    if request.method == "POST":
        try:
            made = started(request, form)
        except UserError as problem:
            error = problem
        else:
            return redirect("retraining:detail", pk=made.pk)
    return render(request, "retraining/new.html", form | {"error": error}, status=422 if error else 200)


def started(request: HttpRequest, form: dict[str, Any]) -> Retraining:
    if form["base"] is None:
        raise UserError("Choose the new base model.", fields={"base": "Choose a base model."})
    return services.start(
        request.member,  # type: ignore[attr-defined]
        base=form["base"],
        releases=ids_in(request.POST.getlist("release")),
        options=form["options"],
        name=request.POST.get("name", ""),
    )


def outlook(request: HttpRequest) -> HttpResponse:
    """What the form says of the releases with what was chosen so far; nothing is started."""
    return render(request, "retraining/new.html#offered", form_of(request))


def form_of(request: HttpRequest) -> dict[str, Any]:
    sent_ = request.POST if request.method == "POST" else request.GET
    bases = BaseModel.objects.for_action(request, "retraining.edit").filter(facts__isnull=False).order_by("name", "-created_at")
    clients = Client.objects.for_action(request, "retraining.edit")
    base = bases.named(sent_["base"]) if sent_.get("base") else None
    client = clients.named(sent_["client"]) if sent_.get("client") else None
    options = typed_options(sent_)
    context: dict[str, Any] = {
        "section": "releases",
        "bases": bases,
        "clients": clients,
        "base": base,
        "client": client,
        "options": options,
        "priorities": Order.Priority.choices,
        "typed": sent_,
    }
    if base is None:
        return context
    portfolio = Portfolio(request.member, base, options, client=client)  # type: ignore[attr-defined]
    ticked = ticked_in(request, portfolio.offered)
    chosen = [each for each in portfolio.offered if each.release.pk in ticked]
    return context | {
        "portfolio": portfolio,
        "ticked": ticked,
        "total": portfolio.total(chosen),
        "shown": ",".join(str(each.release.pk) for each in portfolio.offered),
        "tariff": portfolio.tariff,
    }


def typed_options(values: Any) -> Options:
    """What cannot be read is as it is at first: these are choices of a page, and no text that a person types."""
    priority = values.get("priority", "")
    return Options(
        settings="suits" if values.get("settings") == "suits" else "keep",
        rows="newest" if values.get("rows") == "newest" else "same",
        priority=2 if priority == "2" else 1 if priority == "1" else 0,
        at_night=values.get("at_night") == "1",
    )


def ticked_in(request: HttpRequest, offered: list[Offered]) -> set[UUID]:
    """What was ticked; of what the page did not show yet, what is proposed."""
    possible = [each for each in offered if not each.why_not]
    if request.method != "POST":
        return {each.release.pk for each in possible if each.is_proposed}
    shown, sent_ = set(request.POST.get("shown", "").split(",")), set(request.POST.getlist("release"))
    return {
        each.release.pk for each in possible if str(each.release.pk) in sent_ or (str(each.release.pk) not in shown and each.is_proposed)
    }


def ids_in(typed: list[str]) -> list[UUID]:
    found = []
    for each in typed:
        with suppress(ValueError):
            found.append(UUID(each))
    if len(found) < len(typed):
        raise Http404
    return found


def found_for(request: HttpRequest, action: str, pk: UUID) -> Retraining:
    found: Retraining = get_object_or_404(visible(request, action), pk=pk)
    return found


def detail(request: HttpRequest, pk: UUID) -> HttpResponse:
    """The matrix: each release before and after."""
    return shown_matrix(request, found_for(request, "retraining.view", pk))


def shown_matrix(request: HttpRequest, found: Retraining, *, error: UserError | None = None) -> HttpResponse:
    member = request.member  # type: ignore[attr-defined]
    matrix = Matrix.of(found, member)
    only, sort = request.GET.get("only", ""), request.GET.get("sort", "")
    only, sort = only if only in FILTERS else "", "worse" if sort == "worse" else ""
    context = {
        "section": "releases",
        "retraining": found,
        "options": Options.model_validate(found.options),
        "matrix": matrix,
        "page": Paginator(matrix.shown(only=only, sort=sort), ON_A_PAGE).get_page(request.GET.get("page")),
        "query": f"only={only}&sort={sort}&",
        "only": only,
        "sort": sort,
        "chart": chart_of(matrix.lines),
        "every": max(OFTEN, len(matrix.lines) // 25),
        "promotable": services.promotable(member, found),
        "can_promote": member.may("deployment.promote"),
        "stoppable": any(line.state in ("waiting", "training") for line in matrix.lines),
        "error": error,
    }
    if error is not None:
        return render(request, "retraining/detail.html", context, status=422)
    if request.GET.get("mark") and matrix.is_live:
        changed = render(request, "retraining/detail.html#changed", context)
        return changed if changed.content.strip() else HttpResponse(status=204)
    return render_live(request, "retraining/detail.html", context, live=matrix.is_live)


def table(request: HttpRequest, pk: UUID) -> HttpResponseBase:
    """The whole matrix as CSV."""
    found = found_for(request, "retraining.view", pk)
    lines = Matrix.of(found, request.member).lines  # type: ignore[attr-defined]
    name = f"{slugify(found.name)[:60] or 'retraining'}.csv"
    headers = {"Content-Disposition": f"attachment; filename={name}", "X-Content-Type-Options": "nosniff"}
    return StreamingHttpResponse(sent(as_csv(lines)), content_type="text/csv; charset=utf-8", headers=headers)


def stop(request: HttpRequest, pk: UUID) -> HttpResponse:
    found = found_for(request, "retraining.edit", pk)
    try:
        many = services.stop(request.member, found)  # type: ignore[attr-defined]
    except UserError as problem:
        return shown_matrix(request, found, error=problem)
    messages.success(request, f"Stopped {many} run{'' if many == 1 else 's'}.")
    return redirect("retraining:detail", pk=found.pk)


def again(request: HttpRequest, pk: UUID) -> HttpResponse:
    """Trains one of its releases once more; `row` says which."""
    found = found_for(request, "retraining.edit", pk)
    if not (wanted := request.POST.get("row")):
        return shown_matrix(request, found, error=UserError("Choose which release is trained again."))
    rows = Retrained.objects.for_action(request, "retraining.edit").filter(retraining=found)
    row = rows.select_related(*READ_AGAIN).named(wanted)
    try:
        services.again(request.member, row)  # type: ignore[attr-defined]
    except UserError as problem:
        return shown_matrix(request, found, error=problem)
    messages.success(request, f"{row.before.name} is trained again.")
    return redirect("retraining:detail", pk=found.pk)


def promote(request: HttpRequest, pk: UUID) -> HttpResponse:
    """Points the deployments of old releases at the new ones that are approved."""
    found = found_for(request, "deployment.promote", pk)
    try:
        done, refused = services.promote_all(request.member, found)  # type: ignore[attr-defined]
    except UserError as problem:
        return shown_matrix(request, found, error=problem)
    if done:
        messages.success(request, f"{', '.join(map(str, done))} {'answers' if len(done) == 1 else 'answer'} with the new release now.")
    for sentence in refused:
        messages.error(request, sentence)
    return redirect("retraining:detail", pk=found.pk)
