"""What may speak against a run whatever is trained: its rows, its steps, its memory. Sentences for the form; no torch."""

import math
from collections.abc import Callable
from typing import Any

from studio.training.config import TrainConfig
from studio.training.facts import DatasetFacts, Estimate, HostFacts, Issue, ModelFacts
from studio.training.memory import available_memory, changes, changes_in_words, fitting_changes, planned_steps

FEWEST_ROWS = 10
LEARNS_THE_SAME = {"gradient_checkpointing", "batch_size", "gradient_accumulation"}


def row_issues(config: TrainConfig, base: ModelFacts, data: DatasetFacts) -> list[Issue]:
    """Too few rows, rows that are cut, none to look at."""
    issues = []
    if data.train < FEWEST_ROWS:
        issues.append(error("", f"There are only {data.train} training rows. At least {FEWEST_ROWS} are needed, and 100 to see an effect."))
    if config.max_length > base.context_length:
        issues.append(error("max_length", f"{spaced(config.max_length)} is more than this model's {spaced(base.context_length)}."))
    elif data.tokens and data.tokens.p95 > config.max_length:
        longest, limit = spaced(data.tokens.longest), spaced(config.max_length)
        text = f"More than one row in twenty is longer than {limit} tokens and will be cut. The longest has {longest}."
        issues.append(warning("max_length", text))
    if data.tools and base.takes_tools is False:
        rows = "a row has" if data.tools == 1 else f"{spaced(data.tools)} rows have"
        issues.append(error("base_model", f"This model's template has no tool calls. Choose another base model: {rows} some."))
    if data.validation == 0:
        text = "There are no validation rows, so nothing will show when it starts to learn by heart."
        issues.append(Issue(level="note", message=text))
    return issues


def step_issues(config: TrainConfig, data: DatasetFacts) -> list[Issue]:
    """Steps that are too few, too large, or mostly warm-up."""
    issues = []
    at_once = config.batch_size * config.gradient_accumulation
    if at_once > data.train >= FEWEST_ROWS:
        text = f"One step would read {at_once} rows, and there are only {data.train}. Choose a smaller batch."
        issues.append(warning("batch_size", text))
    steps = planned_steps(config, rows=data.train)
    if steps < 10 <= data.train:
        text = f"That is only {steps} {'step' if steps == 1 else 'steps'}. More epochs or a smaller batch learn more."
        issues.append(warning("epochs", text))
    elif math.ceil(config.warmup * steps) * 2 > steps:
        issues.append(warning("warmup", "More than half of the run would be warm-up. 0.05 suits most runs."))
    return issues


def memory_issues(
    estimate: Callable[[Any, ModelFacts, DatasetFacts, HostFacts], Estimate],
    config: Any,
    base: ModelFacts,
    data: DatasetFacts,
    host: HostFacts,
) -> list[Issue]:
    """That it does not fit, beside the first setting whose change would make it fit."""
    needed, there = estimate(config, base, data, host).memory.high, available_memory(host)
    if needed <= there:
        return []
    text = f"Needs about {gigabytes(needed)}, the largest worker has {gigabytes(there)}."
    fitting = fitting_changes(estimate, config, base, data, host)
    if fitting is None:
        return [error("max_length", f"{text} Choose a smaller base model.")]
    less = gigabytes(estimate(fitting, base, data, host).memory.high)
    changed = changes(config, fitting)
    same = "" if changed.keys() - LEARNS_THE_SAME else " and learns the same"
    return [error(next(iter(changed)), f"{text} With {changes_in_words(config, fitting)} it needs about {less}{same}.")]


def error(field: str, message: str) -> Issue:
    return Issue(level="error", field=field, message=message)


def warning(field: str, message: str) -> Issue:
    return Issue(level="warning", field=field, message=message)


def spaced(number: int) -> str:
    """12 345: thousands apart, on one line."""
    return f"{number:,}".replace(",", "\N{NO-BREAK SPACE}")


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.0f} GB" if size >= 1e10 else f"{size / 1e9:.1f} GB"
