"""What gates say of many releases at once, read in a constant number of queries. What they say is decided in `gates`."""

from collections.abc import Iterable, Sequence
from uuid import UUID

from django.db.models import Max, Q

from studio.datasets.models import DatasetVersion
from studio.errors import UserError
from studio.releases.gates import Seen
from studio.releases.held_out import newest_ready, rows_for
from studio.releases.models import Approval, Evaluation, Gate, Release

Task = tuple[UUID, str]
"""A project, and one of its tasks."""


def seen_of(releases: Sequence[Release]) -> dict[UUID, Seen]:
    """What each is judged by. Read with them: `project__client` and `artifact__dataset_version__dataset`."""
    gates = gates_of(releases)
    said = said_of(releases)
    production, last = in_production(releases), last_in_production(releases)
    evaluations = latest_evaluations(releases)
    newest = newest_ready({gate.held_out_id for gate in gates.values() if gate.held_out_id})
    found = {}
    for release in releases:
        gate = gates.get(release.project_id) or Gate(project=release.project)
        beside = first_but(release, production)
        found[release.pk] = Seen(
            gate=gate,
            said=said.get(release.pk, []),
            production=beside,
            last=None if beside else first_but(release, last),
            evaluation=evaluations.get(release.pk),
            rows=rows_or_why(release, gate, newest),
        )
    return found


def gates_of(releases: Sequence[Release]) -> dict[UUID, Gate]:
    gates = Gate.objects.filter(project__in={release.project_id for release in releases})
    return {gate.project_id: gate for gate in gates.select_related("held_out")}


def said_of(releases: Sequence[Release]) -> dict[UUID, list[Approval]]:
    found: dict[UUID, list[Approval]] = {}
    for each in Approval.objects.filter(release__in=releases).defer("samples").order_by("at"):
        found.setdefault(each.release_id, []).append(each)
    return found


def in_production(releases: Sequence[Release]) -> dict[Task, list[Release]]:
    """What deployments point at, the highest version first."""
    rows = Release.objects.filter(of_same_projects(releases), deployments__isnull=False, deployments__archived_at=None).distinct()
    return by_task(rows.order_by("-major", "-minor", "-patch"))


def last_in_production(releases: Sequence[Release]) -> dict[Task, list[Release]]:
    """What deployments have pointed at, what did so last first."""
    rows = Release.objects.filter(of_same_projects(releases), states__isnull=False)
    return by_task(rows.annotate(last_at=Max("states__at"), last_number=Max("states__number")).order_by("-last_at", "-last_number"))


def of_same_projects(releases: Sequence[Release]) -> Q:
    return Q(project__in={release.project_id for release in releases})


def by_task(rows: Iterable[Release]) -> dict[Task, list[Release]]:
    found: dict[Task, list[Release]] = {}
    for release in rows:
        found.setdefault((release.project_id, release.task), []).append(release)
    return found


def first_but(release: Release, found: dict[Task, list[Release]]) -> Release | None:
    return next((other for other in found.get((release.project_id, release.task), []) if other.pk != release.pk), None)


def latest_evaluations(releases: Sequence[Release]) -> dict[UUID, Evaluation]:
    """The newest of each that has a result."""
    rows = Evaluation.objects.filter(release__in=releases, result__isnull=False)
    rows = rows.select_related("against", "dataset_version__dataset", "order").order_by("created_at")
    return {evaluation.release_id: evaluation for evaluation in rows}


def rows_or_why(release: Release, gate: Gate, newest: dict[UUID, DatasetVersion]) -> DatasetVersion | UserError:
    try:
        return rows_for(release, gate, newest)
    except UserError as problem:
        return problem
