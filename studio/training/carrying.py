"""Takes the settings of one way to train over to another: what fits stays, the learning rate is rescaled, and each change is told."""

from dataclasses import dataclass
from typing import Any

from studio.training.form import as_text, check_config, form_fields
from studio.training.plugin import TrainingPlugin

ADAPTER_TIMES = 10.0
"""An adapter's learning rate against that of all weights (Schulman et al. 2025, "LoRA Without Regret"; Axolotl's, Unsloth's examples)."""


@dataclass(frozen=True)
class Carried:
    """Settings for the new way to train, and what differs from the old ones, in sentences."""

    values: dict[str, Any]
    notices: list[str]


def carry(config: dict[str, Any], *, old: TrainingPlugin, new: TrainingPlugin) -> Carried:
    """What of `config`, settings of `old`, goes on with `new`. What is not named in it keeps the new one's default."""
    before = {field.name: field for field in form_fields(old.Config)}
    after = {field.name: field for field in form_fields(new.Config)}
    values, notices, missing = {}, [], []
    for name, value in config.items():
        if name not in after:
            if name in before and value != before[name].default:
                missing.append(before[name].label)
        elif check_config(new.Config, {name: value})[1].get(name):
            notices.append(f"{after[name].label} cannot be {as_text(value)} with {new.title}, so it is {after[name].text} now.")
        else:
            values[name] = value
    if "learning_rate" in values and (factor := rescaling(old.method, new.method)) != 1.0:
        values["learning_rate"] = rescaled = float(f"{values['learning_rate'] * factor:.6g}")
        notices.insert(0, f"The learning rate {as_text(config['learning_rate'])} became {as_text(rescaled)}: {reason(new.method)}.")
    if missing:
        notices.append(f"{new.title} has no {', '.join(missing)}: left out.")
    return Carried(values, notices)


def rescaling(old: str, new: str) -> float:
    """By how much a learning rate grows from one method to another."""
    return {("lora", "full"): 1 / ADAPTER_TIMES, ("full", "lora"): ADAPTER_TIMES}.get((old, new), 1.0)


def reason(new: str) -> str:
    return (
        "all weights need about a tenth of what an adapter needs"
        if new == "full"
        else "an adapter needs about ten times what all weights need"
    )
