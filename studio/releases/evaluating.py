"""Asks for a release to be measured on held-out rows, beside the one in production."""

from django.db import transaction

from studio.audit.services import record
from studio.datasets.models import Dataset, DatasetVersion
from studio.errors import UserError
from studio.orders.models import Order
from studio.orders.services import place, request_stop
from studio.releases.gates import gate_of, to_compare_with
from studio.releases.models import Evaluation, Release
from studio.workspaces.models import Member, hold


def request_evaluation(member: Member, release: Release) -> Evaluation:
    """An evaluation in the queue; the one that is on its way is answered instead of another."""
    with transaction.atomic():
        hold(release)
        release.refresh_from_db(fields=["stage"])
        if release.stage == Release.Stage.RETIRED:
            raise UserError("This release is retired. Take it up again, then evaluate it.")
        if (live := live_evaluation(release)) is not None:
            return live
        version, against = held_out_rows(release), to_compare_with(release)
        order = place(member, kind="evaluation", client=release.project.client)
        made: Evaluation = Evaluation.objects.create(release=release, against=against, dataset_version=version, order=order)
        change = {"rows": [None, str(version)], "against": [None, str(against) if against else None]}
        record(member, "release.evaluate", release, change=change)
    return made


def live_evaluation(release: Release) -> Evaluation | None:
    found: Evaluation | None = release.evaluations.filter(order__status__in=Order.LIVE).select_related("order").first()
    return found


def held_out_rows(release: Release) -> DatasetVersion:
    """The newest version of what the gate names, else the version that it learnt from, of which the validation rows are taken."""
    gate = gate_of(release)
    if gate.held_out is not None:
        return newest_ready(release, gate.held_out)
    version: DatasetVersion | None = release.artifact.dataset_version
    if version is None:
        raise UserError(
            "Nobody knows what this was trained on, so it has no validation rows of its own. Name held-out rows in the project's gate."
        )
    if not version.is_ready or not version.dataset_facts(None).validation:
        raise UserError(f"{version} has no validation rows. Name held-out rows in the project's gate.")
    return version


def newest_ready(release: Release, dataset: Dataset) -> DatasetVersion:
    client = release.project.client_id
    versions = DatasetVersion.objects.filter(dataset=dataset, dataset__project__client=client, facts__isnull=False)
    found: DatasetVersion | None = versions.select_related("dataset").order_by("-number").first()
    if found is None:
        raise UserError("The held-out rows that the project's gate names have not been read yet. Look at their page.")
    return found


def stop_evaluation(member: Member, release: Release) -> None:
    found = live_evaluation(release)
    if found is None:
        raise UserError("No evaluation of this release is on its way.")
    with transaction.atomic():
        request_stop(found.order)
        record(member, "release.stop_evaluation", release)
