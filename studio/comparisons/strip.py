"""How far a comparison is: each arm with each seed as a small state of its own, and one sentence over all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

from studio.comparisons.marks import Mark, marks_of
from studio.comparisons.models import Arm, ArmRun, Comparison
from studio.orders.models import Order
from studio.orders.turns import Prospect, Turns, seconds_left
from studio.runs.models import Run
from studio.runs.queue import QUEUE, words
from studio.workspaces.templatetags.studio import count, duration, number

LONGEST = 300
"""Characters of why a run failed; the rest stands on its page."""


@dataclass(frozen=True)
class Cell:
    """An arm trained with one seed."""

    arm_run: ArmRun
    words: str
    """What it does, waits for or ended with; empty where its state says it all."""

    @property
    def run(self) -> Run:
        return self.arm_run.run

    @property
    def order(self) -> Order:
        return self.arm_run.run.order

    @property
    def share(self) -> float | None:
        """Of its steps; None where nothing moves."""
        return self.order.share if self.order.status in Order.ACTIVE else None

    @property
    def state(self) -> str:
        return "Stopped early" if self.arm_run.ended_early else self.order.get_status_display()


@dataclass(frozen=True)
class Row:
    arm: Arm
    mark: Mark
    cells: list[Cell]


@dataclass(frozen=True)
class Strip:
    rows: list[Row]
    seeds: list[int]
    sentence: str

    @property
    def is_moving(self) -> bool:
        """Whether a run goes on: those of a stopped comparison end a little later than it."""
        return any(cell.order.is_live for row in self.rows for cell in row.cells)

    @property
    def share(self) -> float:
        """Of all runs, each counted alike."""
        cells = [cell for row in self.rows for cell in row.cells]
        return sum(1.0 if has_ended(cell.order) else cell.share or 0.0 for cell in cells) / max(1, len(cells))


def has_ended(order: Order) -> bool:
    return not order.is_live and order.status != Order.Status.PAUSED


def strip_of(comparison: Comparison, arms: Sequence[Arm]) -> Strip:
    """`arms` as they stand in the comparison. The queue is read once, and only where something waits."""
    runs = list(ArmRun.objects.filter(arm__in=arms).select_related("run__order", "run__base_model").defer("run__config"))
    orders = [each.run.order for each in runs]
    turns = Turns.read(QUEUE) if any(order.status in Order.WAITING for order in orders) else None
    prospects = {prospect.order.pk: prospect for prospect in turns.prospects()} if turns else {}
    cells = {each.pk: Cell(each, words_of(each, prospects, turns)) for each in runs}
    marks = marks_of(arms)
    rows = [Row(arm, marks[arm.number], [cells[each.pk] for each in runs if each.arm_id == arm.pk]) for arm in arms]
    return Strip(rows, sorted({each.seed for each in runs}, key=seed_order(comparison)), sentence_of(comparison, orders, prospects, turns))


def seed_order(comparison: Comparison) -> Callable[[int], tuple[int, int]]:
    places = {seed: place for place, seed in enumerate(comparison.seeds)}
    return lambda seed: (places.get(seed, len(places)), seed)


def words_of(each: ArmRun, prospects: dict[UUID, Prospect], turns: Turns | None) -> str:
    order = each.run.order
    if each.ended_early:
        return each.ended_early
    if order.status in Order.WAITING and turns is not None:
        prospect = prospects.get(order.pk)
        return words(prospect, turns) if prospect else ""
    if order.status in Order.ACTIVE:
        return " · ".join(part for part in (reached(order), left(order)) if part) or order.phase_text
    if order.status == Order.Status.FAILED:
        return order.error[:LONGEST]
    if order.status == Order.Status.PAUSED:
        return order.error[:LONGEST] or "The comparison goes on once it is resumed, or stopped."
    return ended_with(order)


def reached(order: Order) -> str:
    return f"step {count(order.done)} of {count(order.total)}" if order.total and order.unit == "steps" else ""


def left(order: Order) -> str:
    seconds = seconds_left(order) if 0 < order.share < 1 else None
    return f"{duration(seconds)} left" if seconds else ""


def ended_with(order: Order) -> str:
    loss = order.latest.get("validation_loss", order.latest.get("loss"))
    name = "validation loss" if "validation_loss" in order.latest else "loss"
    return f"{name} {number(loss)}" if isinstance(loss, int | float) else ""


def sentence_of(comparison: Comparison, orders: list[Order], prospects: dict[UUID, Prospect], turns: Turns | None) -> str:
    ended = sum(map(has_ended, orders))
    many = f"{ended} of {len(orders)} run{'' if len(orders) == 1 else 's'}"
    if comparison.state == Comparison.State.RUNNING:
        if ended == len(orders):
            return "All runs have ended. Measuring begins in a moment"
        first = next((prospect for prospect in prospects.values() if prospect.order in orders), None)
        if turns and first and not any(order.status in Order.ACTIVE for order in orders) and not ended:
            return f"Nothing has begun yet · {words(first, turns)}"
        seconds = seconds_for_all(orders, prospects, turns)
        return f"{many} {'has' if ended == 1 else 'have'} ended" + (f", about {duration(seconds)} left" if seconds else "")
    if comparison.state == Comparison.State.MEASURING:
        return measuring(comparison.order)
    if comparison.state == Comparison.State.STOPPED:
        return f"Stopped after {many}"
    if comparison.state == Comparison.State.DONE and comparison.ended_at:
        took = duration(comparison.ended_at - comparison.created_at)
        return f"{len(orders)} run{'' if len(orders) == 1 else 's'}, trained and measured within {took}"
    return ""


def measuring(order: Order | None) -> str:
    if order is None or order.status in Order.WAITING:
        return "All runs have ended. Measuring waits for a free worker"
    seconds = seconds_left(order) if 0 < order.share < 1 else None
    return " · ".join(
        ["All runs have ended", order.phase_text or "Measuring the results", *([f"{duration(seconds)} left"] if seconds else [])]
    )


def seconds_for_all(orders: list[Order], prospects: dict[UUID, Prospect], turns: Turns | None) -> float | None:
    """Until the last of them ends, as the queue is expected to go; None where that is not known of each."""
    ends: list[float] = []
    for order in orders:
        if has_ended(order):
            continue
        seconds = seconds_left(order)
        if order.status in Order.WAITING:
            prospect = prospects.get(order.pk)
            if turns is None or prospect is None or prospect.starts_at is None or seconds is None:
                return None
            seconds += (prospect.starts_at - turns.now).total_seconds()
        if seconds is None or not order.is_live:
            return None
        ends.append(seconds)
    return max(ends, default=None)
