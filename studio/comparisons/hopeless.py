"""Which runs of a comparison cannot catch up any more, each with a sentence why. Arithmetic on validation losses at equal shares of the
budget; whoever asks stops them.

Of arms that differ by hand every one is wanted for the verdict, so only what has plainly failed is stopped. Of a sweep's arms one alone is
wanted, so the median stopping rule of Google Vizier holds (Golovin et al. 2017, "Google Vizier: A Service for Black-Box Optimization",
section 3.2.2; Optuna's MedianPruner is the same): a run ends when its best loss so far is worse than the median of the others' losses at
the same share of the budget.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any
from uuid import UUID

from studio.comparisons.models import Arm, ArmRun
from studio.orders.models import Event, Order
from studio.runs.curve import is_figure
from studio.training.form import as_text

HALF = 0.5
"""Share of the budget before which nothing of a comparison by hand is given up."""
MARGIN = 1.25
"""By how much a loss must lie above the worst arm that has ended to be beyond hope."""
EARLIEST = 0.25
"""Share of the budget before which nothing of a sweep is given up: a warm-up tells little."""
FEWEST = 3
"""Other runs that must have come as far for a median to mean something."""
Look = tuple[float, float]
"""(share of the budget, validation loss)"""


def hopeless(runs: Iterable[ArmRun], *, sweep: bool) -> Iterator[tuple[ArmRun, str]]:
    """The runs to stop. `runs` are all of the comparison, with their orders."""
    known = list(runs)
    earliest = EARLIEST if sweep else HALF
    open_ = [each for each in known if may_end(each.run.order) and each.run.order.share >= earliest]
    if not open_:
        return
    looks = looks_of(known)
    for each in open_:
        mine = looks[each.run.order_id]
        others = [other for other in known if other.pk != each.pk]
        if why := below_median(mine, [looks[other.run.order_id] for other in others]) if sweep else failed(each, mine, others, looks):
            yield each, why


def may_end(order: Order) -> bool:
    return order.status == Order.Status.RUNNING and order.stop_requested_at is None


def looks_of(runs: Iterable[ArmRun]) -> dict[UUID, list[Look]]:
    """Of each order its looks at the validation rows, in order; those that a later attempt did again count once."""
    found: dict[UUID, dict[int, Look]] = defaultdict(dict)
    events = Event.objects.filter(order__in=[each.run.order_id for each in runs], type="metric", body__has_key="validation_loss")
    for order, body in events.order_by("order", "seq").values_list("order_id", "body"):
        step, total, loss = (body.get(name) for name in ("step", "total", "validation_loss"))
        if is_figure(step) and is_figure(total) and total and is_figure(loss):
            found[order][int(step)] = (step / total, float(loss))
    return defaultdict(list, {order: [look for _, look in sorted(looks.items())] for order, looks in found.items()})


def failed(each: ArmRun, mine: list[Look], others: list[ArmRun], looks: Any) -> str:
    """Why a run of a comparison by hand is beyond hope; empty where it is not."""
    late = [loss for share, loss in mine if share >= HALF]
    if not late:
        return ""
    if mine[0][0] == 0 and min(late) > mine[0][1]:
        base = figure(mine[0][1])
        return f"After half of its steps the validation loss was {figure(late[-1])}, above the {base} of the untouched base model."
    ends = defaultdict(list)
    for other in others:
        if is_alike(other.arm, each.arm) and other.run.order.status == Order.Status.SUCCEEDED and looks[other.run.order_id]:
            ends[other.arm].append(looks[other.run.order_id][-1][1])
    if not ends:
        return ""
    arm, worst = max(((arm, statistics.fmean(losses)) for arm, losses in ends.items()), key=lambda found: found[1])
    if min(loss for _, loss in mine) > worst * MARGIN:
        return f"Its validation loss was {figure(late[-1])}, while {arm}, the worst arm that has ended, came to {figure(worst)}."
    return ""


def is_alike(other: Arm, arm: Arm) -> bool:
    """Another arm whose losses are of the same rows in the same tokens: those of another base model or other rows lie elsewhere."""
    mine, theirs = ((each.base_model_id, each.dataset_version_id) for each in (arm, other))
    return other.pk != arm.pk and mine == theirs


def below_median(mine: list[Look], others: list[list[Look]]) -> str:
    """Why a run of a sweep ends early: half of the others were better when they had come as far."""
    if not mine or mine[-1][0] < EARLIEST:
        return ""
    share, best = mine[-1][0], min(loss for at, loss in mine if at > 0)
    there = [running for looks in others if (running := mean_upto(looks, share)) is not None]
    if len(there) < FEWEST or best <= (median := statistics.median(there)):
        return ""
    return (
        f"At {share:.0%} of its steps the validation loss was {figure(best)} at best; half of the other runs had {figure(median)} by then."
    )


def mean_upto(looks: list[Look], share: float) -> float | None:
    """The mean of a run's losses up to a share of the budget, as the rule has it; None where it has not come so far."""
    if not looks or looks[-1][0] < share:
        return None
    return statistics.fmean(loss for at, loss in looks if 0 < at <= share) if any(0 < at <= share for at, _ in looks) else None


def figure(loss: float) -> str:
    return as_text(float(f"{loss:.4g}"))
