"""The API's part about conversations of the playground that somebody shares within the workspace, and takes back."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from django.http import Http404, HttpRequest
from django.shortcuts import get_object_or_404
from ninja import Query, Router, Schema
from pydantic import Field

from studio.api.fields import Input, Line, named
from studio.api.paging import ClientsPaging, Page, page
from studio.api.trials import ColumnOut
from studio.errors import UserError
from studio.serving import talks as services
from studio.serving.columns import MOST, Column
from studio.serving.models import Talk
from studio.serving.sampling import sampling
from studio.serving.side_by_side import sides
from studio.workspaces.models import Client

router = Router(tags=["Playground"])
Targets = Annotated[list[Line], Field(min_length=1, max_length=MOST)]
"""`deployment:ID`, `release:ID`, `adapter:ID`, `model:ID`, `build:ID` or `base:ID`, each once, of one client."""


class TalkIn(Input):
    client: UUID | None = None
    """Whose it is where base models alone answered; otherwise it is its models' client's."""
    columns: Targets
    turns: list[services.Turn] = Field(min_length=1, max_length=services.MOST_TURNS)
    asked_with: dict[str, Any] = {}
    """What was set in place of each column's own: `system`, `temperature`, `top_p`, `max_tokens`, `stop`, `seed`, `frequency_penalty`."""


class TalkFilters(ClientsPaging):
    client: UUID | None = None


class TalkRef(Schema):
    id: UUID
    client: UUID | None
    columns: list[ColumnOut]
    shared_by: str | None
    created_at: datetime


class TalkLine(TalkRef):
    title: str
    """How its first question begins."""
    questions: int


class TurnOut(Schema):
    prompt: str
    answers: list[services.Answer | None]
    """One for each column; null where it was not asked, for it came later."""


class TalkOut(TalkLine):
    asked_with: dict[str, Any]
    turns: list[TurnOut]


def reference(talk: Talk) -> dict[str, Any]:
    by = talk.user.email if talk.user else None
    return {"id": talk.pk, "client": talk.client_id, "columns": talk.columns, "shared_by": by, "created_at": talk.created_at}


def line_of(talk: Any) -> dict[str, Any]:
    return reference(talk) | {"title": talk.first, "questions": talk.questions}


def columns_named(request: HttpRequest, targets: list[str], client: Client | None) -> list[Column]:
    """What a body names, where something may be changed for its client."""
    try:
        return sides(request, targets, client=client, action="prompts.edit")
    except Http404 as problem:
        text = "There is no such thing here. Look at the id, and at what stands before it."
        raise UserError("Something that the request names is not here.", fields={"columns": text}, code="unknown_id") from problem


def client_named(request: HttpRequest, pk: UUID | None) -> Client | None:
    return named(Client.objects.for_action(request, "prompts.edit"), pk, field="client") if pk else None


@router.get("/talks", response=Page[TalkLine], url_name="talks")
def list_talks(request: HttpRequest, filters: Query[TalkFilters]) -> dict[str, Any]:
    """Shared conversations, the newest first."""
    visible = services.listed(Talk.objects.for_action(request, "prompts.view"))
    return page(request, filters.of(visible), filters, show=line_of, client=filters.client)


@router.post("/talks", response={201: TalkRef}, url_name="talks")
def share_talk(request: HttpRequest, payload: TalkIn) -> dict[str, Any]:
    """Shares a conversation with everybody who sees its client's things, under the names that its columns have now."""
    client = client_named(request, payload.client)
    made = services.share(
        request.member,  # type: ignore[attr-defined]
        client=client,
        columns=columns_named(request, payload.columns, client),
        turns=[turn.model_dump() for turn in payload.turns],
        asked_with=sampling(payload.asked_with),
    )
    return reference(made)  # without what was said: what answers a repeat of this call is kept elsewhere, and longer


@router.get("/talks/{uuid:pk}", response=TalkOut, url_name="talk")
def get_talk(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    visible: Any = Talk.objects.for_action(request, "prompts.view").select_related("user")
    talk = get_object_or_404(visible, pk=pk)
    told = {"title": talk.title, "questions": len(talk.turns), "asked_with": talk.asked_with, "turns": talk.turns}
    return reference(talk) | told


@router.delete("/talks/{uuid:pk}", response={204: None}, url_name="talk")
def delete_talk(request: HttpRequest, pk: UUID) -> None:
    """Takes it back, for everybody. Whoever shared it may, and those who run the workspace."""
    talk = get_object_or_404(Talk.objects.for_action(request, "prompts.edit").select_related("client"), pk=pk)
    services.delete(request.member, talk)  # type: ignore[attr-defined]
