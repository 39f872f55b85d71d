"""How much each client stores, written down once a day: what a month's bill adds up."""

from datetime import date, timedelta

from django.utils import timezone

from studio.orders.models import StoredDay
from studio.orders.quotas import stored_in_all
from studio.workspaces.models import Client, Workspace


def write_down() -> list[str]:
    """The size of the day for every client that has none yet, and what storage costs on it. Returns what it did, in words."""
    return [line for workspace in Workspace.objects.all() if (line := of_workspace(workspace))]


def of_workspace(workspace: Workspace) -> str:
    day = timezone.now().astimezone(workspace.zone).date()
    earlier = StoredDay.objects.filter(workspace=workspace, day=day).exclude(price=workspace.storage_price)
    if workspace.storage_price is None:
        earlier = StoredDay.objects.filter(workspace=workspace, day=day, price__isnull=False)
    earlier.update(price=workspace.storage_price)  # what holds from today on was set after they were written down
    new = set(Client.objects.filter(workspace=workspace).exclude(stored_days__day=day).values_list("pk", flat=True))
    if not new:
        return ""
    sizes = stored_in_all(new)
    days = [StoredDay(workspace=workspace, client_id=pk, day=day, size=sizes[pk], price=workspace.storage_price) for pk in new]
    StoredDay.objects.bulk_create(days, ignore_conflicts=True)  # another process may just have written them
    return f"{workspace}: what {len(new)} clients store on {day} was written down"


def let_go(client: Client) -> None:
    """The client is erased: its days stay for the bills of past months, without it. Days that nobody wrote down are, as a bill counts
    them, for later nobody can tell whose day is the one before.
    """
    today = timezone.now().astimezone(client.workspace.zone).date()
    mine = StoredDay.objects.filter(client=client)
    held = list(mine.filter(day__lte=today).order_by("day"))
    filled = []
    for row, following in zip(held, [*(later.day for later in held[1:]), today + timedelta(days=1)], strict=False):
        day = row.day + timedelta(days=1)
        while day < following and row.day >= month_before(day):
            filled.append(StoredDay(workspace=client.workspace, day=day, size=row.size, price=row.price))
            day += timedelta(days=1)
    StoredDay.objects.bulk_create(filled)
    mine.update(client=None)


def month_before(day: date) -> date:
    """Its first day: what was written down earlier tells a bill nothing."""
    return (day.replace(day=1) - timedelta(days=1)).replace(day=1)
