"""The pages of traffic: a deployment's, and that of all of them with its CSV. What is read is `reading`'s."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.core.paginator import Page, Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.http import content_disposition_header, urlencode

from studio.cells import cell
from studio.serving import charts
from studio.serving.canaries import verdict
from studio.serving.models import Deployment
from studio.serving.periods import NAMES, Period, period_named
from studio.serving.reading import Asked, by_release, counts_of, over_time, traffic_of, whole_of
from studio.serving.traffic import LEFT, Counts, Sums, is_error
from studio.workspaces.lists import query_of
from studio.workspaces.models import Client, Member

ON_A_PAGE = 25
SORTS: dict[str, Callable[[Counts], float]] = {
    "calls": lambda sums: sums.calls,
    "errors": lambda sums: sums.error_share or 0,
    "tokens": lambda sums: sums.tokens,
}
NEEDED = {"errors": ("calls", "errors"), "tokens": ("prompt_tokens", "completion_tokens")}
"""What has to be added up to sort by it; of all else the calls."""
HEAD = ("from", "until", "client", "deployment", "requests", "errors", "prompt_tokens", "cached_tokens", "completion_tokens")
SAID = {
    400: "could not be used",
    401: "key refused",
    403: "not allowed",
    404: "nothing of that name",
    409: "nothing answers here",
    413: "too long",
    422: "could not be used",
    429: "over a limit",
    500: "failed here",
    502: "the engine failed",
    503: "no model could answer",
    504: "took too long",
}


@dataclass(frozen=True)
class Outcome:
    """What came of some requests, as people read it."""

    status: int
    code: str
    count: int

    @property
    def said(self) -> str:
        return "the caller left early" if self.status == LEFT else SAID.get(self.status, "failed")


def outcomes_of(sums: Sums) -> list[Outcome]:
    """What went wrong, the most frequent first, and at the end who left."""
    found = []
    for outcome, count in sums.outcomes.most_common():
        status, _, code = outcome.partition(" ")
        if is_error(outcome) or int(status) == LEFT:
            found.append(Outcome(int(status), code, count))
    return sorted(found, key=lambda outcome: outcome.status == LEFT)


def period_of(request: HttpRequest) -> Period:
    return period_named(request.GET.get("period", ""), request.member.workspace.zone)  # type: ignore[attr-defined]


def of_deployment(request: HttpRequest, found: Deployment) -> dict[str, Any]:
    """What the page of a deployment shows; empty for whoever may not see it."""
    member: Member = request.member  # type: ignore[attr-defined]
    if not member.may("traffic.view"):
        return {}
    asked = Asked(member, {"deployment": found.pk})
    traffic = traffic_of(asked, period_of(request), "release_id", "canary")
    answering = list(by_release(traffic, found))
    now = {answer.canary: answer.sums for answer in answering if answer.is_now}
    return {
        "period": traffic.period,
        "periods": NAMES,
        "total": traffic.total,
        "answering": answering,
        "verdict": verdict(now.get(False, Sums()), now.get(True, Sums())) if found.canary_id else None,
        "outcomes": outcomes_of(traffic.total),
        "charts": [
            charts.requests_chart(traffic),
            charts.tokens_chart(traffic),
            charts.times_chart("Time to the end of an answer", traffic, lambda sums: sums.p50, lambda sums: sums.p95),
            charts.times_chart("Time to the first token", traffic, lambda sums: sums.first_p50, lambda sums: sums.first_p95),
        ],
        "any_ever": bool(traffic.total.calls) or asked.ever(),
    }


@dataclass(frozen=True)
class Row:
    """A deployment of the list, or what of a client was asked by releases' own names."""

    client: Client
    deployment: UUID | None
    slug: str
    sums: Counts

    @property
    def name(self) -> str:
        return f"{self.client.slug}/{self.slug}" if self.deployment else "releases by name"


def asked_for(request: HttpRequest) -> tuple[Asked, Client | None]:
    """All that may be seen, or one client's."""
    member: Member = request.member  # type: ignore[attr-defined]
    if not (typed := request.GET.get("client", "")):
        return Asked(member), None
    client: Client = Client.objects.for_action(request, "traffic.view").named(typed)
    return Asked(member, {"client": client.pk}), client


def rows_of(member: Member, found: dict[str, Counts], keys: Sequence[str] | None = None) -> list[Row]:
    """Those that `keys` name, in their order; where nothing does, all by name."""
    every, deployments = Client.objects.for_action(member, "traffic.view"), Deployment.objects.for_action(member, "traffic.view").order_by()
    if keys is not None:
        deployments = deployments.filter(pk__in=keys)
    named = {pk: (client, slug) for pk, client, slug in deployments.values_list("pk", "client_id", "slug")}
    clients = every.in_bulk(None if keys is None else {*map(UUID, keys), *(client for client, _ in named.values())})
    rows = []
    for key in found if keys is None else keys:
        pk = UUID(key)
        client, slug = named.get(pk, (pk, ""))
        if client in clients:
            rows.append(Row(clients[client], pk if pk in named else None, slug, found[key]))
    return rows if keys is not None else sorted(rows, key=lambda row: (row.client.name.lower(), row.name))


def everything(request: HttpRequest) -> HttpResponse:
    asked, client = asked_for(request)
    period = period_of(request)
    sort = request.GET.get("sort", "") or "-calls"
    counted = counts_of(asked, period, NEEDED.get(sort.removeprefix("-"), ("calls",)))
    page = page_of(asked, counted, sort, request.GET.get("page"))
    by_name = [row.client.pk for row in page if not row.deployment]
    sums = whole_of(asked, period, [row.deployment for row in page if row.deployment], by_name)
    traffic = over_time(asked, period)
    context = {
        "section": "traffic",
        "client": client,
        "period": period,
        "periods": NAMES,
        "page": page,
        "rows": [(row, sums.get(row.deployment or row.client.pk, Sums())) for row in page],
        "total": traffic.total,
        "charts": [charts.requests_chart(traffic), charts.tokens_chart(traffic)],
        "sort": sort,
        "query": query_of(request),
        "kept": kept_of(request, "period", "client"),
        "of_client": kept_of(request, "client"),
    }
    return render(request, "deployments/all_traffic.html", context)


def page_of(asked: Asked, found: dict[str, Counts], sort: str, number: str | None) -> "Page[Any]":
    """What was asked most first, unless `sort` says otherwise; "-name" falls. But by name, only those are named that are shown."""
    by, falls = sort.removeprefix("-"), sort.startswith("-")
    if by == "name":
        rows = rows_of(asked.member, found)
        return Paginator(rows[::-1] if falls else rows, ON_A_PAGE).get_page(number)
    figure = SORTS.get(by, SORTS["calls"])
    keys = sorted(sorted(found), key=lambda key: figure(found[key]), reverse=falls)
    page: Page[Any] = Paginator(keys, ON_A_PAGE).get_page(number)
    page.object_list = rows_of(asked.member, found, list(page))
    return page


def kept_of(request: HttpRequest, *names: str) -> str:
    """What stands before another filter in the links of the list."""
    kept = {name: request.GET[name] for name in names if request.GET.get(name)}
    return f"{urlencode(kept)}&" if kept else ""


def table(request: HttpRequest) -> HttpResponse:
    """The list as CSV, with every row."""
    asked, client = asked_for(request)
    period = period_of(request)
    text = io.StringIO()
    write = csv.writer(text, lineterminator="\r\n").writerow
    write(HEAD)
    for row in sorted(rows_of(asked.member, counts_of(asked, period)), key=lambda row: -row.sums.calls):
        sums = row.sums
        span = (period.begin.isoformat(), period.end.isoformat())
        figures = (sums.calls, sums.errors, sums.prompt_tokens, sums.cached_tokens, sums.completion_tokens)
        write([*span, cell(row.client.name), cell(row.name), *figures])
    name = f"traffic-{client.slug if client else 'all'}-{period.name}.csv"
    headers = {"Content-Disposition": content_disposition_header(True, name) or "attachment", "X-Content-Type-Options": "nosniff"}
    return HttpResponse(text.getvalue(), content_type="text/csv; charset=utf-8", headers=headers)
