"""Finds a client's things by name, client, base model or hash, of every kind at once: for the palette and the page of results."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.db import connection
from django.db.models import Q, QuerySet
from django.urls import reverse

from studio.artifacts.models import Artifact
from studio.basemodels.models import BaseModel
from studio.comparisons.models import Comparison
from studio.datasets.models import Dataset
from studio.releases.models import Release
from studio.runs.models import Run
from studio.serving.models import Deployment
from studio.workspaces.lists import some
from studio.workspaces.models import Client, Member, Project
from studio.workspaces.searching import HASH, Seen, matching, words_of

LATELY = 3000
"""The newest things of a kind, which are looked through before all of them."""


@dataclass(frozen=True)
class Kind:
    """How one kind of thing is found and shown."""

    word: str
    """What the palette calls one of them."""
    title: str
    """What a group of them is called."""
    icon: str
    model: Any
    action: str
    address: str
    names: tuple[str, ...]
    hint: Callable[[Any], str]
    hashes: tuple[str, ...] = ()
    related: tuple[str, ...] = ()
    order: str = "-created_at"
    more: str = ""
    """The list that takes the same words, where one does."""


def of_project(thing: Any) -> str:
    return f"{thing.project.client.name} · {thing.project.name}"


NAMES = ("name", "project__name", "project__client__name")
OF_PROJECT = ("project__client",)
MADE = (*NAMES, "base_model__name")
KINDS = (
    Kind("client", "Clients", "clients", Client, "client.view", "clients:detail", ("name", "slug"), lambda client: "",
         order="name", more="clients:list"),
    Kind("project", "Projects", "projects", Project, "project.view", "projects:detail", ("name", "client__name"),
         lambda project: project.client.name, related=("client",), order="name", more="projects:list"),
    Kind("run", "Runs", "runs", Run, "run.view", "runs:detail", MADE, of_project, related=OF_PROJECT, more="runs:list"),
    Kind("comparison", "Comparisons", "comparisons", Comparison, "comparison.view", "comparisons:detail", NAMES, of_project,
         related=OF_PROJECT, more="comparisons:list"),
    Kind("artifact", "Artifacts", "adapter", Artifact, "artifact.view", "artifacts:detail", MADE, of_project,
         hashes=("sha256",), related=OF_PROJECT, more="artifacts:list"),
    Kind("release", "Releases", "file", Release, "release.view", "releases:detail", MADE, of_project,
         hashes=("artifact__sha256",), related=OF_PROJECT, more="releases:list"),
    Kind("deployment", "Deployments", "send", Deployment, "deployment.view", "deployments:detail", ("slug", "client__slug", "client__name"),
         lambda slot: slot.client.name, related=("client",), order="slug"),
    Kind("dataset", "Datasets", "dataset", Dataset, "dataset.view", "datasets:detail", NAMES, of_project, related=OF_PROJECT),
    Kind("base model", "Base models", "base-model", BaseModel, "base_model.view", "basemodels:detail", ("name",), lambda base: base.source,
         hashes=("sha256",), order="name"),
)  # fmt: skip


@dataclass(frozen=True)
class Group:
    kind: Kind
    things: list[dict[str, str]]
    """`{title, hint, url, kind}`."""
    more: bool
    """There are others."""


def search(member: Member, typed: str, *, most: int) -> list[Group]:
    """Of every kind the first `most` that have all the words; nothing where nothing was typed. A slash parts words, as in acme/support."""
    words = words_of(typed.replace("/", " "))
    if not words:
        return []
    groups, seen = [], Seen()
    # Several words or a hash fit few things, so those of late would be looked through in vain; PostgreSQL stops early by itself.
    often = connection.vendor == "sqlite" and len(words) == 1 and not HASH.fullmatch(words[0])
    for kind in KINDS:
        wanted = matching(kind.model, words, names=kind.names, hashes=kind.hashes, seen=seen)
        things = rows(member, kind)
        found = (often and lately(things, kind, wanted, most + 1)) or some(things.filter(wanted), most + 1, of=things)
        if found:
            groups.append(Group(kind, [shown(kind, thing) for thing in found[:most]], more=len(found) > most))
    return groups


def lately(things: "QuerySet[Any]", kind: Kind, wanted: Q, count: int) -> list[Any]:
    """The first few that fulfil a condition, where those of late are enough for that; or else none."""
    if kind.order != "-created_at":
        return []
    for edge in kind.model._base_manager.order_by("-created_at").values_list("created_at", flat=True)[LATELY : LATELY + 1]:
        found = some(things.filter(created_at__gte=edge).filter(wanted), count, of=things)
        return found if len(found) == count else []
    return []


def newest(member: Member, *, most: int) -> list[dict[str, str]]:
    """What the palette offers before anything is typed: of each kind that is made every day the newest few."""
    return [shown(kind, thing) for kind in KINDS if kind.word in ("run", "release", "project") for thing in some(rows(member, kind), most)]


def rows(member: Member, kind: Kind) -> "QuerySet[Any]":
    found = kind.model.objects.for_action(member, kind.action)
    if kind.model.CLIENT:
        found = found.current()
    found = found.select_related(*kind.related) if kind.related else found
    ordered: QuerySet[Any] = found.order_by(kind.order)
    return ordered


def shown(kind: Kind, thing: Any) -> dict[str, str]:
    return {"title": str(thing), "hint": kind.hint(thing), "url": reverse(kind.address, args=[thing.pk]), "kind": kind.word}
