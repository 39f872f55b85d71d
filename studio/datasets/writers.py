"""Who can write rows for a client: base models, endpoints, and whatever the apps above add."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from studio.basemodels.models import BaseModel
from studio.datasets.models import Connection
from studio.workspaces.models import Client, Member


@dataclass(frozen=True)
class Writer:
    key: str
    """KIND:ID, in forms and the API."""
    name: str
    group: str
    """What it is, as the heading of a choice."""
    base: str = ""
    """Folder of its model."""
    adapter: str = ""
    context: int = 0
    """Tokens that it reads at most; 0 where nobody said."""
    connection: Connection | None = None


Provider = Callable[[Member, Client], Iterable[Writer]]


def base_models(member: Member, client: Client) -> Iterable[Writer]:
    for model in BaseModel.objects.for_action(member, "base_model.view").filter(facts__isnull=False):
        yield Writer(f"base:{model.pk}", model.name, "Base models", base=str(model.folder), context=model.model_facts.context_length)


def endpoints(member: Member, client: Client) -> Iterable[Writer]:
    for connection in Connection.objects.for_action(member, "dataset.create").filter(kind=Connection.Kind.OPENAI):
        yield Writer(f"connection:{connection.pk}", connection.name, "Endpoints", connection=connection)


PROVIDERS: list[Provider] = [endpoints, base_models]
"""In the order of the form. The registry adds the client's own models."""


def writers_for(member: Member, client: Client) -> list[Writer]:
    return [writer for provider in PROVIDERS for writer in provider(member, client)]
