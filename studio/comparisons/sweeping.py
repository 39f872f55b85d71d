"""A sweep: settings drawn from a space, all at once by grid or chance, or one after the other by what the earlier ones came to."""

import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from studio.errors import UserError
from studio.training import TrainingPlugin
from studio.training.form import as_text, check_config, form_fields

MOST = 24
MOST_SETTINGS = 8
AT_FIRST = 2
"""Arms that TPE begins with, before any has come to something."""
BY_CHANCE = 5
"""Of its arms, so many are drawn by chance before the estimator has something to go by."""
TRIES = 8
"""Draws for each arm that is wanted, before there are fewer."""
ATTEMPTS = 32
"""To find one further arm."""
FIXED = {"epochs", "max_steps", "max_length", "batch_size", "gradient_accumulation", "seed", "early_stopping", "keep"}
"""What all arms have alike, so that nobody may sweep over it."""
OTHER_LOSS = {"learn_from", "preference", "preference_beta", "preference_margin"}
"""They change what the validation loss is of, so that arms which differ in them cannot be told apart by it."""
Value = float | int | str | bool
Hindrance = Callable[[dict[str, Any]], str]
"""Why a point cannot be trained; empty where it can."""


class Range(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    low: float
    high: float
    log: bool = False
    """Whether its logarithm is spread evenly, as suits learning rates."""

    @model_validator(mode="after")
    def rising(self) -> "Range":
        if not self.low < self.high:
            raise ValueError("The low end must be below the high end.")
        if self.log and self.low <= 0:
            raise ValueError("A range by logarithms begins above 0.")
        return self


class Sweep(BaseModel):
    """What Comparison.sweep holds."""

    model_config = ConfigDict(extra="forbid")

    by: Literal["grid", "random", "tpe"]
    space: dict[str, Annotated[list[Value], Field(min_length=1, max_length=MOST)] | Range] = Field(min_length=1, max_length=MOST_SETTINGS)
    most: int = Field(12, ge=2, le=MOST)
    """Arms in all."""
    prune: bool = True


def new_sweep_of(told: Mapping[str, Any], plugin: TrainingPlugin) -> Sweep:
    """As `sweep_of`, for a sweep that is about to begin: an earlier one that searches OTHER_LOSS goes on as it began."""
    found = sweep_of(told, plugin)
    if wrong := sorted(OTHER_LOSS & found.space.keys()):
        why = "It changes what the validation loss means, so its values cannot be compared by that loss. Give it one value in the arm."
        raise UserError("The sweep cannot be used.", fields={f"sweep.{name}": why for name in wrong})
    return found


def sweep_of(told: Mapping[str, Any], plugin: TrainingPlugin) -> Sweep:
    """A sweep as it may be stored. Raises UserError beside what cannot be."""
    space = told.get("space")
    if isinstance(space, Mapping) and len(space) > MOST_SETTINGS:
        raise UserError("The sweep cannot be used.", fields={"sweep.space": f"Choose at most {MOST_SETTINGS} settings."})
    try:
        found = Sweep.model_validate(told)
    except ValidationError as problem:
        first = next((fault for fault in problem.errors() if fault["type"] == "value_error"), problem.errors()[0])
        place = ".".join(str(part) for part in first["loc"][:2] if isinstance(part, str))
        said = str(first["msg"]).removeprefix("Value error, ").rstrip(".") + "."
        raise UserError("The sweep cannot be used.", fields={f"sweep.{place}" if place else "sweep": said}) from problem
    known = {each.name: each for each in form_fields(plugin.Config)}
    for name, values in found.space.items():
        if name not in known or name in FIXED:
            why = "All arms have it alike." if name in FIXED else f"{plugin.title} has no such setting."
            raise UserError("The sweep cannot be used.", fields={f"sweep.{name[:60]}": why})
        field = known[name]
        if isinstance(values, Range) and (found.by == "grid" or field.kind not in ("number", "integer")):
            raise UserError("The sweep cannot be used.", fields={f"sweep.{name}": "List its values: a range cannot be used here."})
        if isinstance(values, Range) and field.kind == "integer" and (said := no_whole_numbers(values)):
            raise UserError("The sweep cannot be used.", fields={f"sweep.{name}": said})
        for value in [values.low, values.high] if isinstance(values, Range) else values:
            if errors := check_config(plugin.Config, {name: typed(value, field.kind)})[1]:
                raise UserError("The sweep cannot be used.", fields={f"sweep.{name}": next(iter(errors.values()))})
    if found.by == "grid" and math.prod(len(cast("list[Value]", values)) for values in found.space.values()) > MOST:
        raise UserError("The sweep cannot be used.", fields={"sweep.space": f"The grid has more than {MOST} points. List fewer values."})
    return found


def no_whole_numbers(values: Range) -> str:
    """Why whole numbers cannot be drawn from a range, as a sentence; empty where they can."""
    low, high = round(values.low), round(values.high)
    if low >= high:
        return "These are whole numbers: the low end must be at least 1 below the high end."
    return "A range of whole numbers by logarithms begins at 1 or above." if values.log and low < 1 else ""


def typed(value: Any, kind: str) -> Any:
    """A number as the setting's own type: 16.0 is a rank of 16."""
    if kind == "integer" and isinstance(value, float):
        return round(value)
    return float(value) if kind == "number" and isinstance(value, int) and not isinstance(value, bool) else value


def first_points(sweep: Sweep, plugin: TrainingPlugin, hindrance: Hindrance) -> list[dict[str, Any]]:
    """What the first arms are: all of a grid or of a draw, the first two of TPE.

    What is drawn and cannot be trained is drawn anew, unless nothing that was drawn can: whoever makes the arms then says why of each.
    """
    names = list(sweep.space)
    if sweep.by == "grid":
        return [whole(dict(zip(names, values, strict=True)), sweep, plugin) for values in itertools.product(*sweep.space.values())]
    chance, wanted = random.Random(0), AT_FIRST if sweep.by == "tpe" else sweep.most
    found: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    for _ in range(wanted * TRIES):
        point = whole({name: drawn(values, chance) for name, values in sweep.space.items()}, sweep, plugin)
        if point not in found and point not in refused:
            (refused if hindrance(point) else found).append(point)
        if len(found) == wanted or len(refused) == MOST:
            break
    return found or refused[:wanted]


def drawn(values: Any, chance: random.Random) -> Any:
    if not isinstance(values, Range):
        return chance.choice(values)
    if values.log:
        return math.exp(chance.uniform(math.log(values.low), math.log(values.high)))
    return chance.uniform(values.low, values.high)


def whole(point: Mapping[str, Any], sweep: Sweep, plugin: TrainingPlugin) -> dict[str, Any]:
    """A point with figures that people can read, of the settings' types; alpha goes along with the rank unless it is swept too."""
    kinds = {each.name: each.kind for each in form_fields(plugin.Config)}
    found = {name: typed(readable(value, sweep.space[name]), kinds[name]) for name, value in point.items()}
    if "rank" in found and "alpha" in kinds and "alpha" not in found:
        found["alpha"] = 2.0 * found["rank"]
    return found


def readable(value: Any, values: Any) -> Any:
    """What was drawn from a range, in three digits or as many more as a narrow one needs; what was listed stays as it is."""
    if not isinstance(values, Range) or not isinstance(value, float):
        return value
    value = min(max(value, values.low), values.high)  # the logarithm and back again may miss an end by a hair
    shown = (float(f"{value:.{digits}g}") for digits in range(3, 18))
    near = (values.high - values.low) / 100
    return next(each for each in shown if values.low <= each <= values.high and abs(each - value) <= near)


def name_of(point: Mapping[str, Any], sweep: Sweep, plugin: TrainingPlugin) -> str:
    """`Learning rate 0.0002, rank 16`."""
    labels = {each.name: each.label for each in form_fields(plugin.Config)}
    words = [f"{labels[name].lower()} {as_text(point[name])}" for name in sweep.space]
    return ", ".join(words)[:1].upper() + ", ".join(words)[1:]


Outcome = tuple[dict[str, Any], float | None, bool]
"""(settings of an arm, its mean validation loss at the end or None, whether it still goes on)"""


def next_point(sweep: Sweep, plugin: TrainingPlugin, arms: Sequence[Outcome], hindrance: Hindrance) -> dict[str, Any] | None:
    """What TPE would try now, having seen the arms; None where it comes to nothing new. Raises UserError where that cannot be trained.

    The study is built anew from the arms each time, so nothing of it is kept: Bergstra et al. 2011, "Algorithms for Hyper-Parameter
    Optimization"; those that still go on count as bad ones, so that two at once do not try the same ("constant liar"), and so does what
    cannot be trained, so that it goes elsewhere.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    spaces = {name: distribution(values, plugin, name) for name, values in sweep.space.items()}
    tried = [{name: settings.get(name) for name in sweep.space} for settings, _, _ in arms]
    refused: list[Any] = []
    last = ""
    for attempt in range(ATTEMPTS):
        startup = BY_CHANCE + len(refused)  # of what can be trained there are as many by chance
        sampler = optuna.samplers.TPESampler(seed=len(arms) * ATTEMPTS + attempt, n_startup_trials=startup, constant_liar=True)
        study = optuna.create_study(direction="minimize", sampler=sampler)
        for settings, loss, live in arms:
            params = {name: settings.get(name) for name in sweep.space}
            if all(name in settings and spaces[name]._contains(inner(spaces[name], params[name])) for name in sweep.space):
                study.add_trial(seen(params, spaces, loss=loss, live=live))
        study.add_trials(refused)
        params = study.ask(spaces).params
        point = whole(params, sweep, plugin)
        if (values := {name: point[name] for name in sweep.space}) in tried:
            continue
        if not (why := hindrance(point)):
            return point
        tried.append(values)
        refused.append(pruned(params, spaces))
        last = f"{name_of(point, sweep, plugin)}: {why}"
    if refused:
        raise UserError(f"No further combination was found that can be trained. {last}")
    return None


def inner(space: Any, value: Any) -> float:
    """A value as a distribution counts it; what is not one of its choices lies outside."""
    try:
        return float(space.to_internal_repr(value))
    except ValueError:
        return -1.0


def distribution(values: Any, plugin: TrainingPlugin, name: str) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    kinds = {each.name: each.kind for each in form_fields(plugin.Config)}
    if not isinstance(values, Range):
        return CategoricalDistribution([typed(value, kinds[name]) for value in values])
    if kinds[name] == "integer":
        return IntDistribution(round(values.low), round(values.high), log=values.log)
    return FloatDistribution(values.low, values.high, log=values.log)


def seen(params: dict[str, Any], spaces: dict[str, Any], *, loss: float | None, live: bool) -> Any:
    """An arm as a trial of the study: one that ended with nothing to show is a failed one."""
    from optuna.trial import TrialState, create_trial

    if live:
        return create_trial(state=TrialState.RUNNING, params=params, distributions=spaces)
    if loss is None:
        return create_trial(state=TrialState.FAIL, params=params, distributions=spaces)
    return create_trial(params=params, distributions=spaces, value=loss)


def pruned(params: dict[str, Any], spaces: dict[str, Any]) -> Any:
    """What cannot be trained as a trial: a failed one would be forgotten by the sampler, and proposed again."""
    from optuna.trial import TrialState, create_trial

    return create_trial(state=TrialState.PRUNED, params=params, distributions=spaces)
