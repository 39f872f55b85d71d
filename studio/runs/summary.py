"""What came of a run, in sentences: what it learnt from, how its losses moved, what it took."""

from dataclasses import dataclass
from typing import Any

from studio.orders.models import Order
from studio.runs.advice import Advice, Failure, failure_of, try_next, unread
from studio.runs.costs import cost_words
from studio.runs.curve import Curve
from studio.runs.models import Run
from studio.training import Estimate
from studio.workspaces.templatetags.studio import count, duration, filesize, number, percent

WORSE = 0.05
"""Share by which the validation loss has to lie above that before training; less may be chance."""


@dataclass(frozen=True)
class Summary:
    """What an ended run's page leads with."""

    sentences: list[str]
    advice: list[Advice]
    failure: Failure
    is_worse: bool = False
    """Whether the rows that it never saw say that it knew more before training."""


def summary_of(run: Run, events: list[dict[str, Any]], *, costs: bool) -> Summary | None:
    """From the events that its page is sent; None while it goes on or waits. `costs` says whether the reader may know what it cost."""
    order = run.order
    if order.is_live or order.status == Order.Status.PAUSED:
        return None
    if order.status == Order.Status.FAILED:
        return Summary([], [], failure_of(run))
    curve = Curve.of(events)
    if not curve.losses:
        return None
    said = [learnt_from(run, curve), training(curve), *validation(curve), *taken(run, curve, costs=costs)]
    return Summary(said, try_next(run, curve), Failure(), is_worse=curve.turned and curve.last_look > curve.first_look * (1 + WORSE))


def learnt_from(run: Run, curve: Curve) -> str:
    rows = (run.dataset_version.facts or {}).get("split", {}).get("train", 0)
    epochs, tokens = curve.latest.get("epoch"), curve.latest.get("tokens")
    read = (
        f", which read them {epochs:.1f} times" if epochs and epochs >= 1 else f", which read {percent(epochs)} of them" if epochs else ""
    )
    spoken = f" ({count(tokens)} tokens)" if tokens else ""
    learnt = f"It learnt from {rows:,} rows of {run.dataset_version} in {curve.steps:,} steps{read}{spoken}."
    return f"{learnt} It took {duration(run.order.seconds)}."


def training(curve: Curve) -> str:
    if curve.gain < 0.01:
        return f"The training loss did not fall: it was {number(curve.start)} at first and {number(curve.end)} in the end."
    return f"The training loss fell from {number(curve.start)} to {number(curve.end)}, by {percent(curve.gain)}."


def validation(curve: Curve) -> list[str]:
    """How it did on rows that it never learnt from; nothing where nobody looked."""
    if not curve.looks:
        return []
    step, lowest = curve.best
    first, last = curve.first_look, curve.last_look
    if len(curve.looks) == 1:
        return [f"On rows that it never saw, the loss was {number(last)}."]
    stayed = number(first) == number(last)
    how = f"stayed at {number(last)}" if stayed else f"went from {number(first)} to {number(last)}"
    moved = f"On rows that it never saw, the loss {how}"
    if curve.turned:
        when = f"at step {step:,}" if step else "before training"
        return [f"{moved}; it was lowest {when}, with {number(lowest)}. {why_it_rose(curve)}"]
    gap = last / curve.end if curve.end > 0 else 1.0
    close = ", close to the training loss" if 0.9 < gap < 1.15 else ""
    if stayed or unread(curve):
        return [f"{moved}{close}."]
    return [f"{moved}{close}. It did not learn its rows by heart: the loss there has not risen again."]


def why_it_rose(curve: Curve) -> str:
    """Rows are learnt by heart only once they are read again; before, the steps were too large."""
    if curve.best[0] and not unread(curve):
        return "It has begun to learn its rows by heart."
    return "Its steps seem to be too large: it has not read its rows often enough to know them by heart."


def taken(run: Run, curve: Curve, *, costs: bool) -> list[str]:
    """Memory against what was expected; energy where the device tells; cost where a price is set."""
    said = []
    if curve.peak:
        said.append(f"It took {filesize(curve.peak)} of memory at the peak{expected(run, curve.peak)}.")
    if energy := curve.latest.get("energy"):
        said.append(f"The device used {number(energy / 1000)} kWh." if energy >= 100 else f"The device used {number(energy)} Wh.")
    if costs and (cost := cost_words(run)):
        said.append(cost)
    return said


def expected(run: Run, peak: float) -> str:
    if not run.estimate:
        return ""
    memory = Estimate.model_validate(run.estimate).memory
    foreseen = f"; {filesize(memory.low)} to {filesize(memory.high)} were expected"
    if memory.low <= peak <= memory.high:
        return foreseen
    off = peak / memory.high - 1 if peak > memory.high else 1 - peak / memory.low
    return f"{foreseen}, so it was {percent(off)} {'more' if peak > memory.high else 'less'}"
