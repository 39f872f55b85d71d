"""The metrics of a comparison as a form has them and as they are stored. What they are is `training.scoring`'s."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args
from uuid import UUID

from pydantic import ValidationError

from studio.basemodels.models import BaseModel
from studio.errors import UserError
from studio.releases.models import Release
from studio.training.form import as_text
from studio.training.scoring import KINDS, metrics_of
from studio.workspaces.models import Member, Project

AT_FIRST = ("f1",)
"""What a new form has chosen: it means something for every answer, and costs nothing."""
OFFERED = 100
"""Models that a form offers as a judge."""


@dataclass(frozen=True)
class Parameter:
    """What a metric can be told, as a field of the form."""

    name: str
    label: str
    help: str
    kind: str
    """text, textarea or select."""
    value: str
    choices: Sequence[tuple[str, str]] = ()
    error: str = ""


@dataclass(frozen=True)
class Offer:
    """A metric as the form offers it."""

    kind: str
    label: str
    sentence: str
    is_chosen: bool
    parameters: list[Parameter]
    error: str = ""


def offers(sent: Any, *, chosen: Sequence[str], judges: Sequence[tuple[str, str]], errors: Mapping[str, str]) -> list[Offer]:
    """All metrics, with what was typed for each."""
    return [
        Offer(
            kind,
            metric.label,
            metric.sentence,
            kind in chosen,
            [
                parameter(kind, name, field, sent, judges, errors)
                for name, field in metric.model_fields.items()
                if name not in ("kind", "name")
            ],
            errors.get(f"metric_{kind}", ""),
        )
        for kind, metric in KINDS.items()
    ]


def parameter(kind: str, name: str, field: Any, sent: Any, judges: Sequence[tuple[str, str]], errors: Mapping[str, str]) -> Parameter:
    full = f"metric_{kind}_{name}"
    shape = "select" if name == "model" else "textarea" if holds(field.annotation, dict) else "text"
    label = name.replace("_", " ").replace("json", "JSON").capitalize() if not name.startswith("json") else "JSON schema"
    return Parameter(
        full, label, str(field.description or ""), shape, sent.get(full, ""), judges if shape == "select" else (), errors.get(full, "")
    )


def holds(annotation: Any, wanted: type) -> bool:
    """Whether a type is `wanted`, or may be: `dict[str, Any] | None` is a dict."""
    return annotation is wanted or any(
        holds(part, wanted) for part in (getattr(annotation, "__origin__", None), *get_args(annotation)) if part
    )


def typed(sent: Any) -> list[dict[str, Any]]:
    """The metrics that a form chose, as they are stored. Raises UserError beside the fields that cannot be read."""
    found, errors = [], {}
    for kind in sent.getlist("metric"):
        if kind not in KINDS:
            raise UserError("The metrics cannot be used.", fields={"metrics": "Choose from those that are offered."})
        told: dict[str, Any] = {"kind": kind}
        for name, field in KINDS[kind].model_fields.items():
            text = sent.get(f"metric_{kind}_{name}", "").strip()
            if name in ("kind", "name") or not text:
                continue
            try:
                told[name] = read(text, field.annotation)
            except ValueError:
                errors[f"metric_{kind}_{name}"] = "This is not JSON."
            except RecursionError:
                errors[f"metric_{kind}_{name}"] = "This is nested too deeply."
        found.append(told)
    if errors:
        raise UserError("The metrics cannot be used.", fields=errors)
    return found


def read(text: str, annotation: Any) -> Any:
    if holds(annotation, dict):
        return json.loads(text)
    return [part.strip() for part in text.split(",") if part.strip()] if holds(annotation, list) else text


def checked(member: Member, told: Sequence[Any], *, project: Project) -> list[dict[str, Any]]:
    """The metrics as they are stored; a judge must be one that the member may use for this client. Raises UserError beside each fault."""
    try:
        found = metrics_of(told)
    except ValidationError as problem:
        raise UserError("The metrics cannot be used.", fields=faults(problem, told)) from problem
    except ValueError as problem:
        raise UserError("The metrics cannot be used.", fields={"metrics": str(problem)}) from problem
    for metric in found:
        if model := getattr(metric, "model", ""):
            refuse_foreign(member, model, project)
    return [metric.model_dump(mode="json") for metric in found]


def faults(problem: ValidationError, told: Sequence[Any]) -> dict[str, str]:
    """`{metric_regex_pattern: sentence}`; what belongs to no field stands beside all."""
    fields: dict[str, str] = {}
    for fault in problem.errors(include_url=False):
        place = [part for part in fault["loc"] if isinstance(part, str)]
        text = str(fault["msg"]).removeprefix("Value error, ").rstrip(".") + "."
        text = "This is needed." if fault["type"] == "missing" else text
        fields.setdefault(f"metric_{place[0]}_{place[1]}" if len(place) > 1 else "metrics", text)
    return fields


def refuse_foreign(member: Member, model: str, project: Project) -> None:
    kind, _, pk = model.partition(":")
    rows: Any
    if kind == "base":
        rows = BaseModel.objects.for_action(member, "base_model.view").filter(facts__isnull=False)
    else:
        rows = Release.objects.for_action(member, "release.view").filter(project__client=project.client)
    try:
        there = rows.filter(pk=UUID(pk)).exists()
    except ValueError:
        there = False
    if not there:
        raise UserError("The judge is not here.", fields={"metric_judge_model": "Choose a base model, or a release of this client."})


def judges_for(member: Any, project: Project) -> list[tuple[str, str]]:
    """Who may judge: base models, and releases of the client."""
    bases = BaseModel.objects.for_action(member, "base_model.view").filter(facts__isnull=False).order_by("-created_at")[:OFFERED]
    releases = Release.objects.for_action(member, "release.view").filter(project__client=project.client).order_by("-created_at")[:OFFERED]
    return [
        ("", "Choose a model"),
        *((f"base:{base.pk}", base.name) for base in bases),
        *((f"release:{release.pk}", release.name) for release in releases),
    ]


def filled(metrics: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What a form holds that was filled in with stored metrics, without which are chosen."""
    return {
        f"metric_{metric['kind']}_{name}": json.dumps(value) if isinstance(value, dict) else as_text(value)
        for metric in metrics
        for name, value in metric.items()
        if name not in ("kind", "name") and value is not None
    }
