"""The API's part about votes: which of several answers somebody found best, and what the votes come to.

A blind vote is cast on the page alone, where nobody knows whose answers they see.
"""

from datetime import datetime
from typing import Any
from uuid import UUID

from django.http import HttpRequest
from django.shortcuts import get_object_or_404
from ninja import Query, Router, Schema
from pydantic import Field

from studio.api.fields import Input, named
from studio.api.paging import ClientsPaging, Page, page
from studio.api.talks import Targets, client_named, columns_named
from studio.api.trials import ColumnOut
from studio.serving import votes as services
from studio.serving.columns import MOST
from studio.serving.models import Vote
from studio.workspaces.models import Client

router = Router(tags=["Playground"])


class VoteIn(Input):
    client: UUID | None = None
    """Whose it is where base models alone answered; otherwise it is its models' client's."""
    columns: Targets
    prompt: str = Field(max_length=services.LONGEST)
    answers: list[str] = Field(max_length=MOST)
    """One for each column."""
    best: int | None = Field(..., ge=0, lt=MOST)
    """The column, from 0; null where none is better."""


class VoteFilters(ClientsPaging):
    client: UUID | None = None
    blind: bool | None = None


class StandingFilters(Input):
    client: UUID | None = None
    """Of this client, and of base models alone; left out, of all clients that are not archived."""
    blind: bool = False
    """Only votes of people who did not know whose answers they saw."""


class VoteLine(Schema):
    id: UUID
    client: UUID | None
    columns: list[ColumnOut]
    """In the order in which they were shown."""
    best: int | None
    blind: bool
    by: str | None
    created_at: datetime


class VoteOut(VoteLine):
    prompt: str
    answers: list[str]


class PairOut(Schema):
    first: ColumnOut
    second: ColumnOut
    votes: int
    first_better: int
    second_better: int
    neither: int
    sentence: str


class StandingsOut(Schema):
    votes: int
    """That were counted: the newest."""
    more: bool
    """Whether there are older ones that were not."""
    pairs: list[PairOut]
    """Each two that were asked the same, those that met most often first."""


def line_of(vote: Vote) -> dict[str, Any]:
    names = ("columns", "best", "blind", "created_at")
    by = vote.user.email if vote.user else None
    return {"id": vote.pk, "client": vote.client_id, "by": by} | {name: getattr(vote, name) for name in names}


@router.get("/votes", response=Page[VoteLine], url_name="votes")
def list_votes(request: HttpRequest, filters: Query[VoteFilters]) -> dict[str, Any]:
    """Votes, the newest first, without what was said: each one's own address has that."""
    visible = Vote.objects.for_action(request, "prompts.view").select_related("user").defer("prompt", "answers")
    return page(request, filters.of(visible), filters, show=line_of, client=filters.client, blind=filters.blind)


@router.post("/votes", response={201: VoteLine}, url_name="votes")
def cast_vote(request: HttpRequest, payload: VoteIn) -> dict[str, Any]:
    client = client_named(request, payload.client)
    made = services.cast(
        request.member,  # type: ignore[attr-defined]
        client=client,
        columns=columns_named(request, payload.columns, client),
        prompt=payload.prompt,
        answers=payload.answers,
        best=payload.best,
    )
    return line_of(made)


@router.get("/votes/standings", response=StandingsOut, url_name="vote_standings")
def get_vote_standings(request: HttpRequest, filters: Query[StandingFilters]) -> dict[str, Any]:
    """How often each model was found better than each other one that was asked the same."""
    client = named(Client.objects.for_action(request, "prompts.view"), filters.client, field="client") if filters.client else None
    found = services.standings(services.wanted(request, client=client.pk if client else None, only_blind=filters.blind))
    pairs = [
        {
            "first": pair.first,
            "second": pair.second,
            "votes": pair.votes,
            "first_better": pair.wins[0],
            "second_better": pair.wins[1],
            "neither": pair.wins[2],
            "sentence": pair.sentence,
        }
        for pair in found.pairs
    ]
    return {"votes": found.count, "more": found.is_cut, "pairs": pairs}


@router.get("/votes/{uuid:pk}", response=VoteOut, url_name="vote")
def get_vote(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    vote = get_object_or_404(Vote.objects.for_action(request, "prompts.view").select_related("user"), pk=pk)
    return line_of(vote) | {"prompt": vote.prompt, "answers": vote.answers}
