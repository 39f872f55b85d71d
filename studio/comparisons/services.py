"""Makes comparisons, stops them, adds seeds to them, measures them again, and deletes them. What moves by itself is in `rounds`."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from django.db import transaction
from django.db.models import QuerySet
from django.http import Http404
from django.utils import timezone

from studio.audit.services import record
from studio.comparisons.arms import TO_THE_END, ArmSpec, budget_of, in_common
from studio.comparisons.metrics import checked
from studio.comparisons.models import Arm, ArmRun, Comparison
from studio.datasets.models import DatasetVersion
from studio.errors import UserError
from studio.orders import quotas
from studio.orders.models import Order
from studio.orders.services import place, request_stop
from studio.runs import services as runs
from studio.runs.queue import When
from studio.storage import remove_folder
from studio.workspaces.models import Member, Project, hold

MOST_ARMS, MOST_SEEDS, MOST_RUNS = 24, 10, 60
"""Of one comparison."""
SEEDS = (1, 2, 3)
LARGEST_SEED = 2**32 - 1


def create_comparison(
    member: Member,
    *,
    project: Project,
    name: str,
    differs: str,
    arms: Sequence[ArmSpec],
    seeds: Sequence[int] = SEEDS,
    metrics: Sequence[dict[str, Any]] = (),
    probe: DatasetVersion | None = None,
    sweep: dict[str, Any] | None = None,
    stops_hopeless: bool = True,
    when: When | None = None,
    prompts: list[str] | None = None,
    by_hand: bool = False,
) -> Comparison:
    """The comparison with its arms, and a run in the queue for each arm and seed; refused with a sentence beside each field.

    `by_hand`: the same asked for twice within DOUBLE_CLICK is one comparison.
    """
    refuse_odd(arms, seeds, sweep)
    chosen = checked(member, metrics, project=project)
    if probe is not None and probe.dataset.project.client_id != project.client_id:
        raise UserError("The probe rows belong to another client.", fields={"probe": "Choose rows of this client."})
    configs = [config_of(arm) for arm in arms]
    refuse_early_ends(configs)
    shared, unequal = in_common([budget_of(config) for config in configs])
    if unequal:
        raise UserError(
            f"The arms would not read the same: {' and '.join(unequal)} differ.",
            fields={"arms": "Give all arms the same epochs, step limit, max length and rows in a step."},
            code="unequal_arms",
        )
    with transaction.atomic():
        quotas.held(project.client)
        hold(project)
        alike = {"differs": differs, "seeds": list(seeds), "metrics": chosen, "probe": probe, "sweep": sweep}
        if by_hand and (same := just_made(member, project, name=name, alike=alike, arms=arms)):
            return same
        number = Comparison.objects.filter(project=project).count() + 1
        made: Comparison = Comparison.objects.create(
            project=project,
            name=" ".join(name.split())[:120] or f"Comparison {number}",
            differs=differs,
            seeds=list(seeds),
            shared_settings=shared,
            sweep=sweep,
            metrics=chosen,
            probe=probe,
            stops_hopeless=stops_hopeless,
            created_by=member.user,
        )
        change = {"arms": [None, ", ".join(arm.name for arm in arms)[:400]], "seeds": [None, list(seeds)]}
        record(member, "comparison.create", made, change=change)
        for place_, spec in enumerate(arms):
            add_arm(member, made, spec, number=place_, when=when, prompts=prompts)
    return made


def just_made(member: Member, project: Project, *, name: str, alike: dict[str, Any], arms: Sequence[ArmSpec]) -> Comparison | None:
    """The same comparison by the same person a moment ago. `alike` are its columns."""
    recent = Comparison.objects.filter(project=project, created_by=member.user, created_at__gt=timezone.now() - runs.DOUBLE_CLICK)
    wanted = [(arm.name[:120], arm.plugin, config_of(arm), arm.base.pk, arm.version.pk) for arm in arms]
    for found in recent.select_related("probe").prefetch_related("arms"):
        same = [(arm.name, arm.plugin, arm.config, arm.base_model_id, arm.dataset_version_id) for arm in found.arms.all()] == wanted
        if same and name in ("", found.name) and all(getattr(found, column) == value for column, value in alike.items()):
            return found
    return None


def config_of(arm: ArmSpec) -> dict[str, Any]:
    """The whole config, as an Arm keeps it: without the seed, which is each run's."""
    config: dict[str, Any] = runs.parse_config(runs.plugin_of(arm.plugin), arm.config).model_dump(mode="json")
    config.pop("seed", None)
    return config


def refuse_early_ends(configs: Sequence[dict[str, Any]]) -> None:
    """What ends early, or keeps an earlier state, has read less than the others."""
    if any(config.get(name, value) != value for config in configs for name, value in TO_THE_END.items()):
        raise UserError(
            "Not every arm would train to its end and keep what it has learnt by then.",
            fields={"arms": "Give every arm an early_stopping of 0 and a keep of last, or leave both out."},
            code="unequal_arms",
        )


def refuse_odd(arms: Sequence[ArmSpec], seeds: Sequence[int], sweep: dict[str, Any] | None) -> None:
    if len(arms) < (1 if sweep else 2):
        raise UserError("There is nothing to compare.", fields={"arms": "Choose at least two that differ."})
    if len(arms) > MOST_ARMS:
        raise UserError("There are too many arms.", fields={"arms": f"At most {MOST_ARMS} are compared at a time."})
    if not seeds or len(seeds) > MOST_SEEDS or len(set(seeds)) < len(seeds) or not all(0 <= seed <= LARGEST_SEED for seed in seeds):
        raise UserError("The seeds cannot be used.", fields={"seeds": f"Give 1 to {MOST_SEEDS} different whole numbers."})
    if len(arms) * len(seeds) > MOST_RUNS:
        raise UserError("That would be too many runs.", fields={"seeds": f"{len(arms) * len(seeds)} runs; at most {MOST_RUNS} are made."})
    for arm in arms:
        if not ((arm.version.facts or {}).get("split") or {}).get("validation"):
            raise UserError(
                f"{arm.version} holds no rows back for validation, so there is nothing to measure on.",
                fields={"dataset_version": "Split it with some rows for validation, then compare."},
            )


def add_arm(
    member: Member, comparison: Comparison, spec: ArmSpec, *, number: int, when: When | None = None, prompts: list[str] | None = None
) -> Arm:
    """An arm with its runs, called inside the transaction that makes it."""
    arm: Arm = Arm.objects.create(
        comparison=comparison,
        number=number,
        name=spec.name[:120],
        plugin=spec.plugin,
        config=config_of(spec),
        base_model=spec.base,
        dataset_version=spec.version,
        is_reference=spec.is_reference,
    )
    for seed in comparison.seeds:
        add_run(member, arm, seed, when=when, prompts=prompts)
    return arm


def add_run(member: Member, arm: Arm, seed: int, *, when: When | None = None, prompts: list[str] | None = None) -> ArmRun:
    run = runs.create_run(
        member,
        project=arm.comparison.project,
        name=f"{arm.comparison.name[:60]}: {arm.name[:40]}, seed {seed}",
        plugin_name=arm.plugin,
        config=arm.config | {"seed": seed},
        base=arm.base_model,
        version=arm.dataset_version,
        prompts=prompts,
        when=when,
    )
    made: ArmRun = ArmRun.objects.create(arm=arm, seed=seed, run=run)
    return made


def comparable(comparison: Comparison) -> "QuerySet[ArmRun]":
    """The runs that read all that they should have: these alone are measured, for what read less would be held against it."""
    rows = ArmRun.objects.filter(arm__comparison=comparison, run__order__status=Order.Status.SUCCEEDED)
    return rows.select_related("arm", "run__order").order_by("arm__number", "seed")


def measure(member: Any, comparison: Comparison) -> None:
    """Places the order that measures what has been trained. Called inside a transaction; an earlier measurement is kept until then."""
    last = comparison.order
    if last is not None and last.status == Order.Status.SUCCEEDED:
        comparison.before, last = last, None
    comparison.order = place(member, kind="comparison", client=comparison.project.client)
    comparison.error = note_of(comparison)
    comparison.state, comparison.ended_at = Comparison.State.MEASURING, None
    comparison.save(update_fields=["order", "before", "state", "error", "ended_at"])
    if last is not None:
        throw_away(last)


def note_of(comparison: Comparison) -> str:
    """Why a sweep made no further arm, which stands; why a comparison failed or was stopped is over with the next try."""
    return comparison.error if comparison.state not in (Comparison.State.FAILED, Comparison.State.STOPPED) else ""


def restore(comparison: Comparison) -> None:
    """What was measured before stands again, since measuring anew came to nothing. Called inside a transaction."""
    if comparison.before is None:
        return
    failed, comparison.order, comparison.before = comparison.order, comparison.before, None
    comparison.save(update_fields=["order", "before"])
    if failed is not None:
        throw_away(failed)


def throw_away(order: Order) -> None:
    """A measurement that nothing points at any more, with its files."""
    folder = order.folder.parent  # an order that is deleted does not know its own any more
    order.delete()
    transaction.on_commit(lambda: remove_folder(folder))


def measured(comparison: Comparison) -> None:
    """What was measured stands in the order's folder: renews the verdict and ends the comparison. Called in the order's transaction."""
    from studio.comparisons import verdict

    verdict.renew(comparison)
    if comparison.before is not None:
        before, comparison.before = comparison.before, None
        comparison.save(update_fields=["before"])
        throw_away(before)
    if comparison.state == Comparison.State.MEASURING:
        end(comparison, Comparison.State.DONE, error=note_of(comparison))


def end(comparison: Comparison, state: str, *, error: str = "") -> None:
    comparison.state, comparison.error, comparison.ended_at = state, error, timezone.now()
    comparison.save(update_fields=["state", "error", "ended_at"])


def held(comparison: Comparison) -> Comparison:
    """The comparison as it stands now, which nobody else changes until the transaction ends.

    Its client is held first, as for every run that is made, then its order, as by the worker that ends it.
    """
    quotas.held(comparison.project.client)
    Order.objects.select_for_update(of=("self",), no_key=True).filter(comparison=comparison.pk).first()
    known = Comparison.objects.select_related("project__client__workspace", "order", "before")
    found: Comparison | None = known.select_for_update(of=("self",), no_key=True).filter(pk=comparison.pk).first()
    if found is None:  # somebody else has just deleted it
        raise Http404
    return found


def refuse_measured_still(comparison: Comparison) -> None:
    """One that was stopped while it was measured has an order at work until its worker has heard of it."""
    if comparison.order is not None and comparison.order.is_live:
        raise UserError("Its measuring is still being stopped. Wait a moment, then try again.")


def stop(member: Member, comparison: Comparison) -> Comparison:
    """Ends it early. What its runs have learnt so far is kept; those that were done are measured, where they are of two arms or more."""
    with transaction.atomic():
        now = held(comparison)
        if not now.is_live:
            raise UserError("This comparison has already ended.")
        record(member, "comparison.stop", now)
        if now.state == Comparison.State.MEASURING and now.order is not None:
            if now.order.is_live:
                request_stop(now.order)
            end(now, Comparison.State.STOPPED)
            if not now.order.is_live:  # no worker had it yet
                restore(now)
            return now
        for each in live_runs(now):
            with suppress(UserError):  # it is being paused, or has just ended
                request_stop(each.run.order)
        if len({each.arm_id for each in comparable(now)}) > 1:
            measure(member, now)
        else:
            end(now, Comparison.State.STOPPED)
    return now


def live_runs(comparison: Comparison) -> "QuerySet[ArmRun]":
    """Those that still train, or wait for it."""
    return ArmRun.objects.filter(arm__comparison=comparison, run__order__status__in=Order.LIVE).select_related("arm", "run__order")


def again(member: Member, comparison: Comparison) -> Comparison:
    """Measures once more what has been trained."""
    with transaction.atomic():
        now = held(comparison)
        if now.is_live:
            raise UserError("This comparison still goes on. Wait until it has ended, or stop it.")
        refuse_measured_still(now)
        if not comparable(now).exists():
            raise UserError("None of its runs got to its end, so there is nothing to measure.")
        measure(member, now)
        record(member, "comparison.measure", now)
    return now


def rename(member: Member, comparison: Comparison, name: str) -> None:
    name = " ".join(name.split())[:120]
    if not name:
        raise UserError("A comparison needs a name.", fields={"name": "Give it a name."})
    with transaction.atomic():
        before, comparison.name = comparison.name, name
        if before == name:
            return
        comparison.save(update_fields=["name"])
        record(member, "comparison.edit", comparison, change={"name": [before, name]})


def add_seeds(member: Member, comparison: Comparison, seeds: Sequence[int] = (), *, count: int = 2) -> Comparison:
    """Trains each arm with more seeds, and measures anew; without any named, with the next `count` numbers."""
    with transaction.atomic():
        now = held(comparison)
        if now.is_live:
            raise UserError("This comparison still goes on. Add seeds once it has ended.")
        refuse_measured_still(now)
        wanted = list(seeds) or [max([*now.seeds, 0]) + step for step in range(1, count + 1)]
        arms = list(now.arms.select_related("base_model", "dataset_version__dataset"))
        refuse_odd(
            [ArmSpec(arm.name, arm.plugin, {}, arm.base_model, arm.dataset_version) for arm in arms], [*now.seeds, *wanted], now.sweep
        )
        now.seeds, before = [*now.seeds, *wanted], now.seeds
        now.error = note_of(now)
        now.state, now.ended_at = Comparison.State.RUNNING, None
        now.save(update_fields=["seeds", "state", "error", "ended_at"])
        record(member, "comparison.seeds", now, change={"seeds": [before, now.seeds]})
        for arm in arms:
            arm.comparison = now
            for seed in wanted:
                add_run(member, arm, seed)
    return now


def delete_comparison(member: Member, comparison: Comparison) -> None:
    """The comparison with its verdict, its ratings and what was measured. Its runs and what they made stay."""
    with transaction.atomic():
        now = held(comparison)
        if now.is_live:
            raise UserError("This comparison still goes on. Stop it first, then delete it.")
        refuse_measured_still(now)
        record(member, "comparison.delete", now, change={"arms": [now.arms.count(), 0]})
        orders = [order for order in (now.order, now.before) if order is not None]
        now.delete()
        for order in orders:
            throw_away(order)
