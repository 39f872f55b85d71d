"""How much each client stores, written down once a day: what a month's bill adds up."""

from django.utils import timezone

from studio.orders.models import StoredDay
from studio.orders.quotas import stored_in_all
from studio.workspaces.models import Client, Workspace


def write_down() -> list[str]:
    """The size of the day for every client that has none yet, and what storage costs on it. Returns what it did, in words."""
    return [line for workspace in Workspace.objects.all() if (line := of_workspace(workspace))]


def of_workspace(workspace: Workspace) -> str:
    day = timezone.now().astimezone(workspace.zone).date()
    new = set(Client.objects.filter(workspace=workspace).exclude(stored_days__day=day).values_list("pk", flat=True))
    if not new:
        return ""
    sizes = stored_in_all(new)
    days = [StoredDay(client_id=pk, day=day, size=sizes[pk], price=workspace.storage_price) for pk in new]
    StoredDay.objects.bulk_create(days, ignore_conflicts=True)  # another process may just have written them
    return f"{workspace}: what {len(new)} clients store on {day} was written down"
