"""Reads what the endpoint did in a period: its hours, and the calls that no hour has taken yet."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

from django.db.models import Case, CharField, IntegerField, QuerySet, Sum, Value, When
from django.db.models.functions import Cast, Coalesce

from studio.releases.models import Release
from studio.serving.models import Call, CallDay, CallHour, CallTotal, Deployment
from studio.serving.periods import Period
from studio.serving.rollup import day_of, days_within, sums_by
from studio.serving.traffic import COUNTS, Counts, Sums
from studio.workspaces.models import Member

Key = tuple[Any, ...]
COLUMNS = (*COUNTS, "outcomes", "seconds", "first")


@dataclass(frozen=True)
class Asked:
    """Whose traffic is meant: all that a member may see, or a client's or a deployment's of it."""

    member: Member
    where: dict[str, Any] = field(default_factory=dict)
    """Conditions on the columns that calls and hours share."""

    def calls(self, begin: datetime, end: datetime) -> "QuerySet[Any]":
        rows: QuerySet[Any] = Call.objects.for_action(self.member, "traffic.view").filter(**self.where, at__gte=begin, at__lt=end)
        return rows.order_by()

    def hours(self, begin: datetime, end: datetime) -> "QuerySet[Any]":
        """Without what is left of clients that were erased: that is the invoices'."""
        rows: QuerySet[Any] = CallHour.objects.for_action(self.member, "traffic.view").filter(**self.where, client__isnull=False)
        return rows.filter(hour__gte=begin, hour__lt=end).order_by()

    def days(self, begin: datetime, end: datetime) -> "QuerySet[Any]":
        rows: QuerySet[Any] = CallDay.objects.for_action(self.member, "traffic.view").filter(**self.where)
        return rows.filter(day__gte=begin, day__lt=end).order_by()

    def added_up(self, begin: datetime, end: datetime) -> "Iterator[QuerySet[Any]]":
        """The same as `hours` in fewer rows: the days that lie in it whole, and the hours before and after them."""
        whole = days_within(begin, end)
        if whole is None:
            yield self.hours(begin, end)
            return
        first, last = whole
        yield self.days(first, last)
        yield from (self.hours(*edge) for edge in ((begin, first), (last, end)) if edge[0] < edge[1])

    def ever(self) -> bool:
        """Whether anything was asked at any time."""
        counted = CallTotal.objects.for_action(self.member, "traffic.view").filter(**self.where)
        return counted.exists() or Call.objects.for_action(self.member, "traffic.view").filter(**self.where).exists()


@dataclass(frozen=True)
class Traffic:
    """A period's calls, part by part and group by group."""

    period: Period
    parts: list[Sums]
    groups: dict[Key, Sums]

    @cached_property
    def total(self) -> Sums:
        return all_of(self.groups.values())


def traffic_of(asked: Asked, period: Period, *columns: str) -> Traffic:
    """A few queries, whatever there is. `columns` are what the groups are made by; without any there is one group of all."""
    parts: list[Sums] = [Sums() for _ in range(period.parts)]
    groups: dict[Key, Sums] = defaultdict(Sums)
    calls = asked.calls(period.begin, period.end)
    if not period.is_fine:
        calls = calls.filter(counted_at=None)
        for hour in asked.hours(period.begin, period.end).values("hour", *columns, *COLUMNS):
            parts[period.part_of(hour["hour"])].add_hour(hour)
            if columns:
                groups[tuple(hour[column] for column in columns)].add_hour(hour)
    for (part, *rest), sums in sums_by(calls.annotate(part=in_part(period, calls)), "part", *columns).items():
        parts[part].add(sums)
        if columns:
            groups[tuple(rest)].add(sums)
    return Traffic(period, parts, dict(groups) if columns else {(): all_of(parts)})


def all_of(parts: Iterable[Sums]) -> Sums:
    total = Sums()
    for sums in parts:
        total.add(sums)
    return total


def in_part(period: Period, calls: "QuerySet[Any]") -> Case:
    """The number of the part in which a call lies, told by the database: a few comparisons, for most parts have been taken by hours."""
    oldest = calls.order_by("at").values_list("at", flat=True).first()
    first = period.part_of(oldest) if oldest else period.parts - 1
    whens = (When(at__lt=period.edges[part + 1], then=Value(part)) for part in range(first, period.parts - 1))
    return Case(*whens, default=Value(period.parts - 1), output_field=IntegerField())


def over_time(asked: Asked, period: Period) -> Traffic:
    """Part by part and in all, without percentiles: of thousands of deployments at once."""
    parts: list[Sums] = [Sums() for _ in range(period.parts)]
    calls = asked.calls(period.begin, period.end)
    if not period.is_fine:
        calls = calls.filter(counted_at=None)
        of_days = all(day_of(edge) == edge for edge in period.edges)
        rows, moment = (asked.days, "day") if of_days else (asked.hours, "hour")
        for begin, counts in sums_of(rows(period.begin, period.end), moment):
            parts[period.part_of(begin)].add_counts(vars(counts))
    for (part,), sums in sums_by(calls.annotate(part=in_part(period, calls)), "part").items():
        parts[part].add(sums)
    return Traffic(period, parts, {(): all_of(parts)})


def counts_of(asked: Asked, period: Period) -> dict[str, Counts]:
    """What each deployment was asked, and of each client what was asked of releases by their own names: of thousands at once, so without
    percentiles, and by the deployment's or the client's id as the database spells it, for few of them are shown.
    """
    found: dict[str, Counts] = defaultdict(Counts)
    calls = asked.calls(period.begin, period.end)
    if not period.is_fine:
        calls = calls.filter(counted_at=None)
        for rows in asked.added_up(period.begin, period.end):
            for key, counts in sums_of(rows.annotate(of=OF), "of"):
                found[key].add_counts(vars(counts))
    for (key,), sums in sums_by(calls.annotate(of=OF), "of").items():
        found[key].add_counts(vars(sums))
    return dict(found)


OF = Cast(Coalesce("deployment_id", "client_id"), CharField())


def sums_of(rows: "QuerySet[Any]", column: str) -> Iterator[tuple[Any, Counts]]:
    """The plain sums of hours or days, which a database can add up."""
    for key, *sums in rows.values_list(column).annotate(*map(Sum, COUNTS)):
        yield key, Counts(*sums)


def times_of(asked: Asked, period: Period, deployments: list[Any]) -> dict[Any, Sums]:
    """What `counts_of` leaves out, of those deployments that are shown."""
    narrow = Asked(asked.member, asked.where | {"deployment__in": deployments})
    found: dict[Any, Sums] = defaultdict(Sums)
    calls = narrow.calls(period.begin, period.end)
    if not period.is_fine:
        calls = calls.filter(counted_at=None)
        for rows in narrow.added_up(period.begin, period.end):
            for row in rows.values("deployment_id", *COLUMNS):
                found[row["deployment_id"]].add_hour(row)
    for (deployment,), sums in sums_by(calls, "deployment_id").items():
        found[deployment].add(sums)
    return dict(found)


@dataclass(frozen=True)
class Answering:
    """A release's part of a deployment's traffic."""

    release: Release | None
    canary: bool
    is_now: bool
    sums: Sums
    share: float


def by_release(traffic: Traffic, deployment: Deployment) -> Iterator[Answering]:
    """What answers now first and its canary beside it, asked yet or not, then what answered before. Of groups by release_id and canary."""
    now = [(release, canary) for release, canary in ((deployment.release_id, False), (deployment.canary_id, True)) if release]
    before = sorted((key for key in traffic.groups if key not in now), key=lambda key: -traffic.groups[key].calls)
    releases = Release.objects.in_bulk([release for release, _ in (*now, *before) if release])
    for release, canary in (*now, *before):
        sums = traffic.groups.get((release, canary), Sums())
        share = sums.calls / traffic.total.calls if traffic.total.calls else 0
        yield Answering(releases.get(release), canary, (release, canary) in now, sums, share)
