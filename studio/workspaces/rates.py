"""What an hour of a worker costs in a workspace, by its kind and the day. Amounts are decimals; each line is rounded once, by `cents`."""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from django.conf import settings

from studio.workspaces.models import Rate, Workspace
from studio.workspaces.months import midnight

CENT = Decimal("0.01")
MILLISECOND = timedelta(milliseconds=1)
TOKENS = "Tokens"
"""The kind whose rate is of a million tokens, read and written alike, and not of an hour."""


def cents(amount: Decimal) -> Decimal:
    return amount.quantize(CENT, ROUND_HALF_UP)


def money(amount: "Decimal | float", currency: str) -> str:
    """1,204.50 EUR"""
    return f"{amount:,.2f} {currency}".rstrip()


class Piece(NamedTuple):
    """A part of some work in which one rate held."""

    begin: datetime
    end: datetime
    per_hour: Decimal | None
    """None where none is set."""

    @property
    def seconds(self) -> float:
        return (self.end - self.begin).total_seconds()


class Rates:
    """Those of one workspace, read once."""

    def __init__(self, workspace: Workspace):
        self.workspace, self.zone, self.currency = workspace, workspace.zone, workspace.currency
        self._since: dict[str, list[date]] = defaultdict(list)
        self._per_hour: dict[str, list[Decimal]] = defaultdict(list)
        for rate in Rate.objects.filter(workspace=workspace).order_by("since"):
            self._since[rate.kind].append(rate.since)
            self._per_hour[rate.kind].append(rate.per_hour)
        self._changes = {kind: [midnight(day, self.zone) for day in days] for kind, days in self._since.items()}

    def per_hour(self, kind: str, day: date) -> Decimal | None:
        """Of one GPU, or of one worker without any, on a day; the machine's own price (PRICE_PER_HOUR) where the kind has no rate then."""
        known = bisect_right(self._since[kind], day)
        return self._per_hour[kind][known - 1] if known else self.without_rate(kind)

    def without_rate(self, kind: str) -> Decimal | None:
        """The machine's own price is of an hour, so tokens cost nothing where no rate says otherwise."""
        return None if kind == TOKENS else self.fallback

    @cached_property
    def fallback(self) -> Decimal | None:
        """What holds for a kind without a rate; None where it is in another currency, for amounts could not be added then."""
        if settings.PRICE_PER_HOUR is None or settings.PRICE_CURRENCY not in ("", self.currency):
            return None
        return Decimal(str(settings.PRICE_PER_HOUR))

    def now(self, kind: str) -> Decimal | None:
        return self.per_hour(kind, datetime.now(self.zone).date())

    def pieces(self, kind: str, begin: datetime, end: datetime) -> Iterator[Piece]:
        """A span of work, cut at the midnights from which another rate holds."""
        changes = self._changes.get(kind, [])
        known, until = bisect_right(changes, begin), bisect_left(changes, end)
        for number, (first, last) in enumerate(pairwise([begin, *changes[known:until], end]), known):
            yield Piece(first, last, self._per_hour[kind][number - 1] if number else self.without_rate(kind))

    def cost(self, kind: str, gpus: int, begin: datetime, end: datetime) -> Decimal | None:
        """Of a span of work on some GPUs, or on a worker without any (0), not yet rounded; None where a part of it has no rate."""
        total = Decimal(0)
        for piece in self.pieces(kind, begin, end):
            if piece.per_hour is None:
                return None
            total += amount(piece.seconds, gpus, piece.per_hour)
        return total

    def estimate(self, kind: str, gpus: int, seconds: float) -> Decimal | None:
        """What so much work would cost today."""
        per_hour = self.now(kind)
        return None if per_hour is None else amount(seconds, gpus, per_hour)


def amount(seconds: float, gpus: int, per_hour: Decimal) -> Decimal:
    return hours(seconds) * max(1, gpus) * per_hour


def hours(seconds: float) -> Decimal:
    return Decimal(timedelta(seconds=seconds) // MILLISECOND) / 3_600_000
