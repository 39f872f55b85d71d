"""Takes each comparison a step further: stops what is hopeless, makes a sweep's next arm, and measures once all runs have ended."""

import logging
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from studio.comparisons import services
from studio.comparisons.arms import ArmSpec
from studio.comparisons.hopeless import hopeless
from studio.comparisons.models import Arm, ArmRun, Comparison
from studio.comparisons.outlook import asked_of
from studio.comparisons.sweeping import Hindrance, Outcome, Sweep, name_of, next_point, sweep_of
from studio.errors import UserError
from studio.orders.models import Order, Slot
from studio.orders.quotas import held
from studio.orders.services import request_stop
from studio.runs.curve import is_figure
from studio.runs.services import plugin_of
from studio.training import TrainingPlugin
from studio.workspaces.models import Member, User, Workspace

log = logging.getLogger(__name__)
MOVING = Q(state__in=Comparison.LIVE) | Q(before__isnull=False)
MOST_AT_ONCE = 4
"""Arms of a sweep."""


def advance() -> list[str]:
    """One look at every comparison that goes on. Two rounds at once do each step once."""
    live = Comparison.objects.filter(MOVING).order_by("created_at").values_list("pk", flat=True)
    did = []
    for pk in list(live):
        try:
            did += advance_one(pk)
        except Exception:  # it is tried again in the next round, and holds up no other comparison
            log.exception("Comparison %s could not be taken further.", pk)
    return did


def advance_one(pk: Any) -> list[str]:
    with transaction.atomic():
        found = Comparison._base_manager.select_related("project__client").filter(pk=pk).first()
        if found is None:  # it has just been deleted
            return []
        held(found.project.client)  # first, as by whoever stops it or adds to it meanwhile
        rows = Comparison._base_manager.select_for_update(of=("self",), no_key=True, skip_locked=True)
        related = ("project__client__workspace", "created_by", "order", "before")
        comparison = rows.select_related(*related).filter(MOVING, pk=pk).first()
        if comparison is None:  # another round has it, or it has just ended
            return []
        if not comparison.is_live:
            return after_stopping(comparison)
        return after_measuring(comparison) if comparison.state == Comparison.State.MEASURING else after_training(comparison)


def after_stopping(comparison: Comparison) -> list[str]:
    """It was stopped while it was measured anew: once the worker has heard of it, what was measured before stands again."""
    if comparison.order is not None and comparison.order.is_live:
        return []
    services.restore(comparison)
    return [f"{comparison}: stands as it was measured before"]


def after_measuring(comparison: Comparison) -> list[str]:
    """A measurement that succeeded has ended the comparison itself; one that did not is told here."""
    order = comparison.order
    if order is not None and order.is_live:
        return []
    if order is not None and order.status == Order.Status.STOPPED:
        services.end(comparison, Comparison.State.STOPPED)
        services.restore(comparison)
        return [f"{comparison}: stopped"]
    why = order.error if order is not None and order.error else "Its order is gone."
    kept = " What was measured before still stands." if comparison.before is not None else ""
    services.end(comparison, Comparison.State.FAILED, error=f"What was trained could not be measured. {why}{kept}")
    services.restore(comparison)
    return [f"{comparison}: could not be measured"]


def after_training(comparison: Comparison) -> list[str]:
    columns = ("arm__comparison", "run__order")
    runs = list(ArmRun.objects.filter(arm__comparison=comparison).select_related(*columns).order_by("arm__number", "seed"))
    if comparison.project.client.archived_at:
        return of_archived(comparison, runs)
    did = give_up(comparison, runs) if comparison.stops_hopeless else []
    if comparison.sweep and (line := go_on(comparison, runs)):
        return [*did, line]
    if any(is_open(each) for each in runs):
        return did
    if not any(each.run.order.status == Order.Status.SUCCEEDED for each in runs):
        services.end(comparison, Comparison.State.FAILED, error="None of its runs got to its end. Look at their pages for why.")
        return [*did, f"{comparison}: all runs failed"]
    services.measure(in_the_name_of(comparison), comparison)
    return [*did, f"{comparison}: is measured"]


def of_archived(comparison: Comparison, runs: list[ArmRun]) -> list[str]:
    """Nothing new is begun for a client that was archived: it ends with what it has, once nothing of it is at work."""
    if any(each.run.order.is_live for each in runs):
        return []
    services.end(comparison, Comparison.State.STOPPED, error="Its client was archived before it was measured.")
    return [f"{comparison}: ended, for its client is archived"]


def is_open(each: ArmRun) -> bool:
    """It trains, waits for it, or was paused: the comparison waits for it too. One that was given up is not waited for."""
    order = each.run.order
    return order.is_live or (order.status == Order.Status.PAUSED and not each.ended_early)


def give_up(comparison: Comparison, runs: list[ArmRun]) -> list[str]:
    """Stops what cannot catch up any more, and keeps why."""
    did = []
    sweep = comparison.sweep
    if sweep and not sweep.get("prune", True):
        return []
    for each, why in hopeless(runs, sweep=bool(sweep)):
        request_stop(each.run.order)
        each.run.order.stop_requested_at = timezone.now()
        each.ended_early = why[:300]
        each.save(update_fields=["ended_early"])
        did.append(f"{each.run}: stopped early")
    return did


def go_on(comparison: Comparison, runs: list[ArmRun]) -> str:
    """A sweep's next arm where a place is free: empty where there is none, or all have been made."""
    template = comparison.arms.select_related("base_model", "dataset_version__dataset").order_by("number").first()
    if template is None or comparison.sweep is None or comparison.sweep["by"] != "tpe":
        return ""
    arms = list(comparison.arms.order_by("number"))
    going = {each.arm_id for each in runs if is_open(each)}
    if len(arms) >= comparison.sweep["most"] or len(going) >= places():
        return ""
    member = maker_of(comparison)
    if member is None:  # nobody is left in whose name it could go on
        return ""
    try:
        plugin = plugin_of(template.plugin)
        sweep = sweep_of(comparison.sweep, plugin)

        def spec_at(point: dict[str, Any]) -> ArmSpec:
            config = template.config | point
            return ArmSpec(name_of(point, sweep, plugin), template.plugin, config, template.base_model, template.dataset_version)

        point = tried_next(comparison, sweep, plugin, outcomes(arms, runs, going), lambda point: asked_of(spec_at(point))[2])
        if point is None:
            return ""
        with transaction.atomic():
            arm = services.add_arm(member, comparison, spec_at(point), number=arms[-1].number + 1)
    except UserError as problem:  # such as a limit of the client: what there is, is measured
        Comparison.objects.filter(pk=comparison.pk).update(sweep=comparison.sweep | {"most": len(arms)}, error=problem.message)
        return f"{comparison}: no further arm, {problem.message}"
    return f"{comparison}: {arm}"


def tried_next(
    comparison: Comparison, sweep: Sweep, plugin: TrainingPlugin, arms: list[Outcome], hindrance: Hindrance
) -> dict[str, Any] | None:
    """As `next_point`. Raises UserError also for what nobody thought of: what there is is then measured, not waited over for ever."""
    try:
        return next_point(sweep, plugin, arms, hindrance)
    except UserError:
        raise
    except Exception as problem:
        log.exception("The next arm of %s could not be found.", comparison.pk)
        raise UserError("What to try next could not be found. The server's log tells why.") from problem


def places() -> int:
    """How many arms of a sweep go at once: one for each worker, so that each next one knows as much as it can."""
    return max(1, min(MOST_AT_ONCE, sum(slot.is_alive for slot in Slot.objects.filter(queue="train"))))


def outcomes(arms: list[Arm], runs: list[ArmRun], going: set[Any]) -> list[Outcome]:
    """What each arm has come to: the mean over its seeds of the last look at the validation rows, also of runs that were stopped early."""
    losses: dict[Any, list[float]] = {}
    for each in runs:
        if each.run.order.status in (Order.Status.SUCCEEDED, Order.Status.STOPPED):
            loss = each.run.order.latest.get("validation_loss")
            if is_figure(loss):
                losses.setdefault(each.arm_id, []).append(float(loss))
    return [(arm.config, fmean(losses[arm.pk]) if losses.get(arm.pk) else None, arm.pk in going) for arm in arms]


def maker_of(comparison: Comparison) -> Member | None:
    """Whoever made it, if they may still start runs for its client."""
    members = Member.objects.filter(user=comparison.created_by, workspace=comparison.project.client.workspace)
    member = members.select_related("user", "workspace").first() if comparison.created_by else None
    return member if member and Comparison.objects.for_action(member, "comparison.edit").filter(pk=comparison.pk).exists() else None


@dataclass(frozen=True)
class Maker:
    """Whoever made a comparison, for an order that follows by itself; also where they have left since."""

    workspace: Workspace
    user: User | None


def in_the_name_of(comparison: Comparison) -> Maker:
    return Maker(comparison.project.client.workspace, comparison.created_by)
