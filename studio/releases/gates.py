"""What a release must meet before it is approved, what is met, and what people say of it."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import Q

from studio.audit.services import record
from studio.datasets.models import DatasetVersion
from studio.errors import UserError
from studio.releases.gating import gate_for
from studio.releases.held_out import held_out_rows
from studio.releases.models import Approval, Evaluation, Gate, Release
from studio.releases.verdict import plain, rows_of, verdict
from studio.workspaces.models import Member, hold
from studio.workspaces.policy import ROLE_ACTIONS

SAYS = {"release.approve", "release.sign_off"}
"""Whoever may do one of these may say what they think of a release."""
LONGEST_COMMENT = 4000


@dataclass(frozen=True)
class Condition:
    text: str
    """What is asked, as a sentence."""
    met: bool
    why: str
    """What is there, or what is missing."""


@dataclass(frozen=True)
class Seen:
    """What a release is judged by, as it stands."""

    gate: Gate
    said: list[Approval]
    production: Release | None = None
    """What answers now for its task; so do the others below, it matters only where the gate asks for an evaluation."""
    last: Release | None = None
    """What answered last, where nothing does now."""
    evaluation: Evaluation | None = None
    rows: DatasetVersion | UserError | None = None
    """The held-out rows of now, or why there are none."""


def conditions(release: Release) -> list[Condition]:
    """Everything that must be met before it is approved; empty where the project asks for nothing and nobody refused."""
    return judged(release, seen(release))


def seen(release: Release) -> Seen:
    gate, said = gate_for(release.project), list(release.approvals.all())
    if not gate.evaluated:
        return Seen(gate, said)
    production, rows = in_production(release), rows_or_why(release)
    return Seen(gate, said, production, None if production else last_in_production(release), latest_evaluation(release), rows)


def rows_or_why(release: Release) -> DatasetVersion | UserError:
    try:
        return held_out_rows(release)
    except UserError as problem:
        return problem


def judged(release: Release, seen: Seen) -> list[Condition]:
    asked = []
    if seen.gate.evaluated:
        asked.append(evaluation_condition(seen))
    if seen.gate.approvals:
        asked.append(approvals_condition(release, seen.gate, seen.said))
    if seen.gate.guest_sign_off:
        asked.append(sign_off_condition(release, seen.said))
    return asked + refusals(release, seen.said)


def in_production(release: Release) -> Release | None:
    """Another release of the same project and task that a deployment points at; the highest version of them."""
    found: Release | None = (
        Release.objects.filter(project=release.project_id, task=release.task, deployments__isnull=False, deployments__archived_at=None)
        .exclude(pk=release.pk)
        .order_by("-major", "-minor", "-patch")
        .first()
    )
    return found


def to_compare_with(release: Release) -> Release | None:
    """The one in production; where nothing answers now, another that answered last: to clear a deployment is no way around the gate."""
    return in_production(release) or last_in_production(release)


def last_in_production(release: Release) -> Release | None:
    """The other release of the same project and task that a deployment pointed at last."""
    found: Release | None = (
        Release.objects.filter(project=release.project_id, task=release.task, states__isnull=False)
        .exclude(pk=release.pk)
        .order_by("-states__at", "-states__number")
        .first()
    )
    return found


def latest_evaluation(release: Release) -> Evaluation | None:
    """The newest one that has a result."""
    found: Evaluation | None = (
        release.evaluations.filter(result__isnull=False)
        .select_related("against", "dataset_version__dataset", "order")
        .order_by("-created_at")
        .first()
    )
    return found


def evaluation_condition(seen: Seen) -> Condition:
    gate, production, found = seen.gate, seen.production, seen.evaluation
    beside, where = production or seen.last, "is" if production else "was last"
    text = "It was evaluated on rows that are held out."
    if beside is not None:
        text = f"On held-out rows, its loss is at most {plain(gate.margin)} % higher than that of {beside}, which {where} in production."
    if found is None or found.result is None:
        return Condition(text, met=False, why="It has not been evaluated yet.")
    if not isinstance(seen.rows, DatasetVersion):
        return Condition(text, met=False, why=seen.rows.message if seen.rows else "")
    if found.dataset_version_id != seen.rows.pk:
        return Condition(
            text, met=False, why=f"It was evaluated on {found.dataset_version}; by now that is {seen.rows}. Evaluate it again."
        )
    if beside is not None and found.against_id != beside.pk:
        before = f"compared with {found.against}" if found.against else "compared with nothing"
        now = f"by now {beside} is in production" if production else f"{beside} was in production last"
        return Condition(text, met=False, why=f"It was {before}; {now}. Evaluate it again.")
    if beside is None or found.against is None:
        return Condition(text, met=True, why=f"On {rows_of(found.result['rows'])} of {found.dataset_version}; nothing is in production.")
    told = verdict(found.result, margin=gate.margin)
    return Condition(text, met=told.kind == "passed", why=told.sentence)


def approvals_condition(release: Release, gate: Gate, said: list[Approval]) -> Condition:
    words = role_words(gate.roles)
    people = "1 person approves" if gate.approvals == 1 else f"{gate.approvals} people approve"
    counted = [each for each in said if counts(each, release) and (not gate.roles or each.role in gate.roles)]
    names = ", ".join(f"{each.email} ({each.role})" for each in counted)
    why = f"{len(counted)} of {gate.approvals}{': ' if names else ''}{names}."
    return Condition(f"{people} it{words}; whoever made it does not count.", met=len(counted) >= gate.approvals, why=why)


def sign_off_condition(release: Release, said: list[Approval]) -> Condition:
    text = f"Somebody at {release.project.client} signs it off."
    signed = [each for each in said if counts(each, release) and each.role == Member.Role.GUEST]
    if signed:
        return Condition(text, met=True, why=f"{signed[0].email} did.")
    if release.shared_at is None:
        return Condition(text, met=False, why="They have not been asked yet.")
    return Condition(text, met=False, why="They were asked, and have not answered yet.")


def counts(approval: Approval, release: Release) -> bool:
    """An approval stands as it was given, with the role of then, also where its person has another one now or is gone."""
    return approval.approves and (approval.user_id is None or approval.user_id != release.created_by_id)


def refusals(release: Release, said: list[Approval]) -> list[Condition]:
    """One condition for each who refused and could still change their mind; that of somebody who cannot would block for ever."""
    refused = [each for each in said if not each.approves]
    able = able_to_say(release, refused) if refused else set()
    return [
        Condition(
            "Nobody refuses it.", met=False, why=f"{each.email} refused{': ' if each.comment else ''}{each.comment}".rstrip(".") + "."
        )
        for each in refused
        if each.user_id in able
    ]


def able_to_say(release: Release, said: list[Approval]) -> set[int]:
    """The users among those who spoke that could speak again: they are here, see the release, and their role may say something."""
    client = release.project.client
    sees = Q(clients=client.pk) | (Q(clients=None, narrowed=False) & ~Q(role=Member.Role.GUEST))  # as Member.client_ids has it
    here = Member.objects.filter(sees, workspace=client.workspace_id, user__in=[each.user_id for each in said])
    if release.shared_at is None:
        here = here.exclude(role=Member.Role.GUEST)
    return {member.user_id for member in here if SAYS & ROLE_ACTIONS[member.role]}


def role_words(roles: list[str]) -> str:
    """` as owner or admin`; empty where every role counts."""
    if not roles:
        return ""
    return f" as {' or '.join([', '.join(roles[:-1]), roles[-1]] if len(roles) > 1 else roles)}"


def say(member: Member, release: Release, *, approves: bool, comment: str = "", evaluation: object = None) -> Approval:
    """What somebody thinks of a candidate, instead of what they said before; kept with their role of now and the answers that they saw.

    Those are the ones of `evaluation`, the id of one of this release; of the newest where it is None, and none where it is empty.
    Raises UserError where it is no candidate, and for an approval by whoever made it, which would not count.
    """
    comment = comment.replace("\r\n", "\n").strip()
    if "\0" in comment or len(comment) > LONGEST_COMMENT:
        raise UserError("The comment cannot be kept so.", fields={"comment": f"At most {LONGEST_COMMENT:,} characters of text."})
    with transaction.atomic():
        hold(release)
        release.refresh_from_db(fields=["stage"])
        if release.stage != Release.Stage.CANDIDATE:
            raise UserError(f"Only a candidate is approved or refused; this release is {release.standing}.")
        if approves and release.created_by_id == member.user.pk:
            raise UserError("You made this release, so your approval would not count. Ask somebody else.")
        samples = samples_of(latest_evaluation(release) if evaluation is None else named_evaluation(release, evaluation))
        before = Approval.objects.filter(release=release, user=member.user).first()
        said = (approves, comment, member.role, samples)
        if before is not None and (before.approves, before.comment, before.role, before.samples) == said:
            return before
        values = {
            "email": member.user.email,
            "role": member.role,
            "approves": approves,
            "comment": comment,
            "samples": samples,
        }
        approval: Approval = Approval.objects.update_or_create(release=release, user=member.user, defaults=values)[0]
        change = {"approves": [before.approves if before else None, approves], "comment": [before.comment if before else None, comment]}
        record(member, "release.approve" if approves else "release.refuse", release, change=change)
    return approval


def named_evaluation(release: Release, typed: object) -> Evaluation | None:
    """The one that was on a page; None where there was none. Raises UserError for one that is not this release's."""
    if typed == "":
        return None
    try:
        found: Evaluation | None = release.evaluations.filter(pk=UUID(str(typed)), result__isnull=False).first()
    except ValueError:
        found = None
    if found is None:
        text = "There is no such evaluation of this release. Look at it again, then say what you think."
        raise UserError(text, fields={"evaluation": text}, code="unknown_id")
    return found


def samples_of(evaluation: Evaluation | None) -> list[dict[str, Any]]:
    """The answers that stand on a release's pages: what it answers, and what the one in production does."""
    samples = (evaluation.result or {}).get("samples", []) if evaluation else []
    return [{name: sample.get(name) for name in ("prompt", "answer", "before")} for sample in samples]
