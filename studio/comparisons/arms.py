"""One of the ways that are compared, before it stands in the database, and what all of a comparison have in common."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from studio.basemodels.models import BaseModel
from studio.datasets.models import DatasetVersion

BUDGET = ("epochs", "max_steps", "max_length")
"""Settings that all arms have alike: with the effective batch they say how many tokens each one reads."""
NAMES = {"epochs": "the epochs", "max_steps": "the step limit", "max_length": "the max length", "effective_batch": "the rows in a step"}


@dataclass(frozen=True)
class ArmSpec:
    """A plugin with its settings, on a base model and rows."""

    name: str
    plugin: str
    config: dict[str, Any]
    """As far as it differs from the plugin's own defaults; the seed is each run's."""
    base: BaseModel
    version: DatasetVersion
    is_reference: bool = False


def budget_of(config: dict[str, Any]) -> dict[str, Any]:
    """How much an arm with this whole config reads: `{"epochs", "max_steps", "max_length", "effective_batch"}`."""
    batch = {"effective_batch": config.get("batch_size", 1) * config.get("gradient_accumulation", 1)}
    return {name: config[name] for name in BUDGET if name in config} | batch


def in_common(budgets: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """What the budgets share, and the words for what they do not."""
    first = budgets[0]
    unequal = [name for name in first if any(budget.get(name) != first[name] for budget in budgets)]
    return {name: value for name, value in first.items() if name not in unequal}, [NAMES[name] for name in unequal]
