"""The API's part about where a row is: which versions hold it, which runs learnt from it, and what came of those."""

from datetime import datetime
from typing import Any
from uuid import UUID

from django.http import Http404, HttpRequest
from django.shortcuts import get_object_or_404
from ninja import Router, Schema

from studio.clients.graph import Node
from studio.clients.whereabouts import whereabouts
from studio.datasets.models import DatasetVersion
from studio.runs.models import Run

router = Router(tags=["Datasets"])


class Holding(Schema):
    version: UUID
    name: str
    indices: list[int]
    """Of at most 20 copies."""
    copies: int
    split: str
    """train, validation or both."""


class FateOut(Schema):
    version: UUID
    name: str
    parent: UUID
    what: str
    """dropped, edited or left out."""
    becomes: int | None
    """Index of the row that it was edited into."""


class FormerOut(Schema):
    version: UUID
    index: int


class RunRead(Schema):
    id: UUID
    name: str
    status: str
    dataset_version: UUID


class Came(Schema):
    id: UUID
    name: str
    created_at: datetime


class RowLineage(Schema):
    sentence: str
    """The answer in words."""
    index: int
    line: int
    """Of the file that was uploaded; 0 where the row was added later."""
    versions: list[Holding]
    """Every version of the client that holds the same row, word by word."""
    gone: list[FateOut]
    """What became of it in the versions that were made of those."""
    edited_from: FormerOut | None
    unread: list[UUID]
    """Versions that were not looked at: together they have too many rows for one answer, or their file is gone."""
    learnt: list[RunRead]
    """Runs that trained on it."""
    measured: list[RunRead]
    """Runs in whose validation rows it is."""
    artifacts: list[Came]
    builds: list[Came]
    releases: list[Came]
    deployments: list[Came]
    live: list[UUID]
    """The deployments in which one of the releases answers now."""
    deliveries: list[Came]


@router.get("/dataset-versions/{uuid:pk}/rows/{int:index}/lineage", response=RowLineage, url_name="dataset_row_lineage")
def row_lineage(request: HttpRequest, pk: UUID, index: int) -> dict[str, Any]:
    """Where a row is, by its index: which releases learnt from it, and where they answer."""
    visible = DatasetVersion.objects.for_action(request, "dataset.view")
    version = get_object_or_404(visible.select_related("order", "parent", "dataset__project__client"), pk=pk)
    if not version.is_ready or index >= (version.facts or {})["rows"]:
        raise Http404
    where = whereabouts(request.member, version, index)  # type: ignore[attr-defined]
    came = {
        kinds: [node_out(node) for node in where.graph.of(kind)]
        for kinds, kind in {
            "artifacts": "artifact",
            "builds": "build",
            "releases": "release",
            "deployments": "deployment",
            "deliveries": "delivery",
        }.items()
    }
    return came | {
        "sentence": where.sentence,
        "index": index,
        "line": where.row["line"],
        "versions": [
            {"version": one.version.pk, "name": str(one.version), "indices": one.indices, "copies": one.copies, "split": one.split}
            for one in where.places
        ],
        "gone": [
            {"version": one.version.pk, "name": str(one.version), "parent": one.parent.pk, "what": one.what, "becomes": one.becomes}
            for one in where.fates
        ],
        "edited_from": {"version": where.former.version.pk, "index": where.former.index} if where.former else None,
        "unread": [one.pk for one in where.unread],
        "learnt": [run_out(run) for run in where.learnt],
        "measured": [run_out(run) for run in where.measured],
        "live": [deployment.pk for deployment in where.live],
    }


def node_out(node: Node) -> dict[str, Any]:
    return {"id": node.pk, "name": node.name, "created_at": node.at}


def run_out(run: Run) -> dict[str, Any]:
    return {"id": run.pk, "name": run.name, "status": run.status, "dataset_version": run.dataset_version_id}
