"""The pages of lineage: what came of what around one thing, and where a row of a dataset is."""

from typing import Any

import numpy as np
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render

from studio.artifacts.models import Artifact
from studio.clients.graph import KINDS, Graph, Node, Thing, around
from studio.clients.picture import picture
from studio.clients.whereabouts import whereabouts
from studio.datasets import rows
from studio.datasets.models import DatasetVersion
from studio.datasets.pages.rows import gist, parts_of, typed_number
from studio.releases.models import Release
from studio.runs.models import Run

LISTED = 100
"""Things of one kind that the list below the picture names."""


def version(request: HttpRequest, pk: str) -> HttpResponse:
    visible = DatasetVersion.objects.for_action(request, "dataset.view")
    found: DatasetVersion = get_object_or_404(visible.select_related("order", "dataset__project__client"), pk=pk)
    typed, by = request.GET.get("row", ""), request.GET.get("by", "row")
    if typed and (number := row_number(found, typed, by=by)):
        return redirect("lineage:row", pk=found.pk, number=number)
    asked = {"can_ask": found.is_ready, "typed": typed, "by": by, "not_found": bool(typed)}
    return draw(request, found, str(found), found.dataset.project, asked=asked)


def row_number(found: DatasetVersion, typed: str, *, by: str) -> int | None:
    """The row that somebody means by a number, or by a line of the file that was uploaded; None where there is none."""
    number = typed_number(typed)
    if not number or not found.is_ready:
        return None
    if by != "line":
        return number if number <= (found.facts or {})["rows"] else None
    index = np.flatnonzero(rows.column(found.rows_path, "line") == number)
    return int(index[0]) + 1 if len(index) else None


def run(request: HttpRequest, pk: str) -> HttpResponse:
    found: Run = get_object_or_404(Run.objects.for_action(request, "run.view").select_related("project__client", "order"), pk=pk)
    return draw(request, found, found.name, found.project)


def artifact(request: HttpRequest, pk: str) -> HttpResponse:
    found: Artifact = get_object_or_404(Artifact.objects.for_action(request, "artifact.view").select_related("project__client"), pk=pk)
    return draw(request, found, found.name, found.project)


def release(request: HttpRequest, pk: str) -> HttpResponse:
    found: Release = get_object_or_404(Release.objects.for_action(request, "artifact.view").select_related("project__client"), pk=pk)
    return draw(request, found, found.name, found.project)


def draw(request: HttpRequest, thing: Thing, name: str, project: Any, *, asked: dict[str, Any] | None = None) -> HttpResponse:
    graph = around(request.member, thing)  # type: ignore[attr-defined]
    context = {
        "section": "",
        "name": name,
        "project": project,
        "here": graph.nodes.get(thing.pk),
        "graph": graph,
        "picture": picture(graph),
        "groups": groups(graph),
        "asked": asked,
        "version": thing if isinstance(thing, DatasetVersion) else None,
    }
    return render(request, "clients/lineage.html", context)


def groups(graph: Graph, *, leave_out: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The same as the picture in words: by kind, each with what it was made of."""
    found = []
    for kind in KINDS.values():
        nodes = graph.of(kind.name)
        if nodes and kind.name not in leave_out:
            lines = [(node, sources(graph, node)) for node in nodes[:LISTED]]
            found.append({"kind": kind, "lines": lines, "count": len(nodes), "more": len(nodes) - len(lines)})
    return found


def sources(graph: Graph, node: Node) -> list[Node]:
    return sorted(graph.before(node.pk), key=lambda one: (one.about.column, one.name))[:5]


def row(request: HttpRequest, pk: str, number: int) -> HttpResponse:
    """Where one row is; rows are counted as people do."""
    visible = DatasetVersion.objects.for_action(request, "dataset.view")
    found: DatasetVersion = get_object_or_404(visible.select_related("order", "parent__dataset", "dataset__project__client"), pk=pk)
    if not found.is_ready or not 1 <= number <= (found.facts or {})["rows"]:
        raise Http404
    where = whereabouts(request.member, found, number - 1)  # type: ignore[attr-defined]
    context = {
        "section": "",
        "where": where,
        "version": found,
        "project": found.dataset.project,
        "gist": gist(where.row["row"]),
        "parts": parts_of(where.row["row"]),
        "groups": groups(where.graph, leave_out=("run",)),
    }
    return render(request, "clients/row.html", context)
