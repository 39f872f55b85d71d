"""The API's part about what is in memory to answer with."""

from typing import Any
from uuid import UUID

from asgiref.sync import async_to_sync
from django.http import HttpRequest
from ninja import Router, Schema

from studio.basemodels.models import BaseModel
from studio.serving import asking
from studio.serving.inmemory import Engine, Loaded, engines_for

router = Router(tags=["Serving"])


class LoadedOut(Schema):
    base_model: UUID | None
    """Null where a full model or a build answers by itself."""
    artifact: UUID | None
    """That model or build."""
    name: str
    adapters: list[UUID]
    """The artifacts of those on it that the key reaches."""
    hidden: int
    """How many more are on it."""
    size: int
    """Bytes; 0 where a server elsewhere holds it."""
    running: int
    waiting: int
    idle: float
    """Seconds since it last answered."""
    cold_start: float | None
    """Seconds that it took to load."""


class EngineOut(Schema):
    name: str
    memory: str
    """gpu or main."""
    budget: int
    """Bytes that models may take; 0 where there is no limit."""
    used: int
    others: int
    """Bytes of what the key does not reach."""
    models: list[LoadedOut]


class ServingOut(Schema):
    running: bool
    """Whether the process that answers is there."""
    engines: list[EngineOut]


@router.get("/serving", response=ServingOut, url_name="serving")
def get_serving(request: HttpRequest) -> dict[str, Any]:
    """Which base models and adapters are in memory, what they take, and what they are doing."""
    told = async_to_sync(asking.state)()
    engines = engines_for(request, told) if told is not None else []
    return {"running": told is not None, "engines": [engine_out(engine) for engine in engines]}


def engine_out(engine: Engine) -> dict[str, Any]:
    return {
        "name": engine.name,
        "memory": "gpu" if engine.on_gpu else "main",
        "budget": engine.budget,
        "used": engine.used,
        "others": engine.others,
        "models": [loaded_out(model) for model in engine.models],
    }


def loaded_out(model: Loaded) -> dict[str, Any]:
    by_base = isinstance(model.base, BaseModel)
    return {
        "base_model": model.base.pk if by_base else None,
        "artifact": None if by_base else model.base.pk,
        "name": model.name,
        "adapters": [adapter.pk for adapter in model.adapters],
        "hidden": model.hidden,
        "size": model.size,
        "running": model.running,
        "waiting": model.waiting,
        "idle": round(model.idle, 1),
        "cold_start": model.cold,
    }
