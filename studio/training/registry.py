"""Which ways to train there are: files in training_plugins/ and packages with an entry point. Nothing of torch is loaded."""

import functools
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from studio.errors import UserError
from studio.training.config import TrainConfig
from studio.training.form import check_config, form_fields
from studio.training.plugin import TrainingPlugin

GROUP = "adapter_studio.plugins"
NAME = re.compile(r"[a-z][a-z0-9_]{0,63}", re.ASCII)


@dataclass(frozen=True)
class Loaded:
    """A plugin that was found, whole or broken."""

    name: str
    title: str
    plugin: TrainingPlugin | None
    """None where it is broken."""
    reason: str
    """Why it is broken; empty where it is whole."""
    origin: str
    """training_plugins/FILE.py, or the distribution's name and version."""

    @property
    def available(self) -> bool:
        return self.plugin is not None


@functools.cache
def load_plugins() -> dict[str, Loaded]:
    """Every plugin by name, our own first. One that is broken is listed with its reason and stops nobody else."""
    found: dict[str, Loaded] = {}
    for loaded in [*from_folder(), *from_packages()]:
        if loaded.name in found:
            first = found[loaded.name].origin
            reason = f"There is already a plugin named {loaded.name}, from {first}. Rename one of them."
            loaded = Loaded(f"{loaded.name} ({loaded.origin})", loaded.title, None, loaded.reason or reason, loaded.origin)
        found.setdefault(loaded.name, loaded)
    return found


def find(name: str) -> TrainingPlugin:
    """The plugin of this name. Raises UserError where there is none, or where it is broken."""
    plugins = load_plugins()
    loaded = plugins.get(name)
    if loaded is None:
        names = ", ".join(sorted(each.name for each in plugins.values() if each.available))
        raise UserError(f"There is no plugin named {name[:80]!r}. Available: {names}.", code="unknown_plugin")
    if loaded.plugin is None:
        raise UserError(f"The plugin {name} cannot be used: {loaded.reason}", code="broken_plugin")
    return loaded.plugin


def missing_packages(plugin: TrainingPlugin, packages: dict[str, str]) -> list[str]:
    """What `plugin.requires` and `packages` (name -> version, as a host reports them) lacks."""
    there = {canonical(name) for name in packages}
    return [name for name in plugin.requires if canonical(name) not in there]


def canonical(package: str) -> str:
    """Package names differ in case, dashes, dots and underscores without being different (PEP 503)."""
    return re.sub(r"[-_.]+", "-", package).lower()


def from_folder() -> Iterator[Loaded]:
    folder = importlib.import_module("training_plugins")
    for module in sorted(pkgutil.iter_modules(folder.__path__), key=lambda module: module.name):
        if not module.ispkg and not module.name.startswith("_"):
            yield from from_file(module.name)


def from_file(stem: str) -> Iterator[Loaded]:
    origin = f"training_plugins/{stem}.py"
    try:
        module = importlib.import_module(f"training_plugins.{stem}")
    except (Exception, SystemExit) as error:  # a stranger's file: whatever it does, the others stay
        yield broken(stem, origin, failure(error))
        return
    classes = [item for item in vars(module).values() if is_plugin_class(item) and item.__module__ == module.__name__]
    if not classes:
        yield broken(stem, origin, "It has no class that extends TrainingPlugin.")
    for plugin_class in classes:
        yield judged(plugin_class, fallback=stem, origin=origin)


def from_packages() -> Iterator[Loaded]:
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value)):
        origin = distribution_of(entry)
        try:
            plugin_class = entry.load()
        except (Exception, SystemExit) as error:  # a stranger's package: whatever it does, the others stay
            yield broken(entry.name, origin, failure(error))
            continue
        yield judged(plugin_class, fallback=entry.name, origin=origin)


def distribution_of(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value


def judged(plugin_class: Any, *, fallback: str, origin: str) -> Loaded:
    """The plugin, or why it is none. Its own code runs here, so anything may be raised."""
    try:
        if reason := refusal(plugin_class):
            return broken(fallback, origin, reason)
        return Loaded(plugin_class.name, plugin_class.title, plugin_class(), "", origin)
    except (Exception, SystemExit) as error:
        return broken(fallback, origin, failure(error))


def broken(name: str, origin: str, reason: str) -> Loaded:
    return Loaded(name, name, None, reason, origin)


def failure(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"It needs the package {error.name}, which is not installed."
    text = " ".join(str(error).split())[:500]
    return f"It cannot be loaded: {type(error).__name__}: {text}" if text else f"It cannot be loaded: {type(error).__name__}."


def is_plugin_class(item: object) -> bool:
    return inspect.isclass(item) and issubclass(item, TrainingPlugin)


def refusal(plugin_class: Any) -> str:
    """Why a class is no plugin, as a sentence; empty where it is one."""
    if not is_plugin_class(plugin_class):
        return "It is not a class that extends TrainingPlugin."
    missing = sorted(getattr(plugin_class, "__abstractmethods__", ()))
    if missing:
        return f"It does not define {', '.join(missing)}."
    name, title = getattr(plugin_class, "name", None), getattr(plugin_class, "title", None)
    if not isinstance(name, str) or not NAME.fullmatch(name):
        return f"Its name must be lower-case letters, digits and underscores, not {str(name)[:80]!r}."
    if not isinstance(title, str) or not title.strip():
        return "It has no title."
    if plugin_class.method not in ("lora", "full", "none"):
        return f"Its method must be lora, full or none, not {str(plugin_class.method)[:80]!r}."
    return refusal_of_config(plugin_class)


def refusal_of_config(plugin_class: type[TrainingPlugin]) -> str:
    config_class = plugin_class.Config
    if not inspect.isclass(config_class) or not issubclass(config_class, TrainConfig):
        return "Its Config must extend TrainConfig."
    try:
        defaults = {field.name: field.default for field in form_fields(config_class)}
    except TypeError as error:
        return str(error)
    cases = [("Its default settings are", defaults)]
    cases += [(f"Its preset {name!r} is", preset) for name, preset in plugin_class.presets.items()]
    for subject, values in cases:
        _, errors = check_config(config_class, values)
        for field, reason in errors.items():
            return f"{subject} not valid: {field}: {reason}"
    return ""
