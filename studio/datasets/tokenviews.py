"""Rows as a base model's tokens: asked for in blocks, kept, and read one at a time. What a token is, `studio.ml.tokenview` finds out."""

from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from studio.basemodels.models import BaseModel
from studio.datasets.models import DatasetVersion, TokenView
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


def ask_ahead(member: Member, view: TokenView, *, index: int) -> None:
    """Asks for the block that comes next from this row, so that it is there when somebody goes on."""
    version = view.version
    rows = (version.facts or {})["rows"]
    nearest = index + BLOCK if index - view.begin >= BLOCK // 2 else index - BLOCK
    if 0 <= nearest - nearest % BLOCK < rows:
        ask(member, version, view.base, index=nearest)


def row_of(view: TokenView, index: int) -> dict[str, Any] | None:
    """A row as `studio.ml.tokenview.views` writes it; None where its block is not there."""
    if view.order.status != Order.Status.SUCCEEDED:
        return None
    try:
        with _file(view.order).open("rb") as file:
            line = next(islice(file, index - view.begin, None), b"")
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
