"""What a client may take, and how much of it is taken: said from WARN_AT on, refused once it is full.

Apps put into STORES what they keep; nothing here knows what that is. What runs is never ended for a limit.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from uuid import UUID

from studio.errors import UserError
from studio.orders.kinds import KINDS
from studio.orders.models import Order
from studio.orders.usage import spans
from studio.workspaces.models import Client, Workspace
from studio.workspaces.months import Month
from studio.workspaces.templatetags.studio import filesize

STORES: dict[str, Callable[[Collection[UUID]], dict[UUID, int]]] = {}
"""By what it is called: the bytes that are kept of each of some clients, in one query."""
WARN_AT = 0.8


@dataclass(frozen=True)
class Quota:
    """One limit of a client, and what is taken of it."""

    client: Client
    name: str
    """storage, gpu_hours or runs."""
    used: float
    limit: float
    month: Month

    @property
    def share(self) -> float:
        """1 and above where it is full."""
        return self.used / self.limit if self.limit else 1.0

    @property
    def is_full(self) -> bool:
        return self.share >= 1

    @property
    def level(self) -> str:
        """Of the notice: error, warning or info; empty where there is nothing to tell."""
        if self.name == "runs":  # the next ones wait, so nothing is refused
            return "info" if self.is_full else ""
        return "error" if self.is_full else "warning" if self.share >= WARN_AT else ""

    @property
    def used_words(self) -> str:
        return filesize(self.used) if self.name == "storage" else f"{self.used:,.1f} h" if self.name == "gpu_hours" else f"{self.used:.0f}"

    @property
    def limit_words(self) -> str:
        return filesize(self.limit) if self.name == "storage" else f"{self.limit:,g} h" if self.name == "gpu_hours" else f"{self.limit:.0f}"

    @property
    def sentence(self) -> str:
        """What is taken of how much, and where it is full, whom to ask."""
        whose, whom = self.client.name, f"an owner or admin of {self.client.workspace.name}"
        if self.name == "runs":
            return f"{self.used_words} of the {self.limit_words} runs that {whose} may have at once are running, so further ones wait."
        if self.name == "storage":
            taken = f"{whose} stores {self.used_words} of the {self.limit_words} that it may store"
            return f"{taken}. Delete what is not needed, or ask {whom} to raise the limit." if self.is_full else f"{taken}."
        taken = f"{whose} has used {self.used:,.1f} of the {self.limit:,g} GPU hours that it may use in {self.month.words}"
        return f"{taken}, so no run can start. Ask {whom} to raise the limit, or wait for the next month." if self.is_full else f"{taken}."


def telling(found: Iterable[Quota]) -> list[Quota]:
    """Those that have something to say, the most urgent first."""
    return sorted((quota for quota in found if quota.level), key=lambda quota: ("error", "warning", "info").index(quota.level))


def stored(clients: Collection[UUID]) -> dict[str, dict[UUID, int]]:
    """The bytes of each store, by client."""
    return {name: found(clients) for name, found in STORES.items()}


def stored_in_all(clients: Collection[UUID]) -> "Counter[UUID]":
    return in_all(stored(clients))


def in_all(stores: Mapping[str, dict[UUID, int]]) -> "Counter[UUID]":
    total: Counter[UUID] = Counter()
    for by_client in stores.values():
        total.update(by_client)
    return total


def gpu_hours(workspace: Workspace, month: Month, clients: Collection[UUID]) -> dict[UUID, float]:
    """What is running now counts as far as it has come."""
    used: dict[UUID, float] = defaultdict(float)
    for span in spans(workspace, month, clients=clients, on_gpus=True):
        if span.client and span.gpus:
            used[span.client] += span.gpu_hours
    return used


def running(clients: Collection[UUID]) -> "Counter[UUID]":
    """How many orders that count for the limit of what runs at once are at work."""
    counted = [kind.kind for kind in KINDS.values() if kind.counts]
    held = Order.objects.filter(client__in=clients, kind__in=counted, status__in=Order.ACTIVE)
    return Counter(held.values_list("client_id", flat=True))


def quotas(workspace: Workspace, clients: Iterable[Client]) -> dict[UUID, list[Quota]]:
    """The limits that are set of some clients of one workspace; a constant number of queries, and none for what has no limit."""
    clients, month = list(clients), Month.now(workspace)
    stores = [client.pk for client in clients if client.storage_limit is not None]
    works = [client.pk for client in clients if client.gpu_hours_limit is not None]
    runs = [client.pk for client in clients if (client.run_limit or workspace.run_limit) is not None]
    used: dict[str, Mapping[UUID, float]] = {
        "storage": stored_in_all(stores) if stores else {},
        "gpu_hours": gpu_hours(workspace, month, works) if works else {},
        "runs": running(runs) if runs else {},
    }
    found: dict[UUID, list[Quota]] = {}
    for client in clients:
        client.workspace = workspace
        limits = {"storage": client.storage_limit, "gpu_hours": client.gpu_hours_limit, "runs": client.run_limit or workspace.run_limit}
        found[client.pk] = [
            Quota(client, name, used[name].get(client.pk, 0), limit, month) for name, limit in limits.items() if limit is not None
        ]
    return found


def used_up(orders: Iterable[Order]) -> dict[UUID, Month]:
    """Of these orders, each with its client and workspace, those whose client has used its GPU hours, and the month that they were for.

    Three queries for each workspace that has a client with a limit among them; none where there is none.
    """
    counted: dict[UUID, UUID] = {}
    limits: dict[Workspace, dict[UUID, float]] = defaultdict(dict)
    for order in orders:
        client = order.client if KINDS[order.kind].counts else None
        if client is not None and client.gpu_hours_limit is not None:
            counted[order.pk] = client.pk
            limits[order.workspace][client.pk] = client.gpu_hours_limit
    full: dict[UUID, Month] = {}
    for workspace, of_clients in limits.items():
        month = Month.now(workspace)
        used = gpu_hours(workspace, month, of_clients)
        full |= {pk: month for pk, limit in of_clients.items() if used.get(pk, 0.0) >= limit}
    return {order: full[client] for order, client in counted.items() if client in full}


def quotas_of(client: Client) -> list[Quota]:
    return quotas(client.workspace, [client])[client.pk]


def refuse_storage(client: Client, *, more: int = 0) -> None:
    """Raises UserError where a client may store no more, or not so much. Called inside the transaction that would store it.

    The client's row is held, so that of two that come at once the second one counts what the first one takes.
    """
    limited = held(client)
    if limited.storage_limit is None:
        return
    used = stored_in_all([client.pk])[client.pk]
    quota = Quota(limited, "storage", used, limited.storage_limit, Month.now(limited.workspace))
    if quota.is_full:
        raise refusal(quota.sentence)
    if used + more > limited.storage_limit:
        whom = f"ask an owner or admin of {limited.workspace.name} to raise the limit"
        raise refusal(f"{quota.sentence} This needs {filesize(more)}. Delete what is not needed, or {whom}.")


def room_left(client: Client, *, freed: int = 0) -> int | None:
    """Bytes that a client may store once `freed` of what it stores are gone; None where nothing limits it."""
    if client.storage_limit is None:
        return None
    return max(0, client.storage_limit - stored_in_all([client.pk])[client.pk] + freed)


def refuse_gpu_hours(client: Client) -> None:
    """Raises UserError where a client has used its GPU hours of this month. What is running goes on."""
    limited = held(client)
    if limited.gpu_hours_limit is None:
        return
    month = Month.now(limited.workspace)
    used = gpu_hours(limited.workspace, month, [client.pk])[client.pk]
    quota = Quota(limited, "gpu_hours", used, limited.gpu_hours_limit, month)
    if quota.is_full:
        raise refusal(quota.sentence)


def held(client: Client) -> Client:
    """The client as it stands, its row held until the transaction ends; rows that point at it can be made meanwhile.

    Whoever holds several rows holds the client's first, so that no two wait for each other.
    """
    row: Client = Client.objects.select_for_update(of=("self",), no_key=True).select_related("workspace").get(pk=client.pk)
    return row


def refusal(sentence: str) -> UserError:
    return UserError(sentence, code="quota")
