"""Whose turn it is: the one rule by which workers take what waits, and what it says of the time to come.

A worker takes, of what waits in its queue and may start now,

1. the highest priority;
2. among those, an order of the client that has the fewest running;
3. among those, the lowest rank: the place in which it was put, at first such that clients take turns (`fair_rank`).

An order may not start before its moment, by day where it is for the night, while as many of its client run as the client may have,
in a month whose GPU hours its client has used, or on a worker that lacks what it needs. It is passed over then, and keeps its place.
"""

import heapq
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from itertools import count
from operator import attrgetter
from uuid import UUID

from django.utils import timezone

from studio.orders.kinds import KINDS
from studio.orders.models import Order, Slot, last_rank
from studio.orders.quotas import used_up
from studio.workspaces.models import Workspace

SOME_TIME = 3600.0
"""Seconds that an order is taken to need of which nothing is known; whatever comes after it has no expected start."""
ANYBODY = Slot(name="", facts={})
"""Stands for the workers where none has said yet that it is there."""


def holder(order: Order) -> UUID:
    """Whose share of the workers an order counts to: its client's, or its workspace's where it belongs to none."""
    return order.client_id or order.workspace_id


def limit_of(order: Order) -> int | None:
    """How many of its client may run at once, itself included."""
    if order.client is None or not KINDS[order.kind].counts:
        return None
    return order.client.run_limit or order.workspace.run_limit


def is_night(workspace: Workspace, at: datetime) -> bool:
    """Whether a moment lies in the workspace's night. From eight to eight is all day."""
    now, begins, ends = at.astimezone(workspace.zone).time(), workspace.night_from, workspace.night_until
    return begins <= now < ends if begins < ends else now >= begins or now < ends


def next_night(workspace: Workspace, at: datetime) -> datetime:
    """The moment itself where it lies in the workspace's night, or else when the next one begins."""
    if is_night(workspace, at):
        return at
    local = at.astimezone(workspace.zone)
    evening = datetime.combine(local.date(), workspace.night_from, tzinfo=workspace.zone)
    if evening <= local:
        evening = datetime.combine(local.date() + timedelta(days=1), workspace.night_from, tzinfo=workspace.zone)
    return evening.astimezone(UTC)  # hours are added to it, which a zone would do by what its clocks show


def may_start_at(order: Order, now: datetime, full: Mapping[UUID, datetime]) -> datetime:
    """The first moment from `now` on that its own times allow, and `full` (see `Turns`) does."""
    at = max(now, order.start_at or now, full.get(order.pk, now))
    return next_night(order.workspace, at) if order.at_night else at


def fair_rank(queue: str, *, holder_id: UUID, priority: int) -> int:
    """The place of a new order: behind what is its own, and before whatever would be a later turn of somebody else.

    Whoever has put ten in has the first, the third, the fifth, ... place as soon as somebody else comes, however many workers there are.
    """
    columns = ("client_id", "workspace_id", "status", "rank")
    found = Order.objects.filter(queue=queue, priority=priority, status__in=Order.LIVE).order_by("rank", "created_at").values_list(*columns)
    held = [(client or workspace, status in Order.WAITING, rank) for client, workspace, status, rank in found]
    waiting = [(whose, rank) for whose, waits, rank in held if waits]
    turns = Counter(whose for whose, waits, _ in held if not waits)
    own = sum(whose == holder_id for whose, _, _ in held)
    behind = max((place for place, (whose, _) in enumerate(waiting, start=1) if whose == holder_id), default=0)
    for place, (whose, rank) in enumerate(waiting):
        turns[whose] += 1
        if place >= behind and turns[whose] > own + 1:
            # Of equal ranks the older order goes first, so the new one stands right behind that one.
            return waiting[place - 1][1] if place else rank - 1
    return last_rank()


class Wait(Enum):
    """Why an order waits that it is not yet the turn of."""

    MOMENT = "moment"
    """Its `start_at` is to come."""
    NIGHT = "night"
    LIMIT = "limit"
    """As many of its client run as may."""
    HOURS = "hours"
    """Its client has used its GPU hours of this month."""
    WORKER = "worker"
    """None of the workers has what it needs, or there is none."""


@dataclass(frozen=True)
class Prospect:
    """What can be said now of an order that waits."""

    order: Order
    place: int | None
    """1 for the next one; None where it is passed over at this moment."""
    starts_at: datetime | None
    """None where that cannot be told."""
    wait: Wait | None = None
    until: datetime | None = None
    """When MOMENT, NIGHT or HOURS ends."""


@dataclass
class Turns:
    """One queue as it stands: what waits, what runs, who works."""

    waiting: list[Order]
    active: list[Order]
    slots: list[Slot]
    now: datetime = field(default_factory=timezone.now)
    full: Mapping[UUID, datetime] = field(default_factory=dict)
    """When the month ends, for each order whose client has used the GPU hours that it may use in it."""

    def __post_init__(self) -> None:
        """What waits stands by rank from here on, and keeps that order among what is alike otherwise."""
        self.waiting = sorted(self.waiting, key=attrgetter("rank", "created_at", "pk"))

    @classmethod
    def read(cls, queue: str, *, lock: bool = False) -> "Turns":
        """`lock` holds what waits until the transaction ends, so that two workers that choose do so one after the other.

        SQLite has one writer at a time anyway.
        """
        kinds = {name: kind for name, kind in KINDS.items() if kind.queue == queue}  # by kind and status an index finds the few that live
        related = {name for kind in kinds.values() for name in kind.related}
        orders = Order.objects.filter(queue=queue, kind__in=[*kinds]).select_related("workspace", "client", *related).order_by()
        rows = orders.filter(status__in=Order.WAITING)
        waiting = list(rows.order_by("pk").select_for_update(of=("self",)) if lock else rows)
        active = orders.filter(status__in=Order.ACTIVE)  # asked after the lock: another worker may have taken one meanwhile
        return cls(
            waiting=waiting,
            active=sorted(active, key=attrgetter("pk")),
            slots=[slot for slot in Slot.objects.filter(queue=queue) if slot.is_alive],
            full={order: month.ends for order, month in used_up(waiting).items()},
        )

    @property
    def running(self) -> "Counter[UUID]":
        return Counter(holder(order) for order in self.active)

    @property
    def free(self) -> list[Slot]:
        """Workers that hold nothing."""
        busy = {order.worker for order in self.active}
        return [slot for slot in self.slots if slot.name not in busy]

    def next_for(self, worker: str) -> Order | None:
        """The order whose turn it is, for a worker; one that has not said what it has is taken to have everything."""
        known = [slot for slot in self.slots if slot.name == worker]
        return self.choose(self.waiting, self.running, at=self.now, workers=known or None)

    def may_start(self) -> list[Order]:
        """What a worker could be told of now, whichever it is: in turn, each as if those before it had begun."""
        running, waiting, found = self.running, list(self.waiting), []
        while order := self.choose(waiting, running, at=self.now, workers=self.slots or None):
            found.append(order)
            waiting.remove(order)
            running[holder(order)] += 1
        return found

    def choose(self, waiting: list[Order], running: "Counter[UUID]", *, at: datetime, workers: list[Slot] | None) -> Order | None:
        """The next of `waiting`, which stands by rank, that may start at a moment on one of these workers."""
        if workers == []:
            return None
        for order in sorted(waiting, key=lambda order: turn(order, running)):
            limit = limit_of(order)
            if may_start_at(order, at, self.full) > at or (limit is not None and running[holder(order)] >= limit):
                continue
            if able(order, workers):
                return order
        return None

    def prospects(self) -> list[Prospect]:
        """Everything that waits, in the order in which it is expected to start: the queue played forward, as its estimates say.

        What no worker can do stands last, and is not expected at all.
        """
        open_now = set(self.may_start())
        waiting = [order for order in self.waiting if able(order, self.slots or None)]
        possible = set(waiting)
        never = sorted((order for order in self.waiting if order not in possible), key=lambda order: turn(order, Counter()))
        found: list[Prospect] = []
        places = count(1)
        for order, starts_at in self._played(waiting):
            wait, until = (None, None) if order in open_now else self._wait(order)
            found.append(Prospect(order, None if wait else next(places), starts_at, wait, until))
        return found + [Prospect(order, None, None, Wait.WORKER) for order in never]

    def _wait(self, order: Order) -> tuple[Wait | None, datetime | None]:
        """Why it would be passed over even if every worker were free; a client's limit may also be reached by those before it."""
        until = may_start_at(order, self.now, self.full)
        if until > self.now:
            if order.pk in self.full and self.full[order.pk] > (order.start_at or self.now):
                return Wait.HOURS, until
            return (Wait.MOMENT if order.start_at and order.start_at == until else Wait.NIGHT), until
        limit = limit_of(order)
        return (Wait.LIMIT if limit is not None and self.running[holder(order)] >= limit else None), None

    def _played(self, waiting: list[Order]) -> list[tuple[Order, datetime | None]]:
        """Each of `waiting` with its expected start. A worker is taken to be as fast as any other."""
        running, at, told = self.running, self.now, bool(self.slots)
        by_worker = {order.worker: order for order in self.active}
        ends: list[tuple[datetime, int, Order | None, bool]] = []
        """A heap: when a worker is free, a number that decides between equals, what it has ended, whether that is known."""
        workers = self.slots or [ANYBODY]  # with none there is still an order, if no time
        for number, slot in enumerate(workers):
            held = by_worker.get(slot.name)
            seconds = seconds_left(held) if held else 0.0
            ends.append((self.now + timedelta(seconds=SOME_TIME if seconds is None else seconds), number, held, seconds is not None))
        heapq.heapify(ends)
        idle: list[Slot] = []
        starts: list[tuple[Order, datetime | None]] = []
        left = list(waiting)
        while left:
            while ends and ends[0][0] <= at:
                _, number, ended, known = heapq.heappop(ends)
                told = told and known
                idle.append(workers[number])
                if ended is not None:
                    running[holder(ended)] -= 1
            chosen = self.choose(left, running, at=at, workers=idle)
            if chosen is None:
                moments = [moment for order in left if (moment := may_start_at(order, at, self.full)) > at] + ([ends[0][0]] if ends else [])
                if not moments:
                    break
                at = min(moments)
                continue
            worker = next((slot for slot in idle if able(chosen, [slot])), idle[0])
            idle.remove(worker)
            left.remove(chosen)
            running[holder(chosen)] += 1
            seconds = seconds_left(chosen)
            ends_at = at + timedelta(seconds=SOME_TIME if seconds is None else seconds)
            heapq.heappush(ends, (ends_at, workers.index(worker), chosen, seconds is not None))
            starts.append((chosen, at if told else None))
        return starts + [(order, None) for order in left]


def turn(order: Order, running: "Counter[UUID]") -> tuple[int, int]:
    """What the lowest of goes first, of those that stand by rank; see the top of this file."""
    return -order.priority, running[holder(order)]


def able(order: Order, workers: list[Slot] | None) -> bool:
    """Whether one of these workers has what the order needs; None stands for one that has everything."""
    return workers is None or any(KINDS[order.kind].fits(order, slot) for slot in workers)


def seconds_left(order: Order) -> float | None:
    """How long it will still work: as its progress so far tells, or before there is any, its estimate; None where nothing is known."""
    if order.status in Order.ACTIVE and order.stop_requested_at:
        return 0.0  # it ends within a minute
    if order.status in Order.ACTIVE and 0 < order.share < 1 and order.seconds:
        return order.seconds * (1 - order.share) / order.share
    expected = KINDS[order.kind].expected_seconds(order)
    return None if expected is None else max(0.0, expected - order.seconds)
