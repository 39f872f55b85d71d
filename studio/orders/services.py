"""Places, claims, stops and ends orders. The database decides; Redis only rings."""

import logging
import secrets
from copy import copy
from datetime import datetime, timedelta
from typing import Any

import django_rq
import redis
from django.conf import settings
from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from studio import doorbell
from studio.errors import UserError
from studio.orders import slots
from studio.orders.kinds import KINDS
from studio.orders.models import Event, Order
from studio.orders.turns import Turns, fair_rank
from studio.orders.usage import record_usage
from studio.storage import remove_folder
from studio.workspaces.models import Client, Member

log = logging.getLogger("studio.orders")
LOST_AFTER = timedelta(seconds=20)
DOORBELL = "studio:orders"
WORK = "studio.orders.tasks.work"


def place(
    member: Member,
    *,
    kind: str,
    client: Client | None,
    priority: int = Order.Priority.NORMAL,
    start_at: datetime | None = None,
    at_night: bool = False,
) -> Order:
    """A queued order; on commit, its job `(kind, id, attempt)` goes to the queue. Call it inside a transaction."""
    order: Order = Order.objects.create(
        workspace=member.workspace,
        client=client,
        kind=kind,
        queue=KINDS[kind].queue,
        created_by=member.user,
        priority=priority,
        start_at=start_at,
        at_night=at_night,
        rank=fair_rank(KINDS[kind].queue, holder_id=client.pk if client else member.workspace_id, priority=priority),
    )
    transaction.on_commit(lambda: ring(order))
    return order


def ring(order: Order) -> None:
    """Tells the workers that this order waits; the one that hears it takes the one whose turn it is.

    Where Redis is away the order stays queued, and `reconcile` rings again.
    """
    queue = django_rq.get_queue(order.queue)
    try:
        # The same order may ring again while a worker that heard it does another, so each job has a name of its own.
        queue.enqueue(WORK, order.kind, str(order.pk), order.attempt, job_id=f"{bell_of(order)}-{secrets.token_hex(4)}")
    except redis.RedisError as error:
        log.warning("The queue is away (%s); %s waits for it.", error, order)


def bell_of(order: Order) -> str:
    """What the names of all jobs begin with that this attempt rings by."""
    return f"{order.kind}-{order.pk}-a{order.attempt}"


def claim(pk: str, *, attempt: int, worker: str) -> Order | None:
    """The order, for the one worker that gets it; None for all others."""
    now = timezone.now()
    waiting = Order.objects.filter(pk=pk, attempt=attempt, status__in=Order.WAITING)
    taken = waiting.update(status=Order.Status.STARTING, worker=worker[:120], started_at=now, heartbeat_at=now, error="")
    return Order.objects.get(pk=pk) if taken else None


def claim_next(queue: str, *, worker: str) -> Order | None:
    """The order whose turn it is (`turns`), for this worker; None where nothing may start now that it could do."""
    with transaction.atomic():
        order = Turns.read(queue, lock=True).next_for(worker)
        return claim(str(order.pk), attempt=order.attempt, worker=worker) if order else None


def held(order: Order) -> Any:
    """The row as long as this attempt holds it: every write of a worker goes through here."""
    return Order.objects.filter(pk=order.pk, attempt=order.attempt, status__in=Order.ACTIVE)


def request_stop(order: Order, *, discard: bool = False) -> None:
    """Asks the worker to stop; what no worker holds ends at once. Refused once it has ended."""
    paused = order.status == Order.Status.PAUSED
    if not order.is_live and not paused:
        raise UserError("This has already ended.")
    if order.is_live and order.comes_back and not discard:
        stay_paused(order)
        return
    if (paused or order.pausing) and not discard:
        raise UserError("This is paused, so what it learnt is kept already. Resume it to go on, or discard it.")
    now = timezone.now()
    with transaction.atomic():
        resting = Order.objects.filter(pk=order.pk, status__in=(*Order.WAITING, Order.Status.PAUSED))
        order.discard = order.discard or discard
        status = without_result(order)
        if resting.update(status=status, stop_requested_at=now, ended_at=now, discard=discard):
            order.refresh_from_db()
            end_without_result(order, status=status, error="")
        else:
            Order.objects.filter(pk=order.pk, stop_requested_at=None).update(stop_requested_at=now)
            if discard:  # also after a stop that was to keep something
                Order.objects.filter(pk=order.pk, status__in=Order.ACTIVE).update(discard=True)
        transaction.on_commit(lambda: notify(order))  # also where the stop is part of a larger change


def request_pause(order: Order) -> None:
    """Asks the worker to save a state and end; what waits is paused at once. Refused where nothing is left to pause."""
    if order.status == Order.Status.PAUSED:
        raise UserError("This is paused already.")
    if not order.is_live:
        raise UserError("This has already ended.")
    if order.comes_back:
        stay_paused(order)
        return
    now, mine = timezone.now(), Order.objects.filter(pk=order.pk)
    with transaction.atomic():
        if mine.filter(status__in=Order.WAITING).update(status=Order.Status.PAUSED, ended_at=now):
            order.refresh_from_db()
            append(order, "end", {"status": order.status, "error": ""})
        else:
            working = mine.filter(status__in=(Order.Status.STARTING, Order.Status.RUNNING), stop_requested_at=None)
            if not working.update(status=Order.Status.PAUSING, pausing=True, stop_requested_at=now):
                raise UserError("This is already stopping or finishing, so there is nothing left to pause.")
        transaction.on_commit(lambda: notify(order))


def stay_paused(order: Order) -> None:
    """A pause that the studio began becomes that of a person, who also ends it."""
    Order.objects.filter(pk=order.pk, status__in=Order.ACTIVE).update(comes_back="")


def make_way(order: Order, *, why: str) -> bool:
    """Pauses what runs, to go on by itself when its turn comes again. False where it has just ended, or is already stopping.

    Its page is told `why` once it is paused: until then only its worker numbers its events.
    """
    working = held(order).filter(status__in=(Order.Status.STARTING, Order.Status.RUNNING), stop_requested_at=None)
    changes = {"status": Order.Status.PAUSING, "pausing": True, "comes_back": why, "stop_requested_at": timezone.now()}
    if not working.update(**changes):
        return False
    transaction.on_commit(lambda: notify(order))
    return True


def resume(order: Order) -> None:
    """Queues the next attempt of what was paused, or failed after a state was saved. It goes on from there; no loss is counted."""
    if order.is_live:
        raise UserError("This is not paused, so there is nothing to resume.")
    if order.status == Order.Status.FAILED and order.saved_step is None:
        raise UserError("Nothing was saved before it failed, so there is nothing to go on from. Start a copy of it instead.")
    if not order.can_resume:
        raise UserError("This has already ended.")
    with transaction.atomic():
        if not go_back(order, why="Resumed; it waits for a worker."):
            raise UserError("Somebody else has just resumed this.")


def go_back(order: Order, *, why: str) -> bool:
    """Queues the next attempt of what has ended and can go on, in the place where it stood. False where another has just done it."""
    fresh: dict[str, Any] = {
        "stop_requested_at": None,
        "pausing": False,
        "comes_back": "",
        "discard": False,
        "started_at": None,
        "ended_at": None,
        "heartbeat_at": None,
    }
    mine = Order.objects.filter(pk=order.pk, attempt=order.attempt, status=order.status)
    if not mine.update(status=Order.Status.QUEUED, attempt=order.attempt + 1, losses=0, error="", worked=order.seconds, **fresh):
        return False
    order.refresh_from_db()
    where = "" if order.saved_step is None else f" It goes on from step {order.saved_step}."
    append(order, "note", {"text": f"{why}{where}", "level": "info"})
    transaction.on_commit(lambda: ring(order))
    transaction.on_commit(lambda: notify(order))
    return True


def without_result(order: Order) -> str:
    """How an order ends that was to stop and left no result: paused where a state is kept to go on from, stopped where not."""
    keeps = order.pausing or order.saved_step is not None
    return Order.Status.PAUSED if keeps and not order.discard else Order.Status.STOPPED


def append(order: Order, type_: str, body: dict[str, Any]) -> None:
    """An event of the studio's own, after those of the worker."""
    seq = Order.objects.get(pk=order.pk).last_seq + 1
    Event.objects.create(order=order, seq=seq, attempt=order.attempt, at=timezone.now(), type=type_, body=body)
    Order.objects.filter(pk=order.pk).update(last_seq=seq)


def notify(order: Order) -> None:
    """Rings every page that watches this order."""
    doorbell.ring(DOORBELL, str(order.pk))


def finish(order: Order, *, status: str, result: dict[str, Any] | None, error: str) -> bool:
    """Ends an order once, with its last event, and records what it left. False where the attempt no longer holds it."""
    with transaction.atomic():
        if result is None and status in (Order.Status.STOPPED, Order.Status.PAUSED):
            order.refresh_from_db(fields=["discard", "pausing", "comes_back"])
            status = without_result(order)
        ended = held(order).update(status=status, result=result, error=error[:4000], ended_at=timezone.now())
        if not ended:
            return False
        order.refresh_from_db()
        record_usage(order, until=order.ended_at)
        if result is not None and status in (Order.Status.SUCCEEDED, Order.Status.STOPPED) and not order.discard:
            append(order, "end", {"status": status, "error": error[:4000]})
            KINDS[order.kind].succeeded(order, result)
            transaction.on_commit(lambda: remove_folder(order.checkpoints))
        else:
            end_without_result(order, status=status, error=error[:4000])
    notify(order)
    return True


def end_without_result(order: Order, *, status: str, error: str) -> None:
    """The last event of an order that leaves nothing; what it may have sealed already is thrown away.

    Its states are kept where it may be resumed: paused or failed, until it has succeeded or is discarded.
    """
    append(order, "end", {"status": status, "error": error})
    if status == Order.Status.STOPPED:
        transaction.on_commit(lambda: remove_folder(order.checkpoints))
    target = KINDS[order.kind].target(order)
    transaction.on_commit(lambda: remove_folder(target))
    if status == Order.Status.PAUSED and order.comes_back:
        go_back(order, why=f"{order.comes_back} It goes on by itself when its turn comes.")


def clear_away(order: Order, *, upto: int) -> None:
    """Throws away the drafts of the attempts up to this one; their orders, events and logs stay, and the states to go on from.

    A later attempt may be at work already, on another worker.
    """
    for attempt in range(1, upto + 1):
        remove_folder(order.folder.parent / f"attempt-{attempt}" / "work")
        remove_folder(order.folder.parent / f"attempt-{attempt}" / "out")


def stale() -> Q:
    return Q(heartbeat_at=None) | Q(heartbeat_at__lt=timezone.now() - LOST_AFTER)


def reconcile() -> list[str]:
    """Finds orders that a dead worker left, and orders whose bell was never heard. Returns what it did, in words."""
    did = [recover(order, stale()) for order in Order.objects.filter(stale(), status__in=Order.ACTIVE)]
    did += [line for queue in settings.RQ_QUEUES for line in wake(queue)]
    return [line for line in did if line]


def wake(queue: str) -> list[str]:
    """Rings until as many bells wait as orders that may start now: for what was never heard, and for what had to wait until now."""
    try:
        names = django_rq.get_queue(queue).get_job_ids()
        heard = {name.rpartition("-")[0] for name in names}
        open_now = Turns.read(queue).may_start()
        unheard = sorted(open_now, key=lambda order: bell_of(order) in heard)[: max(0, len(open_now) - len(names))]
    except redis.RedisError as error:
        log.warning("The queue is away (%s); what waits is looked at again later.", error)
        return []
    for order in unheard:
        ring(order)
    return [f"{order}: queued again" for order in unheard]


def worker_lost(worker: str) -> list[str]:
    """What a worker that is known to have ended held, taken up without waiting for its heartbeat to grow old."""
    mine = Q(worker=worker)
    did = [line for order in Order.objects.filter(mine, status__in=Order.ACTIVE) if (line := recover(order, mine))]
    slots.forget(worker)  # after what it held, whose usage is counted by what machine it was
    return did


def recover(order: Order, lost: Q) -> str:
    """A lost attempt becomes a new one, until there were too many. `lost` is asked again, since another may have done it."""
    losses, lost_attempt = order.losses + 1, order.attempt
    with transaction.atomic():
        mine = held(order).filter(lost)
        if order.stop_requested_at or losses >= Order.MAX_LOSSES:
            status = without_result(order) if order.stop_requested_at else Order.Status.FAILED
            advice = f"The worker was lost {losses} times. Look at its log and memory, then start it again."
            error = "" if order.stop_requested_at else advice
            if not mine.update(status=status, losses=losses, error=error, ended_at=timezone.now()):
                return ""
            order.refresh_from_db()
            record_usage(order, until=order.heartbeat_at)
            end_without_result(order, status=status, error=error)
            transaction.on_commit(lambda: clear_away(order, upto=lost_attempt))
        else:
            mine = mine.filter(losses=order.losses)
            if not try_again(order, mine, losses=losses, until=order.heartbeat_at, why="The worker was lost. Trying again."):
                return ""
            transaction.on_commit(lambda: ring(order))
    notify(order)
    return f"{order}: {order.status}"


def release(order: Order) -> None:
    """Gives an order back when its worker is told to end: it waits for the next one, and this was no loss."""
    with transaction.atomic():
        why = "The server was stopped. It starts again with it."
        if try_again(order, held(order).filter(stop_requested_at=None), losses=order.losses, until=timezone.now(), why=why):
            notify(order)


def try_again(order: Order, mine: Any, *, losses: int, until: datetime | None, why: str) -> bool:
    """The next attempt of an order, where `mine` still holds it; the one before worked until `until`."""
    worked, ended = order.worked + order.seconds_until(until), copy(order)
    fresh = {"heartbeat_at": None, "started_at": None, "worked": worked, "done": 0}
    if not mine.update(status=Order.Status.RECOVERING, attempt=order.attempt + 1, losses=losses, **fresh):
        return False
    record_usage(ended, until=until)
    order.refresh_from_db()
    append(order, "note", {"text": why, "level": "warning"})
    return True
