"""What can stand in a column, of the playground or of a trial: a base or full model, an adapter, a GGUF file, a release or a deployment."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from django.db.models import Q
from django.http import Http404, HttpRequest

from studio.artifacts.models import Artifact, Build
from studio.basemodels.models import BaseModel
from studio.errors import UserError
from studio.releases.models import Release
from studio.serving.models import Deployment
from studio.workspaces.models import Client, Member

Answering = BaseModel | Artifact | Build | Release
KINDS: dict[str, type[Answering]] = {"base": BaseModel, "adapter": Artifact, "model": Artifact, "build": Build, "release": Release}
"""What stands before the colon of a target such as `release:<id>`, in addresses, forms and the API alike; besides them `deployment`."""
OFFERED = 100
"""Of each kind, the newest first."""
MOST = 4


@dataclass(frozen=True)
class Column:
    """One side of a table of answers."""

    target: str
    title: str
    note: str
    method: str
    """base, lora or full: which colour it has everywhere."""
    thing: Answering
    client: Client | None
    """None for what belongs to the whole workspace."""

    @property
    def kept(self) -> dict[str, str]:
        """As it is stored: so it can be read once the model is gone."""
        return {"target": self.target, "title": self.title, "note": self.note, "method": self.method}


def column_of(who: HttpRequest | Member, target: str, *, action: str) -> Column:
    """What a target names, for whoever may do `action` with it. Raises Http404 for everything else."""
    kind, _, pk = target.partition(":")
    if kind == "deployment":
        return at_deployment(deployments(who, action).named(pk))
    if kind not in KINDS:
        raise Http404
    column = shown(rows_of(who, KINDS[kind], action=action).named(pk))
    if kind in ("adapter", "model") and not column.target.startswith(kind):
        raise Http404
    return column


def rows_of(who: HttpRequest | Member, model: Any, *, action: str) -> Any:
    """Of one model, those that answer."""
    rows: Any = model.objects.for_action(who, action)
    if model is BaseModel:
        return rows.filter(facts__isnull=False)
    if model is Artifact:
        adapters = Q(kind=Artifact.Kind.ADAPTER, base_model__isnull=False)
        models = Q(kind=Artifact.Kind.MODEL) & ~Q(lineage__has_key="quantization")
        return rows.filter(adapters | models).select_related("project__client", "base_model")
    if model is Build:
        whole = rows.filter(kind=Build.Kind.GGUF, artifact__isnull=False, verification__passed=True)
        return whole.select_related("project__client", "artifact", "source", "base_model")
    return rows.select_related("project__client", "base_model", "artifact__base_model")


def shown(thing: Answering) -> Column:
    """How people know it."""
    if isinstance(thing, BaseModel):
        return Column(f"base:{thing.pk}", thing.name, "Base model", "base", thing, None)
    client = thing.project.client
    if isinstance(thing, Release):
        return Column(f"release:{thing.pk}", thing.name, "Release, with its own settings", method_of(thing.artifact), thing, client)
    if isinstance(thing, Build):
        method = method_of(thing.source) if thing.source else "base"
        return Column(f"build:{thing.pk}", str(thing), f"GGUF file, {thing.quantization}", method, thing, client)
    if thing.kind == Artifact.Kind.MODEL:
        return Column(f"model:{thing.pk}", thing.name, f"Full model, {thing.project.name}", "full", thing, client)
    base = thing.base_model.name if thing.base_model else ""
    return Column(f"adapter:{thing.pk}", thing.name, f"Adapter on {base}, {thing.project.name}", "lora", thing, client)


def deployments(who: HttpRequest | Member, action: str) -> Any:
    return Deployment.objects.for_action(who, action).select_related("client", "release__project__client", "release__artifact__base_model")


def standing(who: HttpRequest | Member, client: Client, *, action: str) -> Any:
    """The deployments of a client at which something answers."""
    return deployments(who, action).filter(client=client, archived_at__isnull=True, release__isnull=False)


def at_deployment(found: Deployment) -> Column:
    """The release that a deployment points at now, under the deployment's name."""
    if found.release is None or found.archived_at is not None:
        raise UserError(f"Nothing answers at {found}. Promote a release to it first, or choose something else.")
    return replace(shown(found.release), target=f"deployment:{found.pk}", title=str(found), note=f"Deployment, {found.release.version}")


def method_of(artifact: Artifact) -> str:
    return "full" if artifact.kind == Artifact.Kind.MODEL else "lora"


def offered(who: HttpRequest | Member, client: Client | None, *, action: str) -> list[tuple[str, list[Column]]]:
    """Groups of columns for a choice: base models, and what `client` has. Few queries, however much there is."""
    groups: list[tuple[str, Iterable[Answering]]] = [("Base models", rows_of(who, BaseModel, action=action).order_by("name")[:OFFERED])]
    slots: list[Column] = []
    if client is not None:
        slots = [at_deployment(slot) for slot in standing(who, client, action=action).order_by("slug")[:OFFERED]]
        mine = {
            model: rows_of(who, model, action=action).filter(project__client=client).order_by("-created_at")
            for model in (Release, Artifact, Build)
        }
        groups = [
            ("Releases", mine[Release].exclude(stage=Release.Stage.RETIRED)[:OFFERED]),
            ("Adapters", mine[Artifact].filter(kind=Artifact.Kind.ADAPTER)[:OFFERED]),
            ("Full models", mine[Artifact].filter(kind=Artifact.Kind.MODEL)[:OFFERED]),
            ("GGUF files", mine[Build][:OFFERED]),
            *groups,
        ]
    found = [("Deployments", slots), *((title, [shown(thing) for thing in things]) for title, things in groups)]
    return [(title, columns) for title, columns in found if columns]


def client_of(columns: Iterable[Column]) -> Client | None:
    """The only client whose models are among them. Raises UserError for those of several: no table mixes clients."""
    clients = {column.client.pk: column.client for column in columns if column.client is not None}
    if len(clients) > 1:
        raise UserError("These models belong to different clients.", fields={"columns": "Choose models of one client."})
    return next(iter(clients.values()), None)
