"""What the form of a sweep offers to search: a plugin's numbers and choices, with a range that makes sense; and what was typed for each."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.http import QueryDict

from studio.comparisons.sweeping import FIXED, MOST, OTHER_LOSS, Range, Value, no_whole_numbers
from studio.errors import UserError
from studio.training import TrainingPlugin
from studio.training.form import FormField, as_text, check_config, form_fields, typed_value

KINDS = ("number", "integer", "choice", "bool")
SAME = {"evaluate_every", "save_every", "gradient_checkpointing", "processes"}
"""They change how a result is computed and not what it is, so that a form does not offer them."""
AT_FIRST = ("learning_rate",)
FROM_TO = re.compile(r"(\S+)\s+(?:to|-|–)\s+(\S+)")
FURTHER = {True: 5.0, False: 2.0}
"""How many times the usual value a range reaches to either side, by whether multiples are what matters."""
WHOLE = 4.0
"""The same of whole numbers whose multiples matter, such as a rank."""


@dataclass(frozen=True)
class Searched:
    """A setting as the form shows it."""

    field: FormField
    is_chosen: bool
    text: str
    """As it was typed; empty takes `usual`."""
    usual: str
    choices: tuple[tuple[str, bool], ...] = ()
    """(value, whether it is among those that are tried), of a choice."""
    error: str = ""

    @property
    def name(self) -> str:
        return field_of(self.field.name)


def field_of(setting: str) -> str:
    return f"search_{setting}"


def settings_of(plugin: TrainingPlugin) -> list[FormField]:
    return [field for field in form_fields(plugin.Config) if field.kind in KINDS and field.name not in FIXED | SAME | OTHER_LOSS]


def chosen_in(sent: QueryDict, plugin: TrainingPlugin, *, is_sent: bool) -> list[str]:
    """Names of the settings that are searched, as the plugin orders them. What another plugin knows alone is left out."""
    wanted = sent.getlist("search") if is_sent or "search" in sent else AT_FIRST
    return [field.name for field in settings_of(plugin) if field.name in wanted]


def offered(
    sent: QueryDict, plugin: TrainingPlugin, *, is_sent: bool, usual: Mapping[str, Any], errors: Mapping[str, str]
) -> tuple[list[Searched], list[Searched]]:
    """What the form shows, and what it folds away until it is chosen or wrong."""
    chosen = chosen_in(sent, plugin, is_sent=is_sent)
    found = []
    for field in settings_of(plugin):
        name, values = field_of(field.name), proposed(field, usual.get(field.name, field.default))
        picked = sent.getlist(name) if field.name in chosen and is_sent else list(field.choices)
        choices = tuple((choice, choice in picked) for choice in field.choices)
        found.append(Searched(field, field.name in chosen, sent.get(name, ""), words(values), choices, errors.get(name, "")))
    return [each for each in found if not each.field.advanced], [each for each in found if each.field.advanced]


def space_of(sent: QueryDict, plugin: TrainingPlugin, *, is_sent: bool, usual: Mapping[str, Any], by: str) -> dict[str, Any]:
    """What a sweep is told of each setting that was chosen. Raises UserError beside each that cannot be read."""
    chosen = chosen_in(sent, plugin, is_sent=is_sent)
    if not chosen:
        raise UserError("There is nothing to search.", fields={"search": "Choose at least one setting."})
    space: dict[str, Any] = {}
    errors: dict[str, str] = {}
    for field in settings_of(plugin):
        if field.name not in chosen:
            continue
        try:
            values = values_of(field, sent, plugin, is_sent=is_sent, usual=usual.get(field.name, field.default))
            values = points(values, whole=field.kind == "integer") if by == "grid" and isinstance(values, Range) else values
            space[field.name] = values.model_dump() if isinstance(values, Range) else values
        except ValueError as problem:
            errors[field_of(field.name)] = str(problem)
    if errors:
        raise UserError("The sweep cannot be used.", fields=errors)
    return space


def values_of(field: FormField, sent: QueryDict, plugin: TrainingPlugin, *, is_sent: bool, usual: Any) -> Range | list[Value]:
    """As it was typed, or what is proposed. Raises ValueError with a sentence."""
    if field.kind == "choice":
        picked = [choice for choice in field.choices if choice in sent.getlist(field_of(field.name))] if is_sent else list(field.choices)
        if len(picked) < 2:
            raise ValueError("Choose at least two of them.")
        return list(picked)
    text = sent.get(field_of(field.name), "").strip()
    if field.kind == "bool" or not text:
        return proposed(field, usual)
    if ends := FROM_TO.fullmatch(text):
        low, high = (number(field, end, plugin) for end in ends.groups())
        if not low < high:
            raise ValueError("The low end must be below the high end.")
        if field.log and low <= 0:
            raise ValueError("The range is spread by its logarithm, so its low end must be above 0.")
        found = Range(low=low, high=high, log=field.log)
        if field.kind == "integer" and (said := no_whole_numbers(found)):
            raise ValueError(said)
        return found
    parts = [part for part in re.split(r"[,;\s]+", text) if part]
    listed: list[Value] = [number(field, part, plugin) for part in parts[: MOST + 1]]
    if len(set(listed)) < len(listed):
        raise ValueError("One of them stands there twice.")
    if not 2 <= len(listed) <= MOST:
        raise ValueError(f"Give a range, such as {words(proposed(field, usual))}, or 2 to {MOST} values with commas between them.")
    return listed


def number(field: FormField, text: str, plugin: TrainingPlugin) -> float | int:
    try:
        value: float | int = typed_value(field, text)
    except ValueError as problem:
        raise ValueError(field.rule) from problem
    if said := check_config(plugin.Config, {field.name: value})[1].get(field.name):
        raise ValueError(said)
    return value


def proposed(field: FormField, usual: Any) -> Range | list[Value]:
    """What is worth trying: all of a choice; of a number what its setting says, else around its usual value, within its bounds."""
    if field.kind == "choice":
        return list(field.choices)
    if field.kind == "bool":
        return [False, True]
    low, high = field.search or around(field, float(usual or 0))
    if field.log and low <= 0:  # nothing has no logarithm
        low, high = (1.0, max(2.0, high)) if field.kind == "integer" else (high / 100, high)
    return Range(low=low, high=high, log=field.log)


def around(field: FormField, usual: float) -> tuple[float, float]:
    whole = field.kind == "integer"
    times = WHOLE if whole and field.log else FURTHER[field.log]
    low, high = (usual / times, usual * times) if usual > 0 else (usual, usual + widest(field, usual))
    if whole:
        low, high = float(math.floor(low)), float(math.ceil(high))
    else:
        low, high = float(f"{low:.2g}"), float(f"{high:.2g}")
    low = max(low, field.ge if field.ge is not None else low)
    high = min(high, field.le if field.le is not None else high)
    if field.lt is not None and high >= field.lt:
        high = (max(low, usual) + field.lt) / 2
    if field.gt is not None and low <= field.gt:
        low = (field.gt + high) / 2
    return (low, high) if low < high else (low, low + 1)


def widest(field: FormField, usual: float) -> float:
    """How far a range reaches above nothing: a tenth of the way to where the setting ends, and 8 at most of whole numbers."""
    ends = field.le if field.le is not None else field.lt
    tenth = (ends - usual) / 10 if ends is not None and ends > usual else 1.0
    return max(1.0, min(8.0, tenth)) if field.kind == "integer" else tenth


def points(values: Range, *, whole: bool) -> list[Value]:
    """What a grid takes of a range: its ends, and what lies in the middle, where there is something between them."""
    middle = math.sqrt(values.low * values.high) if values.log else (values.low + values.high) / 2
    low, high = (round(values.low), round(values.high)) if whole else (values.low, values.high)
    shown = (float(f"{middle:.{digits}g}") for digits in range(2, 18))
    rounded = (round(value) if whole else value for value in shown)
    return [low, *[value for value in rounded if low < value < high][:1], high]


def words(values: Range | Sequence[Value]) -> str:
    """`0.00004 to 0.001`, as it may be typed."""
    if isinstance(values, Range):
        return f"{as_text(values.low)} to {as_text(values.high)}"
    return ", ".join(as_text(value) for value in values)
