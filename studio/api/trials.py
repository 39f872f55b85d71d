"""The API's part about trials: a whole prompt set asked of several models, and the table of their answers."""

from datetime import datetime
from typing import Any
from uuid import UUID

from django.http import Http404, HttpRequest
from django.shortcuts import get_object_or_404
from ninja import Query, Router, Schema
from pydantic import Field

from studio.api.fields import Input, Line, named
from studio.api.paging import Page, Paging, page
from studio.errors import UserError
from studio.serving import trial_table
from studio.serving import trials as services
from studio.serving.columns import MOST, Column, column_of
from studio.serving.models import PromptSet, Trial
from studio.serving.trial_beside import Beside, Pair, comparable
from studio.serving.trial_views import HEAVY

router = Router(tags=["Trials"])


class TrialIn(Input):
    prompt_set: UUID
    columns: list[Line] = Field(min_length=1, max_length=MOST)
    """`base:ID`, `adapter:ID`, `model:ID`, `build:ID`, `release:ID` or `deployment:ID`, of one client; all are compared with the first.

    A deployment answers with the release that it points at now, also where another is promoted before its turn comes. No canary is asked.
    """
    system: str = Field("", max_length=20_000)
    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int = Field(256, ge=1, le=services.LONGEST_ANSWER)
    """Of each answer."""
    seed: int = Field(0, ge=0, le=4_294_967_295)


class TrialFilters(Paging):
    client: UUID | None = None


class ColumnOut(Schema):
    target: str
    title: str
    note: str
    method: str
    """base, lora or full."""
    release: UUID | None = None
    """Of a deployment: the release that answered."""


class FiguresOut(ColumnOut):
    answered: int
    failed: int
    missing: int
    tokens: float | None
    """Of an answer, on average; so are words and seconds."""
    words: float | None
    seconds: float | None
    tokens_per_second: float | None
    first_token: float | None
    """Seconds; the median."""


class TurnOut(Schema):
    text: str
    tokens: int
    seconds: float
    first: float
    """Seconds to the first token."""
    error: str
    """Why there is no answer; empty where there is one."""


class ConversationOut(Schema):
    turns: list[TurnOut]


class AskedPrompt(Schema):
    turns: list[str]
    category: str
    answers: list[ConversationOut]
    """One for each column."""


class TrialLine(Schema):
    id: UUID
    name: str
    client: UUID | None
    columns: list[ColumnOut]
    status: str
    """queued, running, succeeded, failed or stopped, as every order."""
    progress: float
    error: str
    created_at: datetime


class TrialOut(TrialLine):
    asked_with: dict[str, Any]
    summary: list[FiguresOut]
    """One for each column."""
    table: list[AskedPrompt]
    """While it is asked, and where it failed, as far as it was answered: a conversation that is not has no turns."""


class PairOut(Schema):
    earlier: ColumnOut | None
    later: ColumnOut | None
    compared: int
    """Answers to questions that both answered."""
    differing: int
    """Of them, those that are not the same to the letter."""


class ChangedOut(Schema):
    name: str
    earlier: Any
    later: Any


class AnsweredTwice(Schema):
    earlier: list[TurnOut]
    later: list[TurnOut]


class PromptTwice(Schema):
    turns: list[str]
    category: str
    earlier_number: int
    later_number: int
    answers: list[AnsweredTwice]
    """One for each pair."""


class BesideOut(Schema):
    earlier: TrialLine
    later: TrialLine
    changed: list[ChangedOut]
    """Settings that are not the same."""
    pairs: list[PairOut]
    """The same model with itself; what is left, in the order in which it stands."""
    only_earlier: int
    """Prompts that the later trial did not ask."""
    only_later: int
    table: list[PromptTwice]


class OtherTrial(Schema):
    trial: UUID | None = None
    """Another trial of the same set."""


def line_of(trial: Trial) -> dict[str, Any]:
    return {
        "id": trial.pk,
        "name": trial.name,
        "client": trial.client_id,
        "columns": trial.columns,
        "status": trial.order.status,
        "progress": trial.order.share if trial.order.is_live else 1.0,
        "error": trial.order.error,
        "created_at": trial.created_at,
    }


def whole(trial: Trial) -> dict[str, Any]:
    answers = trial_table.table_of(trial)
    table = [prompt | {"answers": row} for prompt, row in zip(trial.prompts, answers, strict=True)]
    return line_of(trial) | {
        "asked_with": trial.asked_with,
        "summary": [figures(found) for found in trial_table.summaries(trial, answers)],
        "table": table,
    }


def figures(found: trial_table.Summary) -> dict[str, Any]:
    names = ("answered", "failed", "missing", "tokens", "words", "seconds")
    own = {name: getattr(found, name) for name in names}
    return found.column | own | {"tokens_per_second": found.speed, "first_token": found.first}


def found_for(request: HttpRequest, action: str, pk: UUID) -> Trial:
    found: Trial = get_object_or_404(Trial.objects.for_action(request, action).select_related("client", "order"), pk=pk)
    return found


@router.get("/trials", response=Page[TrialLine], url_name="trials")
def list_trials(request: HttpRequest, filters: Query[TrialFilters]) -> dict[str, Any]:
    visible = Trial.objects.for_action(request, "prompts.view").select_related("order").defer(*HEAVY)
    return page(request, visible, filters, show=line_of, client=filters.client)


@router.post("/trials", response={202: TrialLine}, url_name="trials")
def create_trial(request: HttpRequest, payload: TrialIn) -> dict[str, Any]:
    """Asks a whole set, in the background."""
    prompts = named(PromptSet.objects.for_action(request, "prompts.edit").select_related("client"), payload.prompt_set, field="prompt_set")
    columns = [column_named(request, target) for target in payload.columns]
    asked_with = services.asked_of(payload.model_dump(include=set(services.AskedOf.model_fields)))
    return line_of(services.begin(request.member, prompts=prompts, columns=columns, asked_with=asked_with))  # type: ignore[attr-defined]


def column_named(request: HttpRequest, target: str) -> Column:
    try:
        return column_of(request, target, action="prompts.edit")
    except Http404 as problem:
        text = "There is no such thing here. Look at the id, and at what stands before it."
        raise UserError("Something that the request names is not here.", fields={"columns": text}, code="unknown_id") from problem
    except UserError as problem:  # a deployment at which nothing answers
        raise UserError("Some values cannot be used.", fields={"columns": problem.message}) from problem


@router.get("/trials/{uuid:pk}", response=TrialOut, url_name="trial")
def get_trial(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    return whole(found_for(request, "prompts.view", pk))


@router.get("/trials/{uuid:pk}/beside", response=BesideOut, url_name="trial_beside")
def compare_trials(request: HttpRequest, pk: UUID, query: Query[OtherTrial]) -> dict[str, Any]:
    """Two trials of one prompt set, prompt by prompt: what was asked otherwise, and what both answered."""
    trial = found_for(request, "prompts.view", pk)
    if query.trial is None:
        raise UserError("Name the other trial.", fields={"trial": "Name another trial of the same prompt set."})
    others = comparable(trial, Trial.objects.for_action(request, "prompts.view")).select_related("client", "order")
    return both_of(Beside.of(trial, named(others, query.trial, field="trial")))


def both_of(both: Beside) -> dict[str, Any]:
    alone = both.alone
    return {
        "earlier": line_of(both.earlier),
        "later": line_of(both.later),
        "changed": [{"name": name, "earlier": one, "later": other} for name, one, other in both.settings],
        "pairs": [pair_of(found.pair) | {"compared": found.compared, "differing": found.differing} for found in both.counted],
        "only_earlier": alone[0],
        "only_later": alone[1],
        "table": [prompt_of(both, places) for places in both.prompts],
    }


def pair_of(pair: Pair) -> dict[str, Any]:
    return {"earlier": pair.columns[0], "later": pair.columns[1]}


def prompt_of(both: Beside, places: tuple[int, int]) -> dict[str, Any]:
    answers = [{"earlier": both.turns(0, pair, places), "later": both.turns(1, pair, places)} for pair in both.pairs]
    numbers = {"earlier_number": places[0] + 1, "later_number": places[1] + 1}
    return both.earlier.prompts[places[0]] | numbers | {"answers": answers}


@router.post("/trials/{uuid:pk}/stop", response={202: TrialLine}, url_name="trial_stop")
def stop_trial(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    """What has been answered by then is kept."""
    trial = found_for(request, "prompts.edit", pk)
    services.stop(request.member, trial)  # type: ignore[attr-defined]
    return line_of(found_for(request, "prompts.view", pk))


@router.delete("/trials/{uuid:pk}", response={204: None}, url_name="trial")
def delete_trial(request: HttpRequest, pk: UUID) -> None:
    """With its answers. One that is still being asked is stopped first."""
    services.delete_trial(request.member, found_for(request, "prompts.edit", pk))  # type: ignore[attr-defined]
