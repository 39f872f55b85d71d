"""The API's part about what was done: the same records and filters as the page, the oldest first."""

from datetime import datetime
from typing import Any
from uuid import UUID

from django.http import HttpRequest
from ninja import Query, Router, Schema
from pydantic import Field

from studio.api.fields import Input, Line, Moment
from studio.api.paging import Page, cut
from studio.audit.files import as_told
from studio.audit.finding import Wanted
from studio.audit.services import history

router = Router(tags=["Workspace"])


class AuditOut(Schema):
    id: int
    at: datetime
    user: str | None
    """The person's e-mail address at that time; null where somebody had nothing but a link."""
    key: str
    ip: str | None
    client: UUID | None
    client_name: str
    """As it was called then."""
    verb: str
    object_kind: str
    object_id: str
    label: str
    change: dict[str, Any]
    place: int | None
    """1, 2, 3 in the workspace's chain; null in the seconds before it is sealed."""
    sha256: str
    """Of this record and of the one before it in the chain."""


class AuditFilters(Input):
    after: int = Field(0, ge=0, le=2**62)
    limit: int = Field(100, ge=1, le=500)
    client: UUID | None = None
    person: int | None = Field(None, ge=0, le=2**62)
    """A member's user, by its id."""
    kind: Line = ""
    """Of the object, such as `run`."""
    object: Line = ""
    """The id of one object: its history."""
    verb: Line = ""
    since: Moment | None = None
    until: Moment | None = None
    """Not that moment itself."""


@router.get("/audit", response=Page[AuditOut], url_name="audit")
def list_audit(request: HttpRequest, filters: Query[AuditFilters]) -> dict[str, Any]:
    """Who did what, when and from where: the oldest record after `after` first, so that a copy can be kept up to date."""
    member = request.member  # type: ignore[attr-defined]
    told = filters.model_dump(exclude={"after", "limit", "person"})
    rows = Wanted(**told, user=filters.person).of(history(member), workspace=member.workspace_id)
    items = [as_told(row) for row in rows.filter(pk__gt=filters.after).order_by("pk")[: filters.limit + 1]]
    return cut(request, items, limit=filters.limit, after=lambda: items[filters.limit - 1]["id"])
