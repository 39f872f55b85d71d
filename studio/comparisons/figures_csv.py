"""All figures of a comparison as CSV: a line for each arm, seed and row, and after them the summary of each arm."""

import csv
import io
from collections.abc import Iterator
from typing import Any

import numpy as np

from studio.cells import cell
from studio.comparisons.built import with_built
from studio.comparisons.figures import ArmFigures, Figure, Verdict
from studio.comparisons.measured import Measured, Set
from studio.comparisons.models import Comparison
from studio.comparisons.taken import Costs, Spread

HEAD = ("kind", "arm", "name", "seed", "set", "row", "loss", "tokens", "characters", "kl", "figure", "value", "low", "high")
SETS: tuple[Set, ...] = ("held_out", "probe")


def as_csv(comparison: Comparison, costs: Costs | None) -> Iterator[bytes]:
    """Rows as they were measured, which a verdict is computed from, and the figures that came of it. Base models have arm -1 and below."""
    names = dict(comparison.arms.values_list("number", "name"))
    return pieces(
        Measured.of(comparison), with_built(comparison, Verdict.of(comparison)), names, costs
    )  # all is read before the first line is sent


def pieces(measured: Measured, verdict: Verdict | None, names: dict[int, str], costs: Costs | None) -> Iterator[bytes]:
    yield lines([HEAD])
    for of in SETS:
        yield from of_rows(measured, of, names)
    if verdict is not None:
        yield lines(["summary", arm.number, cell(arm.name), *[""] * 7, *figure] for arm in verdict.arms for figure in summary(arm, costs))


def of_rows(measured: Measured, of: Set, names: dict[int, str]) -> Iterator[bytes]:
    numbers, losses, tokens, characters = measured.rows(of), measured.losses(of), measured.tokens(of), measured.characters(of)
    kl = measured.kl() if of == "probe" else {}
    for key in measured.keys:
        arm, seed = key
        name = cell(names.get(arm, "Base model"))
        divergence = kl.get(key, np.full(len(numbers), np.nan))
        each = zip(numbers.tolist(), losses[key].tolist(), tokens[key].tolist(), characters[key].tolist(), divergence.tolist(), strict=True)
        yield lines(
            ["row", arm, name, seed, of, row, loss, int(read), int(long), "" if far != far else far, "", "", "", ""]
            for row, loss, read, long, far in each
        )


def summary(arm: ArmFigures, costs: Costs | None) -> Iterator[tuple[Any, ...]]:
    """(figure, value, low, high) of everything that is known of an arm; the ends of the 95 % interval are empty where there is none."""
    for of in (arm, arm.took):
        for name in type(of).model_fields:
            value = getattr(of, name)
            if isinstance(value, Figure):
                yield name, value.value, value.low, value.high
            elif isinstance(value, Spread):
                yield called(arm, name), *over(value)
    for metric, figure in arm.scores.items():
        yield cell(metric), figure.value, figure.low, figure.high
    for name, size in arm.built.items():
        yield f"gguf_size {name} built", size, "", ""
    if costs and arm.number in costs.by_arm:
        yield f"cost {costs.currency}", *over(costs.by_arm[arm.number])


def called(arm: ArmFigures, name: str) -> str:
    """The figure's name; of a GGUF file also whether it was built."""
    built = {"gguf_size": arm.gguf_built, "gguf_adapter_size": arm.gguf_adapter_built}
    return f"{name} {'built' if built[name] else 'estimated'}" if name in built else name


def over(told: Spread) -> tuple[Any, ...]:
    return told.mean, "" if told.low is None else told.low, "" if told.high is None else told.high


def lines(values: Any) -> bytes:
    written = io.StringIO()
    csv.writer(written).writerows(values)
    return written.getvalue().encode()
