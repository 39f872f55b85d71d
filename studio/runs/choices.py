"""What a new run can be made of: the versions, base models and plugins that one may choose from."""

import re
from dataclasses import dataclass
from typing import Any

from django.http import HttpRequest

from studio.basemodels.models import BaseModel
from studio.datasets.models import DatasetVersion
from studio.errors import UserError
from studio.runs import services
from studio.runs.models import Run
from studio.runs.services import Forecast
from studio.training.form import FormField, as_text, form_fields, parse_form
from studio.training.registry import Loaded, load_plugins
from studio.workspaces.models import Project

DEFAULT_PLUGIN = "peft_lora"
LABELS = {"dataset_version": "Dataset", "base_model": "Base model", "plugin": "Way to train", "name": "Name"}
"""Of the fields that are no settings."""
NUMBERED = re.compile(r"Run \d+")
"""A name that the studio gave, and gives anew."""


@dataclass(frozen=True)
class Drawn:
    """One setting as the form shows it: what it is, what stands in it, what is wrong with it."""

    field: FormField
    value: str
    error: str = ""
    warning: str = ""

    @property
    def is_changed(self) -> bool:
        return self.value != self.field.text


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

    @classmethod
    def read(cls, request: HttpRequest, project: Project, *, like: Run | None = None) -> "RunForm":
        """The form as it was sent; opened for the first time, as the address says or as the run `like` was."""
        sent = request.POST if request.method == "POST" else filled_like(like) if like else request.GET
        seen = DatasetVersion.objects.for_action(request, "dataset.view").filter(dataset__project=project, facts__isnull=False)
        versions = list(seen.select_related("dataset").order_by("-created_at"))
        models = list(BaseModel.objects.for_action(request, "base_model.view").filter(facts__isnull=False).order_by("-created_at"))
        plugins = load_plugins()
        wanted = sent.get("plugin", "")
        name = wanted if wanted in plugins else DEFAULT_PLUGIN if DEFAULT_PLUGIN in plugins else next(iter(plugins))
        return cls(
            project=project,
            versions=versions,
            models=models,
            version=next((v for v in versions if str(v.pk) == sent.get("dataset_version")), newest_fitting(versions, plugins[name])),
            model=next((m for m in models if str(m.pk) == sent.get("base_model")), models[0] if models else None),
            plugin_name=name,
            typed={key.removeprefix("set_"): str(value) for key, value in sent.items() if key.startswith("set_")},
            name=sent.get("name", ""),
            prompts=sent.get("prompts", ""),
        )

    @property
    def plugins(self) -> list[Any]:
        return list(load_plugins().values())

    @property
    def plugin(self) -> Any:
        return services.plugin_of(self.plugin_name)

    def parse(self) -> tuple[Any, dict[str, str]]:
        """(config or None, errors) of what was typed over the preset."""
        return parse_form(self.plugin.Config, self.typed)

    def drawn(self, errors: dict[str, str], warnings: dict[str, str]) -> list[Drawn]:
        return [
            Drawn(field, self.typed.get(field.name, field.text), errors.get(field.name, ""), warnings.get(field.name, ""))
            for field in form_fields(self.plugin.Config)
        ]

    def outlook(self, config: Any) -> Forecast | None:
        if config is None or self.model is None or self.version is None:
            return None
        return services.forecast(self.plugin, config, base=self.model, version=self.version)

    def context(self, refused: UserError | None = None) -> dict[str, Any]:
        """Everything that the page shows, and the estimate part of it alone."""
        try:
            config, errors = self.parse()
        except UserError as error:  # the chosen plugin is broken
            return {"form": self, "broken": error, "fields": [], "presets": {}}
        outlook = self.outlook(config)
        issues = outlook.issues if outlook else []
        errors |= {issue.field: issue.message for issue in issues if issue.level == "error" and issue.field}
        errors |= refused.fields if refused else {}
        warnings = {issue.field: issue.message for issue in issues if issue.level == "warning" and issue.field}
        fields = self.drawn(errors, warnings)
        labels = LABELS | {drawn.field.name: drawn.field.label for drawn in fields}
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
                for issue in issues
                if not issue.field or issue.level != "error"
            ],
            "outlook": outlook,
            "estimate": outlook.estimate if outlook else None,
            "parts": parts(outlook),
            "presets": {name: {key: as_text(value) for key, value in preset.items()} for name, preset in self.plugin.presets.items()},
        }


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
