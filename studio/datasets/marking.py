"""Rows that somebody marked, by their content: a mark stays with its row from version to version of the dataset."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from django.db import transaction

from studio.audit.services import record
from studio.datasets import rows
from studio.datasets.models import DatasetVersion, RowMark
from studio.errors import UserError
from studio.workspaces.models import Member

MOST_MARKS = 100_000
"""Of one kind in one dataset: all of them are looked at where rows are filtered."""


def mark_rows(member: Member, version: DatasetVersion, hashes: Iterable[int], *, mark: str, on: bool) -> None:
    """Marks rows, or takes the mark off them."""
    if mark not in RowMark.Mark.values:
        raise UserError("There is no such mark.", fields={"mark": f"Use {' or '.join(RowMark.Mark.values)}."})
    signed = sorted({as_signed(number) for number in hashes})
    if not signed:
        raise UserError("Choose the rows to mark.")
    mine = RowMark.objects.filter(dataset=version.dataset_id, mark=mark)
    with transaction.atomic():
        if not on:
            mine.filter(row_hash__in=signed).delete()
        elif mine.count() + len(signed) > MOST_MARKS:
            raise UserError(f"A dataset holds {MOST_MARKS:,} marks of a kind. Take some off first.")
        else:
            made = [RowMark(dataset=version.dataset, row_hash=number, mark=mark, created_by=member.user) for number in signed]
            RowMark.objects.bulk_create(made, ignore_conflicts=True)
        record(member, "dataset.mark" if on else "dataset.unmark", version, change={"mark": mark, "rows": len(signed)})


def marks_of(version: DatasetVersion, hashes: Iterable[int]) -> dict[int, set[str]]:
    """`{hash: marks}` of those rows that have any."""
    signed = [as_signed(number) for number in hashes]
    found: dict[int, set[str]] = {}
    for number, mark in RowMark.objects.filter(dataset=version.dataset_id, row_hash__in=signed).values_list("row_hash", "mark"):
        found.setdefault(number % 2**64, set()).add(mark)
    return found


def marked(version: DatasetVersion, mark: str) -> npt.NDArray[np.int64]:
    """The indices of a version's rows that have a mark."""
    signed = RowMark.objects.filter(dataset=version.dataset_id, mark=mark).values_list("row_hash", flat=True)
    wanted = np.fromiter((number % 2**64 for number in signed), dtype=np.uint64)
    return np.flatnonzero(np.isin(rows.known_column(version.rows_path, "hash"), wanted))


def as_signed(number: int) -> int:
    """A 64-bit hash as databases hold it."""
    return number - 2**64 if number >= 2**63 else number
