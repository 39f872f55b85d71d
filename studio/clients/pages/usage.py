"""What a month cost: the page, and its CSV for the invoice."""

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from decimal import Decimal
from uuid import UUID

from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.utils.http import content_disposition_header

from studio.clients import invoice
from studio.clients.usage import Bill, Sums, bill_of
from studio.workspaces.lists import ROWS, query_of
from studio.workspaces.models import Client, Member
from studio.workspaces.months import Month


@dataclass(frozen=True)
class Row:
    """One client on the page; None stands for what was done for none."""

    client: Client | None
    sums: Sums
    parts: list[tuple[int, str, Decimal]]
    """(place of its kind in the legend, kind, amount) of the bar."""


def bill_for(member: Member, month: Month, clients: list[Client]) -> Bill:
    """Whoever sees all clients also sees what was done for none of them."""
    whole = member.client_ids() is None
    return bill_of(member.workspace, month, [client.pk for client in clients], whole=whole)


def month(request: HttpRequest) -> HttpResponse:
    member = request.member  # type: ignore[attr-defined]
    shown = Month.typed(request.GET.get("month", ""), member.workspace)
    clients = list(Client.objects.for_action(request, "usage.view"))
    bill = bill_for(member, shown, clients)
    this = Month.now(member.workspace)
    context = {
        "section": "usage",
        "month": shown,
        "is_now": shown.first == this.first,
        "following": shown.following if shown.first < this.first else None,
        "bill": bill,
        "rows": (rows := rows_of(bill, clients)),
        "page": Paginator(rows, ROWS).get_page(request.GET.get("page")),
        "query": query_of(request),
        "kinds": list(enumerate(bill.kinds)),
    }
    return render(request, "clients/usage.html", context)


def rows_of(bill: Bill, clients: list[Client]) -> list[Row]:
    """What cost most first; those without anything to tell are left out."""
    known: dict[UUID | None, Client | None] = {client.pk: client for client in clients}
    places = {kind: place for place, kind in enumerate(bill.kinds)}
    rows = []
    for pk, sums in bill.by_client.items():
        if sums.hours or sums.stored or sums.gb_months or sums.requests:
            parts = [(places[kind], kind, amount) for kind, amount in sorted(sums.amounts.items(), key=lambda entry: places[entry[0]])]
            rows.append(Row(known.get(pk), sums, parts))
    return sorted(rows, key=lambda row: (-row.sums.total, row.client is None, row.client.name if row.client else ""))


def csv(request: HttpRequest) -> HttpResponseBase:
    """A line for each client; with `client`, one for each of its runs and builds."""
    member = request.member  # type: ignore[attr-defined]
    shown = Month.typed(request.GET.get("month", ""), member.workspace)
    visible = Client.objects.for_action(request, "usage.view")
    if "client" in request.GET:
        client = visible.named(request.GET["client"])
        bill = bill_of(member.workspace, shown, [client.pk])
        return sent(invoice.written(invoice.EACH_LINE, invoice.each_line(bill, client.name)), name=f"{client.slug}-{shown}.csv")
    clients = list(visible)
    bill = bill_for(member, shown, clients)
    names = {client.pk: client.name for client in clients}
    return sent(invoice.written(invoice.EACH_CLIENT, invoice.each_client(bill, names)), name=f"costs-{shown}.csv")


async def piece_by_piece(lines: Iterable[str]) -> AsyncIterator[str]:
    for line in lines:
        yield line


def sent(lines: Iterable[str], *, name: str) -> HttpResponseBase:
    headers = {"Content-Disposition": content_disposition_header(True, name) or "attachment", "X-Content-Type-Options": "nosniff"}
    return StreamingHttpResponse(piece_by_piece(lines), content_type="text/csv; charset=utf-8", headers=headers)
