"""What each attempt of an order took: written down once, where it stops being held, in that transaction. Prices are others' business."""

from collections.abc import Collection, Iterator
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from django.db.models import Func, TextField
from django.db.models.functions import Cast
from django.utils import timezone

from studio.orders.kinds import KINDS
from studio.orders.models import Order, Slot, Usage
from studio.workspaces.models import Workspace
from studio.workspaces.months import Month

CPU = "CPU"
"""The kind of a worker that has no GPU."""


def machine(facts: dict[str, Any]) -> tuple[str, int]:
    """(kind of worker, GPUs) of a training.HostFacts: the GPU's name, or CPU. Several GPUs are taken to be alike."""
    names = [gpu["name"] for gpu in facts.get("gpus", [])]
    return (" ".join(names[0].split())[:80] or "GPU", len(names)) if names else (CPU, 0)


def machine_of(worker: str) -> tuple[str, int]:
    """That of a worker by its name; CPU where it never said what it has."""
    slot = Slot.objects.filter(name=worker).first() if worker else None
    return machine(slot.facts if slot else {})


def record_usage(order: Order, *, until: datetime | None) -> None:
    """The row for the attempt that `order` shows, which ends at `until`; none where no worker had begun it."""
    if order.started_at is None:
        return
    kind = KINDS[order.kind]
    worker_kind, gpus = machine_of(order.worker)
    Usage.objects.create(
        workspace_id=order.workspace_id,
        client_id=order.client_id,
        project=kind.project(order),
        order=order,
        attempt=order.attempt,
        kind=order.kind,
        title=kind.title(order)[:200] if kind.billed_alone else "",
        worker_kind=worker_kind,
        gpus=gpus,
        started_at=order.started_at,
        ended_at=max(order.started_at, until or order.started_at),
    )


class Span(NamedTuple):
    """What one attempt took of a month: one that has ended, or still works."""

    client: UUID | None
    order: str | None
    """Its id as 32 hexadecimal digits."""
    kind: str
    title: str
    worker_kind: str
    gpus: int
    begin: datetime
    end: datetime

    @property
    def hours(self) -> float:
        return (self.end - self.begin).total_seconds() / 3600

    @property
    def gpu_hours(self) -> float:
        return self.hours * self.gpus


class Clock(Func):
    """A moment as text in UTC, for `datetime.fromisoformat`: of thousands of rows, reading moments takes longer than finding them."""

    output_field = TextField()

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:  # which keeps text; a bare column would be parsed by Django
        return self.as_sql(compiler, connection, template="%(expressions)s || '+00:00'", **context)

    def as_postgresql(self, compiler: Any, connection: Any, **context: Any) -> Any:
        return self.as_sql(compiler, connection, template="CAST(%(expressions)s AT TIME ZONE 'UTC' AS text) || '+00:00'", **context)


def spans(workspace: Workspace, month: Month, *, clients: Collection[UUID] | None = None, on_gpus: bool = False) -> Iterator[Span]:
    """Everything that was worked in a month, cut at its ends; four queries. `clients` None takes all, and what was for none of them.

    `on_gpus` may leave out what used none.
    """
    times = (Clock("started_at"), Clock("ended_at"))
    ids = (Cast("client_id", TextField()), Cast("order_id", TextField()))
    ended = Usage.objects.filter(workspace=workspace, ended_at__gt=month.begins, started_at__lt=month.ends)
    if clients is not None:
        ended = ended.filter(client__in=clients)
    if on_gpus:
        ended = ended.filter(gpus__gt=0)
    known: dict[str | None, UUID | None] = {None: None}
    moment = datetime.fromisoformat
    rows = ended.order_by("started_at", "pk").values_list(*ids, *times, "kind", "title", "worker_kind", "gpus")
    for client, order, begin, end, kind, title, worker_kind, gpus in rows:
        if client not in known:
            known[client] = UUID(client)
        if cut := month.cut(moment(begin), moment(end)):
            yield Span(known[client], order and order.replace("-", ""), kind, title, worker_kind, gpus, *cut)
    yield from at_work(workspace, month, clients=clients)


def at_work(workspace: Workspace, month: Month, *, clients: Collection[UUID] | None = None) -> Iterator[Span]:
    """What workers hold now, as far as it has come."""
    active = Order.objects.filter(workspace=workspace, kind__in=KINDS, status__in=Order.ACTIVE, ended_at=None)  # an index has those
    active = active.filter(started_at__lt=month.ends).order_by()
    ids = list((active if clients is None else active.filter(client__in=clients)).values_list("pk", flat=True))
    if not ids:
        return
    related = {name for kind in KINDS.values() for name in kind.related}
    held = list(Order.objects.filter(pk__in=ids).select_related(*related))
    slots = {slot.name: slot.facts for slot in Slot.objects.filter(name__in=[order.worker for order in held])}
    for order in held:
        kind = KINDS[order.kind]
        if order.started_at and (cut := month.cut(order.started_at, timezone.now())):
            title = kind.title(order) if kind.billed_alone and kind.related else ""
            yield Span(order.client_id, order.pk.hex, order.kind, title, *machine(slots.get(order.worker, {})), *cut)
