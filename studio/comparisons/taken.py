"""What the arms of a comparison took: time, GPU hours, speed, memory, energy and cost, by what their runs and orders recorded."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from studio.comparisons.models import ArmRun, Comparison
from studio.comparisons.statistics import over_seeds
from studio.orders.models import Event, Order, Usage
from studio.runs.costs import worked
from studio.runs.curve import is_figure
from studio.workspaces.models import Member
from studio.workspaces.rates import Rates


class Spread(BaseModel):
    """A figure that each of an arm's seeds has one of and that is never below 0: their mean, with its 95 % interval over seeds.

    The interval is of this machine and these rows: what one machine took says little of another.
    """

    model_config = ConfigDict(extra="forbid")

    each: list[float]
    """Of every seed that told it, in their order."""
    mean: float
    low: float | None = None
    """None with one seed, which says nothing of another."""
    high: float | None = None

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Spread | None":
        """None where none of the seeds told it."""
        told = [float(value) for value in values if value is not None]
        if not told:
            return None
        if len(told) == 1:
            return cls(each=told, mean=told[0])
        found = over_seeds("spread", told).interval()
        return cls(each=told, mean=found.value, low=max(0.0, found.low), high=found.high)

    @property
    def half(self) -> float:
        """What stands behind the ±; 0 with one seed, and where all are alike."""
        if self.low is None or self.high is None or self.high - self.low <= 1e-9 * self.mean:
            return 0.0
        return (self.high - self.low) / 2

    @property
    def is_cut(self) -> bool:
        """Whether the interval would reach below 0, so that it is told by its ends."""
        return self.low == 0 and self.half > 0


class Took(BaseModel):
    """What one training of an arm took."""

    model_config = ConfigDict(extra="forbid")

    seconds: Spread | None = None
    """On the worker, in all attempts, without the wait in the queue."""
    gpu_hours: Spread | None = None
    """0 on a processor."""
    tokens: Spread | None = None
    """Read in training."""
    tokens_per_second: Spread | None = None
    """The mean of what the run reported as it went on."""
    memory: Spread | None = None
    """Bytes, at the peak."""
    energy: Spread | None = None
    """Watt-hours, where the device tells."""
    machines: list[str] = []
    """Kinds of worker that its runs were on, sorted: 2 × NVIDIA L4, or CPU. Empty where nobody counted."""

    def compares_with(self, other: "Took") -> bool:
        """Whether what both took can be held against each other: all on one kind of worker. What nobody counted is taken to be."""
        return self.machines == other.machines and len(self.machines) <= 1


@dataclass
class Heard:
    """What the metrics of one order's events say."""

    memory: float | None = None
    energy: float | None = None
    tokens: float | None = None
    speeds: float = 0.0
    told: int = 0

    def hear(self, figures: dict[str, object]) -> None:
        """Energy and tokens are counted on from attempt to attempt, so the most is the last."""
        for name in ("memory", "energy", "tokens"):
            if is_figure(value := figures.get(name)):
                setattr(self, name, max(getattr(self, name) or 0.0, float(value)))  # type: ignore[arg-type]
        if is_figure(speed := figures.get("tokens_per_second")):
            self.speeds += float(speed)  # type: ignore[arg-type]
            self.told += 1

    @property
    def speed(self) -> float | None:
        return self.speeds / self.told if self.told else None


def heard(orders: Iterable[Order]) -> dict[UUID, Heard]:
    """By order; each event is read once and none is kept."""
    found: dict[UUID, Heard] = defaultdict(Heard)
    metrics = Event.objects.filter(order__in=list(orders), type="metric").order_by().values_list("order_id", "body")
    for order, body in metrics.iterator():
        found[order].hear(body)
    return found


@dataclass
class Counted:
    """What the attempts of one order were counted as."""

    gpu_hours: float = 0.0
    machines: set[str] = field(default_factory=set)


def counted(orders: Iterable[Order]) -> dict[UUID, Counted]:
    """Of each order whose attempts were counted."""
    found: dict[UUID, Counted] = defaultdict(Counted)
    for usage in Usage.objects.filter(order__in=list(orders)):
        assert usage.order_id is not None  # it was asked for by its order
        found[usage.order_id].gpu_hours += usage.hours * usage.gpus
        found[usage.order_id].machines.add(f"{usage.gpus} × {usage.worker_kind}" if usage.gpus > 1 else usage.worker_kind)
    return found


def taken(arm_runs: Iterable[ArmRun]) -> dict[UUID, Took]:
    """By arm, of the runs that are given; a few queries, however many runs there are."""
    by_arm: dict[UUID, list[Order]] = defaultdict(list)
    for arm_run in arm_runs:
        by_arm[arm_run.arm_id].append(arm_run.run.order)
    orders = [order for those in by_arm.values() for order in those]
    told, used = heard(orders), counted(orders)
    return {arm: took(those, told, used) for arm, those in by_arm.items()}


def took(orders: list[Order], told: dict[UUID, Heard], used: dict[UUID, Counted]) -> Took:
    spoken = [told.get(order.pk, Heard()) for order in orders]
    on = [used[order.pk] for order in orders if order.pk in used]
    return Took(
        seconds=Spread.of(order.seconds or None for order in orders),
        gpu_hours=Spread.of(each.gpu_hours for each in on),
        machines=sorted({machine for each in on for machine in each.machines}),
        tokens=Spread.of(each.tokens for each in spoken),
        tokens_per_second=Spread.of(each.speed for each in spoken),
        memory=Spread.of(each.memory for each in spoken),
        energy=Spread.of(each.energy for each in spoken),
    )


@dataclass(frozen=True)
class Costs:
    """What one training of each arm cost, over its seeds."""

    by_arm: dict[int, Spread]
    """By the arm's number; an arm of which a part has no rate is left out."""
    currency: str


def costs_of(comparison: Comparison, member: Member) -> Costs | None:
    """None where the member may not see costs, or nothing has a price. They are never stored with a verdict, which more people may read."""
    if not member.may("usage.view"):
        return None
    rates = Rates(comparison.project.client.workspace)
    done = ArmRun.objects.filter(arm__comparison=comparison, run__order__status=Order.Status.SUCCEEDED)
    arm_runs = list(done.select_related("arm", "run__order").prefetch_related("run__order__usage"))
    spent: dict[int, list[Decimal | None]] = defaultdict(list)
    for arm_run in arm_runs:
        spent[arm_run.arm.number].append(cost_of(arm_run.run.order, rates))
    by_arm = {number: spread for number, each in spent.items() if (spread := Spread.of(whole(each)))}
    return Costs(by_arm, rates.currency) if by_arm else None


def cost_of(order: Order, rates: Rates) -> Decimal | None:
    """Of all its attempts; None where a part of them has no rate."""
    attempts = [(usage.worker_kind, usage.gpus, usage.started_at, usage.ended_at) for usage in order.usage.all()]
    total = Decimal(0)
    for kind, gpus, begin, end in attempts or worked(order):
        cost = rates.cost(kind, gpus, begin, end)
        if cost is None:
            return None
        total += cost
    return total


def whole(costs: list[Decimal | None]) -> list[float]:
    """The costs of an arm, or none of them where one is not known."""
    told = [float(cost) for cost in costs if cost is not None]
    return told if len(told) == len(costs) else []
