"""The API's part about changing rows: the next version of a dataset, what a version changed, marks, and back to an older one."""

from typing import Annotated, Any, Literal
from uuid import UUID

from django.db import transaction
from django.http import HttpRequest
from django.shortcuts import get_object_or_404
from ninja import Query, Router, Schema
from pydantic import Field, StringConstraints

from studio.api.datasets import VersionOut, newest_base, version_out
from studio.api.fields import Input
from studio.api.paging import Page, next_url
from studio.datasets import drafting, marking
from studio.datasets.changing import Changes, Rule
from studio.datasets.models import DatasetVersion
from studio.datasets.pages.changes import changed_rows
from studio.errors import UserError

router = Router(tags=["Datasets"])
Note = Annotated[str, StringConstraints(max_length=drafting.LONGEST_NOTE)]
Row = dict[str, Any]
Index = Annotated[int, Field(ge=0, le=2**62)]


class RuleIn(Input):
    finding: str
    do: Literal["drop", "fix"]
    values: dict[str, str] = {}
    """What is written instead of each placeholder."""


class RevisionIn(Input):
    note: Note = ""
    edited: dict[Index, Row] = {}
    """Index -> the row as it is to be, in the dataset's shape."""
    dropped: list[Index] = []
    kept: list[Index] = []
    """Rows that no rule touches."""
    added: list[Row] = []
    rules: list[RuleIn] = []
    """What is done with all rows that have a finding."""


class RestoreIn(Input):
    note: Note = ""


class MarksIn(Input):
    rows: list[Index] = Field([], max_length=100)
    mark: str = "star"
    on: bool = True


class Marked(Schema):
    rows: int


class ChangeFilters(Input):
    kind: Literal["changed", "added", "dropped"] = "changed"
    after: int = Field(0, ge=0, le=2**62)
    """How many the caller has."""
    limit: int = Field(50, ge=1, le=200)


def editable(request: HttpRequest, pk: UUID) -> DatasetVersion:
    found: DatasetVersion = get_object_or_404(
        DatasetVersion.objects.for_action(request, "dataset.create").select_related("order", "dataset__project__client"), pk=pk
    )
    if not found.is_ready:
        raise UserError("This version has no rows yet. Wait until it is ready.")
    return found


@router.post("/dataset-versions/{uuid:pk}/revisions", response={202: VersionOut}, url_name="dataset_revisions")
def revise_version(request: HttpRequest, pk: UUID, payload: RevisionIn) -> dict[str, Any]:
    """The dataset's next version: this one's rows with what is changed here. Ask for it until its status is ready."""
    version = editable(request, pk)
    changes = changes_in(payload, version)
    with transaction.atomic():
        made = drafting.revise(request.member, version, changes, note=payload.note)  # type: ignore[attr-defined]
    return version_out(made, newest_base(request))


def changes_in(payload: RevisionIn, version: DatasetVersion) -> Changes:
    """What a body changes, each row judged by the import's rules. Raises UserError with the field that is wrong."""
    count = (version.facts or {})["rows"]
    for field, indices in (("edited", payload.edited), ("dropped", payload.dropped), ("kept", payload.kept)):
        if strange := next((index for index in indices if index >= count), None):
            raise UserError("Something cannot be changed.", fields={field: f"There is no row {strange}. The last one is {count - 1}."})
    changes = Changes(
        edited={index: judged(row, version, f"edited.{index}") for index, row in payload.edited.items()},
        dropped=set(payload.dropped),
        kept=set(payload.kept),
        added=[judged(row, version, f"added.{number}") for number, row in enumerate(payload.added)],
        rules=[Rule.read(rule.model_dump()) for rule in payload.rules],
    )
    if not changes:
        raise UserError(drafting.NOTHING_CHANGED)
    changes.check_size()
    return changes


def judged(row: Row, version: DatasetVersion, field: str) -> Row:
    try:
        return drafting.judged(row, version)
    except UserError as problem:
        raise UserError(problem.message, fields={field: next(iter(problem.fields.values()))}) from problem


@router.post("/dataset-versions/{uuid:pk}/restore", response={202: VersionOut}, url_name="dataset_restore")
def restore_version(request: HttpRequest, pk: UUID, payload: RestoreIn) -> dict[str, Any]:
    """An older version's rows as the newest version."""
    made = drafting.restore(request.member, editable(request, pk), note=payload.note)  # type: ignore[attr-defined]
    return version_out(made, newest_base(request))


@router.get("/dataset-versions/{uuid:pk}/changes", response=Page[dict[str, Any]], url_name="dataset_changes")
def list_changes(request: HttpRequest, pk: UUID, filters: Query[ChangeFilters]) -> dict[str, Any]:
    """What the version did to the one it was edited from: `index` and `row` of what there is, `was` and `before` of what there was."""
    version = get_object_or_404(DatasetVersion.objects.for_action(request, "dataset.view").select_related("order"), pk=pk)
    count = (version.facts or {}).get("changes", {}).get(filters.kind, 0)
    found = changed_rows(version, filters.kind, after=filters.after, limit=filters.limit) if count else []
    following = next_url(request, after=filters.after + len(found)) if filters.after + len(found) < count and found else None
    return {"items": [change_out(change) for change in found], "next": following}


def change_out(change: dict[str, Any]) -> dict[str, Any]:
    told = {name: change[name] for name in ("before", "row") if name in change}
    return told | {name: change[field] - 1 for name, field in (("index", "number"), ("was", "was")) if field in change}


@router.post("/dataset-versions/{uuid:pk}/marks", response=Marked, url_name="dataset_marks")
def mark_rows(request: HttpRequest, pk: UUID, payload: MarksIn) -> dict[str, int]:
    """Marks rows by index, `star` or `look`, or takes the mark off. A mark stays with its row from version to version."""
    version = editable(request, pk)
    hashes = [drafting.row_of(version, index)["hash"] for index in payload.rows]
    marking.mark_rows(request.member, version, hashes, mark=payload.mark, on=payload.on)  # type: ignore[attr-defined]
    return {"rows": len(hashes)}
