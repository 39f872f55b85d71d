"""What came of what, for a whole client: file → dataset version → run → artifact → release → deployment, as nodes and edges."""

from typing import Any

from studio.artifacts.models import Artifact, Build
from studio.datasets.models import DatasetVersion
from studio.releases.models import Release
from studio.runs.models import Run
from studio.serving.models import Deployment
from studio.workspaces.models import Client


def lineage(client: Client) -> dict[str, Any]:
    """`{"nodes": [{id, kind, name, sha256}], "edges": [[from, to]]}`; a base model is named, for it belongs to the workspace."""
    nodes: dict[str, dict[str, Any]] = {}
    edges: set[tuple[str, str]] = set()

    def node(pk: object, kind: str, name: str, sha256: str = "") -> str:
        nodes.setdefault(str(pk), {"id": str(pk), "kind": kind, "name": name, "sha256": sha256})
        return str(pk)

    def edge(begin: object, end: object) -> None:
        if begin and end:
            edges.add((str(begin), str(end)))

    for version in DatasetVersion.objects.filter(dataset__project__client=client).select_related("dataset").order_by("pk"):
        node(version.pk, "dataset_version", str(version), version.sha256)
        edge(version.parent_id, version.pk)
        if version.upload_sha256:
            edge(node(version.upload_sha256, "file", version.filename, version.upload_sha256), version.pk)
        for part in version.origin.get("parts", []):
            edge(part.get("version"), version.pk)
    made: dict[Any, str] = {}
    for run in Run.objects.filter(project__client=client).select_related("base_model").order_by("pk"):
        made[run.order_id] = node(run.pk, "run", run.name)
        edge(run.dataset_version_id, run.pk)
        edge(node(run.base_model_id, "base_model", run.base_model.name, run.base_model.sha256), run.pk)
    for build in Build.objects.filter(project__client=client).select_related("source", "base_model").order_by("pk"):
        node(build.pk, "build", str(build))
        edge(build.source_id, build.pk)
        if build.base_model:
            edge(node(build.base_model_id, "base_model", build.base_model.name, build.base_model.sha256), build.pk)
        edge(build.pk, build.artifact_id)
    for artifact in Artifact.objects.filter(project__client=client).prefetch_related("parents").order_by("pk"):
        node(artifact.pk, "artifact", artifact.name, artifact.sha256)
        edge(made.get(artifact.order_id), artifact.pk)
        for parent in artifact.parents.all():
            edge(parent.pk, artifact.pk)
    for release in Release.objects.filter(project__client=client).order_by("pk"):
        edge(release.artifact_id, node(release.pk, "release", release.name))
    for deployment in Deployment.objects.filter(client=client).select_related("client").order_by("pk"):
        node(deployment.pk, "deployment", str(deployment))
        edge(deployment.release_id, deployment.pk)
        edge(deployment.canary_id, deployment.pk)
    return {"nodes": list(nodes.values()), "edges": sorted(edges)}
