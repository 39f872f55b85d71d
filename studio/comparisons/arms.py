"""The ways that can be compared, and the arms that a wish to compare them makes: each with its own learning rate, all on the same rows."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from studio.basemodels.models import BaseModel
from studio.datasets.models import DatasetVersion
from studio.errors import UserError
from studio.runs import services as runs
from studio.runs.choices import DEFAULT_PLUGIN, in_order
from studio.training import HostFacts, TrainingPlugin
from studio.training.asking import estimate_of
from studio.training.carrying import carry
from studio.training.config import LoraConfig
from studio.training.defaults import suggest
from studio.training.form import as_text, check_config, form_fields
from studio.training.memory import planned_steps
from studio.training.registry import load_plugins

BUDGET = ("epochs", "max_steps", "max_length")
"""Settings that all arms have alike: with the effective batch they say how many tokens each one reads."""
TO_THE_END = {"early_stopping": 0, "keep": "last"}
"""Settings that every arm has, so that none reads less than the others or takes its result from an earlier step."""
NAMES = {"epochs": "the epochs", "max_steps": "the step limit", "max_length": "the max length", "effective_batch": "the rows in a step"}
BATCH = ("batch_size", "gradient_accumulation")
RANKS = (8, 16, 64)
TARGETS = (("q_proj", "v_proj"), ("all-linear",))
TOLD = ("rank", "targets")
"""Settings that are told also where only one way to train knows them, and they are as usual."""
ELSEWHERE = "Not on this worker"
AT_ONCE = 32
"""Rows in a batch at most, before they are added up."""
TIMES = (1 / 3, 1.0, 3.0)
"""Learning rates around the usual one, as its multiples."""


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


def budget_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """How much an arm with this whole config reads: `{"epochs", "max_steps", "max_length", "effective_batch"}`."""
    batch = {"effective_batch": config.get("batch_size", 1) * config.get("gradient_accumulation", 1)}
    return {name: config[name] for name in BUDGET if name in config} | batch


def in_common(budgets: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """What the budgets share, and the words for what they do not."""
    first = budgets[0]
    unequal = [name for name in first if any(budget.get(name) != first[name] for budget in budgets)]
    return {name: value for name, value in first.items() if name not in unequal}, [NAMES[name] for name in unequal]


@dataclass(frozen=True)
class Way:
    """A way to train as a comparison knows it: a plugin, and what makes it QLoRA or DoRA."""

    key: str
    title: str
    text: str
    plugin: TrainingPlugin
    changes: dict[str, Any] = field(default_factory=dict)
    hindrance: str = ""
    """In two or three words; empty where nothing hinders it."""


VARIANTS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("lora", "LoRA", "A small adapter learns beside the frozen model.", {}),
    ("qlora", "QLoRA", "The same, with the model kept in 4 bits: less memory, a little less exact.", {"quantization": "4bit"}),
    ("dora", "DoRA", "Learns direction and size of the weights apart: often a little better than LoRA, and slower.", {"variant": "dora"}),
)
"""(key, title, what it is, settings) of what the first LoRA plugin is offered as."""


def ways(host: HostFacts | None = None) -> list[Way]:
    """What can be compared: what trains a model and can be loaded here, adapters first."""
    found: list[Way] = []
    for loaded in in_order(load_plugins().values()):
        plugin = loaded.plugin
        if plugin is None or plugin.method == "none":
            continue
        hindrance = ELSEWHERE if runs.obstacle(loaded) else ""
        if plugin.name == DEFAULT_PLUGIN:
            in_bits = hindrance or (ELSEWHERE if host is not None and "bitsandbytes" not in host.packages else "")
            found += [
                Way(key, title, text, plugin, changes, in_bits if "quantization" in changes else hindrance)
                for key, title, text, changes in VARIANTS
            ]
        elif plugin.name == "full_finetune":
            found.append(Way("full", plugin.title, "Every weight of the model learns.", plugin, {}, hindrance))
        else:
            about = (inspect.getdoc(plugin) or "").split(". ")[0].split("\n\n")[0].rstrip(".")
            found.append(Way(plugin.name, plugin.title, f"{about}." if about else "", plugin, {}, hindrance))
    return found


@dataclass(frozen=True)
class Wish:
    """What somebody wants to compare, as the form and a script say it. What is left out takes what suits the case."""

    base: BaseModel
    version: DatasetVersion
    differs: str
    ways: tuple[Way, ...]
    """Those that are compared; one alone where something else differs."""
    budget: dict[str, Any] = field(default_factory=dict)
    """`{"epochs", "max_steps", "max_length", "effective_batch"}`, as far as they were given."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of every arm that knows them, such as the rank."""
    rates: dict[str, float] = field(default_factory=dict)
    """Learning rates that were given, by the key of the way."""
    ranks: tuple[int, ...] = RANKS
    targets: tuple[tuple[str, ...], ...] = TARGETS
    learning_rates: tuple[float, ...] = ()
    """Empty takes three around the usual one."""
    bases: tuple[BaseModel, ...] = ()
    versions: tuple[DatasetVersion, ...] = ()
    like: tuple[TrainingPlugin, dict[str, Any]] | None = None
    """The plugin and the whole config of a run whose settings are taken over."""


def arms_of(wish: Wish, *, host: HostFacts | None) -> list[ArmSpec]:
    """The arms that a wish makes. Raises UserError beside what is missing."""
    if not wish.ways:
        raise UserError("There is nothing to compare.", fields={"ways": "Choose at least one way to train."})
    drafts = DRAFTS[wish.differs](wish)
    if not drafts:
        fields = {"base_model": "bases", "dataset_version": "versions"}
        raise UserError("There is nothing to compare.", fields={fields.get(wish.differs, "arms"): "Choose at least two that differ."})
    budget = shared_budget(wish, drafts, host=host)
    rank = wish.settings.get("rank") or usual_rank(wish, host=host)
    return [finished(wish, draft, budget=budget, rank=rank, host=host) for draft in drafts]


@dataclass(frozen=True)
class Draft:
    """An arm before its budget is known."""

    name: str
    way: Way
    base: BaseModel
    version: DatasetVersion
    changes: dict[str, Any] = field(default_factory=dict)
    """What makes it differ from the others."""


def by_method(wish: Wish) -> list[Draft]:
    return [Draft(way.title, way, wish.base, wish.version) for way in wish.ways]


def by_rank(wish: Wish) -> list[Draft]:
    way = adapter_of(wish)
    return [Draft(f"Rank {rank}", way, wish.base, wish.version, {"rank": rank, "alpha": 2.0 * rank}) for rank in wish.ranks]


def by_targets(wish: Wish) -> list[Draft]:
    way = adapter_of(wish)
    return [Draft(words_for_targets(names), way, wish.base, wish.version, {"targets": list(names)}) for names in wish.targets]


def words_for_targets(names: Iterable[str]) -> str:
    """`All linear layers`, `q_proj and v_proj`."""
    names = list(names)
    if names == ["all-linear"]:
        return "All linear layers"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def by_learning_rate(wish: Wish) -> list[Draft]:
    way, rates = wish.ways[0], wish.learning_rates
    return [Draft(f"Learning rate {as_text(rate)}", way, wish.base, wish.version, {"learning_rate": rate}) for rate in rates]


def by_base(wish: Wish) -> list[Draft]:
    return [Draft(base.name, wish.ways[0], base, wish.version) for base in wish.bases]


def by_version(wish: Wish) -> list[Draft]:
    return [Draft(str(version), wish.ways[0], wish.base, version) for version in wish.versions]


def alone(wish: Wish) -> list[Draft]:
    """What a sweep begins with: its settings are drawn from a space later."""
    return [Draft(wish.ways[0].title, wish.ways[0], wish.base, wish.version)]


DRAFTS = {
    "method": by_method,
    "rank": by_rank,
    "targets": by_targets,
    "learning_rate": by_learning_rate,
    "base_model": by_base,
    "dataset_version": by_version,
    "sweep": alone,
}


def adapter_of(wish: Wish) -> Way:
    """The way whose rank or targets differ."""
    way = wish.ways[0]
    if not issubclass(way.plugin.Config, LoraConfig):
        raise UserError(f"{way.title} has no adapter.", fields={"way": "Choose a way to train that has one, such as LoRA."})
    return way


def suggested(plugin: TrainingPlugin, base: BaseModel, version: DatasetVersion, host: HostFacts | None) -> dict[str, Any]:
    found = suggest(plugin, base=base.model_facts, data=version.dataset_facts(base), host=host)
    defaults = {name: plugin.Config.model_fields[name].default for name in (*BUDGET, *BATCH)}
    return defaults | {name: suggestion.value for name, suggestion in found.items()}


def usual_rates(wish: Wish, *, host: HostFacts | None) -> tuple[float, ...]:
    """Three learning rates around the usual one of the way."""
    usual = suggested(wish.ways[0].plugin, wish.base, wish.version, host).get("learning_rate")
    usual = usual or wish.ways[0].plugin.Config.model_fields["learning_rate"].default
    return tuple(float(f"{usual * times:.2g}") for times in TIMES)


def usual_rank(wish: Wish, *, host: HostFacts | None) -> int | None:
    """One rank for all adapters, so that they differ in the method alone."""
    for way in wish.ways:
        if issubclass(way.plugin.Config, LoraConfig):
            if wish.like and issubclass(wish.like[0].Config, LoraConfig):
                return int(wish.like[1]["rank"])
            return int(suggested(way.plugin, wish.base, wish.version, host).get("rank") or way.plugin.Config.model_fields["rank"].default)
    return None


def shared_budget(wish: Wish, drafts: Sequence[Draft], *, host: HostFacts | None) -> dict[str, Any]:
    """Epochs, step limit, max length and rows in a step of every arm: what was given, else that of the run it is like, else what suits
    the first arm, with the shortest max length that any of them can take.
    """
    cases = [suggested(draft.way.plugin, draft.base, draft.version, host) for draft in drafts[:8]]
    usual = budget_of(cases[0]) | {"max_length": min(case["max_length"] for case in cases)}
    known = (budget_of(wish.like[1]) if wish.like else usual) | wish.budget
    lengths = [draft.base.model_facts.context_length for draft in drafts]
    known["max_length"] = wish.budget.get("max_length") or min([known["max_length"], *lengths])
    if len({draft.version.pk for draft in drafts}) > 1 and not known["max_steps"]:  # epochs of different rows are different budgets
        known["max_steps"] = most_steps(drafts, known)
    return known


def most_steps(drafts: Sequence[Draft], budget: dict[str, Any]) -> int:
    """The steps that the epochs are of the largest version: each arm then reads as many rows, whatever it reads them from."""
    size = budget["effective_batch"]
    config = drafts[0].way.plugin.Config(epochs=budget["epochs"], batch_size=size)
    return max(planned_steps(config, rows=draft.version.dataset_facts(draft.base).train) for draft in drafts)


def finished(wish: Wish, draft: Draft, *, budget: dict[str, Any], rank: int | None, host: HostFacts | None) -> ArmSpec:
    """The arm with all of its settings: what suits its method, what the others have alike, and what makes it differ."""
    plugin = draft.way.plugin
    known = {each.name for each in form_fields(plugin.Config)}
    values = suggested(plugin, draft.base, draft.version, host)
    if wish.like:
        values |= carry(wish.like[1], old=wish.like[0], new=plugin).values
    if rank and "rank" in known:
        values |= {"rank": rank} | ({} if wish.like else {"alpha": 2.0 * rank})
    values |= {name: value for name, value in wish.settings.items() if name in known and name != "rank"}
    if rate := wish.rates.get(draft.way.key):
        values["learning_rate"] = rate
    values |= draft.way.changes | draft.changes | {name: budget[name] for name in BUDGET}
    values |= {name: value for name, value in TO_THE_END.items() if name in known}
    values.pop("seed", None)
    size = max(1, int(budget["effective_batch"]))
    if values["batch_size"] * values["gradient_accumulation"] != size:
        values |= split_batch(size, most=AT_ONCE)
    values = fitted(plugin, values, draft=draft, host=host, size=size)
    name = draft.name
    if wish.differs == "method" and values.get("rank"):
        name = f"{name}, rank {values['rank']}"
    return ArmSpec(name, plugin.name, values, draft.base, draft.version, is_reference=plugin.method == "full" and wish.differs == "method")


def split_batch(size: int, *, most: int) -> dict[str, int]:
    """Rows in a step as the largest batch of at most `most` rows that goes into it, added up."""
    batch = next(part for part in range(max(1, min(size, most)), 0, -1) if size % part == 0)
    return {"batch_size": batch, "gradient_accumulation": size // batch}


def fitted(plugin: TrainingPlugin, values: dict[str, Any], *, draft: Draft, host: HostFacts | None, size: int) -> dict[str, Any]:
    """With smaller batches, added up to the same rows in a step, where the arm would not fit into memory otherwise."""
    facts, data = draft.base.model_facts, draft.version.dataset_facts(draft.base)
    while host is not None and values["batch_size"] > 1:
        config, _ = check_config(plugin.Config, values)
        estimate, _ = estimate_of(plugin, (config, facts, data, host)) if config else (None, [])
        if estimate is None or estimate.memory.high <= estimate.available:
            break
        values = values | split_batch(size, most=values["batch_size"] - 1)
    return values


def with_reference(arms: Sequence[ArmSpec]) -> list[ArmSpec]:
    """The same arms, of which one is the reference: full fine-tuning where there is one, else the first."""
    if not arms or any(arm.is_reference for arm in arms):
        return list(arms)
    full = next((number for number, arm in enumerate(arms) if runs.plugin_of(arm.plugin).method == "full"), 0)
    return [replace(arm, is_reference=number == full) for number, arm in enumerate(arms)]


def differing(configs: Sequence[Mapping[str, Any]], plugins: Sequence[TrainingPlugin]) -> list[tuple[str, list[str]]]:
    """(label, its value in each arm) of every setting that is not the same in all arms; how rows are batched is left out, and what only
    some ways to train know at all where it is as usual.
    """
    usual = {each.name: each.text for plugin in plugins for each in form_fields(plugin.Config)}
    labels = {each.name: each.label for plugin in plugins for each in form_fields(plugin.Config)}
    names = [name for name in labels if name not in (*BATCH, "seed")]
    table = []
    for name in names:
        values = [as_text(config[name]) if name in config else "–" for config in configs]
        told = {value for value in values if value != "–"}
        if len(told) > 1 or (len(set(values)) > 1 and (name in TOLD or told != {usual[name]})):
            table.append((labels[name], values))
    return table
