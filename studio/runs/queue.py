"""The queue of trainings as people see and change it: what each run waits for in words, its place, priority and times, and the rules.

Whose turn it is, is decided in `studio.orders.turns`; nothing here takes or starts a run.
"""

from dataclasses import dataclass
from datetime import datetime, time
from functools import cache
from typing import Any
from zoneinfo import available_timezones

from django.db import transaction

from studio.audit.services import record
from studio.errors import UserError
from studio.orders.models import Order
from studio.orders.preempting import make_room
from studio.orders.services import notify, wake
from studio.orders.states import discard_states
from studio.orders.turns import Prospect, Turns, Wait, limit_of, seconds_left
from studio.runs.models import Run
from studio.training.registry import load_plugins
from studio.workspaces.models import Client, Member, Workspace
from studio.workspaces.templatetags.studio import duration

QUEUE = "train"
LARGEST_LIMIT = 1000
LAST_YEAR = 2100
A_MOMENT = 20.0
"""Seconds within which a start is called imminent."""


@dataclass(frozen=True)
class When:
    """How urgent a run is, and when it may run at all."""

    priority: int = Order.Priority.NORMAL
    start_at: datetime | None = None
    at_night: bool = False

    def __post_init__(self) -> None:
        if self.start_at and not 2000 <= self.start_at.year <= LAST_YEAR:
            raise UserError("The time cannot be used.", fields={"start_at": f"Give a day before the year {LAST_YEAR + 1}."})

    @classmethod
    def typed(cls, values: Any, workspace: Workspace) -> "When":
        """As a form sends it; times are meant in the workspace's time zone. Raises UserError where that cannot be read."""
        priority, moment = values.get("priority", ""), values.get("start_at", "")
        if priority not in ("", *(str(value) for value in Order.Priority.values)):
            raise UserError("The priority cannot be used.", fields={"priority": "Choose low, normal or high."})
        return cls(
            priority=int(priority) if priority else Order.Priority.NORMAL,
            start_at=moment_typed(moment, workspace) if moment else None,
            at_night=values.get("at_night") in ("1", "on", "true"),
        )

    def columns(self) -> dict[str, Any]:
        return {"priority": self.priority, "start_at": self.start_at, "at_night": self.at_night}


def moment_typed(text: str, workspace: Workspace) -> datetime:
    try:
        return datetime.fromisoformat(text).replace(tzinfo=workspace.zone)
    except ValueError as problem:
        raise UserError("The time cannot be used.", fields={"start_at": "Give a day and a time, such as 2030-01-31T20:00."}) from problem


@dataclass(frozen=True)
class Row:
    """A run that waits, as somebody who may see it is told of it."""

    run: Run
    prospect: Prospect
    words: str
    up: Run | None = None
    """The run that it would stand before if it went up by one; None for the first."""
    down: Run | None = None
    """The one that it would stand before if it went down by one; None for the last two."""

    @property
    def start_at(self) -> datetime | None:
        """Its moment on the clocks of its workspace."""
        moment = self.prospect.order.start_at
        return moment.astimezone(self.prospect.order.workspace.zone) if moment else None


@dataclass(frozen=True)
class Working:
    """A run that a worker holds."""

    run: Run
    seconds_left: float | None

    @property
    def left(self) -> str:
        """`about 12 min left`; empty where nothing is known, or it ends by itself."""
        if self.seconds_left is None or self.run.order.stop_requested_at or self.run.order.status == Order.Status.FINISHING:
            return ""
        return f"about {duration(self.seconds_left)} left" if self.seconds_left >= 1 else "takes longer than expected"


@dataclass(frozen=True)
class Queue:
    """What one member sees of the queue. Places count everybody's runs."""

    rows: list[Row]
    working: list[Working]
    hidden: int
    """How many more wait that they may not see."""
    workers: int

    @property
    def several(self) -> bool:
        """There are places to choose from."""
        return len(self.rows) > 1

    @classmethod
    def seen_by(cls, member: Member, action: str = "run.view") -> "Queue":
        turns = Turns.read(QUEUE)
        prospects = turns.prospects()
        visible = Run.objects.for_action(member, action).order_by()
        seen = set(visible.filter(order__in=[order.pk for order in (*turns.waiting, *turns.active)]).values_list("order_id", flat=True))
        runs = {order.pk: run_of(order) for order in (*turns.waiting, *turns.active) if order.pk in seen}
        shown = [(run, prospect) for prospect in prospects if (run := runs.get(prospect.order.pk))]
        order = [None, *(run for run, _ in shown), None, None]
        rows = [
            Row(run, prospect, words(prospect, turns), up=order[number], down=order[number + 3])
            for number, (run, prospect) in enumerate(shown)
        ]
        working = [Working(run, seconds_left(active)) for active in turns.active if (run := runs.get(active.pk))]
        return cls(rows, working, hidden=len(prospects) - len(rows), workers=len(turns.slots))


def run_of(order: Order) -> Run:
    """The run as it was read with its order, whose client is mostly its project's, too."""
    run: Run = order.run
    if order.client is not None and order.client_id == run.project.client_id:
        run.project.client = order.client
    return run


def words_for(order: Order) -> str:
    """What a run waits for; empty where it does not wait."""
    if order.status not in Order.WAITING:
        return ""
    turns = Turns.read(QUEUE)
    return next((words(prospect, turns) for prospect in turns.prospects() if prospect.order.pk == order.pk), "")


def words(prospect: Prospect, turns: Turns) -> str:
    """`3rd in the queue, starts in about 12 min`; `Waits for 20:00 (UTC)`; `Waits: no worker offers LoRA (Unsloth)`."""
    order = prospect.order
    if prospect.wait is Wait.WORKER:
        loaded = load_plugins().get(order.run.plugin)
        return f"Waits: no worker offers {loaded.title if loaded else order.run.plugin}"
    if prospect.wait in (Wait.MOMENT, Wait.NIGHT) and prospect.until is not None:
        why = ", since it is only for the night" if prospect.wait is Wait.NIGHT else ""
        return f"Waits for {clock(prospect.until, order.workspace, now=turns.now)}{why}"
    if prospect.wait is Wait.HOURS and prospect.until is not None:
        until = clock(prospect.until, order.workspace, now=turns.now)
        return f"Waits for {until} or a higher limit, since the client's GPU hours of this month are used up"
    if prospect.wait is Wait.LIMIT:
        limit = limit_of(order)
        return f"Waits: the client's limit of {limit} run{'' if limit == 1 else 's'} is reached{start(prospect, turns)}"
    place = "Next in the queue" if prospect.place == 1 else f"{ordinal(prospect.place or 0)} in the queue"
    return place + start(prospect, turns)


def start(prospect: Prospect, turns: Turns) -> str:
    """When it is expected to begin, as the end of a sentence."""
    if not turns.slots:
        return ", starts once a worker is there"
    if prospect.starts_at is None:
        return ""
    seconds = (prospect.starts_at - turns.now).total_seconds()
    return ", starts in a moment" if seconds < A_MOMENT else f", starts in about {duration(seconds)}"


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th, 21st."""
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def clock(at: datetime, workspace: Workspace, *, now: datetime) -> str:
    """20:00 (UTC); with the day where that is not today."""
    there, here = at.astimezone(workspace.zone), now.astimezone(workspace.zone)
    day = "" if there.date() == here.date() else f"{there:%d %b}, "
    return f"{day}{there:%H:%M} ({workspace.time_zone})"


def move(member: Member, run: Run, *, before: Run | None) -> str:
    """Puts a run before another in the queue, or last. Answers why it does not stand there, or nothing where it does.

    Only the runs that the member may move change their places, and only among themselves: they share out the ranks that they had.
    """
    with transaction.atomic():
        Turns.read(QUEUE, lock=True)
        shown = [row.run for row in Queue.seen_by(member, "run.queue").rows]
        if run not in shown or before == run:
            raise UserError("This run does not wait in the queue any more.")
        if before is not None and before not in shown:
            raise UserError("The run that it should stand before does not wait any more.")
        wanted = [other for other in shown if other != run]
        wanted.insert(wanted.index(before) if before else len(wanted), run)
        share_out(wanted)
        record(member, "run.move", run, change={"place": [shown.index(run) + 1, wanted.index(run) + 1]})
        stands = [row.run for row in Queue.seen_by(member, "run.queue").rows]
    if stands.index(run) == wanted.index(run):
        return ""
    return "Its place is kept, but others still go first: by their priority, their times, or since their client has fewer runs at work."


def share_out(runs: list[Run]) -> None:
    """Gives the runs the ranks that they have, in this order; no two keep the same."""
    ranks: list[int] = []
    for rank in sorted(run.order.rank for run in runs):
        ranks.append(max(rank, ranks[-1] + 1) if ranks else rank)
    for run, rank in zip(runs, ranks, strict=True):
        Order.objects.filter(pk=run.order_id).update(rank=rank)


def change_when(member: Member, run: Run, when: When) -> None:
    """Changes how urgent a run is and when it may run; refused once it has ended."""
    order = run.order
    before = When(priority=order.priority, start_at=order.start_at, at_night=order.at_night)
    if not order.is_live and order.status != Order.Status.PAUSED:
        raise UserError("This run has already ended.")
    if before == when:
        return
    with transaction.atomic():
        Order.objects.filter(pk=order.pk).update(**when.columns())
        change = {name: [plain(getattr(before, name)), plain(value)] for name, value in when.columns().items()}
        record(member, "run.schedule", run, change=change)
        transaction.on_commit(lambda: notify(order))
        transaction.on_commit(lambda: hurry(order))


def plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def hurry(order: Order) -> None:
    """Lets a run that may start now start now, rather than at the next round."""
    wake(order.queue)
    make_room(order.queue)


def discard_run(member: Member, run: Run) -> None:
    """Throws away what a paused or failed run could go on from. Its figures and its log stay, and so does every artifact."""
    with transaction.atomic():
        discard_states(run.order)
        record(member, "run.discard", run)


@dataclass(frozen=True)
class Rules:
    """What a workspace says of its queue."""

    run_limit: int | None
    night_from: time
    night_until: time
    time_zone: str

    @classmethod
    def of(cls, workspace: Workspace) -> "Rules":
        return cls(workspace.run_limit, workspace.night_from, workspace.night_until, workspace.time_zone)

    @classmethod
    def typed(cls, values: Any) -> "Rules":
        return cls(
            run_limit=limit_typed(values.get("run_limit", ""), field="run_limit"),
            night_from=time_typed(values.get("night_from", ""), field="night_from"),
            night_until=time_typed(values.get("night_until", ""), field="night_until"),
            time_zone=values.get("time_zone", ""),
        )


def limit_typed(text: str, *, field: str) -> int | None:
    text = text.strip()
    if text and not (text.isdecimal() and 1 <= int(text[:9]) <= LARGEST_LIMIT):
        raise UserError("The limit cannot be used.", fields={field: f"A number from 1 to {LARGEST_LIMIT}, or nothing for no limit."})
    return int(text) if text else None


def time_typed(text: str, *, field: str) -> time:
    try:
        return time.fromisoformat(text).replace(tzinfo=None)
    except ValueError as problem:
        raise UserError("The time cannot be used.", fields={field: "Give a time, such as 20:00."}) from problem


@cache
def zones() -> list[str]:
    """The time zones that this machine knows; UTC at least."""
    return ["UTC", *sorted(available_timezones() - {"UTC"})]


def change_rules(member: Member, rules: Rules) -> None:
    """The rules of the whole workspace: for those whom no client bounds."""
    workspace = member.workspace
    if member.client_ids() is not None:
        raise UserError("You see some of the clients only, so you cannot change what holds for all of them.")
    if rules.time_zone not in zones():
        raise UserError("The time zone cannot be used.", fields={"time_zone": "Choose one from the list, such as Europe/Berlin."})
    change_columns(member, workspace, verb="queue.rules", **vars(rules))


def change_client_limit(member: Member, client: Client, limit: int | None) -> None:
    """How many of a client's runs may run at once; None leaves it to the workspace."""
    change_columns(member, client, verb="client.limit", run_limit=limit)


def change_columns(member: Member, thing: Workspace | Client, *, verb: str, **columns: Any) -> None:
    change = {name: [str(getattr(thing, name)), str(value)] for name, value in columns.items() if getattr(thing, name) != value}
    if not change:
        return
    with transaction.atomic():
        for name in change:
            setattr(thing, name, columns[name])
        thing.save(update_fields=[*change])
        record(member, verb, thing, change=change)
        transaction.on_commit(lambda: wake(QUEUE))
