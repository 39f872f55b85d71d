"""Which audit records somebody asks for, and the quick way to them: each filter has its index, days become ids."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db.models import QuerySet

from studio.audit.models import AuditRecord

Rows = QuerySet[AuditRecord]
OUT_OF_ORDER = 1000
"""By how many ids two records may stand the other way round than their times: of transactions that end at once."""
LATELY = 2000
"""Records that say which kinds and verbs there are to choose from."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is not set filters nothing."""

    client: UUID | None = None
    user: int | None = None
    kind: str = ""
    object: str = ""
    verb: str = ""
    since: datetime | None = None
    until: datetime | None = None
    """Not that moment itself."""

    def among(self, rows: Rows) -> Rows:
        """Those of `rows` that fit, in no new order."""
        told = {"client": self.client, "user": self.user, "object_kind": self.kind, "object_id": self.object, "verb": self.verb}
        rows = rows.filter(**{name: value for name, value in told.items() if value not in (None, "")})
        if self.since is not None:
            rows = rows.filter(at__gte=self.since)
        if self.until is not None:
            rows = rows.filter(at__lt=self.until)
        return rows

    def of(self, rows: Rows, *, workspace: Any) -> Rows:
        """As `among`, for all records of a workspace: without a look at those of other days."""
        found, whole = self.among(rows), AuditRecord.objects.filter(workspace=workspace)
        if self.since is not None:
            first = whole.filter(at__gte=self.since).order_by("at", "id").values_list("pk", flat=True).first()
            if first is None:
                return rows.none()
            found = found.filter(pk__gte=first - OUT_OF_ORDER)
        if self.until is not None:
            last = whole.filter(at__lt=self.until).order_by("-at", "-id").values_list("pk", flat=True).first()
            if last is None:
                return rows.none()
            found = found.filter(pk__lte=last + OUT_OF_ORDER)
        return found


def seen_lately(rows: Rows) -> tuple[list[str], list[str]]:
    """The kinds and the verbs of the newest records: what a form offers."""
    newest = rows.order_by("-id").values_list("object_kind", "verb")[:LATELY]
    pairs = set(newest)
    return sorted({kind for kind, _ in pairs}), sorted({verb for _, verb in pairs})
