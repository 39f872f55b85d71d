"""The API's part about the ways to train, and what one would take."""

import inspect
from typing import Any
from uuid import UUID

from django.http import HttpRequest
from ninja import Router, Schema

from studio.api.fields import Input, Line, named
from studio.api.paging import Page
from studio.basemodels.models import BaseModel
from studio.datasets.models import DatasetVersion
from studio.runs import services
from studio.runs.costs import tariff_of
from studio.training import Issue, Memory, Span
from studio.training.registry import Loaded, load_plugins

router = Router(tags=["Training"])


class PluginOut(Schema):
    name: str
    title: str
    description: str
    method: str | None
    reads: list[str]
    requires: list[str]
    available: bool
    reason: str
    """Why it is not available; empty where it is."""
    instead: str = ""
    """The name of the plugin to use in its place, where it is not available and names one."""
    origin: str
    config_schema: dict[str, Any] | None
    """JSON Schema of its settings: types, bounds, defaults and a sentence for each."""
    presets: dict[str, dict[str, Any]]


def plugin_out(loaded: Loaded) -> dict[str, Any]:
    plugin, obstacle = loaded.plugin, services.obstacle(loaded)
    return {
        "name": loaded.name,
        "title": loaded.title,
        "description": (inspect.getdoc(plugin) or "") if plugin else "",
        "method": plugin.method if plugin else None,
        "reads": list(plugin.reads) if plugin else [],
        "requires": list(plugin.requires) if plugin else [],
        "available": obstacle is None,
        "reason": obstacle.message if obstacle else "",
        "instead": obstacle.instead if obstacle else "",
        "origin": loaded.origin,
        "config_schema": plugin.Config.model_json_schema() if plugin else None,
        "presets": plugin.presets if plugin else {},
    }


@router.get("/plugins", response=Page[PluginOut], url_name="plugins")
def list_plugins(request: HttpRequest) -> dict[str, Any]:
    """Every way to train, whole or broken; all of them in one page."""
    return {"items": [plugin_out(loaded) for loaded in load_plugins().values()], "next": None}


class EstimateIn(Input):
    plugin: Line
    config: dict[str, Any] = {}
    base_model: UUID
    dataset_version: UUID


class SuggestionOut(Schema):
    value: Any
    reason: str
    """Goes on after the value."""


class EstimateOut(Schema):
    issues: list[Issue]
    suggestions: dict[str, SuggestionOut]
    """Settings that depend on the case, as the form fills them in. A run of the API begins with the plugin's own defaults."""
    memory: Memory | None
    """Bytes at the peak; null, as all that follows, while no worker has said what machine it runs on."""
    trainable_parameters: int | None
    steps: int | None
    seconds: Span | None
    disk: int | None
    available: int | None
    reasons: list[str]
    cost: float | None = None
    """In the middle of the range of seconds, at today's rate of the worker; null where none is set."""
    currency: str | None = None


@router.post("/estimates", response=EstimateOut, url_name="estimates")
def estimate(request: HttpRequest, payload: EstimateIn) -> dict[str, Any]:
    """What a run with these settings would take, and what speaks against it. Nothing is started."""
    base = named(BaseModel.objects.for_action(request, "run.estimate"), payload.base_model, field="base_model")
    versions = DatasetVersion.objects.for_action(request, "run.estimate").select_related("dataset")
    version = named(versions, payload.dataset_version, field="dataset_version")
    _, outlook = services.ask(payload.plugin, payload.config, base=base, version=version)
    facts = outlook.estimate.model_dump() if outlook.estimate else dict.fromkeys(EstimateOut.model_fields) | {"reasons": []}
    if outlook.estimate and (tariff := tariff_of(base.workspace, services.training_host())):
        seconds = (outlook.estimate.seconds.low + outlook.estimate.seconds.high) / 2
        facts |= {"cost": round(float(tariff.of(seconds)), 4), "currency": tariff.currency}
    return facts | {"issues": outlook.issues, "suggestions": services.suggestions(payload.plugin, base=base, version=version)}
