"""The API's part about what a month took and cost."""

from decimal import Decimal
from typing import Any
from uuid import UUID

from django.http import HttpRequest
from ninja import Query, Router, Schema

from studio.api.fields import Input, Line
from studio.clients.usage import STORAGE, Bill, Sums, bill_of
from studio.clients.usage import Line as Charge
from studio.workspaces.models import Client
from studio.workspaces.months import Month
from studio.workspaces.rates import TOKENS

router = Router(tags=["Workspace"])


class UsageFilters(Input):
    month: Line = ""
    """Such as 2026-11, on the clocks of the workspace; this month where it is left out."""
    client: UUID | None = None


class KindOut(Schema):
    worker_kind: str
    """The name of a GPU, or CPU."""
    hours: float
    """Of one GPU, or of a worker without any."""
    cost: Decimal


class ClientUsageOut(Schema):
    client: UUID | None
    """Null for what was done for no client, such as base models, or for one that was erased since."""
    name: str
    hours: float
    gpu_hours: float
    storage: int
    """Bytes that are kept now."""
    storage_gb_months: float
    """What was kept day by day, as GB over the whole month."""
    requests: int
    """To the endpoint."""
    prompt_tokens: int
    completion_tokens: int
    tokens_cost: Decimal
    """0 where tokens have no rate."""
    storage_cost: Decimal
    cost: Decimal
    """All of it, storage included: the sum of the invoice's lines, each rounded once."""
    workers: list[KindOut]


class ChargeOut(Schema):
    date: str
    what: str
    worker_kind: str
    hours: float | None
    storage_gb_months: float | None
    tokens: int | None
    rate: Decimal | None
    """Of an hour, of a GB for the month, or of a million tokens; null where none is set, and the cost is then 0."""
    cost: Decimal


class UsageOut(Schema):
    month: str
    currency: str
    cost: Decimal
    unpriced: list[str]
    """Kinds of workers that were used and have no rate on some day of the month."""
    items: list[ClientUsageOut]
    lines: list[ChargeOut] | None
    """With `client`: each run and build at its rate; else null."""


def client_usage_out(client: Client | None, sums: Sums) -> dict[str, Any]:
    return {
        "client": client.pk if client else None,
        "name": client.name if client else "",
        "hours": round(float(sums.all_hours), 4),
        "gpu_hours": round(float(sums.gpu_hours), 4),
        "storage": sums.stored,
        "storage_gb_months": round(float(sums.gb_months), 4),
        "requests": sums.requests,
        "prompt_tokens": sums.tokens_read,
        "completion_tokens": sums.tokens_written,
        "tokens_cost": sums.amounts.get(TOKENS, Decimal("0.00")),
        "storage_cost": sums.amounts.get(STORAGE, Decimal("0.00")),
        "cost": sums.total,
        "workers": [
            {"worker_kind": kind, "hours": round(float(hours), 4), "cost": sums.amounts[kind]} for kind, hours in sorted(sums.hours.items())
        ],
    }


def charge_out(line: Charge) -> dict[str, Any]:
    stored, asked = line.worker_kind == STORAGE, line.worker_kind == TOKENS
    return {
        "date": line.day.isoformat(),
        "what": line.what,
        "worker_kind": line.worker_kind,
        "hours": None if stored or asked else round(float(line.hours), 4),
        "storage_gb_months": round(float(line.gb_months), 4) if stored else None,
        "tokens": line.tokens if asked else None,
        "rate": line.per_unit,
        "cost": line.amount,
    }


@router.get("/usage", response=UsageOut, url_name="usage")
def usage(request: HttpRequest, filters: Query[UsageFilters]) -> dict[str, Any]:
    """What a month took and cost, client by client; with `client`, the lines of its invoice as well."""
    member = request.member  # type: ignore[attr-defined]
    month = Month.typed(filters.month, member.workspace)
    visible = Client.objects.for_action(request, "usage.view")
    clients = list(visible) if filters.client is None else [visible.named(filters.client)]
    whole = filters.client is None and member.client_ids() is None
    bill: Bill = bill_of(member.workspace, month, [client.pk for client in clients], whole=whole)
    items = [client_usage_out(client, bill.by_client.get(client.pk, Sums())) for client in clients]
    known = {client.pk for client in clients}
    items += [client_usage_out(None, sums) for pk, sums in bill.by_client.items() if pk not in known]
    return {
        "month": str(month),
        "currency": bill.currency,
        "cost": bill.sums.total,
        "unpriced": bill.unpriced,
        "items": items,
        "lines": [charge_out(line) for line in bill.lines] if filters.client is not None else None,
    }
