"""Rows as a base model's tokens: asked for in blocks, kept, and read one at a time. What a token is, `studio.ml.tokenview` finds out."""

from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from studio.basemodels.models import BaseModel
from studio.datasets.models import DatasetVersion, Measurement, TokenView
from studio.orders.models import Order
from studio.orders.services import place, request_stop
from studio.storage import remove_folder
from studio.workspaces.models import Member, hold

BLOCK = 50
"""Rows that one order reads: its process takes far longer to begin than these rows take."""
KEPT = 200
"""Blocks of one version under one base model; what was asked for longest ago goes first."""
MOST_WAITING = 4
"""Blocks of one version that wait for a worker; somebody who jumps about has left the earlier ones behind."""
AGAIN = timedelta(minutes=1)
"""After which a block that failed is tried once more, when somebody asks for it."""


@dataclass(frozen=True)
class Look:
    """A row as `studio.ml.tokenview.views` writes it, or the order that stands between it and whoever asks."""

    row: dict[str, Any] | None
    order: Order | None = None

    @property
    def is_live(self) -> bool:
        return self.order is not None and self.order.is_live

    @property
    def error(self) -> str:
        return self.order.error if self.order is not None and self.row is None else ""


def look(member: Member, version: DatasetVersion, base: BaseModel, *, index: int) -> Look:
    """A row in a base model's tokens. What is not there yet is asked for, and what comes next is asked for ahead."""
    found = Look(first_row_of(version, base, index))
    if found.row is None:
        view = ask(member, version, base, index=index)
        found = Look(row_of(view, index), view.order)
    if found.row is not None:
        ask_ahead(member, version, base, index=index)
    return found


def ask(member: Member, version: DatasetVersion, base: BaseModel, *, index: int) -> TokenView:
    """The block that holds a row: ready, on its way from now on, or failed for a reason that its order tells."""
    begin = index - index % BLOCK
    mine = TokenView.objects.filter(version=version, base=base, begin=begin).select_related("order")
    known: TokenView | None = mine.first()
    if known is not None and _stands(known.order):
        return known
    with transaction.atomic():
        hold(version)
        known = mine.first()
        if known is not None and _stands(known.order):
            return known
        if known is not None:
            forget(known)
        _make_room(version, base)
        order = place(member, kind="token_view", client=version.audit_client, priority=Order.Priority.HIGH)
        return TokenView.objects.create(version=version, base=base, begin=begin, order=order)


def ask_ahead(member: Member, version: DatasetVersion, base: BaseModel, *, index: int) -> None:
    """Asks for the block that comes next from this row, so that it is there when somebody goes on."""
    nearest = index + BLOCK if index % BLOCK >= BLOCK // 2 else index - BLOCK
    begin = nearest - nearest % BLOCK
    if 0 < begin < (version.facts or {})["rows"] or (begin == 0 and first_block(version, base) is None):
        ask(member, version, base, index=begin)


def row_of(view: TokenView, index: int) -> dict[str, Any] | None:
    """A row as `studio.ml.tokenview.views` writes it; None where its block is not there."""
    return _line(_file(view.order), index - view.begin) if view.order.status == Order.Status.SUCCEEDED else None


def first_row_of(version: DatasetVersion, base: BaseModel, index: int) -> dict[str, Any] | None:
    """One of the first rows, which are written down when a version's lengths are measured; None where it is not there."""
    file = first_block(version, base) if index < BLOCK else None
    return _line(file, index) if file else None


def first_block(version: DatasetVersion, base: BaseModel) -> Path | None:
    done = Measurement.objects.filter(version=version, base=base, order__status=Order.Status.SUCCEEDED).select_related("order").last()
    return _file(done.order) if done is not None and _file(done.order).is_file() else None


def _line(file: Path, number: int) -> dict[str, Any] | None:
    try:
        with file.open("rb") as lines:
            line = next(islice(lines, number, None), b"")
    except FileNotFoundError:
        return None
    found: dict[str, Any] | None = orjson.loads(line) if line else None
    return found


def forget(view: TokenView) -> None:
    """Throws a block away with its order; asked for again, it is read anew."""
    folder = view.order.folder.parent
    view.order.delete()
    transaction.on_commit(lambda: remove_folder(folder))


def _file(order: Order) -> Path:
    return order.folder / "result" / "rows.jsonl"


def _stands(order: Order) -> bool:
    """False where the block has to be asked for (again)."""
    if order.is_live:
        return True
    if order.status == Order.Status.SUCCEEDED:
        return _file(order).is_file()
    return order.status == Order.Status.FAILED and order.ended_at is not None and timezone.now() - order.ended_at < AGAIN


def _make_room(version: DatasetVersion, base: BaseModel) -> None:
    kept: QuerySet[TokenView] = TokenView.objects.filter(version=version, base=base).select_related("order").order_by("-order__created_at")
    for old in kept[KEPT - 1 :]:
        if not old.order.is_live:
            forget(old)
    waiting = TokenView.objects.filter(version=version, order__status__in=Order.WAITING).select_related("order")
    for left in waiting.order_by("-order__created_at")[MOST_WAITING - 1 :]:
        request_stop(left.order)
