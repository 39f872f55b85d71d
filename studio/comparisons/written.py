"""A comparison as a script or a file writes it, and the arms that it means: settings as they are given, with one budget over all."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from pydantic import BaseModel as Schema
from pydantic import ConfigDict, Field

from studio.basemodels.models import BaseModel
from studio.comparisons import services
from studio.comparisons.arms import AT_ONCE, BUDGET, ArmSpec, differing, split_batch, with_reference
from studio.comparisons.models import Comparison
from studio.comparisons.outlook import asked_of
from studio.comparisons.services import MOST_ARMS, MOST_SEEDS, SEEDS
from studio.comparisons.sweeping import Sweep, first_points, name_of, new_sweep_of
from studio.datasets.models import DatasetVersion
from studio.errors import UserError
from studio.runs import services as runs
from studio.runs.queue import When
from studio.training.form import check_config
from studio.workspaces.models import Member, Project


class Budget(Schema):
    """How much each arm reads; over what the arms say themselves."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    epochs: float | None = Field(default=None, gt=0, le=1000)
    max_steps: int | None = Field(default=None, ge=0, le=10_000_000)
    """0 goes by epochs."""
    max_length: int | None = Field(default=None, ge=16, le=131_072)
    effective_batch: int | None = Field(default=None, ge=1, le=1024)
    """Rows in a step: batch size times accumulation."""


class WrittenArm(Schema):
    model_config = ConfigDict(extra="forbid")

    name: str = Field("", max_length=120, pattern=r"^[^\x00-\x1f\x7f]*$")
    """Empty takes what differs."""
    plugin: str = Field(max_length=60)
    config: dict[str, Any] = {}


class Written(Schema):
    """What a comparison is made of beside the things that it names."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field("", max_length=120, pattern=r"^[^\x00-\x1f\x7f]*$")
    differs: str = ""
    """method, rank, targets, learning_rate, base_model or dataset_version; empty looks at what does. A sweep is one by its `sweep`."""
    arms: list[WrittenArm] = Field(min_length=1, max_length=MOST_ARMS)
    """At least two; one alone where a sweep draws from it."""
    seeds: list[int] = Field(default=list(SEEDS), min_length=1, max_length=MOST_SEEDS)
    budget: Budget = Budget()
    sweep: dict[str, Any] | None = None
    """`{"by": "grid" | "random" | "tpe", "space": {setting: [values] or {"low", "high", "log"}}, "most": arms, "prune": true}`."""
    metrics: list[dict[str, Any]] = Field(default=[], max_length=8)
    """`{"kind": "exact_match"}` and the like; the page of a new comparison tells what there is."""
    stops_hopeless: bool = True


def begin(
    member: Member,
    written: Written,
    *,
    project: Project,
    base: Callable[[int], BaseModel],
    version: Callable[[int], DatasetVersion],
    probe: DatasetVersion | None = None,
    prompts: list[str] | None = None,
    when: When | None = None,
) -> Comparison:
    """The comparison as it is written. `base` and `version` tell the base model and the rows of an arm by its number."""
    arms = [spec_of(arm, number, written.budget, base=base(number), version=version(number)) for number, arm in enumerate(written.arms)]
    sweep = swept(written, arms)
    if sweep is not None:
        arms = drawn_from(arms[0], sweep)
    return services.create_comparison(
        member,
        project=project,
        name=written.name,
        differs=Comparison.Differs.SWEEP if sweep else differs_of(written.differs, arms),
        arms=with_reference(named_apart(arms)),
        seeds=written.seeds,
        metrics=written.metrics,
        probe=probe,
        sweep=sweep.model_dump(mode="json") if sweep else None,
        stops_hopeless=written.stops_hopeless,
        prompts=prompts,
        when=when,
    )


def drawn_from(arm: ArmSpec, sweep: Sweep) -> list[ArmSpec]:
    """The arms that a sweep over the settings of one begins with."""
    plugin = runs.plugin_of(arm.plugin)

    def spec_at(point: dict[str, Any]) -> ArmSpec:
        return replace(arm, name=name_of(point, sweep, plugin), config=arm.config | point)

    return [spec_at(point) for point in first_points(sweep, plugin, lambda point: asked_of(spec_at(point))[2])]


def swept(written: Written, arms: Sequence[ArmSpec]) -> Sweep | None:
    if written.sweep is None:
        return None
    if len(arms) != 1:
        raise UserError(
            "A sweep draws from one arm.", fields={"arms": "Give one arm, whose settings all have but for those that are swept."}
        )
    return new_sweep_of(written.sweep, runs.plugin_of(arms[0].plugin))


def spec_of(arm: WrittenArm, number: int, budget: Budget, *, base: BaseModel, version: DatasetVersion) -> ArmSpec:
    """The arm with the budget of all. Raises UserError beside `arms.0.rank` and the like."""
    config = {name: value for name, value in arm.config.items() if name != "seed"}
    told = budget.model_dump(exclude_none=True)
    config |= {name: told[name] for name in BUDGET if name in told}
    if size := told.get("effective_batch"):
        config |= split_batch(size, most=wanted_batch(config))
    try:
        plugin = runs.plugin_of(arm.plugin)
    except UserError as problem:
        raise UserError(problem.message, fields={f"arms.{number}.plugin": problem.message}) from problem
    if errors := check_config(plugin.Config, config)[1]:
        fields = {f"arms.{number}.{name}" if name else f"arms.{number}": text for name, text in errors.items()}
        raise UserError("Some settings cannot be used.", fields=fields, code="invalid_config")
    return ArmSpec(" ".join(arm.name.split()), arm.plugin, config, base, version)


def wanted_batch(config: dict[str, Any]) -> int:
    """How many rows at once somebody asked for, where they did; what is no number is refused later, by the settings themselves."""
    size = config.get("batch_size", AT_ONCE)
    return size if isinstance(size, int) and size >= 1 else AT_ONCE


def whole_configs(arms: Sequence[ArmSpec]) -> list[dict[str, Any]]:
    return [runs.parse_config(runs.plugin_of(arm.plugin), arm.config).model_dump(mode="json") for arm in arms]


def differs_of(told: str, arms: Sequence[ArmSpec]) -> str:
    """What the arms differ in: as it was told, else the first thing that is not alike."""
    if told:
        if told not in Comparison.Differs.values or told == Comparison.Differs.SWEEP:
            known = ", ".join(value for value in Comparison.Differs.values if value != Comparison.Differs.SWEEP)
            raise UserError("That is nothing to differ in.", fields={"differs": f"One of {known}, or nothing."})
        return told
    if len({arm.plugin for arm in arms}) > 1:
        return Comparison.Differs.METHOD
    if len({arm.base.pk for arm in arms}) > 1:
        return Comparison.Differs.BASE_MODEL
    if len({arm.version.pk for arm in arms}) > 1:
        return Comparison.Differs.DATASET_VERSION
    configs = whole_configs(arms)
    for name in (Comparison.Differs.RANK, Comparison.Differs.TARGETS, Comparison.Differs.LEARNING_RATE):
        if len({str(config.get(name)) for config in configs}) > 1:
            return name
    return Comparison.Differs.METHOD


def named_apart(arms: Sequence[ArmSpec]) -> list[ArmSpec]:
    """Arms without a name take what differs; no two have the same."""
    table = differing(whole_configs(arms), list({arm.plugin: runs.plugin_of(arm.plugin) for arm in arms}.values()))
    found: list[ArmSpec] = []
    for number, arm in enumerate(arms):
        name = arm.name or default_name(
            arm, arms, [f"{label.lower()} {values[number]}" for label, values in table if values[number] != "–"]
        )
        taken = {other.name for other in found}
        plain, count = name[:110], 2
        while name in taken:
            name, count = f"{plain} ({count})", count + 1
        found.append(replace(arm, name=name))
    return found


def default_name(arm: ArmSpec, arms: Sequence[ArmSpec], settings: Sequence[str]) -> str:
    if len({other.plugin for other in arms}) > 1:
        config = runs.parse_config(runs.plugin_of(arm.plugin), arm.config).model_dump()
        variant = "QLoRA" if config.get("quantization") == "4bit" else "DoRA" if config.get("variant") == "dora" else ""
        title = runs.plugin_of(arm.plugin).title
        rank = f", rank {config['rank']}" if "rank" in config else ""
        return f"{variant or ('LoRA' if rank else title)}{rank}"
    if len({other.base.pk for other in arms}) > 1:
        return arm.base.name
    if len({other.version.pk for other in arms}) > 1:
        return str(arm.version)
    words = ", ".join(settings[:3]) or runs.plugin_of(arm.plugin).title
    return words[:1].upper() + words[1:]
