"""How long the states are kept that an order could go on from, and how they are thrown away before. Results are never touched here."""

from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from studio.errors import UserError
from studio.orders.models import Order
from studio.orders.services import append, notify, request_stop
from studio.storage import remove_folder


def kept_until(order: Order) -> datetime | None:
    """When the states of an order that rests are deleted; None where it has none, or still needs them."""
    if order.status not in Order.RESTING or order.ended_at is None or order.saved_step is None:
        return None
    return order.ended_at + timedelta(days=settings.STATES_KEPT_DAYS)


def discard_states(order: Order) -> None:
    """Throws away what a paused or failed order could go on from. Refused where it still works, or nothing is left."""
    if order.is_live:
        raise UserError("This is still going on. Stop it first, or stop and discard it in one.")
    if order.status == Order.Status.PAUSED:
        request_stop(order, discard=True)
    elif order.saved_step is None:
        raise UserError("Nothing is kept to go on from, so there is nothing to discard.")
    elif not forget(order, why="What it could have gone on from was discarded."):
        raise UserError("Somebody else has just resumed this.")


def sweep() -> list[str]:
    """Deletes states that have been kept for long enough. Returns what it did, in words."""
    long_ago = timezone.now() - timedelta(days=settings.STATES_KEPT_DAYS)
    rested = Order.objects.filter(status__in=Order.RESTING, ended_at__lt=long_ago)
    return [line for order in rested if order.saved_step is not None and (line := expire(order))]


def expire(order: Order) -> str:
    sentence = f"Its state was kept for {settings.STATES_KEPT_DAYS} days and then deleted, so it cannot be resumed any more."
    # What is paused has nothing left but its state; what failed keeps saying why.
    ending = {"status": Order.Status.STOPPED, "error": sentence} if order.status == Order.Status.PAUSED else {}
    return f"{order}: its state has expired" if forget(order, why=sentence, **ending) else ""


def forget(order: Order, *, why: str, **ending: Any) -> bool:
    """Deletes the states, and says on its page why. False where somebody has just resumed it."""
    with transaction.atomic():
        if not Order.objects.filter(pk=order.pk, attempt=order.attempt, status=order.status).update(discard=True, **ending):
            return False
        append(order, "note", {"text": why, "level": "info"})
        transaction.on_commit(lambda: remove_folder(order.checkpoints))
        transaction.on_commit(lambda: notify(order))
    return True
