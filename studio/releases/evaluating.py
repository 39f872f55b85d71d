"""Asks for a release to be measured on held-out rows, beside the one in production."""

from django.db import transaction

from studio.audit.services import record
from studio.errors import UserError
from studio.orders.models import Order
from studio.orders.services import place, request_stop
from studio.releases.gates import to_compare_with
from studio.releases.held_out import held_out_rows
from studio.releases.models import Evaluation, Release
from studio.workspaces.models import Member, hold


def request_evaluation(member: Member, release: Release, *, instead: Release | None = None) -> Evaluation:
    """An evaluation in the queue; the one that is on its way is answered instead of another.

    It is measured beside the release in production; beside `instead` where there has never been one.
    """
    with transaction.atomic():
        hold(release)
        release.refresh_from_db(fields=["stage"])
        if release.stage == Release.Stage.RETIRED:
            raise UserError("This release is retired. Take it up again, then evaluate it.")
        if (live := live_evaluation(release)) is not None:
            return live
        version, against = held_out_rows(release), to_compare_with(release) or instead
        order = place(member, kind="evaluation", client=release.project.client)
        made: Evaluation = Evaluation.objects.create(release=release, against=against, dataset_version=version, order=order)
        change = {"rows": [None, str(version)], "against": [None, str(against) if against else None]}
        record(member, "release.evaluate", release, change=change)
    return made


def live_evaluation(release: Release) -> Evaluation | None:
    found: Evaluation | None = release.evaluations.filter(order__status__in=Order.LIVE).select_related("order").first()
    return found


def stop_evaluation(member: Member, release: Release) -> None:
    found = live_evaluation(release)
    if found is None:
        raise UserError("No evaluation of this release is on its way.")
    with transaction.atomic():
        request_stop(found.order)
        record(member, "release.stop_evaluation", release)
