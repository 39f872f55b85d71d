"""Pauses what runs where something else has more right to its worker: a higher priority, or the day. What is paused goes on by itself."""

from django.db import transaction
from django.utils import timezone

from studio.orders.kinds import KINDS
from studio.orders.models import Order
from studio.orders.services import append, make_way, notify
from studio.orders.turns import Turns, able, is_night, seconds_left

ENDS_SOON = 60.0
"""Seconds: what ends within them is waited for, since pausing it and going on later would take as long."""
FOR_ANOTHER = "Paused for {}, which has a higher priority."


def make_room(queue: str) -> list[str]:
    """Pauses one order where another of a strictly higher priority waits and no worker is free. Returns what it did, in words.

    Only what can go on from where it was is paused, and only for its own workspace: the lowest priority, and of those what began last.
    Between equals nothing is paused, so that no two can push each other away in turn.
    """
    with transaction.atomic():
        turns = Turns.read(queue, lock=True)
        waiting = turns.choose(turns.waiting, turns.running, at=turns.now, workers=turns.slots)
        if waiting is None or able(waiting, turns.free) or any(order.stop_requested_at for order in turns.active):
            return []
        for order in sorted(turns.active, key=lambda order: (order.priority, -order.seconds)):
            if may_pause(order, waiting, turns) and make_way(order, why=FOR_ANOTHER.format(called(waiting, to=order))):
                say(waiting, f"It is next: {called(order, to=waiting)} is paused for it, and goes on later.")
                return [f"{order}: paused for {waiting}"]
    return []


def may_pause(order: Order, waiting: Order, turns: Turns) -> bool:
    """Whether `order` can give its worker to `waiting`."""
    worker = [slot for slot in turns.slots if slot.name == order.worker]
    left = seconds_left(order)
    return (
        order.priority < waiting.priority
        and order.workspace_id == waiting.workspace_id
        and able(waiting, worker)
        and (left is None or left > ENDS_SOON)
        and KINDS[order.kind].resumes(order)
    )


def called(order: Order, *, to: Order) -> str:
    """An order as the page of another may name it: another client's is nobody's business there."""
    if order.client_id != to.client_id:
        return "another client's run"
    return f"“{KINDS[order.kind].title(order)}”"


def say(order: Order, text: str) -> None:
    """A note on what waits. Its row is locked, so that no worker is about to number its events."""
    append(order, "note", {"text": text, "level": "info"})
    transaction.on_commit(lambda: notify(order))


def rest_by_day() -> list[str]:
    """Pauses what is for the night and has not ended by morning, where it can go on from where it was; all else works to its end."""
    did = []
    awake = Order.objects.filter(status__in=(Order.Status.STARTING, Order.Status.RUNNING), at_night=True, stop_requested_at=None)
    for order in awake.select_related("workspace"):
        until = f"{order.workspace.night_from:%H:%M}"
        if is_night(order.workspace, timezone.now()) or not KINDS[order.kind].resumes(order):
            continue
        with transaction.atomic():
            if make_way(order, why=f"Paused until {until}, since it is only for the night."):
                did.append(f"{order}: paused until the night")
    return did
