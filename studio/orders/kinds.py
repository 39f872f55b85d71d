"""What each kind of order needs from its own app: what to tell the worker, and what to do with its result."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID

from studio.orders.models import Order, Slot
from studio.orders.room import Need
from studio.worker.tracking import TrackedRun


class OrderKind(ABC):
    """Subclassed once per kind, in the app that owns it, and registered from that app's `ready`."""

    kind: ClassVar[str]
    queue: ClassVar[str] = "files"
    memory_limit: ClassVar[int] = 0
    """Bytes of address space that the process may take; 0 sets no limit."""
    time_limit: ClassVar[float] = 0
    """Seconds that one attempt may take; 0 sets no limit. What reads a stranger's file has one: others wait behind it."""
    environment: ClassVar[tuple[str, ...]] = ()
    """Beginnings of the names of variables that its process is given beyond what every process is, such as a token."""
    counts: ClassVar[bool] = False
    """Whether a client's limit of what runs at once holds for it."""
    called: ClassVar[str] = "Other work"
    """What an invoice calls orders of this kind together."""
    billed_alone: ClassVar[bool] = False
    """Whether an invoice names each of them, by its title."""
    related: ClassVar[tuple[str, ...]] = ()
    """What `fits`, `resumes` and `expected_seconds` read beside the order, fetched along with it."""

    @abstractmethod
    def payload(self, order: Order) -> dict[str, Any]:
        """The kind's own part of order.json."""

    @abstractmethod
    def target(self, order: Order) -> Path:
        """Where the sealed result is to stand; each attempt may ask anew, so it depends on the attempt or is free."""

    @abstractmethod
    def succeeded(self, order: Order, result: dict[str, Any]) -> None:
        """Records the result, in the transaction that ends the order. Also after a stop that kept something."""

    def secrets(self, order: Order) -> dict[str, str]:
        """Variables that its process alone is given, such as a key; they stand in no file."""
        return {}

    def title(self, order: Order) -> str:
        """What people call it."""
        return str(order)

    def project(self, order: Order) -> UUID | None:
        """The project that it works for; None where it works for none."""
        return None

    def fits(self, order: Order, slot: Slot) -> bool:
        """Whether this worker has what the order needs."""
        return True

    def resumes(self, order: Order) -> bool:
        """Whether it could be paused and goes on later from where it was."""
        return False

    def expected_seconds(self, order: Order) -> float | None:
        """How long it was expected to work in all, before it had begun; None where nobody can say."""
        return None

    def tracked(self, order: Order) -> TrackedRun | None:
        """What trackers outside the studio are told of it; None for an order that is none of their business."""
        return None

    def memory(self, order: Order) -> Need | None:
        """What it was expected to take at most on the worker that has it; None where nobody can say."""
        return None


KINDS: dict[str, OrderKind] = {}


SWEEPS: list[Callable[[], list[str]]] = []
"""What apps look for once an hour, to throw away what has expired; each says what it did."""


ROUNDS: list[Callable[[], list[str]]] = []
"""What apps look after every ten seconds, beside the orders: each takes its things a step further, and says what it did."""


def register(kind: OrderKind) -> None:
    KINDS[kind.kind] = kind
