"""The curves of a comparison's runs as a page draws them: few points of each, spread evenly over its events, and only what is new.

Nothing is remembered here. Whoever watches sends back where it stands, so no point is missed however long it was away.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db.models import Case, F, IntegerField, Min, Q, When
from django.utils import timezone

from studio.comparisons.models import ArmRun, Comparison
from studio.orders.models import Event, Slot, Usage
from studio.orders.usage import machine
from studio.runs.curve import is_figure
from studio.workspaces.models import Workspace
from studio.workspaces.rates import Rates

POINTS = 320
"""Of one run, at most."""
ALL_POINTS = 3600
"""Of all runs together, at most; where there are very many, each has fewer."""
FEWEST = 40
WINDOW = 3
"""Neighbouring events of which the first metric is taken: metrics stand between other events, often every other one."""
LOOKED_THROUGH = 15_000
"""Events of all runs that one answer looks through for validation losses; with more it asks to be asked again."""
LOOKS = 100
"""Validation losses of one run in one answer, at most."""
MOST_RUNS = 1000
STOOD = re.compile(r"(\d{1,5}-\d{1,20})\.(\d{1,7})\.(\d{1,10})\.(\d{1,10})", re.ASCII)
FIGURES = {"loss": "loss", "tokens": "tokens", "speed": "tokens_per_second", "memory": "memory"}
"""Column of a curve -> metric."""


@dataclass(frozen=True)
class Stand:
    """How much of a run a page has: points up to the event `seq`, one of every `stride` events, validation losses up to `looked`."""

    stride: int = 0
    seq: int = 0
    looked: int = 0

    def words(self, name: str) -> str:
        return f"{name}.{self.stride}.{self.seq}.{self.looked}"


def name_of(each: ArmRun) -> str:
    """What a page calls a run: the number of its arm and its seed."""
    return f"{each.arm.number}-{each.seed}"


def stands(typed: str) -> dict[str, Stand]:
    """Where a page stands, as it was told the last time; what cannot be read starts anew."""
    parts = [STOOD.fullmatch(part) for part in typed.split(",")[:MOST_RUNS]]
    return {part[1]: Stand(int(part[2]), int(part[3]), int(part[4])) for part in parts if part}


def curves_of(comparison: Comparison, *, since: dict[str, Stand], costs: bool) -> dict[str, Any]:
    """`{runs, more, live, state, currency}`: of each run what is new since then. The number of queries does not depend on how much.

    `more` says that there is something left to fetch at once. `costs` says whether the reader may know what an hour costs.
    """
    runs = list(ArmRun.objects.filter(arm__comparison=comparison).select_related("arm", "run__order").defer("arm__config", "run__config"))
    most = max(FEWEST, min(POINTS, ALL_POINTS // max(1, len(runs))))
    before = {each.pk: since.get(name_of(each), Stand()) for each in runs}
    strides = {each.pk: stride_of(each.run.order.last_seq, most) for each in runs}
    wholes = {each.pk for each in runs if before[each.pk].stride != strides[each.pk]}
    begins = {each.pk: 0 if each.pk in wholes else before[each.pk].seq for each in runs}
    points = read_points(runs, strides, begins)
    looks = read_looks(runs, before, each_through=LOOKED_THROUGH // max(1, len(runs)))
    per_hour, currency = prices(comparison.project.client.workspace, runs) if costs else ({}, "")
    told = [
        piece(
            each,
            points=points[each.run.order_id],
            looks=looks.found[each.run.order_id],
            whole=each.pk in wholes,
            stand=Stand(strides[each.pk], next_seq(each, points[each.run.order_id], strides[each.pk]), looks.upto[each.pk]),
            since=comparison.created_at,
        )
        | {"per_hour": per_hour.get(each.run.order_id)}
        for each in runs
    ]
    live = comparison.is_live or any(each.run.order.is_live for each in runs)
    more = any(looks.upto[each.pk] < each.run.order.last_seq for each in runs)
    return {"runs": told, "more": more, "live": live, "state": comparison.state, "currency": currency}


def stride_of(events: int, most: int) -> int:
    """The smallest power of two that leaves at most `most` of so many events. It seldom changes, and then to its double."""
    return 1 << max(0, math.ceil(math.log2(max(1, events) / most)))


@dataclass(frozen=True)
class Point:
    seq: int
    attempt: int
    at: datetime
    body: dict[str, Any]


def read_points(runs: list[ArmRun], strides: dict[UUID, int], begins: dict[UUID, int]) -> dict[UUID, list[Point]]:
    """The first metric of each stretch of `stride` events that lies after what a page has; only events that may be one are looked at."""
    stretches = {each.run.order_id: (strides[each.pk], begins[each.pk], each.run.order.last_seq) for each in runs}
    wanted: set[int] = set()
    for stride, begin, last in stretches.values():
        for start in range((begin // stride + bool(begin)) * stride, last + 1, stride):
            wanted.update(range(start, min(start + min(stride, WINDOW), last + 1)))
    of_stride: dict[int, list[UUID]] = defaultdict(list)
    for order, (stride, _, _) in stretches.items():
        of_stride[stride].append(order)
    stride_now = Case(
        *(When(order__in=orders, then=stride) for stride, orders in of_stride.items()), default=1, output_field=IntegerField()
    )
    there = Event.objects.filter(order__in=stretches, type="metric", seq__in=wanted).order_by()
    firsts = there.values("order", stretch=F("seq") / stride_now).annotate(first=Min("pk")).values("first")
    found: dict[UUID, list[Point]] = {order: [] for order in stretches}
    events = Event.objects.filter(pk__in=firsts).order_by("order", "seq")
    for order, *columns in events.values_list("order_id", "seq", "attempt", "at", "body"):
        stride, begin, last = stretches[order]
        if begin < columns[0] <= last:
            found[order].append(Point(*columns))
    return found


def next_seq(each: ArmRun, points: list[Point], stride: int) -> int:
    """Up to where a page has all points; the last stretch is looked at again while its metric may still come."""
    last = each.run.order.last_seq
    begun = last // stride * stride
    reached = points and points[-1].seq >= begun
    return last if reached or last >= begun + WINDOW else max(0, begun - 1)


@dataclass(frozen=True)
class Looks:
    found: dict[UUID, list[Point]]
    upto: dict[UUID, int]


def read_looks(runs: list[ArmRun], before: dict[UUID, Stand], *, each_through: int) -> Looks:
    """The validation losses in the next `each_through` events of each run; rare, and found only by reading."""
    found: dict[UUID, list[Point]] = {each.run.order_id: [] for each in runs}
    upto = {each.pk: min(each.run.order.last_seq, before[each.pk].looked + each_through) for each in runs}
    pieces = Q(pk__in=[])
    for each in runs:
        if upto[each.pk] > before[each.pk].looked:
            pieces |= Q(order=each.run.order_id, seq__gt=before[each.pk].looked, seq__lte=upto[each.pk])
    events = Event.objects.filter(pieces, type="metric", body__has_key="validation_loss").order_by("order", "seq")
    for order, *columns in events.values_list("order_id", "seq", "attempt", "at", "body"):
        found[order].append(Point(*columns))
    return Looks({order: thinned(looks) for order, looks in found.items()}, upto)


def thinned(looks: list[Point]) -> list[Point]:
    every = -(-len(looks) // LOOKS) or 1
    return [look for place, look in enumerate(looks) if place % every == 0 or place == len(looks) - 1]


def piece(each: ArmRun, *, points: list[Point], looks: list[Point], whole: bool, stand: Stand, since: datetime) -> dict[str, Any]:
    """What a page is told of one run; times in seconds after the comparison was made. `whole` says that it replaces what there was."""
    points = [
        point
        for point in points
        if isinstance(point.body.get("step"), int) and any(is_figure(point.body.get(name)) for name in FIGURES.values())
    ]
    looks = [look for look in looks if isinstance(look.body.get("step"), int) and is_figure(look.body["validation_loss"])]
    columns = {name: [rounded(point.body.get(metric)) for point in points] for name, metric in FIGURES.items()}
    return {
        "id": name_of(each),
        "arm": each.arm.number,
        "seed": each.seed,
        "whole": whole,
        "points": {**places(points, since), **columns},
        "looks": {**places(looks, since), "loss": [rounded(look.body["validation_loss"]) for look in looks]},
        "stands": stand.words(name_of(each)),
    }


def places(points: Iterable[Point], since: datetime) -> dict[str, list[Any]]:
    found = [(point.body["step"], point.attempt, round((point.at - since).total_seconds(), 1)) for point in points]
    return (
        dict(zip(("step", "attempt", "at"), map(list, zip(*found, strict=True)), strict=True))
        if found
        else {"step": [], "attempt": [], "at": []}
    )


def rounded(value: Any) -> float | int | None:
    """Five digits are more than a chart can show. A plugin may report anything: what is no finite number is none."""
    if not is_figure(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.5g}")


def prices(workspace: Workspace, runs: list[ArmRun]) -> tuple[dict[UUID, float], str]:
    """(what an hour of each run's worker costs today, in which currency); of runs whose worker is not known yet nothing is said."""
    rates, today = Rates(workspace), timezone.now().astimezone(workspace.zone).date()
    orders = [each.run.order for each in runs]
    slots = {slot.name: machine(slot.facts) for slot in Slot.objects.filter(name__in={order.worker for order in orders if order.worker})}
    used = Usage.objects.filter(order__in=orders).order_by("attempt").values_list("order_id", "worker_kind", "gpus")
    machines = {order: (kind, gpus) for order, kind, gpus in used}
    found: dict[UUID, float] = {}
    for order in orders:
        kind, gpus = machines.get(order.pk) or slots.get(order.worker) or ("", 0)
        per_hour = rates.per_hour(kind, today) if kind else None
        if per_hour is not None:
            found[order.pk] = float(per_hour) * max(1, gpus)
    return found, rates.currency
