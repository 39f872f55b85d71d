"""What each attempt of an order took: written down once, where it stops being held, in that transaction. Prices are others' business."""

from datetime import datetime
from typing import Any

from studio.orders.kinds import KINDS
from studio.orders.models import Order, Slot, Usage

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
