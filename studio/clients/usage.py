"""What a month took and cost, client by client: the lines of the invoice, and their sums. A constant number of queries."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import cached_property
from typing import Any
from uuid import UUID

from django.db.models import Count, QuerySet, Sum
from django.utils import timezone

from studio.orders.kinds import KINDS
from studio.orders.models import StoredDay
from studio.orders.quotas import stored_in_all
from studio.orders.usage import Span, spans
from studio.serving.models import Call, CallHour, ClientDay, ClientHour
from studio.serving.rollup import days_within
from studio.workspaces.models import Client, Workspace
from studio.workspaces.months import Month
from studio.workspaces.rates import TOKENS, Rates, amount, cents

STORAGE = "Storage"
ASKED = "Requests to the endpoint"
GB = Decimal(10**9)
PLAIN = ("gpu_hours", "gb_months", "stored", "requests", "tokens_read", "tokens_written")
"""Of sums, those that are no more than numbers."""
Held = tuple[date, int, Decimal | None]
"""From a day on: bytes, and the price of a GB for a month."""


@dataclass
class Line:
    """What an invoice charges at one rate: one run or build, all other work of a kind, tokens, or storage."""

    client: UUID | None
    day: date
    what: str
    worker_kind: str
    """STORAGE of what is stored, TOKENS of what the endpoint read and wrote."""
    per_unit: Decimal | None
    """Of an hour or, of storage, of a GB for the month or, of tokens, of a million; None where no rate is set."""
    gpus: int = 0
    seconds: float = 0.0
    gb_months: Decimal = Decimal(0)
    requests: int = 0
    tokens_read: int = 0
    tokens_written: int = 0

    @property
    def tokens(self) -> int:
        return self.tokens_read + self.tokens_written

    @property
    def hours(self) -> Decimal:
        """Hours that are charged: of one GPU, or of a worker without any."""
        return Decimal(self.seconds) / 3600 * max(1, self.gpus)

    @property
    def gpu_hours(self) -> Decimal:
        return self.hours if self.gpus else Decimal(0)

    @property
    def amount(self) -> Decimal:
        """Rounded here and nowhere else, so that lines add up to what is shown. 0 where no rate is set."""
        if self.per_unit is None:
            return Decimal("0.00")
        if self.worker_kind == TOKENS:
            return cents(Decimal(self.tokens) / 1_000_000 * self.per_unit)
        return cents(self.gb_months * self.per_unit if self.worker_kind == STORAGE else amount(self.seconds, self.gpus, self.per_unit))


@dataclass
class Sums:
    """Those of one client, or of all."""

    hours: dict[str, Decimal] = field(default_factory=lambda: defaultdict(Decimal))
    """By worker kind."""
    amounts: dict[str, Decimal] = field(default_factory=lambda: defaultdict(Decimal))
    """By worker kind, and STORAGE, and TOKENS where they have a rate."""
    gpu_hours: Decimal = Decimal(0)
    gb_months: Decimal = Decimal(0)
    stored: int = 0
    """Bytes that are kept now."""
    requests: int = 0
    tokens_read: int = 0
    tokens_written: int = 0

    @property
    def tokens(self) -> int:
        return self.tokens_read + self.tokens_written

    @property
    def total(self) -> Decimal:
        return sum(self.amounts.values(), Decimal("0.00"))

    @property
    def all_hours(self) -> Decimal:
        return sum(self.hours.values(), Decimal(0))

    def add_all(self, other: "Sums") -> None:
        for mine, others in ((self.hours, other.hours), (self.amounts, other.amounts)):
            for kind, value in others.items():
                mine[kind] += value
        for name in PLAIN:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def add(self, line: Line) -> None:
        if line.worker_kind == TOKENS:
            self.requests += line.requests
            self.tokens_read += line.tokens_read
            self.tokens_written += line.tokens_written
            if line.per_unit is None:  # nobody charges for tokens here
                return
        elif line.worker_kind == STORAGE:
            self.gb_months += line.gb_months
        else:
            hours = line.hours
            self.hours[line.worker_kind] += hours
            if line.gpus:
                self.gpu_hours += hours
        self.amounts[line.worker_kind] += line.amount


@dataclass(frozen=True)
class Bill:
    """One month of some clients."""

    month: Month
    currency: str
    lines: list[Line]
    stored: dict[UUID, int]

    @cached_property
    def by_client(self) -> dict[UUID | None, Sums]:
        found: dict[UUID | None, Sums] = defaultdict(Sums)
        for line in self.lines:
            found[line.client].add(line)
        for client, size in self.stored.items():
            found[client].stored = size
        return found

    @cached_property
    def sums(self) -> Sums:
        total = Sums()
        for sums in self.by_client.values():
            total.add_all(sums)
        return total

    @property
    def kinds(self) -> list[str]:
        """What was worked on, by name, and storage last where it costs something."""
        return sorted(self.sums.amounts, key=lambda kind: (kind == STORAGE, kind))

    @property
    def unpriced(self) -> list[str]:
        """Kinds of workers that were used and have no rate on some day of the month."""
        return sorted({line.worker_kind for line in self.lines if line.per_unit is None and line.worker_kind != TOKENS})


def bill_of(
    workspace: Workspace, month: Month, clients: Collection[UUID], *, whole: bool = False, stored: dict[UUID, int] | None = None
) -> Bill:
    """A month of some clients; `whole` adds what was done for none of them, or for one that was erased since. `stored`: what they keep
    now, in bytes, where somebody has just looked.
    """
    rates = Rates(workspace)
    worked = spans(workspace, month, clients=None if whole else clients)
    stored = dict(stored_in_all(everyone(workspace) if whole else clients)) if stored is None else stored
    asked = token_lines(workspace, month, rates, None if whole else clients)
    lines = [*work_lines(worked, rates), *asked, *storage_lines(workspace, month, clients, stored, whole=whole)]
    if whole:
        lines += lines_of_erased(workspace, month)
    return Bill(month, rates.currency, lines, stored)


def everyone(workspace: Workspace) -> "QuerySet[Client, UUID]":
    """The ids of all clients, for a database to look up: hundreds of them in a query take longer than what they are asked for."""
    return Client.objects.filter(workspace=workspace).order_by().values_list("pk", flat=True)


def work_lines(worked: Iterable[Span], rates: Rates) -> list[Line]:
    """One for each run or build and rate, and one for all else of a kind; an attempt over which another rate came is cut there."""
    lines: dict[tuple[object, ...], Line] = {}
    for client, order, work, title, worker_kind, gpus, begin, end in worked:
        kind = KINDS.get(work)
        alone = order if kind is None or kind.billed_alone else None
        for piece in rates.pieces(worker_kind, begin, end):
            key = (client, alone or work, worker_kind, gpus, piece.per_hour)
            line = lines.get(key)
            if line is None:
                what = (title if alone else "") or (kind.called if kind else "Other work")
                day = piece.begin.astimezone(rates.zone).date()
                line = lines[key] = Line(client, day, what, worker_kind, piece.per_hour, gpus)
            line.seconds += piece.seconds
    return sorted(lines.values(), key=lambda line: line.day)


def token_lines(workspace: Workspace, month: Month, rates: Rates, clients: Collection[UUID] | None) -> Iterator[Line]:
    """One for each client and rate: what the endpoint was asked, with hours that are added up and calls that are not yet. `clients` None
    takes all, and what was asked of those that were erased since.
    """
    columns = {"read": Sum("prompt_tokens"), "written": Sum("completion_tokens")}
    for piece in rates.pieces(TOKENS, month.begins, month.ends):
        calls = Call.objects.filter(client__workspace=workspace, counted_at=None, at__gte=piece.begin, at__lt=piece.end)
        found: dict[UUID | None, Line] = {}
        day = piece.begin.astimezone(rates.zone).date()
        added_up = ((rows, Sum("calls")) for rows in days_and_hours(workspace, piece.begin, piece.end))
        for rows, number in (*added_up, (calls, Count("pk"))):
            rows = rows if clients is None else rows.filter(client__in=clients)
            for client, requests, read, written in rows.order_by().values_list("client_id").annotate(requests=number, **columns):
                if client not in found:
                    found[client] = Line(client, day, ASKED, TOKENS, piece.per_hour)
                found[client].requests += requests
                found[client].tokens_read += read
                found[client].tokens_written += written
        yield from found.values()


def days_and_hours(workspace: Workspace, begin: datetime, end: datetime) -> "Iterator[QuerySet[Any]]":
    """What was added up in a time: whole days where there are such, and hours else. Of erased clients only `CallHour` is left."""
    hours = ClientHour.objects.filter(workspace=workspace)
    yield CallHour.objects.filter(workspace=workspace, hour__gte=begin, hour__lt=end, client=None)
    whole = days_within(begin, end)
    if whole is None:
        yield hours.filter(hour__gte=begin, hour__lt=end)
        return
    first, last = whole
    yield ClientDay.objects.filter(workspace=workspace, day__gte=first, day__lt=last)
    yield from (hours.filter(hour__gte=start, hour__lt=stop) for start, stop in ((begin, first), (last, end)) if start < stop)


def storage_lines(
    workspace: Workspace, month: Month, clients: Collection[UUID], stored: dict[UUID, int], *, whole: bool = False
) -> Iterator[Line]:
    """One for each client and price: the days' sizes added up. A day that was not written down has the size of the one before."""
    today = timezone.now().astimezone(month.zone).date()
    after = min(today, month.following.first - timedelta(days=1)) + timedelta(days=1)
    if after <= month.first:  # a month to come
        return
    known: dict[UUID, list[Held]] = defaultdict(list)
    whose = everyone(workspace) if whole else clients
    days = StoredDay.objects.filter(client__in=whose, day__gte=month.first, day__lt=after).order_by("day")
    for client, day, size, price in days.values_list("client_id", "day", "size", "price"):
        known[client].append(
            (day, size, workspace.storage_price if day == today else price)
        )  # a price holds from the day on which it is set
    for client, (day, size, price) in held_before(month, [pk for pk in clients if not known[pk] or known[pk][0][0] > month.first]).items():
        known[client].insert(0, (max(day, month.first), size, price))
    if month.first <= today < after:
        for client, size in stored.items():
            if not known[client] or known[client][-1][0] < today:
                known[client].append((today, size, workspace.storage_price))
    for client, held in known.items():
        by_price: dict[Decimal | None, int] = defaultdict(int)
        for (day, size, price), following in zip(held, [*(day for day, _, _ in held[1:]), after], strict=False):
            by_price[price] += size * (following - day).days
        yield from at_prices(client, month, by_price)


def lines_of_erased(workspace: Workspace, month: Month) -> Iterator[Line]:
    """One for each price: all days that erased clients have left, which were written down without a gap."""
    days = StoredDay.objects.filter(workspace=workspace, client=None, day__gte=month.first, day__lt=month.following.first).order_by()
    return at_prices(None, month, dict(days.values_list("price").annotate(byte_days=Sum("size")).order_by("price")))


def at_prices(client: UUID | None, month: Month, by_price: dict[Decimal | None, int]) -> Iterator[Line]:
    for price, byte_days in by_price.items():
        if price and byte_days:
            gb_months = Decimal(byte_days) / month.days / GB
            yield Line(client, month.first, STORAGE, STORAGE, price, gb_months=gb_months)


def held_before(month: Month, clients: Collection[UUID]) -> dict[UUID, Held]:
    """What was written down last before a month, of those clients of whom its first day has nothing; not longer ago than a month."""
    days = StoredDay.objects.filter(client__in=clients, day__gte=month.previous.first, day__lt=month.first).order_by("day")
    return {client: (day, size, price) for client, day, size, price in days.values_list("client_id", "day", "size", "price")}
