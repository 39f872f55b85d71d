"""A release's stages: draft, candidate, approved, retired, and the moves between them."""

from typing import Any

from django.db import transaction
from django.utils import timezone

from studio.audit.services import record
from studio.errors import UserError
from studio.releases.gates import conditions
from studio.releases.models import Release
from studio.workspaces.models import Member, hold

Stage = Release.Stage
MOVES: dict[str, tuple[str, ...]] = {
    Stage.DRAFT: (Stage.CANDIDATE, Stage.RETIRED),
    Stage.CANDIDATE: (Stage.APPROVED, Stage.DRAFT, Stage.RETIRED),
    Stage.APPROVED: (Stage.RETIRED,),
    Stage.RETIRED: (Stage.DRAFT,),
}
"""From each stage to where it may go. What is retired becomes approved again only by the way that everything else goes."""
LONGEST_COMMENT = 2000


def move(member: Member, release: Release, *, to: str, comment: str = "") -> None:
    """Moves it to another stage; to approved only through the project's gate, and away from nothing that a deployment points at."""
    comment = comment.replace("\r\n", "\n").strip()
    if "\0" in comment or len(comment) > LONGEST_COMMENT:
        raise UserError("The comment cannot be kept so.", fields={"comment": f"At most {LONGEST_COMMENT:,} characters of text."})
    with transaction.atomic():
        hold(release.project)  # what it asks for stays as it is, too
        hold(release)
        release.refresh_from_db(fields=["stage", "shared_at", "approved_at", "retired_at"])
        before = release.stage
        refuse_move(release, to)
        if to == Stage.APPROVED:
            refuse_unmet(Release.objects.select_related("project__client").get(pk=release.pk))  # with what was said until this moment
        if to in (Stage.RETIRED, Stage.DRAFT):
            refuse_live(release)
        now = timezone.now()
        release.stage = to
        release.approved_at = now if to == Stage.APPROVED else None if to == Stage.DRAFT else release.approved_at
        release.retired_at = now if to == Stage.RETIRED else None
        release.save(update_fields=["stage", "approved_at", "retired_at"])
        change: dict[str, Any] = {"stage": [before, to]}
        record(member, "release.stage", release, change=change | ({"comment": [None, comment]} if comment else {}))


def refuse_move(release: Release, to: str) -> None:
    if to not in Stage.values:
        raise UserError("There is no such stage.", fields={"to": f"Choose from {', '.join(Stage.values)}."})
    if to == release.stage:
        raise UserError(f"This release is {release.standing} already.", fields={"to": "It is that already."})
    if to not in MOVES[release.stage]:
        ways = " or ".join(MOVES[release.stage])
        text = f"A release that is {release.standing} does not become {to} at once; it can become {ways}."
        raise UserError(text, fields={"to": text})


def refuse_unmet(release: Release) -> None:
    unmet = [condition for condition in conditions(release) if not condition.met]
    if unmet:
        told = " ".join(f"{condition.text} {condition.why}" for condition in unmet)
        raise UserError(f"It is not approved yet. {told}", code="gate_not_met", fields={"to": unmet[0].why})


def refuse_live(release: Release) -> None:
    places = live_in(release)
    if places:
        names = ", ".join(str(place) for place in places)
        raise UserError(f"{names} answers with this release. Point it at another one first.", code="live")


def live_in(release: Release) -> list[Any]:
    """The deployments that point at it, also those that only try it on a share of their requests."""
    shown = {"archived_at": None}
    own = list(release.deployments.filter(**shown).select_related("client"))
    tried = release.canaries.filter(**shown).exclude(release=release).select_related("client")
    return own + list(tried)
