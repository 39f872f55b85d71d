"""Reads what the endpoint did in a period: its hours, and the calls that no hour has taken yet."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from itertools import zip_longest
from typing import Any
from uuid import UUID

import orjson
from django.db import connection
from django.db.models import Aggregate, Case, CharField, Count, IntegerField, Q, QuerySet, Sum, TextField, Value, When
from django.db.models.functions import Cast, Coalesce

from studio.releases.models import Release
from studio.serving.models import LEFT, Call, CallDay, CallHour, CallTotal, ClientDay, ClientHour, Deployment
from studio.serving.periods import Period
from studio.serving.rollup import day_of, days_within, sums_by
from studio.serving.traffic import COUNTS, Counts, Sums, add_to
from studio.workspaces.models import Member

Key = tuple[Any, ...]
SHOWN = ("calls", "errors", "prompt_tokens", "completion_tokens")
"""What is shown of thousands of deployments at once."""
WHOLE = ("calls", "errors", "prompt_tokens", "cached_tokens", "completion_tokens")
"""Those of COUNTS that are whole numbers: a text of many others would cut their digits."""
TIMES = ("seconds", "first")


@dataclass(frozen=True)
class Asked:
    """Whose traffic is meant: all that a member may see, or a client's or a deployment's of it."""

    member: Member
    where: dict[str, Any] = field(default_factory=dict)
    """Conditions on the columns that calls and hours share."""

    def calls(self, begin: datetime, end: datetime) -> "QuerySet[Any]":
        return self._rows(Call).filter(at__gte=begin, at__lt=end)

    def hours(self, begin: datetime, end: datetime) -> "QuerySet[Any]":
        """Without what is left of clients that were erased: that is the invoices'."""
        return self._rows(CallHour).filter(client__isnull=False, hour__gte=begin, hour__lt=end)

    def days(self, begin: datetime, end: datetime) -> "QuerySet[Any]":
        return self._rows(CallDay).filter(day__gte=begin, day__lt=end)

    def hours_of_clients(self, begin: datetime, end: datetime) -> "QuerySet[Any]":
        """The same as `hours` in fewer rows; nothing tells what answered, so it is `hours` where that is asked."""
        return self._rows(ClientHour).filter(hour__gte=begin, hour__lt=end) if self.of_clients else self.hours(begin, end)

    def days_of_clients(self, begin: datetime, end: datetime) -> "QuerySet[Any]":
        return self._rows(ClientDay).filter(day__gte=begin, day__lt=end) if self.of_clients else self.days(begin, end)

    def added_up(self, begin: datetime, end: datetime) -> "Iterator[QuerySet[Any]]":
        """The same as `hours` in fewer rows: the days that lie in it whole, and the hours before and after them."""
        whole = days_within(begin, end)
        if whole is None:
            yield self.hours(begin, end)
            return
        first, last = whole
        yield self.days(first, last)
        yield from (self.hours(*edge) for edge in ((begin, first), (last, end)) if edge[0] < edge[1])

    @property
    def of_clients(self) -> bool:
        return self.where.keys() <= {"client"}

    def _rows(self, model: Any) -> "QuerySet[Any]":
        rows: QuerySet[Any] = model.objects.for_action(self.member, "traffic.view").filter(**self.where)
        return rows.order_by()

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
        rows, moment = added_up_in(asked, period, by_release=bool(columns))
        for (begin, *rest), sums in whole_sums_of(rows, moment, *columns):
            parts[period.part_of(begin)].add(sums)
            if columns:
                groups[tuple(rest)].add(sums)
    for (part, *rest), sums in sums_by(calls.annotate(part=in_part(period, calls)), "part", *columns).items():
        parts[part].add(sums)
        if columns:
            groups[tuple(rest)].add(sums)
    return Traffic(period, parts, dict(groups) if columns else {(): all_of(parts)})


def added_up_in(asked: Asked, period: Period, *, by_release: bool) -> tuple["QuerySet[Any]", str]:
    """Days where each part is made of such, else hours, and the column of their moment; `by_release` where it is asked what answered."""
    if all(day_of(edge) == edge for edge in period.edges):
        return (asked.days if by_release else asked.days_of_clients)(period.begin, period.end), "day"
    return (asked.hours if by_release else asked.hours_of_clients)(period.begin, period.end), "hour"


def all_of(parts: Iterable[Sums]) -> Sums:
    total = Sums()
    for sums in parts:
        total.add(sums)
    return total


def in_part(period: Period, calls: "QuerySet[Any]") -> Case:
    """The number of the part in which a call lies, told by the database: a few comparisons, for most parts have been taken by hours."""
    # Those that count have one mark or none, and by it first an index has them in order. PostgreSQL would look through all the others.
    oldest = calls.order_by(*(("at",) if period.is_fine else ("counted_at", "at"))).values_list("at", flat=True).first()
    first = period.part_of(oldest) if oldest else period.parts - 1
    whens = (When(at__lt=period.edges[part + 1], then=Value(part)) for part in range(first, period.parts - 1))
    return Case(*whens, default=Value(period.parts - 1), output_field=IntegerField())


def over_time(asked: Asked, period: Period) -> Traffic:
    """Part by part and in all, no more than SHOWN: of thousands of deployments at once."""
    parts: list[Sums] = [Sums() for _ in range(period.parts)]
    calls = asked.calls(period.begin, period.end)
    if not period.is_fine:
        calls = calls.filter(counted_at=None)
        for begin, counts in sums_of(*added_up_in(asked, period, by_release=False), SHOWN):
            parts[period.part_of(begin)].add_counts(vars(counts))
    for part, counts in counts_by(calls.annotate(part=in_part(period, calls)), "part", SHOWN):
        parts[part].add_counts(vars(counts))
    return Traffic(period, parts, {(): all_of(parts)})


def counts_of(asked: Asked, period: Period, columns: Sequence[str] = WHOLE) -> dict[str, Counts]:
    """What each deployment was asked, and of each client what was asked of releases by their own names: of thousands at once, so without
    percentiles, and by the deployment's or the client's id as the database spells it, for few of them are shown. `columns` are some of
    WHOLE; the others stay 0.
    """
    found: dict[str, dict[str, int]] = {column: defaultdict(int) for column in columns}
    calls = asked.calls(period.begin, period.end)
    if not period.is_fine:
        calls = calls.filter(counted_at=None)
        for rows in asked.added_up(period.begin, period.end):
            keys, *lists = by_id(rows, columns)
            for column, numbers in zip(columns, lists, strict=True):
                sums = found[column]
                for key, number in zip(keys, numbers, strict=True):
                    sums[key] += number
    for key, counts in counts_by(calls.annotate(of=Cast(OF, CharField())), "of", columns):
        for column in columns:
            found[column][key] += getattr(counts, column)
    return {key: Counts(**{column: found[column][key] for column in columns}) for key in found[columns[0]]}


OF = Coalesce("deployment_id", "client_id")


def by_id(rows: "QuerySet[Any]", columns: Sequence[str]) -> list[Sequence[Any]]:
    """What hours or days are of, as OF says, and for each of `columns` as many numbers. One id may come several times."""
    nothing: list[Sequence[Any]] = [()] * (1 + len(columns))
    if connection.vendor == "postgresql":
        rows_of_ids = rows.values_list(OF).annotate(*map(Sum, columns))
        return [*zip(*((str(key), *sums) for key, *sums in rows_of_ids), strict=True)] or nothing
    # SQLite would sort tens of thousands of rows by long ids to add them up, which takes three times as long as reading them all.
    keys, *lists = rows.aggregate(of=Listed(OF), **{f"{column}_of_all": Listed(column) for column in columns}).values()
    return [keys[1:-1].split(","), *map(orjson.loads, lists)] if keys else nothing


def sums_of(rows: "QuerySet[Any]", column: str, columns: Sequence[str] = COUNTS) -> Iterator[tuple[Any, Counts]]:
    """The plain sums of hours or days, which a database can add up."""
    for key, *sums in rows.values_list(column).annotate(*map(Sum, columns)):
        yield key, Counts(**dict(zip(columns, sums, strict=True)))


def counts_by(calls: "QuerySet[Any]", column: str, columns: Sequence[str]) -> Iterator[tuple[Any, Counts]]:
    """The same of calls one by one."""
    for key, *sums in calls.order_by().values_list(column).annotate(**{f"{name}_of_all": CALLS[name] for name in columns}):
        yield key, Counts(**dict(zip(columns, sums, strict=True)))


CALLS = {
    "calls": Count("pk"),
    "errors": Count("pk", filter=Q(status__gte=400) & ~Q(status=LEFT)),
    **{name: Sum(name, default=0) for name in ("prompt_tokens", "cached_tokens", "completion_tokens")},
}


class Listed(Aggregate):
    """The JSON of several rows in one array, as text: read at once, it takes a tenth of the time that row by row would."""

    output_field = TextField()

    def as_sqlite(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        return self.as_sql(compiler, connection, template="'[' || GROUP_CONCAT(%(expressions)s) || ']'", **extra)

    def as_postgresql(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        return self.as_sql(compiler, connection, template="'[' || STRING_AGG(%(expressions)s::text, ',') || ']'", **extra)


def whole_sums_of(
    rows: "QuerySet[Any]", *columns: str, counts: Sequence[str] = COUNTS, outcomes: bool = True
) -> Iterator[tuple[Key, Sums]]:
    """All that hours or days hold, added up by some of their columns; or `counts` and times alone, without `outcomes`."""
    lists = (*TIMES, "outcomes") if outcomes else TIMES
    every = {f"{name}_of_all": Listed(name) for name in lists}
    for row in rows.values_list(*columns).annotate(*map(Sum, counts), **every):
        key, figures = row[: len(columns)], row[len(columns) :]
        sums = Sums(**dict(zip(counts, figures[: len(counts)], strict=True)))
        listed = dict(zip(lists, map(orjson.loads, figures[len(counts) :]), strict=True))
        add_to(sums.seconds, columns_of(listed["seconds"]))
        add_to(sums.first, columns_of(listed["first"]))
        for each in listed.get("outcomes", ()):
            for outcome, count in each.items():
                sums.outcomes[outcome] += count
        yield key, sums


def columns_of(lists: list[list[int]]) -> list[int]:
    return [*map(sum, zip_longest(*lists, fillvalue=0))]


def whole_of(asked: Asked, period: Period, deployments: Collection[UUID], clients: Collection[UUID] = ()) -> dict[UUID, Sums]:
    """SHOWN and the percentiles of some deployments, and of `clients` what was asked of releases by their own names."""
    found: dict[UUID, Sums] = defaultdict(Sums)
    kinds: list[tuple[str, dict[str, Any]]] = [("deployment_id", {"deployment__in": deployments})] if deployments else []
    if clients:
        kinds.append(("client_id", {"client__in": clients, "deployment": None}))
    for column, where in kinds:
        narrow = Asked(asked.member, asked.where | where)
        calls = narrow.calls(period.begin, period.end)
        if not period.is_fine:
            calls = calls.filter(counted_at=None)
            for rows in narrow.added_up(period.begin, period.end):
                for (key,), sums in whole_sums_of(rows, column, counts=SHOWN, outcomes=False):
                    found[key].add(sums)
        for (key,), sums in sums_by(calls, column).items():
            found[key].add(sums)
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
