"""Takes each comparison a step further: once all of its runs have ended, what they learnt is measured."""

from dataclasses import dataclass
from typing import Any

from django.db import transaction

from studio.comparisons import services
from studio.comparisons.models import ArmRun, Comparison
from studio.orders.models import Order
from studio.workspaces.models import User, Workspace


def advance() -> list[str]:
    """One look at every comparison that goes on. Two rounds at once do each step once."""
    live = Comparison.objects.filter(state__in=Comparison.LIVE).order_by("created_at").values_list("pk", flat=True)
    return [line for pk in list(live) for line in advance_one(pk)]


def advance_one(pk: Any) -> list[str]:
    with transaction.atomic():
        rows = Comparison._base_manager.select_for_update(of=("self",), no_key=True, skip_locked=True)
        comparison = rows.select_related("project__client__workspace", "created_by").filter(pk=pk, state__in=Comparison.LIVE).first()
        if comparison is None:  # another round has it, or it has just ended
            return []
        return after_measuring(comparison) if comparison.state == Comparison.State.MEASURING else after_training(comparison)


def after_measuring(comparison: Comparison) -> list[str]:
    """A measurement that succeeded has ended the comparison itself; one that did not is told here."""
    order = Order.objects.filter(pk=comparison.order_id).first()
    if order is not None and order.is_live:
        return []
    if order is not None and order.status == Order.Status.STOPPED:
        services.end(comparison, Comparison.State.STOPPED)
        return [f"{comparison}: stopped"]
    why = order.error if order is not None and order.error else "Its order is gone."
    services.end(comparison, Comparison.State.FAILED, error=f"What was trained could not be measured. {why}")
    return [f"{comparison}: could not be measured"]


def after_training(comparison: Comparison) -> list[str]:
    runs = list(ArmRun.objects.filter(arm__comparison=comparison).select_related("arm", "run__order"))
    if any(each.run.order.is_live or each.run.order.status == Order.Status.PAUSED for each in runs):
        return []
    ended = {each.arm_id for each in runs if each.run.order.status == Order.Status.SUCCEEDED}
    if not ended:
        services.end(comparison, Comparison.State.FAILED, error="None of its runs got to its end. Look at their pages for why.")
        return [f"{comparison}: all runs failed"]
    services.measure(in_the_name_of(comparison), comparison)
    return [f"{comparison}: is measured"]


@dataclass(frozen=True)
class Maker:
    """Whoever made a comparison, for an order that follows by itself; also where they have left since."""

    workspace: Workspace
    user: User | None


def in_the_name_of(comparison: Comparison) -> Maker:
    return Maker(comparison.project.client.workspace, comparison.created_by)
