"""Takes retraining a step further every ten seconds: begins what has not begun, and proposes a release of each run that has ended well.

It approves nothing and deploys nothing: the release becomes a candidate and is measured beside the old one, and then people decide.
"""

import logging
from itertools import groupby
from operator import itemgetter
from uuid import UUID

from django.db import transaction

from studio.comparisons.models import Retrained, Retraining
from studio.comparisons.portfolio import Options, Portfolio
from studio.comparisons.retraining import NEEDS, begin, in_words
from studio.errors import UserError
from studio.orders.models import Order
from studio.releases.evaluating import request_evaluation
from studio.releases.models import Release
from studio.releases.releasing import create_release
from studio.releases.staging import move
from studio.workspaces.models import Member, Project, hold

log = logging.getLogger(__name__)

AT_ONCE = 50
"""Runs that one round begins, and releases that it proposes; the next one goes on."""


def advance() -> list[str]:
    """What it did, in sentences. Two at once do nothing twice: each row is held and read anew."""
    return [*begun(), *proposed()]


def begun() -> list[str]:
    """Where very many were asked for, or the web process ended before it had begun every run, the others begin here.

    One that cannot be judged is logged and tried again in the next round; it holds up no other, and takes no other's turn.
    """
    rows = Retrained.objects.filter(run=None, problem="", after=None, before__project__client__archived_at=None)
    waiting = rows.order_by("retraining", "pk").values_list("retraining", "pk")
    said, left = [], AT_ONCE
    for retraining, pairs in groupby(waiting, key=itemgetter(0)):
        began = 0
        for _, pk in pairs:
            if left == 0:
                break
            try:
                began += begin_row(pk)
                left -= 1
            except Exception:
                log.exception("A release of retraining %s could not begin", retraining)
        if began:
            name = Retraining.objects.get(pk=retraining)
            said.append(f"Began {began} run{'' if began == 1 else 's'} of {name}.")
    return said


def begin_row(pk: UUID) -> bool:
    """Whether a run came of it. Where none can, the row says why, and waits no longer."""
    row = Retrained.objects.select_related("retraining__base_model", "retraining__workspace", "before").get(pk=pk)
    retraining = row.retraining
    if (member := starter(retraining)) is None:
        return give_up(row, "Whoever started this is not here any more. Train it again in your own name.")
    options = Options.model_validate(retraining.options)
    offered = Portfolio(member, retraining.base_model, options, only=[row.before_id], but=retraining).offered
    if not offered:
        return give_up(row, "Whoever started this cannot train it on this base model any more. Train it again in your own name.")
    begin(member, row, offered[0], retraining)
    return row.run_id is not None


def give_up(row: Retrained, why: str) -> bool:
    Retrained.objects.filter(pk=row.pk, run=None, problem="").update(problem=why)
    return False


def proposed() -> list[str]:
    """As above: one of which no release can be made for now holds up no other."""
    ended = Retrained.objects.filter(after=None, problem="", run__order__status=Order.Status.SUCCEEDED)
    ended = ended.filter(before__project__client__archived_at=None)  # goes on once it is restored
    read = ("retraining__workspace", "retraining__base_model", "before__project__client", "run__order")
    said: list[str] = []
    for pk in ended.order_by("run__order__ended_at").values_list("pk", flat=True):
        if len(said) == AT_ONCE:
            break
        try:
            said.append(propose(Retrained.objects.select_related(*read).get(pk=pk)))
        except Exception:
            log.exception("No release could be proposed of retrained release %s", pk)
    return said


def propose(row: Retrained) -> str:
    """A candidate of what was trained, asked as the old release is, and on its way to be measured beside it."""
    member = starter(row.retraining)
    with transaction.atomic():
        hold(row.before.project.client)
        hold(row)
        row.refresh_from_db(fields=["after", "problem"])
        if row.after_id is not None or row.problem:
            return f"{row.before} was proposed already."
        if member is None or not Project.objects.for_action(member, "release.create").filter(pk=row.before.project_id).exists():
            row.problem = "It is trained, but whoever started this may make no release here any more. Make one of it yourself."
        else:
            try:
                row.after = candidate(member, row)
            except UserError as problem:
                row.problem = in_words(problem)
        row.save(update_fields=["after", "problem"])
    if row.after is None or member is None:
        return f"No release of {row.run}: {row.problem}"
    try:
        request_evaluation(member, row.after, instead=row.before)
    except UserError as problem:
        Retrained.objects.filter(pk=row.pk).update(problem=in_words(problem))
    return f"Proposed {row.after} in place of {row.before}."


def candidate(member: Member, row: Retrained) -> Release:
    """Its number follows from what changed, as that of every release does."""
    before, run = row.before, row.run
    artifact = run.artifact if run else None
    if artifact is None:
        raise UserError("Its run left nothing that a release could be made of.")
    with transaction.atomic():
        release = create_release(
            member,
            project=before.project,
            artifact=artifact,
            task=before.task,
            asked_with=before.asked_with,
            notes=f"{before.name}, trained anew on {row.retraining.base_model.name}.",
        )
        move(member, release, to=Release.Stage.CANDIDATE)
    return release


def starter(retraining: Retraining) -> Member | None:
    """Whoever started it, with the rights that they have now; None where they are gone or may not do it any more."""
    found: Member | None = (
        Member.objects.filter(workspace=retraining.workspace_id, user=retraining.created_by_id, user__is_active=True)
        .select_related("user", "workspace")
        .first()
    )
    return found if found and all(found.may(action) for action in NEEDS) else None
