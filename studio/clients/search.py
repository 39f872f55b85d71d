"""Finds a client's things by name, client, base model or hash, of every kind at once: for the palette and the page of results."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

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
from studio.workspaces.models import Client, Member, Project
from studio.workspaces.searching import Seen, matching, matching_in_turn, words_of

LATELY = 3000
"""The newest things of a kind, which are looked through before all of them where enough of them are likely to fit."""


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
    hint: tuple[str, ...] = ()
    """The columns of what it belongs to."""
    called: tuple[str, ...] = ("name",)
    """The columns that it is called by, as its `str` is. Whole rows are wide, and only these and the hint are shown."""
    hashes: tuple[str, ...] = ()
    order: str = "-created_at"
    more: str = ""
    """The list that takes the same words, where one does."""


ANY = UUID(int=0)
"""Stands in an address for the id of each thing of a kind."""
NAMES = ("name", "project__name", "project__client__name")
OF_PROJECT = ("project__client__name", "project__name")
MADE = (*NAMES, "base_model__name")
KINDS = (
    Kind("client", "Clients", "clients", Client, "client.view", "clients:detail", ("name", "slug"), order="name", more="clients:list"),
    Kind("project", "Projects", "projects", Project, "project.view", "projects:detail", ("name", "client__name"), ("client__name",),
         order="name", more="projects:list"),
    Kind("run", "Runs", "runs", Run, "run.view", "runs:detail", MADE, OF_PROJECT, more="runs:list"),
    Kind("comparison", "Comparisons", "comparisons", Comparison, "comparison.view", "comparisons:detail", NAMES, OF_PROJECT,
         more="comparisons:list"),
    Kind("artifact", "Artifacts", "adapter", Artifact, "artifact.view", "artifacts:detail", MADE, OF_PROJECT, hashes=("sha256",),
         more="artifacts:list"),
    Kind("release", "Releases", "file", Release, "release.view", "releases:detail", MADE, OF_PROJECT, hashes=("artifact__sha256",),
         more="releases:list"),
    Kind("deployment", "Deployments", "send", Deployment, "deployment.view", "deployments:detail",
         ("slug", "project__client__slug", "project__client__name"), ("project__client__name",), ("project__client__slug", "slug"),
         order="slug"),
    Kind("dataset", "Datasets", "dataset", Dataset, "dataset.view", "datasets:detail", NAMES, OF_PROJECT),
    Kind("base model", "Base models", "base-model", BaseModel, "base_model.view", "basemodels:detail", ("name",), ("source",),
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
    words = list(dict.fromkeys(words_of(typed.replace("/", " "))))
    if not words:
        return []
    groups, seen = [], Seen()
    for kind in KINDS:
        found = first(member, kind, words, seen, most + 1)
        if found:
            groups.append(Group(kind, shown(kind, found[:most]), more=len(found) > most))
    return groups


def first(member: Member, kind: Kind, words: list[str], seen: Seen, count: int) -> list[Any]:
    """The first few rows of a kind that have all the words. PostgreSQL stops early by itself."""
    things = rows(member, kind)
    how: dict[str, Any] = {"names": kind.names, "hashes": kind.hashes, "seen": seen}
    if connection.vendor != "sqlite":
        return list(things.filter(matching(kind.model, words, **how))[:count])
    many = kind.order == "-created_at"
    wanted, share = matching_in_turn(kind.model, words, **how, many=many)
    if wanted is None:
        return []
    enough = share * LATELY >= 2 * count or (share and len(words) == 1)
    return (many and enough and lately(things, kind, wanted, count)) or list(things.filter(wanted)[:count])


def lately(things: "QuerySet[Any, Any]", kind: Kind, wanted: Q, count: int) -> list[Any]:
    """The newest few that fulfil a condition, where those of late are enough for that; or else none."""
    for edge in kind.model._base_manager.order_by("-created_at").values_list("created_at", flat=True)[LATELY : LATELY + 1]:
        found = list(things.filter(created_at__gte=edge).filter(wanted)[:count])
        return found if len(found) == count else []
    return []


def newest(member: Member, *, most: int) -> list[dict[str, str]]:
    """What the palette offers before anything is typed: of each kind that is made every day the newest few."""
    made = [kind for kind in KINDS if kind.word in ("run", "release", "project")]
    return [thing for kind in made for thing in shown(kind, list(rows(member, kind)[:most]))]


def rows(member: Member, kind: Kind) -> "QuerySet[Any, Any]":
    """Of what the member may see: its id, what it is called by and what it belongs to."""
    found = kind.model.objects.for_action(member, kind.action)
    if kind.model.CLIENT:
        found = found.current()
    ordered: QuerySet[Any, Any] = found.order_by(kind.order).values_list("pk", *kind.called, *kind.hint)
    return ordered


def shown(kind: Kind, found: list[Any]) -> list[dict[str, str]]:
    address, called = reverse(kind.address, args=[ANY]), len(kind.called) + 1
    return [
        {
            "title": "/".join(each[1:called]),
            "hint": " · ".join(each[called:]),
            "url": address.replace(str(ANY), str(each[0])),
            "kind": kind.word,
        }
        for each in found
    ]
