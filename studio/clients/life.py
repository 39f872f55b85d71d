"""Archives and restores a client: what stops, and what goes on. Nothing is deleted here."""

from django.db import transaction
from django.db.models import QuerySet

from studio.audit.services import record
from studio.errors import UserError
from studio.orders.models import Order
from studio.orders.services import request_stop
from studio.workspaces.models import Client, Member
from studio.workspaces.services import archive_client


def live_orders(client: Client) -> "QuerySet[Order]":
    """What runs or waits for this client."""
    found: QuerySet[Order] = Order.objects.filter(client=client, status__in=Order.LIVE)
    return found


def archive(member: Member, client: Client, *, stop: bool) -> None:
    """Takes a client out of the lists. With `stop` what runs or waits is stopped, and keeps what was learnt; else it goes on to its end.

    Of a client that is archived already, what still runs is stopped.
    """
    with transaction.atomic():
        stopped = stop_all(client) if stop else 0
        change = {"stopped": [None, stopped]} if stopped else None
        if client.archived_at is None:
            archive_client(member, client, change=change)
        elif stopped:
            record(member, "client.stop", client, change=change)


def stop_all(client: Client) -> int:
    """Asks everything of the client that is live to stop; how much that was."""
    asked = 0
    for order in live_orders(client):
        try:
            request_stop(order)
        except UserError:  # it ended just now, or is being paused, which keeps what it learnt and starts nothing
            continue
        asked += 1
    return asked
