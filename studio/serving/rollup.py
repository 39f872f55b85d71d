"""Adds calls up by the hour, and deletes those that are old: each hour in one transaction, so that nothing is counted twice or lost."""

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import Count, Manager, QuerySet, Sum
from django.utils import timezone

from studio.serving.models import Call, CallDay, CallHour, CallTotal, ClientDay, ClientHour, Figures
from studio.serving.traffic import Sums
from studio.workspaces.models import Client

KEPT = timedelta(days=30)
"""How long calls stay one by one."""
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
PIECE = 10_000
"""Calls that are deleted in one transaction: others write meanwhile."""
OF = CallHour.BY
Key = tuple[Any, ...]


def roll_up() -> list[str]:
    """The sweep: every hour that is over is added up, late calls included, and what is older than KEPT goes. Says what it did."""
    did, this_hour = [], hour_of(timezone.now())
    while (oldest := Call.objects.filter(counted_at=None, at__lt=this_hour).order_by("at").first()) is not None:
        hour = hour_of(oldest.at)
        did.append(f"{add_up(hour)} calls of {hour:%Y-%m-%d %H}:00 were added up")
    if gone := delete_old():
        did.append(f"{gone} calls were deleted; their hours stay")
    return did


def hour_of(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)


def day_of(moment: datetime) -> datetime:
    """Midnight UTC before it."""
    return moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def days_within(begin: datetime, end: datetime) -> tuple[datetime, datetime] | None:
    """From the first midnight UTC to the last one of a time; None where no whole day lies in it."""
    first, last = day_of(begin), day_of(end)
    if first < begin:
        first += DAY
    return (first, last) if first < last else None


def add_up(hour: datetime, *, client: Client | None = None) -> int:
    """The calls of an hour that no hour has taken yet; how many there were. Whoever comes second finds none left."""
    with transaction.atomic():
        moment = timezone.now()
        rows = Call.objects.filter(at__gte=hour, at__lt=hour + HOUR)
        rows = rows if client is None else rows.filter(client=client)
        # Clients are held first, as by everybody: of two who add hours of one client, each would make the row of its day.
        clients = Client.objects.filter(pk__in=[*rows.filter(counted_at=None).order_by().values_list("client", flat=True).distinct()])
        workspaces = dict(clients.select_for_update(no_key=True).order_by("pk").values_list("pk", "workspace_id"))
        # Marked first and added up by the mark: a call that is recorded meanwhile waits for the next time.
        taken = rows.filter(counted_at=None, client__in=workspaces).update(counted_at=moment)
        found = sums_by(rows.filter(counted_at=moment), *OF)
        put(CallHour, found, workspaces, hour=hour)
        put(CallDay, found, workspaces, day=day_of(hour))
        put(CallTotal, found, workspaces)
        put(ClientHour, found, workspaces, hour=hour)
        put(ClientDay, found, workspaces, day=day_of(hour))
    return taken


def sums_by(calls: "QuerySet[Any]", *columns: str) -> dict[Key, Sums]:
    """Calls added up by what these columns hold. The database adds up those that are alike, so few rows come of many calls."""
    found: dict[Key, Sums] = defaultdict(Sums)
    alike = calls.order_by().values_list(*columns, "status", "error", "seconds_step", "first_step")
    for row in alike.annotate(Count("pk"), *map(Sum, ("prompt_tokens", "cached_tokens", "completion_tokens", "seconds", "first"))):
        found[row[: len(columns)]].add_calls(*row[len(columns) :])
    return found


def put(model: type[Figures], found: dict[Key, Sums], workspaces: dict[Any, Any], **where: Any) -> None:
    """Adds to the rows that are there, and makes the others. `found` is by OF; what a model is not added up by falls together."""
    every: Manager[Any] = model._base_manager
    held = every.select_for_update().filter(client__in={key[0] for key in found}, **where)
    rows = {tuple(getattr(row, column) for column in model.BY): row for row in held}
    new = []
    for key, sums in together(found, len(model.BY)).items():
        row = rows.get(key)
        if row is None:
            columns = dict(zip(model.BY, key, strict=True)) | {"workspace_id": workspaces[key[0]]} | where
            new.append(model(**columns, **vars(sums)))
        else:
            both = Sums()
            both.add(sums)
            both.add_hour(row)
            for name, value in vars(both).items():
                setattr(row, name, value)
            row.save()
    every.bulk_create(new, 500)


def together(found: dict[Key, Sums], columns: int) -> dict[Key, Sums]:
    """Added up by the first of the columns alone."""
    sums: dict[Key, Sums] = defaultdict(Sums)
    for key, each in found.items():
        sums[key[:columns]].add(each)
    return sums


def delete_old() -> int:
    gone, before = 0, timezone.now() - KEPT
    old = Call.objects.filter(counted_at__isnull=False, at__lt=before).order_by("at")
    while pks := list(old.values_list("pk", flat=True)[:PIECE]):
        gone += Call.objects.filter(pk__in=pks).delete()[0]
    return gone


def take_all(client: Client) -> None:
    """What hours have not taken of a client yet, also of the hour that runs."""
    while (waiting := Call.objects.filter(client=client, counted_at=None).order_by("at").first()) is not None:
        add_up(hour_of(waiting.at), client=client)


def let_go(client: Client) -> None:
    """The client is erased: its hours stay for the bills of past months, without it and without what answered."""
    take_all(client)
    for model in (CallDay, ClientDay, ClientHour):
        model._base_manager.filter(client=client).delete()
    CallHour.objects.filter(client=client).update(client=None, deployment=None, release=None, canary=False)
