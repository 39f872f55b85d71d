"""Spans of time over which traffic is shown, and the moments at which they are cut."""

from bisect import bisect_right
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo

from django.utils import timezone

from studio.workspaces.months import midnight

HOUR = timedelta(hours=1)
NAMES = {"hour": "Hour", "day": "Day", "week": "Week", "month": "Month"}


@dataclass(frozen=True)
class Period:
    """Parts between `edges`, each of which begins a part but the last."""

    name: str
    edges: list[datetime]
    zone: tzinfo

    @property
    def begin(self) -> datetime:
        return self.edges[0]

    @property
    def end(self) -> datetime:
        return self.edges[-1]

    @property
    def parts(self) -> int:
        return len(self.edges) - 1

    @property
    def is_fine(self) -> bool:
        """Its parts are shorter than the hours by which calls are added up."""
        return self.edges[1] - self.edges[0] < HOUR

    @property
    def of_days(self) -> bool:
        return self.edges[1] - self.edges[0] > timedelta(hours=12)

    def part_of(self, moment: datetime) -> int:
        """The part in which a moment lies, or the first where it began a little before."""
        return min(max(bisect_right(self.edges, moment) - 1, 0), self.parts - 1)

    def label(self, edge: int) -> str:
        """A moment on the workspace's clocks, as short as it can be told apart."""
        local = self.edges[edge].astimezone(self.zone)
        if self.of_days:
            return f"{local.day} {local:%b}"
        return f"{local:%H:%M}" if self.end - self.begin <= timedelta(days=1) else f"{local:%a} {local.day}, {local:%H:%M}"


def period_named(name: str, zone: tzinfo) -> Period:
    """The last hour, day, week or month, up to now; the day where there is no such name."""
    now = timezone.now()
    if name == "hour":
        step = timedelta(minutes=5)
        last = now.replace(minute=now.minute // 5 * 5, second=0, microsecond=0) + step
        return Period(name, [last - step * number for number in range(12, -1, -1)], zone)
    if name == "week":
        today = now.astimezone(zone).date()
        quarters = [midnight(today + timedelta(days=day), zone) + HOUR * 6 * quarter for day in range(-7, 1) for quarter in range(4)]
        known = [edge for edge in quarters if edge <= now]
        return Period(name, [*known[-28:], known[-1] + HOUR * 6], zone)
    if name == "month":
        today = now.astimezone(zone).date()
        return Period(name, days(today - timedelta(days=29), today, zone), zone)
    return Period("day", hours(now - HOUR * 23, now), zone)


def hours(begin: datetime, end: datetime) -> list[datetime]:
    """Edges of the hours from the one in which `begin` lies to the one in which `end` does."""
    first = begin.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    return [first + HOUR * number for number in range((end - first) // HOUR + 2)]


def days(first: date, last: date, zone: tzinfo) -> list[datetime]:
    return [midnight(first + timedelta(days=number), zone) for number in range((last - first).days + 2)]
