"""Lists in pages, newest first: each page goes on after the last item of the one before, so nothing is skipped or repeated."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar
from uuid import UUID

from django.db.models import Q, QuerySet
from django.http import HttpRequest
from ninja import Schema
from pydantic import Field

from studio.api.fields import Input
from studio.errors import UserError

T = TypeVar("T")


class Page(Schema, Generic[T]):
    items: list[T]
    next: str | None
    """Address of the following page; null on the last."""


class Paging(Input):
    after: UUID | None = None
    """Id of the last item that the caller has."""
    limit: int = Field(50, ge=1, le=200)


class ClientsPaging(Paging):
    """Of a list in which several clients have things."""

    archived: bool = False
    """Also what belongs to archived clients. Whoever names a client, a project or another thing sees what it has in any case."""

    def of(self, visible: Any) -> Any:
        """The rows that are meant: those of archived clients only where they are asked for."""
        paging = {*Paging.model_fields, "archived"}
        asked = self.archived or any(isinstance(value, UUID) for name, value in self if name not in paging)
        return visible if asked else visible.current()


def page(request: HttpRequest, visible: "QuerySet[Any]", paging: Paging, *, show: Callable[[Any], Any], **where: Any) -> dict[str, Any]:
    """A page of those rows of `visible` that fit `where`; a condition that is None is left out."""
    rows = visible.filter(**{name: value for name, value in where.items() if value is not None}).order_by("-created_at", "-pk")
    return page_of(request, rows, paging, show=show, among=visible)


def page_of(
    request: HttpRequest,
    rows: "QuerySet[Any]",
    paging: Paging,
    *,
    show: Callable[[Any], Any],
    among: "QuerySet[Any]",
    by: str = "created_at",
) -> dict[str, Any]:
    """A page of `rows`, which stand by `by` and id, the newest first. It goes on from one of `among`, whether or not that still fits."""
    if paging.after is not None:
        last = among.filter(pk=paging.after).values_list(by, flat=True).first()
        if last is None:
            raise UserError("The list cannot go on from there.", fields={"after": "There is no such item in this list."})
        rows = rows.filter(Q(**{f"{by}__lt": last}) | Q(**{by: last}, pk__lt=paging.after))
    found = list(rows[: paging.limit + 1])
    return cut(request, [show(row) for row in found], limit=paging.limit, after=lambda: found[paging.limit - 1].pk)


def cut(request: HttpRequest, items: list[Any], *, limit: int, after: Callable[[], Any]) -> dict[str, Any]:
    """The answer to a list of which one item more than `limit` was fetched; `after` names the last one shown."""
    following = next_url(request, after=after()) if len(items) > limit else None
    return {"items": items[:limit], "next": following}


def next_url(request: HttpRequest, *, after: Any) -> str:
    query = request.GET.copy()
    query["after"] = str(after)
    return request.build_absolute_uri(f"{request.path}?{query.urlencode()}")
