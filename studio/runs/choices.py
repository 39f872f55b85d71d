"""What a new run can be made of: the versions, base models and plugins that one may choose from."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import urlencode

from django.http import Http404, HttpRequest
from django.urls import reverse

from studio.basemodels.models import BaseModel
from studio.datasets.models import DatasetVersion
from studio.errors import UserError
from studio.orders.quotas import Quota, quotas_of, telling
from studio.runs import services
from studio.runs.accuracy import Figure, accuracy_on, corrected
from studio.runs.costs import Tariff, tariff_of
from studio.runs.models import Run
from studio.runs.services import Forecast
from studio.training import DatasetFacts, Estimate, HostFacts, Issue, ModelFacts, TrainingPlugin
from studio.training.asking import estimate_of
from studio.training.carrying import carry
from studio.training.defaults import Suggestion, preset_changes, suggest
from studio.training.form import FormField, as_text, check_config, form_fields, parse_form, typed_value
from studio.training.memory import planned_steps
from studio.training.registry import Loaded, load_plugins
from studio.workspaces.models import Project

DEFAULT_PLUGIN = "peft_lora"
LABELS = {"dataset_version": "Dataset", "base_model": "Base model", "plugin": "Way to train", "name": "Name"}
"""Of the fields that are no settings."""
NUMBERED = re.compile(r"Run \d+")
"""A name that the studio gave, and gives anew."""
METHODS = ("lora", "full", "none")
"""In the order in which the form and the page of plugins list the ways to train."""


@dataclass(frozen=True)
class Drawn:
    """One setting as the form shows it: what it is, what stands in it, what is wrong with it."""

    field: FormField
    value: str
    default: str
    """What would stand in it if nobody had touched the form."""
    reason: str = ""
    """Why that is the default here, as a sentence."""
    error: str = ""
    warning: str = ""

    @property
    def is_changed(self) -> bool:
        return self.value != self.default

    @property
    def default_words(self) -> str:
        return "none" if self.default in ("", "0") else self.default


@dataclass(frozen=True)
class Card:
    """A preset as the form offers it: what it changes against the defaults, and what it would take."""

    name: str
    changes: list[Drawn]
    estimate: Estimate | None
    is_chosen: bool


@dataclass(frozen=True)
class Way:
    """A way to train as the form offers it: what speaks against it here, and what it would take with its own defaults."""

    loaded: Loaded
    hindrance: str
    """In two or three words; empty where nothing hinders it."""
    estimate: Estimate | None


def chosen(request: HttpRequest, rows: list[Any], pk: str | None) -> Any:
    """The row that is named; None where none is. A form that names another's, or what is gone, is not answered with something else."""
    row = next((row for row in rows if str(row.pk) == pk), None)
    if row is None and pk and request.method == "POST":
        raise Http404
    return row


@dataclass
class RunForm:
    """A new run as it is being put together. The plugin's Config alone judges the settings."""

    project: Project
    versions: list[DatasetVersion]
    models: list[BaseModel]
    version: DatasetVersion | None
    model: BaseModel | None
    plugin_name: str
    typed: dict[str, str]
    name: str = ""
    prompts: str = ""
    preset: str = ""
    notices: list[str] = field(default_factory=list)
    """What had to change when the settings came from another way to train."""

    @classmethod
    def read(cls, request: HttpRequest, project: Project, *, like: Run | None = None) -> "RunForm":
        """The form as it was sent; opened for the first time, as the run `like` was, and over that as the address says.

        An address that names in `was` the way to train that its settings were made for has them carried over to the one it asks for.
        """
        address = request.GET.dict()
        sent = request.POST.dict() if request.method == "POST" else (filled_like(like) if like else {}) | address
        seen = DatasetVersion.objects.for_action(request, "dataset.view").filter(dataset__project=project, facts__isnull=False)
        versions = [
            version
            for version in seen.select_related("dataset__project").order_by("-created_at")
            if not version.dataset.held_out or str(version.pk) == sent.get("dataset_version")
        ]
        models = list(BaseModel.objects.for_action(request, "base_model.view").filter(facts__isnull=False).order_by("-created_at"))
        plugins = load_plugins()
        wanted = sent.get("plugin", "")
        name = wanted if wanted in plugins else DEFAULT_PLUGIN if DEFAULT_PLUGIN in plugins else next(iter(plugins))
        typed = settings_in(sent)
        notices: list[str] = []
        if request.method != "POST" and address.get("was"):
            typed, notices = carried(settings_in(address), was=address["was"], name=name)
        elif request.method != "POST" and like:
            typed, notices = carried(settings_in(filled_like(like)), was=like.plugin, name=name)
            typed |= settings_in(address)
        return cls(
            project=project,
            versions=versions,
            models=models,
            version=chosen(request, versions, sent.get("dataset_version")) or newest_fitting(versions, plugins[name]),
            model=chosen(request, models, sent.get("base_model")) or (models[0] if models else None),
            plugin_name=name,
            typed=typed,
            name=sent.get("name", ""),
            prompts=sent.get("prompts", ""),
            preset=sent.get("preset", ""),
            notices=notices,
        )

    @cached_property
    def ways(self) -> list[Way]:
        """The ways to train, side by side."""
        return [self.way(loaded) for loaded in in_order(load_plugins().values())]

    def way(self, loaded: Loaded) -> Way:
        if loaded.plugin is None:
            return Way(loaded, "Broken", None)
        if services.obstacle(loaded):
            return Way(loaded, "Not on this worker", None)
        if self.version and services.shape_issues(loaded.plugin, self.version):
            return Way(loaded, "Not for these rows", None)
        return Way(loaded, "", self.untouched(loaded.plugin) if loaded.plugin.method != "none" else None)

    def untouched(self, plugin: TrainingPlugin) -> Estimate | None:
        """What the form of a way to train would foresee with nothing changed in it."""
        if self.facts is None or self.host is None:
            return None
        base, data = self.facts
        found = suggest(plugin, base=base, data=data, host=self.host)
        config, _ = check_config(plugin.Config, {name: suggestion.value for name, suggestion in found.items()})
        estimate, _ = estimate_of(plugin, (config, base, data, self.host)) if config else (None, [])
        return corrected(estimate, self.correction_of(plugin.name)) if estimate else None

    @property
    def plugin(self) -> Any:
        return services.plugin_of(self.plugin_name)

    @cached_property
    def host(self) -> HostFacts | None:
        return services.training_host()

    @cached_property
    def tariff(self) -> Tariff | None:
        """What the worker costs that is planned with."""
        return tariff_of(self.project.client.workspace, self.host)

    @cached_property
    def quotas(self) -> list[Quota]:
        """The client's limits that have something to say."""
        return telling(quotas_of(self.project.client))

    @cached_property
    def facts(self) -> tuple[ModelFacts, DatasetFacts] | None:
        """Of the base model and of the rows; None as long as one of them is missing."""
        return (self.model.model_facts, self.version.dataset_facts(self.model)) if self.model and self.version else None

    @cached_property
    def suggestions(self) -> dict[str, Suggestion]:
        if self.facts is None:
            return {}
        base, data = self.facts
        return suggest(self.plugin, base=base, data=data, host=self.host)

    @cached_property
    def defaults(self) -> dict[str, str]:
        """What stands in each field of an untouched form."""
        fields = {field.name: field.text for field in form_fields(self.plugin.Config)}
        return fields | {name: as_text(suggestion.value) for name, suggestion in self.suggestions.items()}

    @cached_property
    def filled(self) -> dict[str, str]:
        """What the studio puts into each field: the defaults, and over them the chosen preset."""
        return self.defaults | (self.changes(self.preset) if self.preset in self.plugin.presets else {})

    def changes(self, preset: str) -> dict[str, str]:
        changes = preset_changes(self.plugin, preset, self.suggestions)
        if changes.keys() == {"max_steps"} and self.facts:  # a limit alone is there to be quick
            changes["max_steps"] = min(changes["max_steps"], self.half_of_the_steps())
        return {name: as_text(value) for name, value in changes.items()}

    def half_of_the_steps(self) -> int:
        """Of an untouched form: a preset that ends early may not take longer than one that does not."""
        config, _ = parse_form(self.plugin.Config, self.defaults)
        return max(1, planned_steps(config, rows=self.facts[1].train) // 2) if config and self.facts else 1

    def follow(self, sent: str) -> None:
        """Lets each field that still holds what the studio had put into it follow what it puts there now.

        `sent` is `filled` of the page that was looked at, as JSON.
        """
        before = texts(sent)
        self.typed = {name: self.filled.get(name, text) if text == before.get(name) else text for name, text in self.typed.items()}

    def parse(self) -> tuple[Any, dict[str, str]]:
        """(config or None, errors) of what was typed over what stood there."""
        return parse_form(self.plugin.Config, self.filled | self.typed)

    def drawn(self, errors: dict[str, str], warnings: dict[str, str]) -> list[Drawn]:
        return [
            Drawn(
                field,
                value=self.typed.get(field.name, self.filled[field.name]),
                default=self.defaults[field.name],
                reason=self.suggestions[field.name].sentence if field.name in self.suggestions else "",
                error=errors.get(field.name, ""),
                warning=warnings.get(field.name, ""),
            )
            for field in form_fields(self.plugin.Config)
        ]

    def cards(self) -> list[Card]:
        """The presets: what each changes, and what an untouched form would take with it."""
        fields = {field.name: field for field in form_fields(self.plugin.Config)}
        untouched = all(text == self.filled.get(name) for name, text in self.typed.items())
        found = []
        for name in self.plugin.presets:
            changes = self.changes(name)
            chosen = name == self.preset if self.preset in self.plugin.presets else untouched and not changes
            shown = [Drawn(fields[key], value, self.defaults[key]) for key, value in changes.items()]
            found.append(Card(name, shown, self.estimate_with(changes), chosen))
        return found

    def estimate_with(self, changes: dict[str, str]) -> Estimate | None:
        config, _ = parse_form(self.plugin.Config, self.defaults | changes)
        if config is None or self.facts is None or self.host is None:
            return None
        estimate, _ = estimate_of(self.plugin, (config, *self.facts, self.host))
        return corrected(estimate, self.correction) if estimate else None

    @cached_property
    def correction(self) -> dict[Figure, float]:
        """What earlier runs on the worker have taught about such estimates."""
        return self.correction_of(self.plugin_name)

    def correction_of(self, name: str) -> dict[Figure, float]:
        if self.host is None:
            return {}
        return accuracy_on(self.host.name, plugin=name, workspace=self.project.client.workspace).correction

    def outlook(self, config: Any) -> Forecast | None:
        if config is None or self.model is None or self.version is None:
            return None
        return services.forecast(self.plugin, config, base=self.model, version=self.version)

    def context(self, refused: UserError | None = None) -> dict[str, Any]:
        """Everything that the page shows, and the estimate part of it alone."""
        try:
            config, errors = self.parse()
        except UserError as error:  # the chosen plugin is broken
            return {"form": self, "broken": error, "fields": [], "cards": []}
        outlook = self.outlook(config)
        issues = outlook.issues if outlook else []
        errors |= {issue.field: issue.message for issue in issues if issue.level == "error" and issue.field}
        errors |= refused.fields if refused else {}
        warnings = {issue.field: issue.message for issue in issues if issue.level == "warning" and issue.field}
        fields = self.drawn(errors, warnings)
        labels = LABELS | {drawn.field.name: drawn.field.label for drawn in fields}
        elsewhere = any(issue.instead and issue.level == "error" for issue in issues)  # no worker here could take it
        return {
            "form": self,
            "basic": [drawn for drawn in fields if not drawn.field.advanced],
            "advanced": [drawn for drawn in fields if drawn.field.advanced],
            "changed": [drawn for drawn in fields if drawn.is_changed],
            "errors": [{"field": name, "label": labels.get(name, ""), "message": text} for name, text in errors.items()],
            "error_of": errors,
            "refused": refused,
            "issues": [
                {"level": issue.level, "field": issue.field, "label": labels.get(issue.field, ""), "message": issue.message}
                | way_out(issue)
                for issue in issues
                if not issue.field or issue.level != "error"
            ],
            "outlook": outlook,
            "estimate": outlook.estimate if outlook and not elsewhere else None,
            "parts": parts(outlook),
            "cards": self.cards(),
            "elsewhere": elsewhere,
            "filled": json.dumps(self.filled),
            "reasons": json.dumps({name: suggestion.sentence for name, suggestion in self.suggestions.items()}),
        }


def in_order(plugins: Iterable[Loaded]) -> list[Loaded]:
    """Adapters first, with the one that is chosen at first before all; what trains nothing, and what is broken, last."""

    def key(loaded: Loaded) -> tuple[int, bool]:
        return METHODS.index(loaded.plugin.method) if loaded.plugin else len(METHODS), loaded.name != DEFAULT_PLUGIN

    return sorted(plugins, key=key)


def texts(sent: str) -> dict[str, str]:
    """A JSON object of texts that a page sent back; empty for anything else."""
    try:
        found = json.loads(sent)
    except (ValueError, RecursionError):
        return {}
    return {name: text for name, text in found.items() if isinstance(text, str)} if isinstance(found, dict) else {}


def settings_in(sent: dict[str, str]) -> dict[str, str]:
    """What was typed into the fields of settings, by the settings' names."""
    return {key.removeprefix("set_"): value for key, value in sent.items() if key.startswith("set_")}


def carried(typed: dict[str, str], *, was: str, name: str) -> tuple[dict[str, str], list[str]]:
    """What was typed for the way to train `was`, for the way `name`, and what had to change. What cannot be read is left as it is."""
    plugins = load_plugins()
    old, new = (plugins[each].plugin if each in plugins else None for each in (was, name))
    if old is None or new is None or old is new:
        return typed, []
    config, rest = {}, {}
    for field_ in form_fields(old.Config):
        if field_.name in typed:
            try:
                config[field_.name] = typed_value(field_, typed[field_.name])
            except ValueError:
                rest[field_.name] = typed[field_.name]
    found = carry(config, old=old, new=new)
    return rest | {key: as_text(value) for key, value in found.values.items()}, found.notices


def way_out(issue: Issue) -> dict[str, str]:
    """A link to the plugin that an issue names, for the notice that shows it; {} where it names none that can be used."""
    loaded = load_plugins().get(issue.instead)
    if loaded is None or not loaded.available:
        return {}
    href = f"{reverse('runs:new')}?{urlencode({'plugin': loaded.name})}"
    return {"instead": loaded.name, "href": href, "action": f"Use {loaded.title}"}


def newest_fitting(versions: list[DatasetVersion], loaded: Loaded) -> DatasetVersion | None:
    """The newest version that the plugin learns from; where there is none, the newest."""
    reads = loaded.plugin.reads if loaded.plugin else ()
    return next((version for version in versions if version.facts and version.facts["shape"] in reads), versions[0] if versions else None)


def filled_like(run: Run) -> dict[str, str]:
    """What somebody would have typed to start a run again: a name of its own, all else as it was."""
    return {
        "plugin": run.plugin,
        "dataset_version": str(run.dataset_version_id),
        "base_model": str(run.base_model_id),
        "name": "" if NUMBERED.fullmatch(run.name) else run.name if run.name.endswith("(copy)") else f"{run.name} (copy)"[:120],
        "prompts": "" if run.prompts == services.PROMPTS else "\n".join(run.prompts),
    } | {f"set_{name}": as_text(value) for name, value in run.config.items()}


def parts(outlook: Forecast | None) -> list[dict[str, Any]]:
    """The estimate's memory as a bar of its parts, largest meaning first."""
    if outlook is None or outlook.estimate is None:
        return []
    memory = outlook.estimate.memory
    named = (
        ("Base weights", memory.weights),
        ("Adapter", memory.adapter),
        ("Gradients", memory.gradients),
        ("Optimizer", memory.optimizer),
        ("Activations", memory.activations),
        ("Output layer", memory.logits),
        ("Program", memory.overhead),
    )
    return [{"name": name, "value": value} for name, value in named if value]
