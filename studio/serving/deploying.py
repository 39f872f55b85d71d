"""Changes what a deployment points at. Each change is one state of its history and one audit record, under a lock on its row.

What points there already is left alone: such a call answers None, so a second click does nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from django.db import transaction
from django.db.models import Max, QuerySet
from django.utils import timezone
from django.utils.text import slugify

from studio.audit.services import record
from studio.errors import UserError
from studio.releases.models import Release
from studio.serving.models import Deployment, DeploymentState
from studio.workspaces.models import Member, Project, hold

Change = DeploymentState.Change
LONGEST_WHY = 500


@dataclass(frozen=True)
class Pointing:
    """What a deployment answers with."""

    release: Release | None
    canary: Release | None = None
    canary_percent: int = 0

    @classmethod
    def of(cls, found: Deployment | DeploymentState) -> "Pointing":
        return cls(found.release, found.canary, found.canary_percent)

    def changes_to(self, then: "Pointing") -> dict[str, Any]:
        """`{field: [before, after]}` as an audit record has it."""
        pairs: dict[str, list[Any]] = {
            "release": [_name(self.release), _name(then.release)],
            "canary": [_name(self.canary), _name(then.canary)],
            "canary_percent": [self.canary_percent, then.canary_percent],
        }
        return {field: pair for field, pair in pairs.items() if pair[0] != pair[1]}


def _name(release: Release | None) -> str | None:
    return release.name if release else None


def create_deployment(member: Member, *, project: Project, slug: str) -> Deployment:
    """A slot that points at nothing yet. Its name is the client's, so two projects of a client cannot both have one."""
    own = slugify(slug)[:60]
    if not own:
        raise UserError("The deployment needs a name.", fields={"slug": "Use letters, digits and dashes, such as support."})
    with transaction.atomic():
        hold(project.client)
        if Deployment.objects.filter(client=project.client_id, slug=own).exists():
            taken = f"{project.client.slug}/{own} is there already. Choose another name, or promote a release to it."
            raise UserError("The name is taken.", fields={"slug": taken})
        made: Deployment = Deployment.objects.create(project=project, client=project.client, slug=own)
        record(member, "deployment.create", made)
    return made


def promote(member: Member, deployment: Deployment, *, release: Release, why: str = "") -> DeploymentState | None:
    """Points all requests at an approved release. A canary ends with that, whether it is the one promoted or not."""
    with changing(deployment) as now:
        refuse_release(deployment, release)
        ends_canary = now.release == release and now.canary is not None
        change = Change.CANARY if ends_canary else Change.PROMOTE
        return point(member, deployment, Pointing(release), change=change, why=why)


def try_canary(member: Member, deployment: Deployment, *, release: Release, percent: int, why: str = "") -> DeploymentState | None:
    """Lets another approved release answer a share of the requests."""
    if not 1 <= percent <= 99:
        raise UserError("The share is off.", fields={"canary_percent": "Must be from 1 to 99 per cent of the requests."})
    with changing(deployment) as now:
        refuse_release(deployment, release)
        if now.release is None:
            first = "Nothing answers here yet. Promote a release first; a canary is tried beside it."
            raise UserError(first, fields={"release": first})
        if now.release == release:
            same = f"{release.name} answers here already. Choose another release to try."
            raise UserError(same, fields={"release": same})
        return point(member, deployment, Pointing(now.release, release, percent), change=Change.CANARY, why=why)


def end_canary(member: Member, deployment: Deployment, *, why: str = "") -> DeploymentState | None:
    """All requests go to the release again, retired or not."""
    with changing(deployment) as now:
        return point(member, deployment, Pointing(now.release), change=Change.CANARY, why=why)


def roll_back(member: Member, deployment: Deployment, *, to: int | None = None, why: str = "") -> DeploymentState | None:
    """Brings back what an earlier state pointed at, whole: also a release that was retired since, for the night must not wait for a form.

    Without a number it is `before(deployment)`. Raises UserError where there is no such state, or one of its releases is a draft again.
    """
    with changing(deployment):
        back_to = before(deployment) if to is None else deployment.states.filter(number=to).first()
        if back_to is None:
            if to is None:
                raise UserError("There is nothing to roll back to: no other release has answered here before.")
            raise UserError("There is no such state.", fields={"to": f"The history of {deployment} has no state {to}."})
        if back_to.release is None:
            nothing = f"Nothing answered in state {back_to.number}. To let nothing answer, clear the deployment."
            raise UserError(nothing, fields={"to": nothing})
        refuse_unapproved(back_to)
        return point(member, deployment, Pointing.of(back_to), change=Change.ROLLBACK, why=why, back_to=back_to)


def clear(member: Member, deployment: Deployment, *, why: str = "") -> DeploymentState | None:
    """Lets nothing answer. The history stays, so a rollback brings back what did."""
    with changing(deployment):
        return point(member, deployment, Pointing(None), change=Change.CLEAR, why=why)


def archive(member: Member, deployment: Deployment) -> bool:
    """Takes a deployment out of the lists; it answers nothing until it is restored. False where it is archived already."""
    return _shelve(member, deployment, verb="deployment.archive", away=True)


def restore(member: Member, deployment: Deployment) -> bool:
    """Points again at what it pointed at. False where it is not archived. Raises UserError where that is no approved release any more."""
    return _shelve(member, deployment, verb="deployment.restore", away=False)


def _shelve(member: Member, deployment: Deployment, *, verb: str, away: bool) -> bool:
    with transaction.atomic():
        hold(deployment)
        deployment.refresh_from_db(fields=["release", "canary", "archived_at"])
        if (deployment.archived_at is not None) == away:
            return False
        if not away:
            refuse_unapproved(deployment)
        deployment.archived_at = timezone.now() if away else None
        deployment.save(update_fields=["archived_at"])
        record(member, verb, deployment)
    return True


def before(deployment: Deployment, states: list[DeploymentState] | None = None) -> DeploymentState | None:
    """Where a rollback leads that names no state: the last one in which what is taken back did not answer yet.

    Taken back is the canary, where one is tried, or the release. A rollback counts as the state that it brought back, so that the next
    one goes further back and never forth again to what was just taken back. `states` is the history where it has been read.
    """
    states = list(states_of(deployment)) if states is None else states
    if not states:
        return None
    taken_back, place = deployment.canary_id or deployment.release_id, place_in(states)
    earlier = (state for state in states if state.number < place and state.release_id is not None)
    return next((state for state in earlier if taken_back is None or taken_back not in (state.release_id, state.canary_id)), None)


def place_in(states: list[DeploymentState]) -> int:
    """The number of the state that a history, newest first, stands at: rollbacks are followed to what they brought back."""
    by_pk = {state.pk: state for state in states}
    here = states[0]
    while here.back_to_id in by_pk:
        here = by_pk[here.back_to_id]
    return here.number


def states_of(deployment: Deployment) -> "QuerySet[DeploymentState]":
    """The history, newest first, with what its page says of each."""
    return deployment.states.select_related("release", "canary", "user", "back_to").order_by("-number")


def refuse_release(deployment: Deployment, release: Release) -> None:
    """Raises UserError, with the reason, for a release that may not answer here. Until the transaction ends its stage stays as it is."""
    hold(release)
    if release.project_id != deployment.project_id:
        other = f"{release.name} belongs to another project. Choose a release of {deployment.project}."
        raise UserError(other, fields={"release": other})
    answering = deployment.release or last_answering(deployment)
    if answering is not None and answering.task != release.task:
        other = f"{deployment} answers {answering.task}, and {release.name} is for {release.task}. Make another deployment for it."
        raise UserError(other, fields={"release": other})
    stage = Release.objects.values_list("stage", flat=True).get(pk=release.pk)
    if stage != Release.Stage.APPROVED:
        unfit = f"{release.name} is {_STAGE_WORDS[stage]}. Only an approved release can be promoted."
        raise UserError(unfit, fields={"release": unfit})


def refuse_unapproved(found: Deployment | DeploymentState) -> None:
    """Raises UserError where what it points at was taken up again and must be approved anew. Until the transaction ends that stays so."""
    for release in (found.release, found.canary):
        if release is None:
            continue
        hold(release)
        stage = Release.objects.values_list("stage", flat=True).get(pk=release.pk)
        if stage in (Release.Stage.DRAFT, Release.Stage.CANDIDATE):
            unfit = f"{release.name} is {_STAGE_WORDS[stage]} again, so it answers nowhere. Approve it or retire it first."
            raise UserError(unfit, fields={"to": unfit})


def last_answering(deployment: Deployment) -> Release | None:
    """What answered here last, also before it was cleared: its task is the deployment's."""
    state = deployment.states.filter(release__isnull=False).select_related("release").order_by("-number").first()
    return state.release if state else None


_STAGE_WORDS = {
    Release.Stage.DRAFT.value: "a draft",
    Release.Stage.CANDIDATE.value: "a candidate",
    Release.Stage.RETIRED.value: "retired",
}


@contextmanager
def changing(deployment: Deployment) -> Iterator[Pointing]:
    """A transaction that holds the deployment's row; yields what it points at now. Raises UserError for one that is archived."""
    with transaction.atomic():
        hold(deployment)
        deployment.refresh_from_db(fields=["release", "canary", "canary_percent", "archived_at"])
        if deployment.archived_at is not None:
            raise UserError(f"{deployment} is archived. Restore it first.")
        yield Pointing.of(deployment)


def point(
    member: Member, deployment: Deployment, then: Pointing, *, change: str, why: str, back_to: DeploymentState | None = None
) -> DeploymentState | None:
    """The one place where a deployment changes, inside `changing`. None where it points there already."""
    now, why = Pointing.of(deployment), reason(why)
    if now == then:
        return None
    last = deployment.states.aggregate(Max("number"))["number__max"] or 0
    pointed = {"release": then.release, "canary": then.canary, "canary_percent": then.canary_percent}
    state: DeploymentState = DeploymentState.objects.create(
        deployment=deployment,
        number=last + 1,
        change=change,
        back_to=back_to,
        why=why,
        user=member.user,
        key=member.key.name if member.key else "",
        **pointed,
    )
    for field, value in pointed.items():
        setattr(deployment, field, value)
    deployment.save(update_fields=[*pointed, "changed_at"])
    told = {"state": [last or None, state.number]} | ({"why": [None, why]} if why else {})
    record(member, f"deployment.{change}", deployment, change=now.changes_to(then) | told)
    return state


def reason(typed: str) -> str:
    why = " ".join(typed.split())
    if len(why) > LONGEST_WHY:
        raise UserError("The reason is too long.", fields={"why": f"At most {LONGEST_WHY} characters."})
    return why
