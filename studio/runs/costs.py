"""What a run costs: what it would, by its estimate and today's rate of the worker, and what it did, by what its attempts took."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from django.conf import settings
from django.utils import timezone

from studio.orders.models import Order, Usage
from studio.orders.usage import machine, machine_of
from studio.runs.models import Run
from studio.training import HostFacts, Span
from studio.workspaces.models import Workspace
from studio.workspaces.rates import Rates, amount, cents, money


@dataclass(frozen=True)
class Tariff:
    """What an hour of a worker costs now."""

    per_hour: Decimal
    """Of one GPU, or of a worker without any."""
    gpus: int
    currency: str

    def of(self, seconds: float) -> Decimal:
        return amount(seconds, self.gpus, self.per_hour)

    def words(self, seconds: Span) -> str:
        """1.20 – 2.40 EUR, or about 1.20 EUR where both ends read alike."""
        low, high = cents(self.of(seconds.low)), cents(self.of(seconds.high))
        return f"about {money(high, self.currency)}" if low == high else f"{low:,.2f} – {money(high, self.currency)}"


def tariff_of(workspace: Workspace, host: HostFacts | None) -> Tariff | None:
    """None where nothing is set, or no worker has said what it is."""
    if host is None:
        return None
    kind, gpus = machine(host.model_dump())
    rates = Rates(workspace)
    if (per_hour := rates.now(kind)) is not None:
        return Tariff(per_hour, gpus, rates.currency)
    return Tariff(Decimal(str(settings.PRICE_PER_HOUR)), gpus, settings.PRICE_CURRENCY) if settings.PRICE_PER_HOUR is not None else None


def cost_words(run: Run) -> str:
    """`It cost about 1.20 EUR, at 2.40 EUR an hour.`; empty where nothing is set."""
    rates = Rates(run.project.client.workspace)
    total, held = Decimal(0), set()
    for kind, gpus, begin, end in worked(run.order):
        for piece in rates.pieces(kind, begin, end):
            per_hour, currency = piece.per_hour, rates.currency
            if per_hour is None and settings.PRICE_PER_HOUR is not None:  # in a currency of its own
                per_hour, currency = Decimal(str(settings.PRICE_PER_HOUR)), settings.PRICE_CURRENCY
            if per_hour is None:
                return ""
            held.add((per_hour, gpus, currency))
            total += amount(piece.seconds, gpus, per_hour)
    currencies = {currency for _, _, currency in held}
    if len(currencies) != 1:
        return ""
    currency = currencies.pop()
    if len(held) > 1:
        return f"It cost about {money(total, currency)}."
    per_hour, gpus, _ = held.pop()
    return f"It cost about {money(total, currency)}, at {money(per_hour, currency)} an hour{' of each GPU' if gpus > 1 else ''}."


def worked(order: Order) -> list[tuple[str, int, datetime, datetime]]:
    """(kind of worker, GPUs, begin, end) of each attempt that has ended; of an order that ended before that was counted, all in one."""
    columns = ("worker_kind", "gpus", "started_at", "ended_at")
    if counted := list(Usage.objects.filter(order=order).values_list(*columns)):
        return counted
    end = order.ended_at or timezone.now()
    return [(*machine_of(order.worker), end - timedelta(seconds=order.seconds), end)]
