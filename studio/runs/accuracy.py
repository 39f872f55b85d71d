"""How near estimates came to what runs took, worker by worker, and what the next estimate learns from it.

Compared are runs of one workspace, on one machine, trained in one way: each way estimates by a formula of its own. A worker's name ends in
the number of its process, another one after every start; what the machine has taught holds on.
"""

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from studio.orders.models import Order
from studio.runs.models import Run
from studio.training import Estimate, Memory, Span
from studio.workspaces.models import Workspace

Figure = Literal["memory", "seconds"]
FIGURES: tuple[Figure, ...] = get_args(Figure)
LAST = 12
DOUBT = 4
"""Runs that the formula's own word counts for: after so many runs half of what they were off by is believed."""
BOUNDS = (0.7, 1.5)
"""Further than that no correction goes: the reason is then another one than the machine."""
SLIGHT = 0.01
"""A correction below one per cent is not worth a word."""
PROCESS = re.compile(r"-\d+$")
"""End of a worker's name, as `studio.supervisor.names` makes it."""
PARTS = ("weights", "adapter", "gradients", "optimizer", "activations", "logits", "overhead")


@dataclass(frozen=True)
class Accuracy:
    """What the newest runs of one way to train took on one worker, as ratios to what was foreseen; newest first."""

    shown: dict[Figure, list[float]]
    """Against the figures that people saw."""
    formula: dict[Figure, list[float]]
    """Against the plugin's own figures, before anything was corrected."""

    @property
    def correction(self) -> dict[Figure, float]:
        """What to multiply the plugin's next figures by; without the figures of which nothing is known."""
        return {figure: learnt_factor(ratios) for figure, ratios in self.formula.items() if ratios}

    @property
    def sentence(self) -> str:
        """For the form: "The last 12 such runs on this worker took -4…+9 % of memory against the estimate, and ... of time."."""
        ranges = {figure: spread(ratios) for figure, ratios in self.shown.items() if ratios}
        if "memory" not in ranges:
            return ""
        count = len(self.shown["memory"])
        runs = f"The last {count} such runs" if count > 1 else "The last such run"
        time = f", and {ranges['seconds']} of the time" if "seconds" in ranges else ""
        return f"{runs} on this worker, against the estimate: {ranges['memory']} of the memory{time}."


def learnt_factor(ratios: Sequence[float]) -> float:
    """The median of measured over foreseen, drawn towards 1 where there are few runs, within BOUNDS."""
    believed = len(ratios) / (len(ratios) + DOUBT)
    factor = math.exp(believed * math.log(statistics.median(ratios)))
    return min(max(factor, BOUNDS[0]), BOUNDS[1])


def spread(ratios: Sequence[float]) -> str:
    """From the lowest to the highest, as people read it: "-4…+9 %"."""
    low, high = (round(100 * (ratio - 1)) for ratio in (min(ratios), max(ratios)))
    return f"{signed(low)} %" if low == high else f"{signed(low)}…{signed(high)} %"


def signed(percent: int) -> str:
    return f"{percent:+d}".replace("-", "\N{MINUS SIGN}") if percent else "0"


def accuracy_on(worker: str, *, plugin: str, workspace: Workspace) -> Accuracy:
    """Of the last LAST runs that went through in one go; empty lists where there are none yet."""
    runs = Run.objects.filter(
        project__client__workspace=workspace,
        plugin=plugin,
        order__worker__regex=rf"^{re.escape(PROCESS.sub('', worker))}(-[0-9]+)?$",
        order__status=Order.Status.SUCCEEDED,
        order__attempt=1,  # what was taken up again took its memory and time for two
        measured__isnull=False,
        estimate__isnull=False,
    )
    runs = runs.only("estimate", "correction", "measured").order_by("-order__ended_at")[:LAST]
    shown: dict[Figure, list[float]] = {figure: [] for figure in FIGURES}
    formula: dict[Figure, list[float]] = {figure: [] for figure in FIGURES}
    for run in runs:
        for figure, foreseen in foreseen_figures(Estimate.model_validate(run.estimate)).items():
            took = (run.measured or {}).get(figure, 0)
            if foreseen > 0 and took > 0:
                shown[figure].append(took / foreseen)
                formula[figure].append(took / foreseen * run.correction.get(figure, 1.0))
    return Accuracy(shown, formula)


def foreseen_figures(estimate: Estimate) -> dict[Figure, float]:
    """One number for each range: the sum of the memory's parts, and the middle of the times, in proportion."""
    return {
        "memory": float(sum(getattr(estimate.memory, part) for part in PARTS)),
        "seconds": math.sqrt(estimate.seconds.low * estimate.seconds.high),
    }


def corrected(estimate: Estimate, correction: dict[Figure, float]) -> Estimate:
    """The estimate with what was learnt on its worker, and a reason that says so."""
    memory, seconds = correction.get("memory", 1.0), correction.get("seconds", 1.0)
    said = [
        f"{change} {of}"
        for factor, change, of in ((memory, in_words(memory), "memory"), (seconds, in_words(seconds), "time"))
        if abs(factor - 1) >= SLIGHT
    ]
    reasons = [f"Runs on this worker took {' and '.join(said)} than first thought, so the estimate is corrected by that."] if said else []
    return estimate.model_copy(
        update={
            "memory": Memory(**{name: round(value * memory) for name, value in estimate.memory}),
            "seconds": Span(low=estimate.seconds.low * seconds, high=estimate.seconds.high * seconds),
            "reasons": [*estimate.reasons, *reasons],
        }
    )


def in_words(factor: float) -> str:
    return f"{abs(factor - 1):.0%} {'more' if factor > 1 else 'less'}".replace("%", " %")


def record_measured(run: Run) -> None:
    """Keeps what a run took once it has ended, with its result. Time counts only where it ran as long as it was to."""
    order = run.order
    measured = {"memory": order.latest["memory"]} if order.latest.get("memory") else {}
    if order.status == Order.Status.SUCCEEDED and not run.config.get("early_stopping"):
        measured["seconds"] = round(order.seconds, 1)
    run.measured = measured
    run.save(update_fields=["measured"])
