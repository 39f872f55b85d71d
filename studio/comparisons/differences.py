"""In which settings the arms of a comparison differ, as its page shows them; what is alike is only counted, and folded away."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from studio.comparisons.models import Arm, Comparison
from studio.training.form import FormField, as_text, form_fields
from studio.training.registry import load_plugins

OWN_RATE = "Each method's own: a full fine-tuning moves every weight, and takes steps about ten times smaller than an adapter."


@dataclass(frozen=True)
class Setting:
    label: str
    values: list[str]
    """In the order of the arms; empty where an arm's method has no such setting."""
    unit: str = ""
    help: str = ""
    why: str = ""
    """Why it differs though it is not what is compared."""

    @property
    def differs(self) -> bool:
        return len(set(self.values)) > 1


@dataclass(frozen=True)
class Settings:
    differing: list[Setting] = field(default_factory=list)
    own: list[Setting] = field(default_factory=list)
    """Of one method alone, and as they are by default."""
    same: list[Setting] = field(default_factory=list)

    @property
    def by_arm(self) -> list[list[str]]:
        """What differs, a row for each arm: for many arms, which side by side would be wider than a page."""
        return [list(values) for values in zip(*(setting.values for setting in self.differing), strict=True)]


def settings_of(comparison: Comparison, arms: Sequence[Arm]) -> Settings:
    """`arms` with their base models and dataset versions. What differs comes first, in the order in which plugins write it."""
    fields = {arm.number: fields_of(arm) for arm in arms}
    found = Settings()
    for setting in things(arms):
        (found.differing if setting.differs else found.same).append(setting)
    for name in dict.fromkeys(name for arm in arms for name in arm.config if name != "seed"):
        known = next((fields[arm.number][name] for arm in arms if name in fields[arm.number]), None)
        setting = Setting(
            label=known.label if known else name,
            values=[shown(arm.config[name]) if name in arm.config else "" for arm in arms],
            unit=known.unit if known else "",
            help=known.help if known else "",
            why=OWN_RATE if name == "learning_rate" and comparison.differs == Comparison.Differs.METHOD else "",
        )
        everywhere = all(name in arm.config for arm in arms)
        if everywhere:
            (found.differing if setting.differs else found.same).append(setting)
        else:
            told = any(is_worth_telling(arm.config[name], fields[arm.number].get(name)) for arm in arms if name in arm.config)
            (found.differing if told else found.own).append(setting)
    return found


def things(arms: Sequence[Arm]) -> list[Setting]:
    """What an arm is made of beside its settings."""
    plugins = load_plugins()
    titles = [loaded.title if (loaded := plugins.get(arm.plugin)) else arm.plugin for arm in arms]
    return [
        Setting("Method", titles),
        Setting("Base model", [arm.base_model.name for arm in arms]),
        Setting("Dataset", [str(arm.dataset_version) for arm in arms]),
    ]


def fields_of(arm: Arm) -> dict[str, FormField]:
    loaded = load_plugins().get(arm.plugin)
    return {field.name: field for field in form_fields(loaded.plugin.Config)} if loaded and loaded.plugin else {}


def shown(value: Any) -> str:
    """As a person would type it; of what was computed, six digits."""
    return as_text(float(f"{value:.6g}") if isinstance(value, float) else value) or "none"


def is_worth_telling(value: Any, known: FormField | None) -> bool:
    """Of a setting that only some methods have: one that is not tucked away in the form, or is not as it is by default."""
    return known is None or not known.advanced or known.default != value
