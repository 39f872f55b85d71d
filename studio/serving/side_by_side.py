"""The columns of one page of the playground: which of a client's models stand there, and what there is to choose from."""

from collections.abc import Sequence
from typing import Any

from django.http import HttpRequest, QueryDict

from studio.artifacts.models import Artifact, Build
from studio.basemodels.models import BaseModel
from studio.errors import UserError
from studio.releases.models import Release
from studio.serving.columns import MOST, Column, at_deployment, client_of, column_of, rows_of, shown, standing
from studio.serving.models import Deployment
from studio.workspaces.lists import some
from studio.workspaces.models import Client, Member
from studio.workspaces.searching import matching

ACTION = "chat.use"
FEW = 6
"""Of each kind that are offered at once; the others are searched for."""
OF_CLIENT: list[tuple[str, Any, tuple[str, ...]]] = [
    ("Releases", Release, ("name", "project__name")),
    ("Adapters and full models", Artifact, ("name", "project__name", "base_model__name")),
    ("GGUF files", Build, ("quantization", "source__name", "base_model__name", "project__name")),
]
"""What is offered of a client besides its deployments, and the columns in which typed words are looked for."""


def side(who: HttpRequest | Member, target: str, *, action: str = ACTION) -> Column:
    """What a target names, for whoever asks it here. Raises Http404 where there is no such thing for `who`."""
    return column_of(who, target, action=action)


def sides(who: HttpRequest | Member, targets: Sequence[str], *, client: Client | None = None, action: str = ACTION) -> list[Column]:
    """The columns in their order, each once. Raises UserError for those of several clients: nobody sees one's answers beside another's."""
    found = [side(who, target, action=action) for target in dict.fromkeys(targets)]
    if len(found) > MOST:
        raise UserError(f"At most {MOST} columns stand side by side. Remove one first.")
    whose = client_of(found)
    if client is not None and whose is not None and whose != client:
        raise UserError(f"These models are not {client}'s. Choose models of one client.")
    return found


def named_by(who: HttpRequest | Member, query: QueryDict, *, client: Client | None) -> list[Column]:
    """The columns of an address, also as links named them before there were more than two; without any, the usual ones."""
    if "column" in query:
        return sides(who, query.getlist("column"), client=client)
    if pk := query.get("artifact"):
        return beside_its_base(who, pk)
    return [side(who, f"base:{pk}")] if (pk := query.get("base_model")) else usual(who, client)


def beside_its_base(who: HttpRequest | Member, pk: str) -> list[Column]:
    """An adapter, a full model or a GGUF file by the id of its artifact, and what it was made from."""
    found = Artifact.objects.for_action(who, ACTION).select_related("project__client", "base_model", "build").named(pk)
    build = getattr(found, "build", None)
    own = side(who, f"build:{build.pk}" if build is not None else f"{kind_of(found)}:{found.pk}")
    base = found.base_model
    return [shown(base), own] if base is not None and base.is_ready else [own]


def kind_of(artifact: Artifact) -> str:
    return "model" if artifact.kind == Artifact.Kind.MODEL else "adapter"


def usual(who: HttpRequest | Member, client: Client | None) -> list[Column]:
    """What stands there before anybody has chosen: the newest of what was trained, beside its base; or a base model alone."""
    trained = rows_of(who, Artifact, action=ACTION).order_by("-created_at")
    trained = trained.filter(project__client=client) if client is not None else trained.current()
    if newest := some(trained, 1):
        base = newest[0].base_model
        return [shown(thing) for thing in (base, newest[0]) if thing is not None and (thing is not base or base.is_ready)]
    first = rows_of(who, BaseModel, action=ACTION).first()
    return [shown(first)] if first else []


def offered(who: HttpRequest | Member, client: Client | None, words: Sequence[str]) -> list[tuple[str, list[Column], bool]]:
    """`(kind, a few of it, whether there are more)`: what has all the words, the newest first. Of one client, and base models."""
    groups = []
    if client is not None:
        there = standing(who, client, action=ACTION)
        slots = some(there.filter(matching(Deployment, words, names=("slug", "release__name", "client__slug"))), FEW + 1)
        groups.append(("Deployments", [at_deployment(slot) for slot in slots]))
        for title, model, names in OF_CLIENT:
            rows = rows_of(who, model, action=ACTION).filter(project__client=client).order_by("-created_at")
            groups.append((title, [shown(row) for row in some(rows.filter(matching(model, words, names=names)), FEW + 1)]))
    bases = rows_of(who, BaseModel, action=ACTION).filter(matching(BaseModel, words, names=("name",)))
    groups.append(("Base models", [shown(row) for row in some(bases, FEW + 1)]))
    return [(title, found[:FEW], len(found) > FEW) for title, found in groups if found]


def client_named(who: HttpRequest | Member, typed: str | None) -> Client | None:
    """The client that an address names. Raises Http404 for one that is not there for `who`."""
    found: Client | None = Client.objects.for_action(who, ACTION).named(typed) if typed else None
    return found
