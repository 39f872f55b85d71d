"""Places, claims, stops and ends orders. The database decides; Redis only rings."""

import functools
import logging
from datetime import timedelta
from typing import Any

import django_rq
import redis
from django.conf import settings
from django.db import transaction
from django.db.models import Q
from django.utils import timezone
from rq.exceptions import NoSuchJobError
from rq.job import Job

from studio.errors import UserError
from studio.orders import slots
from studio.orders.kinds import KINDS
from studio.orders.models import Event, Order
from studio.storage import remove_folder
from studio.workspaces.models import Client, Member

log = logging.getLogger("studio.orders")
LOST_AFTER = timedelta(seconds=20)
TAKEN = timedelta(seconds=15)
"""How long a worker may need from taking a job to claiming its order."""
DOORBELL = "studio:orders"


def place(member: Member, *, kind: str, client: Client | None) -> Order:
    """A queued order; on commit, its job `(kind, id, attempt)` goes to the queue. Call it inside a transaction."""
    order: Order = Order.objects.create(
        workspace=member.workspace, client=client, kind=kind, queue=KINDS[kind].queue, created_by=member.user
    )
    transaction.on_commit(lambda: ring(order))
    return order


def ring(order: Order) -> None:
    """Tells the workers. Where Redis is away the order stays queued, and `reconcile` rings again."""
    queue = django_rq.get_queue(order.queue)
    try:
        queue.enqueue("studio.orders.tasks.work", order.kind, str(order.pk), order.attempt, job_id=job_id(order))
    except redis.RedisError as error:
        log.warning("The queue is away (%s); %s waits for it.", error, order)


def job_id(order: Order) -> str:
    return f"{order.kind}-{order.pk}-a{order.attempt}"


@functools.cache
def redis_at(url: str) -> "redis.Redis":
    """One pool of connections for each process; an order in work rings many times a second."""
    return redis.Redis.from_url(url)


def claim(pk: str, *, attempt: int, worker: str) -> Order | None:
    """The order, for the one worker that gets it; None for all others."""
    now = timezone.now()
    waiting = Order.objects.filter(pk=pk, attempt=attempt, status__in=(Order.Status.QUEUED, Order.Status.RECOVERING))
    taken = waiting.update(status=Order.Status.STARTING, worker=worker[:120], started_at=now, heartbeat_at=now, error="")
    return Order.objects.get(pk=pk) if taken else None


def held(order: Order) -> Any:
    """The row as long as this attempt holds it: every write of a worker goes through here."""
    return Order.objects.filter(pk=order.pk, attempt=order.attempt, status__in=Order.ACTIVE)


def request_stop(order: Order, *, discard: bool = False) -> None:
    """Asks the worker to stop; a queued order ends at once. Refused once it has ended."""
    if not order.is_live:
        raise UserError("This has already ended.")
    now = timezone.now()
    with transaction.atomic():
        waiting = Order.objects.filter(pk=order.pk, status__in=(Order.Status.QUEUED, Order.Status.RECOVERING))
        if waiting.update(status=Order.Status.STOPPED, stop_requested_at=now, ended_at=now, discard=discard):
            order.refresh_from_db()
            end_without_result(order, status="stopped", error="")
        else:
            Order.objects.filter(pk=order.pk, stop_requested_at=None).update(stop_requested_at=now)
            if discard:  # also after a stop that was to keep something
                Order.objects.filter(pk=order.pk, status__in=Order.ACTIVE).update(discard=True)
        transaction.on_commit(lambda: notify(order))  # also where the stop is part of a larger change


def append(order: Order, type_: str, body: dict[str, Any]) -> None:
    """An event of the studio's own, after those of the worker."""
    seq = Order.objects.get(pk=order.pk).last_seq + 1
    Event.objects.create(order=order, seq=seq, attempt=order.attempt, at=timezone.now(), type=type_, body=body)
    Order.objects.filter(pk=order.pk).update(last_seq=seq)


def notify(order: Order) -> None:
    """Rings every page that watches this order."""
    try:
        redis_at(settings.REDIS_URL).publish(DOORBELL, str(order.pk))
    except redis.RedisError as error:
        log.warning("The doorbell is away (%s); pages catch up by themselves.", error)


def finish(order: Order, *, status: str, result: dict[str, Any] | None, error: str) -> bool:
    """Ends an order once, with its last event, and records what it left. False where the attempt no longer holds it."""
    with transaction.atomic():
        ended = held(order).update(status=status, result=result, error=error[:4000], ended_at=timezone.now())
        if not ended:
            return False
        order.refresh_from_db()
        if result is not None and status in (Order.Status.SUCCEEDED, Order.Status.STOPPED) and not order.discard:
            append(order, "end", {"status": status, "error": error[:4000]})
            KINDS[order.kind].succeeded(order, result)
        else:
            end_without_result(order, status=status, error=error[:4000])
    notify(order)
    return True


def end_without_result(order: Order, *, status: str, error: str) -> None:
    """The last event of an order that leaves nothing; what it may have sealed already is thrown away."""
    append(order, "end", {"status": status, "error": error})
    KINDS[order.kind].ended(order)
    transaction.on_commit(lambda: remove_folder(KINDS[order.kind].target(order)))


def stale() -> Q:
    return Q(heartbeat_at=None) | Q(heartbeat_at__lt=timezone.now() - LOST_AFTER)


def reconcile() -> list[str]:
    """Finds orders that a dead worker left, and orders whose bell was never heard. Returns what it did, in words."""
    did = [recover(order, stale()) for order in Order.objects.filter(stale(), status__in=Order.ACTIVE)]
    try:
        did += [ring_again(order) for order in Order.objects.filter(status__in=(Order.Status.QUEUED, Order.Status.RECOVERING))]
    except redis.RedisError as error:
        log.warning("The queue is away (%s); what waits is looked at again later.", error)
    return [line for line in did if line]


def ring_again(order: Order) -> str:
    if is_queued(order):
        return ""
    ring(order)
    return f"{order}: queued again"


def worker_lost(worker: str) -> list[str]:
    """What a worker that is known to have ended held, taken up without waiting for its heartbeat to grow old."""
    slots.forget(worker)
    mine = Q(worker=worker)
    return [line for order in Order.objects.filter(mine, status__in=Order.ACTIVE) if (line := recover(order, mine))]


def recover(order: Order, lost: Q) -> str:
    """A lost attempt becomes a new one, until there were too many. `lost` is asked again, since another may have done it."""
    losses = order.losses + 1
    with transaction.atomic():
        mine = held(order).filter(lost)
        if order.stop_requested_at or losses >= Order.MAX_LOSSES:
            status = Order.Status.STOPPED if order.stop_requested_at else Order.Status.FAILED
            advice = f"The worker was lost {losses} times. Look at its log and memory, then start it again."
            error = "" if order.stop_requested_at else advice
            if not mine.update(status=status, losses=losses, error=error, ended_at=timezone.now()):
                return ""
            order.refresh_from_db()
            end_without_result(order, status=status, error=error)
        else:
            if not try_again(order, mine.filter(losses=order.losses), losses=losses, why="The worker was lost. Trying again."):
                return ""
            transaction.on_commit(lambda: ring(order))
    notify(order)
    return f"{order}: {order.status}"


def release(order: Order) -> None:
    """Gives an order back when its worker is told to end: it waits for the next one, and this was no loss."""
    with transaction.atomic():
        why = "The server was stopped. It starts again with it."
        if try_again(order, held(order).filter(stop_requested_at=None), losses=order.losses, why=why):
            notify(order)


def try_again(order: Order, mine: Any, *, losses: int, why: str) -> bool:
    """The next attempt of an order, where `mine` still holds it."""
    if not mine.update(status=Order.Status.RECOVERING, attempt=order.attempt + 1, losses=losses, heartbeat_at=None, done=0):
        return False
    order.refresh_from_db()
    append(order, "note", {"text": why, "level": "warning"})
    return True


def is_queued(order: Order) -> bool:
    """True where Redis has a job for this very attempt that a worker will still take, or has taken a moment ago."""
    queue = django_rq.get_queue(order.queue)
    name = job_id(order)
    if name in queue.get_job_ids():
        return True
    try:
        job = Job.fetch(name, connection=queue.connection, serializer=queue.serializer)
    except NoSuchJobError:
        return False
    taken_at = job.started_at or job.enqueued_at
    if taken_at is not None and timezone.now() - taken_at < TAKEN:
        return True
    # Taken and never claimed: the worker that took it died in between.
    job.delete()
    return False
