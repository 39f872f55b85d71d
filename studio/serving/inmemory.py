"""What is in memory to answer with, as far as one member may know: names of their own, and of everybody else's only bytes."""

from dataclasses import dataclass, field
from typing import Any

from django.http import HttpRequest

from studio.artifacts.models import Artifact
from studio.basemodels.models import BaseModel

GGUF = (Artifact.Kind.GGUF, Artifact.Kind.GGUF_ADAPTER)
MOST_FILES = 500
"""Builds, newest first, whose files' hashes are looked through for a name."""


@dataclass
class Loaded:
    """A base model in memory."""

    name: str
    base: BaseModel | Artifact
    adapters: list[Artifact]
    """Those on it that the member may see."""
    hidden: int
    """How many more are on it."""
    size: int
    """Bytes; 0 where a server elsewhere holds it."""
    running: int
    waiting: int
    idle: float
    """Seconds since it last answered."""
    cold: float | None
    """Seconds that it took to load; None where it was there already."""


@dataclass
class Engine:
    """One engine and the memory that it fills."""

    name: str
    on_gpu: bool
    budget: int
    """Bytes that it may take; 0 where it sets itself no limit."""
    used: int
    models: list[Loaded] = field(default_factory=list)

    @property
    def others(self) -> int:
        """Bytes of what the member may not see."""
        return max(0, self.used - sum(model.size for model in self.models))

    @property
    def running(self) -> int:
        return sum(model.running for model in self.models)

    @property
    def waiting(self) -> int:
        return sum(model.waiting for model in self.models)


def engines_for(request: HttpRequest, told: dict[str, Any]) -> list[Engine]:
    """From what the engine's process tells of itself (`Engine.metrics`). A constant number of queries."""
    parts = told.get("engines") or [told]
    workspace = str(request.member.workspace_id)  # type: ignore[attr-defined]
    mine = {id(line): line for part in parts for line in part["models"] if line["workspace"] == workspace}
    named = names(request, {sha for line in mine.values() for sha in (line["base_sha256"], *adapters_of(line))})
    return [
        Engine(
            name=part["engine"],
            on_gpu=part["on_gpu"],
            budget=part["budget"],
            used=part["used"],
            models=sorted(
                (loaded(line, named) for line in part["models"] if id(line) in mine and line["base_sha256"] in named),
                key=lambda model: (model.idle, model.name),
            ),
        )
        for part in parts
    ]


def loaded(line: dict[str, Any], named: dict[str, BaseModel | Artifact]) -> Loaded:
    found = [named[sha] for sha in adapters_of(line) if sha in named]
    base = named[line["base_sha256"]]
    return Loaded(
        name=base.name,
        base=base,
        adapters=sorted((each for each in found if isinstance(each, Artifact)), key=lambda each: each.name),
        hidden=len(adapters_of(line)) - len(found),
        size=line["bytes"],
        running=line["running"],
        waiting=line["waiting"],
        idle=line["idle"] or 0.0,
        cold=line.get("cold"),
    )


def adapters_of(line: dict[str, Any]) -> list[str]:
    return [each for each in line["adapters"] if each]


def names(request: HttpRequest, hashes: set[str]) -> dict[str, BaseModel | Artifact]:
    """What this member may see of these hashes, by hash."""
    if not hashes:
        return {}
    found: dict[str, BaseModel | Artifact] = {}
    artifacts = Artifact.objects.for_action(request, "artifact.view").select_related("project__client").order_by("-created_at")
    for artifact in artifacts.filter(sha256__in=hashes):
        found[artifact.sha256] = artifact
    for model in BaseModel.objects.for_action(request, "base_model.view").filter(sha256__in=hashes):
        found[model.sha256] = model
    if hashes - found.keys():  # a build answers by its one file, not by its folder
        for artifact in artifacts.filter(kind__in=GGUF)[:MOST_FILES]:
            for file in artifact.files.values():
                if file["sha256"] in hashes:
                    found.setdefault(file["sha256"], artifact)
    return found
