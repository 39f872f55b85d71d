"""What to try next, and why: rules about an ended run, each with settings that open the form of a new one filled in."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.urls import reverse

from studio.orders.models import Order
from studio.runs.curve import Curve
from studio.runs.models import Run
from studio.runs.services import host_of
from studio.training import Estimate, TrainConfig, TrainingPlugin
from studio.training.asking import estimate_of
from studio.training.defaults import METHODS, learning_rate
from studio.training.form import as_text, check_config, form_fields
from studio.training.registry import load_plugins
from studio.workspaces.templatetags.studio import filesize, number, percent

STILL_FALLING = 0.01
"""Share of the loss that the last third took off, above which more of the same helps."""
HARDLY = 0.1
"""Share of the training loss that was taken off, below which hardly anything was learnt."""
HIGH = 0.25
"""The same, below which a flat curve has stopped too high."""
JUDGED = 20
"""Steps from which a curve says anything."""
APART, EASIER = 1.3, 0.8
"""Validation loss over training loss: learnt by heart; or rows that are easier than those that it learnt from."""
LIGHTER = 0.85
"""Of the memory that was expected, what the proposed settings may take at most."""
OWN_FAULT = 0.5
"""Share of the worker's memory that a run was expected to take, from which on it filled the memory itself."""

CAUSES = {
    "diverged": "The steps were too large for these rows, so the weights ran away. Broken rows do the same: see the first batch below.",
    "out_of_memory": "A batch with long rows took more memory than the worker has",
}
OTHERS = "Something else took the worker's memory: this run alone was expected to take less than half of it."


@dataclass(frozen=True)
class Advice:
    """One thing to do next."""

    title: str
    why: str
    url: str = ""
    """Where it is done with one click; empty where there is nothing to click."""
    button: str = ""


@dataclass(frozen=True)
class Case:
    """An ended run as the rules look at it."""

    run: Run
    curve: Curve
    config: dict[str, Any]

    def change(self, **settings: Any) -> dict[str, Any]:
        """The settings that this plugin knows, where at least the first of them is one and is another value than now."""
        first = next(iter(settings))
        if first not in self.config or self.config[first] == settings[first]:
            return {}
        return {name: value for name, value in settings.items() if name in self.config}


Rule = tuple[str, str, dict[str, Any]]
"""Title, why, settings to change."""


def try_next(run: Run, curve: Curve) -> list[Advice]:
    """At most three, the most telling first; never none."""
    if (plugin := plugin_of(run)) and plugin.method == "none":
        chosen = {"project": run.project_id, "dataset_version": run.dataset_version_id, "base_model": run.base_model_id}
        why = "Nothing was learnt: its losses are made up. Everything stands ready for a run that learns."
        return [Advice("Train in earnest", why, f"{reverse('runs:new')}?{urlencode(chosen)}", "Open the form")]
    case = Case(run, curve, settings_of(run))
    found = [Advice(title, why, *link(run, changes)) for rule in RULES for title, why, changes in rule(case)]
    return found[:3] or [
        Advice(
            "Nothing stands out",
            "The losses fell and came to rest, and the validation rows agree. Ask it something: its answers tell more than its losses now.",
        )
    ]


def worse_from_the_start(case: Case) -> Iterator[Rule]:
    curve = case.curve
    step, _ = curve.best
    if curve.turned and (step == 0 or unread(curve)):
        rate = gentler_rate(case)
        when = f"at step {step:,}, before all rows had been read" if step else "before the first step"
        yield (
            "Lower the learning rate",
            f"The validation loss was lowest {when}: each step moved the weights too far.",
            case.change(learning_rate=rate),
        )


def gentler_rate(case: Case) -> float:
    """A fifth of the learning rate, and no more than is usual in such a case."""
    run, rate = case.run, rounded(case.config["learning_rate"] / 5)
    plugin = plugin_of(run)
    if plugin is None or plugin.method not in METHODS:
        return rate
    usual = learning_rate(plugin.method, run.base_model.model_facts, run.dataset_version.dataset_facts(run.base_model))
    return min(rate, float(usual.value))


def unread(curve: Curve) -> bool:
    """Whether it ended before it had read all its rows once: none can be known by heart."""
    return curve.latest.get("epoch", 1.0) < 1


def by_heart(case: Case) -> Iterator[Rule]:
    curve, config = case.curve, case.config
    step, _ = curve.best
    if not curve.turned or step == 0 or unread(curve):
        return
    why = f"The validation loss was lowest at step {step:,} and has risen since: from there on it learnt its rows by heart."
    yield "Train for less", why, shorter(case, share=step / max(1, curve.total))
    if config.get("keep") != "best":
        yield (
            "Stop early and keep the best",
            "Then a run ends by itself when the validation loss no longer falls, and the weights of its best step become the result.",
            case.change(keep="best", early_stopping=3),
        )


def shorter(case: Case, *, share: float) -> dict[str, Any]:
    if case.config["max_steps"]:
        return case.change(max_steps=case.curve.best[0])
    return case.change(epochs=max(0.1, round(case.config["epochs"] * share, 1)))


def rows_unread(case: Case) -> Iterator[Rule]:
    read = case.curve.latest.get("epoch", 1.0)
    if case.config["max_steps"] and read < 1 and case.run.order.status == Order.Status.SUCCEEDED:
        yield (
            "Read all the rows",
            f"The step limit of {case.config['max_steps']:,} ended it after {percent(read)} of the rows.",
            case.change(max_steps=0),
        )


def still_falling(case: Case) -> Iterator[Rule]:
    curve, config = case.curve, case.config
    if curve.turned or curve.steps < JUDGED or curve.late_gain < STILL_FALLING:
        return
    what = "validation loss" if len(curve.looks) > 3 else "loss"
    if case.run.order.status == Order.Status.STOPPED:
        yield "Let it run to its end", f"The {what} was still falling when it was stopped.", {}
        return
    more = {"max_steps": config["max_steps"] * 2} if config["max_steps"] else {"epochs": config["epochs"] * 2}
    yield (
        "Train for longer",
        f"The {what} was still falling at the end: the last third took {percent(curve.late_gain)} off.",
        case.change(**more),
    )


def learnt_little(case: Case) -> Iterator[Rule]:
    curve, config = case.curve, case.config
    if len(curve.losses) < JUDGED or curve.turned or curve.late_gain >= STILL_FALLING or unread(curve):
        return
    if curve.gain < HARDLY:
        yield (
            "Raise the learning rate",
            f"The training loss hardly moved: from {number(curve.start)} to {number(curve.end)}.",
            case.change(learning_rate=rounded(config["learning_rate"] * 3)),
        )
    elif curve.gain < HIGH and "rank" in config:
        yield (
            "Give it a higher rank",
            f"The training loss came to rest at {number(curve.end)}, not far below {number(curve.start)}: a wider adapter can learn more.",
            case.change(rank=config["rank"] * 2, alpha=config.get("alpha", 0) * 2),
        )


def apart(case: Case) -> Iterator[Rule]:
    curve, config = case.curve, case.config
    if not curve.looks or curve.turned or len(curve.losses) < JUDGED or not curve.end > 0:
        return
    ratio = curve.last_look / curve.end
    if ratio > APART:
        yield (
            "Add more varied rows, or dropout",
            f"On rows that it never saw, its loss is {number(curve.last_look)}, well above the {number(curve.end)} of the others.",
            case.change(dropout=0.05) if not config.get("dropout") else {},
        )
    elif ratio < EASIER:
        yield (
            "Look at the split of the rows",
            f"The validation loss ({number(curve.last_look)}) is far below the training loss ({number(curve.end)}): "
            "the validation rows are easier, or stand among the training rows in other words.",
            {},
        )


def unjudged(case: Case) -> Iterator[Rule]:
    if not case.curve.looks:
        yield (
            "Keep some rows for validation",
            "Without them nobody can tell whether it learnt to answer, or learnt by heart. A new version of the dataset can keep 5 %.",
            {},
        )


RULES = (worse_from_the_start, by_heart, rows_unread, still_falling, learnt_little, apart, unjudged)


def rounded(value: float) -> float:
    return float(f"{value:.1g}")


def link(run: Run, changes: dict[str, Any]) -> tuple[str, str]:
    """(address of the filled form, words of its button); empty where nothing is changed or the plugin would refuse it."""
    plugin = plugin_of(run)
    if not changes or plugin is None or check_config(plugin.Config, run.config | changes)[0] is None:
        return "", ""
    typed = {f"set_{name}": as_text(value) for name, value in changes.items()}
    return f"{reverse('runs:new')}?{urlencode({'from': run.pk} | typed)}", f"Try {in_words(plugin, changes)}"


def in_words(plugin: TrainingPlugin, changes: dict[str, Any]) -> str:
    """learning rate 0.00004 and batch size 4"""
    labels = {each.name: each.label for each in form_fields(plugin.Config)}
    named = {name: f"{labels[name][:1].lower()}{labels[name][1:]}" for name in changes}
    return " and ".join(
        f"no {named[name]}" if name == "max_steps" and not value else f"{named[name]} {as_text(value)}" for name, value in changes.items()
    )


def plugin_of(run: Run) -> TrainingPlugin | None:
    loaded = load_plugins().get(run.plugin)
    return loaded.plugin if loaded else None


def settings_of(run: Run) -> dict[str, Any]:
    """Every setting of a run, also one that its plugin has got since."""
    plugin = plugin_of(run)
    config, _ = check_config(plugin.Config, run.config) if plugin else (None, {})
    return config.model_dump(mode="json") if config else TrainConfig().model_dump(mode="json") | run.config


@dataclass(frozen=True)
class Failure:
    """Why a run failed, as far as it is known, and the one click that may mend it."""

    cause: str = ""
    url: str = ""
    button: str = ""


def failure_of(run: Run) -> Failure:
    """From the facts that the worker left; a plugin may have written anything there, so all of it is checked."""
    result = run.order.result or {}
    code, wanted = result.get("code"), result.get("proposal")
    if not isinstance(code, str) or code not in CAUSES:
        return Failure()
    if code == "out_of_memory" and not isinstance(wanted, dict):
        if taken_by_others(run):
            return Failure(OTHERS)
        wanted = lighter(run)
    url, button = link(run, wanted if isinstance(wanted, dict) else {})
    cause = CAUSES[code] + (expected(run) if code == "out_of_memory" else "")
    return Failure(cause, url, button.replace("Try", "Try again with", 1))


def expected(run: Run) -> str:
    """The end of the sentence about memory: what was foreseen, and what there is."""
    if not run.estimate:
        return "."
    estimate = Estimate.model_validate(run.estimate)
    return f": up to {filesize(estimate.memory.high)} of its {filesize(estimate.available)} were expected."


def taken_by_others(run: Run) -> bool:
    if not run.estimate:
        return False
    estimate = Estimate.model_validate(run.estimate)
    return estimate.memory.high < OWN_FAULT * estimate.available


def lighter(run: Run) -> dict[str, Any]:
    """The gentlest change that needs clearly less memory by the plugin's own estimate; half a batch where it has none."""
    plugin, host = plugin_of(run), host_of(run.order.worker)
    if plugin is None or host is None:
        return {}
    facts, data = run.base_model.model_facts, run.dataset_version.dataset_facts(run.base_model)

    def high(changes: dict[str, Any]) -> float:
        config, _ = check_config(plugin.Config, run.config | changes)
        estimate = estimate_of(plugin, (config, facts, data, host))[0] if config else None
        return estimate.memory.high if estimate else math.inf

    limit = LIGHTER * high({})
    tried = list(lighter_settings(settings_of(run)))
    return next((changes for changes in tried if high(changes) <= limit), tried[0] if tried else {})


def lighter_settings(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """From the gentlest on: smaller batches that are added up, parts of the model computed again, shorter rows."""
    batch, added = config["batch_size"], config["gradient_accumulation"]
    smallest: dict[str, Any] = {}
    while batch > 1 and added <= 512:
        batch, added = batch // 2, added * 2
        smallest = {"batch_size": batch, "gradient_accumulation": added}
        yield smallest
    if config["gradient_checkpointing"] != "on":
        smallest = smallest | {"gradient_checkpointing": "on"}
        yield smallest
    if config["max_length"] >= 32:
        yield smallest | {"max_length": config["max_length"] // 2}
