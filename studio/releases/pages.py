"""What the page of a release shows beyond its row: what is met, what was measured, what people say, and where it answers."""

from dataclasses import dataclass
from typing import Any

from studio.errors import UserError
from studio.releases import gates, staging
from studio.releases.changes import changes
from studio.releases.gating import gate_for
from studio.releases.held_out import held_out_rows
from studio.releases.models import Approval, Evaluation, Release
from studio.releases.verdict import Verdict, signed, verdict
from studio.workspaces.models import Member

MOVE_WORDS = {
    ("draft", "candidate"): "Make it a candidate",
    ("draft", "retired"): "Retire",
    ("candidate", "approved"): "Move to approved",
    ("candidate", "draft"): "Back to draft",
    ("candidate", "retired"): "Retire",
    ("approved", "retired"): "Retire",
    ("retired", "draft"): "Take up again",
}


@dataclass(frozen=True)
class Said:
    """An approval or a refusal, and what became of its person since."""

    approval: Approval
    since: str
    """Empty where they still have the role that they had then."""
    counts: bool


@dataclass(frozen=True)
class Interval:
    """The change of the loss on a line from worse to better, as shares of its width."""

    low: float
    width: float
    change: float
    zero: float
    margin: float
    sentence: str


def release_page(release: Release, *, member: Member, error: Any = None, typed: dict[str, str] | None = None) -> dict[str, Any]:
    found, gate = gates.latest_evaluation(release), gate_for(release.project)
    told = verdict(found.result, margin=gate.margin) if found and found.result and found.against else None
    newest = release.evaluations.select_related("order").order_by("-created_at").first()
    return {
        "section": "releases",
        "release": release,
        "project": release.project,
        "client": release.project.client,
        "gate": gate,
        "conditions": gates.conditions(release),
        "moves": [(to, MOVE_WORDS[release.stage, to]) for to in staging.MOVES[release.stage]],
        "changes": changes(release.previous, release) if release.previous else [],
        "evaluation": found,
        "verdict": told,
        "interval": interval_of(found, told, margin=gate.margin),
        "figures": figures_of(found),
        "live": newest if newest and newest.order.is_live else None,
        "fallen": newest if newest and newest.order.status in ("failed", "stopped") and not newest.order.is_live else None,
        "production": gates.to_compare_with(release),
        "said": said_of(release),
        "mine": next((each for each in release.approvals.all() if each.user_id == member.user.pk), None),
        "places": staging.live_in(release),
        "can_evaluate_on": rows_to_evaluate_on(release),
        "error": error,
        "typed": typed or {},
    }


def rows_to_evaluate_on(release: Release) -> Any:
    """The version that an evaluation would read, or the UserError that says why there is none."""
    try:
        return {"version": held_out_rows(release), "own": gate_for(release.project).held_out is None}
    except UserError as problem:
        return {"why_not": problem.message}


def said_of(release: Release) -> list[Said]:
    approvals = list(release.approvals.all())
    workspace = release.project.client.workspace_id
    roles = dict(Member.objects.filter(workspace=workspace, user__in=[each.user_id for each in approvals]).values_list("user_id", "role"))
    able = gates.able_to_say(release, approvals)
    return [
        Said(each, since(each, roles.get(each.user_id or 0), able=each.user_id in able), gates.counts(each, release)) for each in approvals
    ]


def since(approval: Approval, role: str | None, *, able: bool) -> str:
    """A sentence where somebody's part changed after they spoke."""
    stands = "Their approval stands." if approval.approves else "Their refusal does not block any more."
    if role is None:
        return f"No longer in the workspace. {stands}"
    if not able:
        return f"Cannot speak for this release any more. {stands}"
    if role != approval.role:
        return f"Was {approval.role} then and is {role} now; what they said stands as it was given."
    return ""


def figures_of(evaluation: Evaluation | None) -> dict[str, str]:
    """The change of the loss and what a loss is per, in words."""
    result = (evaluation.result or {}) if evaluation else {}
    change = result.get("change")
    return {"change": "" if change is None else signed(change), "unit": f"nats a {result.get('unit', 'token')}"}


def interval_of(evaluation: Evaluation | None, told: Verdict | None, *, margin: float) -> Interval | None:
    result = (evaluation.result or {}) if evaluation else {}
    change, low, high = result.get("change"), result.get("low"), result.get("high")
    if change is None or low is None or high is None or told is None:
        return None
    reach = max(abs(low), abs(high), margin, 0.1) * 1.25

    def place(value: float) -> float:
        return round(0.5 + value / (2 * reach), 4)

    return Interval(
        low=place(low),
        width=max(place(high) - place(low), 0.004),
        change=place(change),
        zero=0.5,
        margin=place(margin),
        sentence=told.sentence,
    )
