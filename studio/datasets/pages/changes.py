"""The Changes tab: what a version did to the one it was edited from: rows added, changed and dropped, with the note."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from studio.datasets import rows
from studio.datasets.differences import row_difference
from studio.datasets.drafting import newer_than
from studio.datasets.flags import CHANGES
from studio.datasets.models import DatasetVersion
from studio.datasets.pages.frame import about, version_for
from studio.datasets.pages.rows import parts_of, typed_number
from studio.datasets.revising import BEFORE, DROPPED

PAGE = 20
KINDS = ("changed", "added", "dropped")


def changes(request: HttpRequest, pk: str) -> HttpResponse:
    version = version_for(request, "dataset.view", pk)
    counts = (version.facts or {}).get("changes", {})
    first = next((kind for kind in KINDS if counts.get(kind)), KINDS[0])
    kind = request.GET.get("kind") if request.GET.get("kind") in KINDS else first
    after = typed_number(request.GET.get("after")) or 0
    found = changed_rows(version, str(kind), after=after, limit=PAGE) if version.is_ready and counts else []
    context = about(version) | {
        "tab": "changes", "counts": [(name, counts.get(name, 0)) for name in KINDS] if counts else [], "kind": kind, "rows": found,
        "after": after, "following": after + PAGE if after + PAGE < counts.get(kind, 0) else None, "previous": max(0, after - PAGE),
        "by": version.order.created_by, "newer": newer_than(version),
    }  # fmt: skip
    return render(request, "datasets/changes.html", context)


def changed_rows(version: DatasetVersion, kind: str, *, after: int, limit: int) -> list[dict[str, Any]]:
    """Some of the rows that were changed, added or dropped: `after` of them are passed over."""
    return list(_dropped(version, after, limit) if kind == "dropped" else _made(version, kind, after, limit))


def _dropped(version: DatasetVersion, after: int, limit: int) -> Iterator[dict[str, Any]]:
    for index, text in rows.drafted_page(version.folder / DROPPED, begin=after, limit=limit):
        row = orjson.loads(text)
        yield {"was": index + 1, "before": row, "parts": parts_of(row)}


def _made(version: DatasetVersion, kind: str, after: int, limit: int) -> Iterator[dict[str, Any]]:
    numbers = np.flatnonzero(rows.known_column(version.rows_path, "flags") & np.uint32(CHANGES[kind]))[after : after + limit]
    if not len(numbers):
        return
    found = rows.page(version.rows_path, wanted=numbers, limit=limit)
    # The former texts stand in the same order as the rows that changed.
    former = rows.drafted_page(version.folder / BEFORE, begin=after, limit=len(found)) if kind == "changed" else []
    for place, row in enumerate(found):
        told = {"number": row["index"] + 1, "split": row["split"], "row": row["row"]}
        if kind == "changed":
            index, text = former[place]
            before = orjson.loads(text)
            yield told | {"was": index + 1, "before": before, "difference": row_difference(before, row["row"])}
        else:
            yield told | {"parts": parts_of(row["row"])}
