"""The verdict of a comparison: finds it, stores it, and shows it. What may be said is decided by reckoning and wording."""

from typing import Any

from studio.comparisons import reckoning, wording
from studio.comparisons.figures import Verdict
from studio.comparisons.models import Comparison
from studio.comparisons.taken import costs_of
from studio.workspaces.models import Member


def renew(comparison: Comparison) -> Verdict:
    """Finds the verdict from what was measured, and stores it."""
    verdict = wording.worded(reckoning.verdict_of(comparison))
    comparison.verdict = verdict.model_dump(mode="json")
    comparison.save(update_fields=["verdict"])
    return verdict


def verdict_context(comparison: Comparison, member: Member) -> dict[str, Any]:
    """What templates/comparisons/verdict.html is drawn from; `verdict` is None where nothing was measured yet."""
    verdict = Verdict.of(comparison)
    if verdict is None:
        return {"verdict": None}
    return {"verdict": verdict, "costs": costs_of(comparison, member)}
