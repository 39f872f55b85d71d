"""Takes retraining a step further every ten seconds: begins what has not begun, and proposes a release of each run that has ended well.

It approves nothing and deploys nothing: the release becomes a candidate and is measured beside the old one, and then people decide.
"""

from itertools import groupby

from django.db import transaction

from studio.comparisons.models import Retrained, Retraining
from studio.comparisons.portfolio import Options, Portfolio
from studio.comparisons.retraining import NEEDS, begin_all, in_words
from studio.errors import UserError
from studio.orders.models import Order
from studio.releases.evaluating import request_evaluation
from studio.releases.models import Release
from studio.releases.releasing import create_release
from studio.releases.staging import move
from studio.workspaces.models import Member, Project, hold

AT_ONCE = 50
"""Runs that one round begins, and releases that it proposes; the next one goes on."""


def advance() -> list[str]:
    """What it did, in sentences. Two at once do nothing twice: each row is held and read anew."""
    return [*begun(), *proposed()]


def begun() -> list[str]:
    """Where very many were asked for, or the web process ended before it had begun every run, the others begin here."""
    rows = Retrained.objects.filter(run=None, problem="", after=None, before__project__client__archived_at=None)
    rows = rows.select_related("retraining__base_model", "retraining__workspace").order_by("retraining", "pk")[:AT_ONCE]
    said = []
    for retraining, waiting in groupby(rows, key=lambda row: row.retraining):
        pks = [row.before_id for row in waiting]
        if (member := starter(retraining)) is None:
            gone = "Whoever started this is not here any more. Train it again in your own name."
            retraining.releases.filter(before__in=pks, run=None, problem="").update(problem=gone)
            continue
        offered = Portfolio(member, retraining.base_model, Options.model_validate(retraining.options), only=pks, but=retraining).offered
        begin_all(member, retraining, offered)
        said.append(f"Began {len(offered)} run{'' if len(offered) == 1 else 's'} of {retraining}.")
    return said


def proposed() -> list[str]:
    ended = Retrained.objects.filter(after=None, problem="", run__order__status=Order.Status.SUCCEEDED)
    ended = ended.filter(before__project__client__archived_at=None)  # goes on once it is restored
    read = ("retraining__workspace", "retraining__base_model", "before__project__client", "run__order")
    return [propose(row) for row in ended.select_related(*read).order_by("run__order__ended_at")[:AT_ONCE]]


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
