"""A calendar month on the clocks of a workspace: where it begins and ends, and what of a span of time lies in it."""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import cached_property

from django.utils import timezone

from studio.errors import UserError
from studio.workspaces.models import Workspace

TYPED = re.compile(r"(20\d\d)-(0[1-9]|1[0-2])", re.ASCII)
UNREADABLE = "Give a month of this century, such as 2026-11."


@dataclass(frozen=True)
class Month:
    first: date
    """Its first day."""
    zone: tzinfo

    @classmethod
    def now(cls, workspace: Workspace) -> "Month":
        return cls(timezone.now().astimezone(workspace.zone).date().replace(day=1), workspace.zone)

    @classmethod
    def typed(cls, text: str, workspace: Workspace) -> "Month":
        """As an address names it, such as 2026-11; this month where nothing was said. Raises UserError where it is no month."""
        if not text:
            return cls.now(workspace)
        if not (found := TYPED.fullmatch(text)):
            raise UserError("The month cannot be used.", fields={"month": UNREADABLE})
        return cls(date(int(found[1]), int(found[2]), 1), workspace.zone)

    def __str__(self) -> str:
        return f"{self.first:%Y-%m}"

    @property
    def words(self) -> str:
        return f"{self.first:%B %Y}"

    @property
    def previous(self) -> "Month":
        return Month((self.first - timedelta(days=1)).replace(day=1), self.zone)

    @property
    def following(self) -> "Month":
        return Month((self.first + timedelta(days=31)).replace(day=1), self.zone)

    @cached_property
    def begins(self) -> datetime:
        return midnight(self.first, self.zone)

    @cached_property
    def ends(self) -> datetime:
        return self.following.begins

    @property
    def days(self) -> int:
        return (self.following.first - self.first).days

    def cut(self, begin: datetime, end: datetime) -> tuple[datetime, datetime] | None:
        """What of a span lies in it; None where nothing does."""
        begin, end = max(begin, self.begins), min(end, self.ends)
        return (begin, end) if begin < end else None


def midnight(day: date, zone: tzinfo) -> datetime:
    """The moment at which a day begins, in UTC: of two moments of one zone Python subtracts what the clocks show, not what passes."""
    return datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)
