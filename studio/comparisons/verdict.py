"""The verdict of a comparison: finds it, stores it, and shows it. What may be said is decided by reckoning and wording."""

from typing import Any

from studio.artifacts.models import Artifact
from studio.comparisons import reckoning, verdict_table, wording
from studio.comparisons.built import with_built
from studio.comparisons.figures import TRIED, VERSION, ArmFigures, Verdict
from studio.comparisons.marks import marks_of
from studio.comparisons.models import ArmRun, Comparison
from studio.comparisons.preferred import preference
from studio.comparisons.taken import costs_of
from studio.comparisons.verdict_charts import plots
from studio.orders.models import Order
from studio.workspaces.models import Member


def reckoned(comparison: Comparison) -> Verdict:
    """The verdict, from what was measured."""
    return wording.worded(reckoning.verdict_of(comparison))


def renew(comparison: Comparison) -> Verdict:
    """Finds it, and stores it."""
    verdict = reckoned(comparison)
    comparison.verdict = verdict.model_dump(mode="json")
    comparison.save(update_fields=["verdict"])
    return verdict


def is_awaited(comparison: Comparison) -> bool:
    """Whether an earlier studio found what is stored, and a round will find it anew, as `renewing` does."""
    stored, order = comparison.verdict, comparison.order
    if not stored or comparison.is_live or order is None or order.status != Order.Status.SUCCEEDED:
        return False
    return VERSION not in (stored.get("version"), stored.get(TRIED))


def verdict_context(comparison: Comparison, member: Member) -> dict[str, Any]:
    """What templates/comparisons/verdict.html is drawn from; `verdict` is None where nothing was measured yet."""
    verdict = with_built(comparison, Verdict.of(comparison))
    if verdict is None:
        return {"verdict": None} | earlier_context(comparison, member)
    costs = costs_of(comparison, member)
    headline = verdict_table.headline(verdict, costs)
    further = verdict_table.further(verdict)
    in_use = comparison.project.client.archived_at is None
    chosen = verdict.arm(verdict.choice)
    return {
        "verdict": verdict,
        "headline_columns": headline,
        "headline": verdict_table.rows(verdict, headline),
        "further": verdict_table.turned(verdict, further),
        "charts": plots(verdict, marks_of(comparison.arms.all()), costs),
        "preferred": preferred_words(comparison),
        "chosen": chosen,
        "chosen_artifact": artifact_of(comparison, chosen, member) if chosen else None,
        "can_release": in_use and member.may("release.create"),
        "can_train": in_use and not comparison.is_live and member.may("comparison.edit"),
        "more_seeds": 2 if verdict.reason == "one_seed" else verdict.more_seeds,
    }


def earlier_context(comparison: Comparison, member: Member) -> dict[str, Any]:
    """Of a verdict that an earlier studio stored. Of one that goes on, or is about to stand as it was measured before, nothing is said."""
    awaited, goes_on = is_awaited(comparison), comparison.is_live or comparison.before_id is not None
    is_lost = comparison.verdict is not None and not awaited and not goes_on
    in_use = comparison.project.client.archived_at is None
    return {
        "verdict_awaited": awaited,
        "verdict_lost": is_lost,
        "can_measure": is_lost and in_use and member.may("comparison.edit"),
    }


def preferred_words(comparison: Comparison) -> str:
    """What people found who did not know whose answers they read; empty where nobody rated."""
    if not comparison.ratings.exists():
        return ""
    found = preference(comparison)
    return f"By {found.ratings} blind rating{'' if found.ratings == 1 else 's'}: {found.sentence}" if found else ""


def artifact_of(comparison: Comparison, arm: ArmFigures, member: Member) -> Artifact | None:
    """What the arm's best seed left behind; None where it is gone."""
    if arm.best_seed is None:
        return None
    arm_run = ArmRun.objects.filter(arm__comparison=comparison, arm__number=arm.number, seed=arm.best_seed).select_related("run").first()
    visible = Artifact.objects.for_action(member, "artifact.view")
    return visible.filter(order__run=arm_run.run).first() if arm_run else None
