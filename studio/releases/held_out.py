"""Which rows a release is measured on: those that its project's gate names, else the validation rows of what it learnt from."""

from studio.datasets.models import Dataset, DatasetVersion
from studio.errors import UserError
from studio.releases.gating import gate_for
from studio.releases.models import Release


def held_out_rows(release: Release) -> DatasetVersion:
    """The newest version of what the gate names, else the version that it learnt from, of which the validation rows are taken."""
    gate = gate_for(release.project)
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
