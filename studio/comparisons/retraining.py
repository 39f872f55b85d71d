"""Trains releases anew on another base model: begins it, stops the rest of it, tries one again, and promotes what was approved."""

from collections.abc import Collection
from uuid import UUID

from django.db import transaction
from django.db.models import Q, QuerySet
from django.utils import timezone

from studio.audit.services import record
from studio.basemodels.models import BaseModel
from studio.comparisons.models import Retrained, Retraining
from studio.comparisons.portfolio import MOST, Offered, Options, Portfolio
from studio.errors import UserError
from studio.orders.models import Order
from studio.orders.services import request_stop
from studio.releases.models import Release
from studio.runs.queue import When
from studio.runs.services import create_run
from studio.serving.deploying import promote
from studio.serving.models import Deployment
from studio.workspaces.models import Member, hold

BEGUN_AT_ONCE = 20
"""Runs that the request itself begins; a round begins the others, so that nobody waits for hundreds."""
NEEDS = ("run.create", "release.create", "release.evaluate", "release.approve")
"""What is done in the name of whoever starts a retraining, beside the retraining itself."""


def start(member: Member, *, base: BaseModel, releases: Collection[UUID], options: Options, name: str = "") -> Retraining:
    """A retraining, and a run in the queue for each release that can be trained. What cannot be stands in it with its reason.

    The runs begin one by one, each in a transaction of its own: one that a quota refuses holds up no other. Of very many the rest begins in
    the next rounds.
    """
    refuse_powerless(member)
    if not base.is_ready:
        raise UserError("The base model is not here yet.", fields={"base": "Wait until it is ready, or choose another."})
    if not releases:
        raise UserError("Choose what is trained anew.", fields={"releases": "Choose at least one release."})
    if len(set(releases)) > MOST:
        raise UserError("These are too many at once.", fields={"releases": f"Choose at most {MOST} releases."})
    with transaction.atomic():
        hold(base)  # of two presses at once, the second sees what the first has begun
        offered = Portfolio(member, base, options, only=releases).offered
        refuse_hopeless(offered, wanted=len(set(releases)))
        clients = {each.client.pk: each.client for each in offered}
        made: Retraining = Retraining.objects.create(
            workspace=member.workspace,
            client=next(iter(clients.values())) if len(clients) == 1 else None,
            base_model=base,
            name=" ".join(name.split())[:120] or f"To {base.name}"[:120],
            options=options.model_dump(),
            created_by=member.user,
        )
        Retrained.objects.bulk_create(Retrained(retraining=made, before=each.release, problem=each.why_not[:300]) for each in offered)
        record(member, "retraining.create", made, change={"base_model": [None, base.name], "releases": [0, len(offered)]})
    begin_all(member, made, [each for each in offered if not each.why_not][:BEGUN_AT_ONCE])
    return made


def refuse_powerless(member: Member) -> None:
    """A key that may train and not release would else release by way of this."""
    if not all(member.may(action) for action in NEEDS):
        raise UserError("Releases come of this, so it needs a key that may train and deploy.")


def refuse_hopeless(offered: list[Offered], *, wanted: int) -> None:
    if len(offered) < wanted:
        text = "Some of these are not here, or stand on this base model already. Look at the list again."
        raise UserError(text, fields={"releases": text}, code="unknown_id")
    if all(each.why_not for each in offered):
        text = f"None of these can be trained on it. {offered[0].release.name}: {offered[0].why_not}"
        raise UserError(text, fields={"releases": text})


def begin_all(member: Member, retraining: Retraining, offered: list[Offered]) -> None:
    """The runs of what can be trained and has none yet."""
    rows = {row.before_id: row for row in retraining.releases.filter(run=None, problem="")}
    for each in offered:
        if row := rows.get(each.release.pk):
            begin(member, row, each, retraining)


def begin(member: Member, row: Retrained, each: Offered, retraining: Retraining) -> None:
    """One run in the queue, or the sentence why there is none. Does nothing where another has just begun it."""
    options = Options.model_validate(retraining.options)
    with transaction.atomic():
        hold(each.client)
        hold(row)
        row.refresh_from_db()
        if row.run_id is not None or row.after_id is not None or row.problem:  # begun, or stopped, meanwhile
            return
        row.problem = each.why_not[:300]
        if not row.problem and each.run and each.version:
            try:
                row.run = create_run(
                    member,
                    project=each.release.project,
                    name=f"{each.release.name} on {retraining.base_model.name}",
                    plugin_name=each.run.plugin,
                    config=each.config,
                    base=retraining.base_model,
                    version=each.version,
                    prompts=each.run.prompts,
                    when=When(priority=options.priority, at_night=options.at_night),
                )
            except UserError as problem:
                row.problem = in_words(problem)
        row.save(update_fields=["run", "problem"])


def in_words(problem: UserError) -> str:
    more = next((text for text in problem.fields.values() if text not in problem.message), "")
    return f"{problem.message} {more}".strip()[:300]


def stop(member: Member, retraining: Retraining) -> int:
    """Ends what waits or trains of what the member sees of it; answers how many. What was learnt by then stays with its run."""
    rows = Retrained.objects.for_action(member, "retraining.edit").filter(retraining=retraining)
    with transaction.atomic():
        hold(retraining)
        waiting = list(rows.filter(run=None, problem="").values_list("pk", flat=True))
        still = Retrained.objects.filter(pk__in=waiting, run=None, problem="")  # no joins: a row that begins meanwhile is judged anew
        unbegun = still.update(problem="It was stopped before it began.")
        live = list(rows.filter(run__order__status__in=Order.LIVE, run__order__stop_requested_at=None).select_related("run__order"))
        if not live and not unbegun:
            raise UserError("Nothing of it is on its way any more.")
        for row in live:
            assert row.run is not None  # the filter asks for its order
            request_stop(row.run.order)
        if not going_on(retraining).exclude(pk__in=[row.pk for row in live]).exists():  # of others, whom the member does not see
            retraining.stopped_at = timezone.now()
            retraining.save(update_fields=["stopped_at"])
        record(member, "retraining.stop", retraining, change={"runs": [len(live) + unbegun, 0]})
    return len(live) + unbegun


def going_on(retraining: Retraining) -> "QuerySet[Retrained]":
    """What trains or waits, and what has not begun yet."""
    rows: QuerySet[Retrained] = retraining.releases.filter(Q(run__order__status__in=Order.LIVE) | Q(run=None, problem=""))
    return rows


def again(member: Member, row: Retrained) -> None:
    """Trains a release once more of which nothing came: its run failed or was stopped, or could not begin."""
    refuse_powerless(member)
    retraining = row.retraining
    options = Options.model_validate(retraining.options)
    with transaction.atomic():
        hold(row.before.project.client)
        hold(row)
        row.refresh_from_db()
        refuse_settled(row)
        offered = Portfolio(member, retraining.base_model, options, only=[row.before_id], but=retraining).offered
        if not offered or offered[0].why_not:
            raise UserError(f"It cannot be trained. {offered[0].why_not if offered else 'It stands on this base model already.'}")
        row.run = None
        row.problem = ""
        row.save(update_fields=["run", "problem"])
        record(member, "retraining.again", row)
        begin(member, row, offered[0], retraining)
        if row.problem:
            raise UserError(row.problem)


def refuse_settled(row: Retrained) -> None:
    if row.after_id is not None:
        raise UserError("A release came of it already. Evaluate that one, or start a run of its own.")
    if row.run is not None and row.run.order.is_live:
        raise UserError("It is being trained already.")
    if row.run is not None and row.run.order.status == Order.Status.SUCCEEDED and not row.problem:
        raise UserError("It is trained. Its release is being proposed.")


def promotable(member: Member, retraining: Retraining) -> list[tuple[Deployment, Release]]:
    """Where the old release answers, and the new one is approved: what a person may point at it."""
    rows = Retrained.objects.for_action(member, "deployment.promote").filter(retraining=retraining, after__stage=Release.Stage.APPROVED)
    after = {row.before_id: row.after for row in rows.select_related("after")}
    places = Deployment.objects.for_action(member, "deployment.promote").filter(archived_at=None, release__in=after)
    return [
        (place, release)
        for place in places.select_related("client", "project", "release", "canary")
        if place.release_id and (release := after[place.release_id])
    ]


def promote_all(member: Member, retraining: Retraining) -> tuple[list[Deployment], list[str]]:
    """Points every deployment of an old release at the new one, where that is approved; and what was refused, in sentences."""
    wanted = promotable(member, retraining)
    if not wanted:
        raise UserError("Nothing of it is approved and not promoted yet.")
    done, refused = [], []
    for place, release in wanted:
        try:
            if promote(member, place, release=release, why=f"Retrained: {retraining.name}"[:500]):
                done.append(place)
        except UserError as problem:
            refused.append(f"{place}: {in_words(problem)}")
    return done, refused
