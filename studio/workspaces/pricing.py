"""Sets what storage and an hour of each kind of worker cost in a workspace. What they make of a month is told in `clients.usage`."""

import re
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import Any

from django.db import transaction

from studio.audit.services import record
from studio.errors import UserError
from studio.workspaces.models import Member, Rate, hold
from studio.workspaces.people import refuse_bound

CURRENCY = re.compile(r"[A-Z]{3}", re.ASCII)
LARGEST = Decimal(100_000)
PLACES = 4
FIRST_DAY, LAST_DAY = date(2000, 1, 1), date(2100, 1, 1)


def price_typed(text: str, *, field: str) -> Decimal | None:
    """An amount as a person types it; None where nothing was typed. Raises UserError for what is none."""
    text = text.strip()
    if not text:
        return None
    try:
        price = Decimal(text) if len(text) <= 20 else Decimal("NaN")
    except InvalidOperation:
        price = Decimal("NaN")
    if not (price.is_finite() and 0 <= price < LARGEST and price == round(price, PLACES)):
        sentence = f"Give an amount below {LARGEST:,} with at most {PLACES} decimals, such as 2.40."
        raise UserError("The price cannot be used.", fields={field: sentence})
    return round(price, PLACES)


def day_typed(text: str, *, field: str) -> date:
    try:
        day = date.fromisoformat(text.strip())
    except ValueError:
        day = date.min
    if not FIRST_DAY <= day < LAST_DAY:
        raise UserError("The day cannot be used.", fields={field: "Give a day of this century, such as 2026-11-30."})
    return day


def set_prices(member: Member, *, currency: str, storage_price: Decimal | None) -> None:
    """The currency of all rates, and what a GB costs for a month from today on. Days that are over keep the price that they had."""
    refuse_bound(member)
    currency = currency.strip().upper()
    if not CURRENCY.fullmatch(currency):
        raise UserError("The currency cannot be used.", fields={"currency": "Give its three letters, such as EUR."})
    workspace = member.workspace
    columns: dict[str, Any] = {"currency": currency, "storage_price": storage_price}
    change = {name: [said(getattr(workspace, name)), said(value)] for name, value in columns.items() if getattr(workspace, name) != value}
    if not change:
        return
    with transaction.atomic():
        for name, value in columns.items():
            setattr(workspace, name, value)
        workspace.save(update_fields=[*columns])
        record(member, "price.save", workspace, change=change)


def set_rate(member: Member, *, kind: str, per_hour: Decimal | None, since: date) -> Rate:
    """What an hour of a kind of worker costs from a day on; one for the same day is replaced."""
    refuse_bound(member)
    kind = " ".join(kind.split())
    if not kind or len(kind) > 80 or not kind.isprintable():
        raise UserError("The kind of worker cannot be used.", fields={"kind": "Choose one, or type the name of a GPU."})
    if per_hour is None:
        raise UserError("The price cannot be used.", fields={"per_hour": "Give what an hour costs, such as 2.40."})
    with transaction.atomic():
        hold(member.workspace)
        before = Rate.objects.filter(workspace=member.workspace, kind=kind, since=since).first()
        if before is not None and before.per_hour == per_hour:
            return before
        values = {"per_hour": per_hour}
        rate: Rate = Rate.objects.update_or_create(workspace=member.workspace, kind=kind, since=since, defaults=values)[0]
        change = {"per_hour": [said(before and before.per_hour), said(per_hour)], "since": [None, since.isoformat()]}
        record(member, "rate.save", rate, change=change)
    return rate


def remove_rate(member: Member, rate: Rate) -> None:
    """Then the rate before it holds on, or none where there was none."""
    refuse_bound(member)
    with transaction.atomic():
        record(member, "rate.remove", rate, change={"per_hour": [said(rate.per_hour), None], "since": [rate.since.isoformat(), None]})
        rate.delete()


def said(value: Any) -> str | None:
    return None if value is None else str(value)
