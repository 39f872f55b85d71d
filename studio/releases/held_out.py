"""Which rows a release is measured on: those that its project's gate names, else the validation rows of what it learnt from."""

from collections.abc import Collection
from uuid import UUID

from studio.datasets.models import DatasetVersion
from studio.errors import UserError
from studio.releases.gating import gate_for
from studio.releases.models import Gate, Release


def held_out_rows(release: Release) -> DatasetVersion:
    """The newest version of what the gate names, else the version that it learnt from, of which the validation rows are taken."""
    gate = gate_for(release.project)
    return rows_for(release, gate, newest_ready([gate.held_out_id] if gate.held_out_id else []))


def rows_for(release: Release, gate: Gate, newest: dict[UUID, DatasetVersion]) -> DatasetVersion:
    """The same of what has been read already: its gate, and the newest version of what gates name."""
    if gate.held_out_id is not None:
        found = newest.get(gate.held_out_id)
        if found is None or found.dataset.project.client_id != release.project.client_id:
            raise UserError("The held-out rows that the project's gate names have not been read yet. Look at their page.")
        return found
    version: DatasetVersion | None = release.artifact.dataset_version
    if version is None:
        raise UserError(
            "Nobody knows what this was trained on, so it has no validation rows of its own. Name held-out rows in the project's gate."
        )
    if not version.is_ready or not version.dataset_facts(None).validation:
        raise UserError(f"{version} has no validation rows. Name held-out rows in the project's gate.")
    return version


def newest_ready(datasets: Collection[UUID]) -> dict[UUID, DatasetVersion]:
    """The newest version of each that has been read; one query, and none where nothing is asked for."""
    if not datasets:
        return {}
    rows = DatasetVersion.objects.filter(dataset__in=datasets, facts__isnull=False).select_related("dataset__project").order_by("number")
    return {version.dataset_id: version for version in rows}
