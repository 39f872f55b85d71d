"""The API's part about rows as a base model's tokens: how long they are, and which tokens of a row are learnt."""

from typing import Any, Literal
from uuid import UUID

from django.http import HttpRequest
from django.shortcuts import get_object_or_404
from ninja import Query, Router, Schema
from pydantic import Field

from studio.api.fields import Input, named
from studio.basemodels.models import BaseModel
from studio.datasets import services, tokenviews
from studio.datasets.models import DatasetVersion
from studio.datasets.pages.drawing import within
from studio.datasets.pages.lengths import RUN_LENGTH
from studio.datasets.pages.tokens import LONGEST, SHORTEST
from studio.errors import UserError
from studio.training import TokenFacts

router = Router(tags=["Datasets"])

Status = Literal["ready", "waiting", "failed", "unknown"]


class TokensAsked(Input):
    base_model: UUID | None = None
    """The newest one where none is named."""


class TokensOut(Schema):
    base_model: UUID
    status: Status
    """waiting: it is being counted, ask again. unknown: nobody who may add datasets has asked for it yet."""
    error: str
    facts: TokenFacts | None


class Piece(Schema):
    id: int
    text: str | None
    """null where the token goes on with the letter that the one before began."""
    learnt: bool
    weight: float
    special: bool
    cut: bool


class AnswerOut(Schema):
    name: Literal["", "chosen", "rejected"]
    total: int
    """Tokens of the whole row; of a very long one `tokens` has the first 32,768."""
    learnt: int
    """Within the max length."""
    cut: int
    tokens: list[Piece]


class TokenViewOut(Schema):
    base_model: UUID
    row: int
    status: Status
    error: str
    """Also why the base model's template cannot write this row, or cannot tell its answers from the rest."""
    answers: list[AnswerOut]
    """One; of a preference row two."""


class ViewAsked(TokensAsked):
    row: int = Field(0, ge=0, le=2**62)
    """Index of the row, from 0."""
    max_length: int = Field(RUN_LENGTH, ge=SHORTEST, le=LONGEST)
    learn_from: Literal["answers", "last_answer"] = "answers"


@router.get("/dataset-versions/{uuid:pk}/tokens", response=TokensOut, url_name="dataset_tokens")
def get_tokens(request: HttpRequest, pk: UUID, asked: Query[TokensAsked]) -> dict[str, Any]:
    """How long the rows are in a base model's tokens, and what each max length would cut. Counted when first asked for."""
    version, base = ready(request, pk), base_of(request, asked.base_model)
    facts, order = version.token_facts(base), None
    if facts is None and request.member.may("dataset.create"):  # type: ignore[attr-defined]
        measurement = services.measure(version, base, member=request.member)  # type: ignore[attr-defined]
        order = measurement.order if measurement else None
    status = "ready" if facts else "unknown" if order is None else "waiting" if order.is_live else "failed"
    return {"base_model": base.pk, "status": status, "error": order.error if order else "", "facts": facts}


@router.get("/dataset-versions/{uuid:pk}/token-view", response=TokenViewOut, url_name="dataset_token_view")
def get_token_view(request: HttpRequest, pk: UUID, asked: Query[ViewAsked]) -> dict[str, Any]:
    """A row token by token, after the base model's chat template. Read when first asked for: ask again while it is waiting."""
    version, base = ready(request, pk), base_of(request, asked.base_model)
    rows = (version.facts or {})["rows"]
    if asked.row >= rows:
        raise UserError("There is no such row.", fields={"row": f"The rows are 0 to {rows - 1}."})
    look = tokenviews.look(request.member, version, base, index=asked.row)  # type: ignore[attr-defined]
    problem = look.row["error"] if look.row else look.error
    status = "waiting" if look.is_live and look.row is None else "failed" if problem else "ready"
    answers = [answer_out(reading, asked) for reading in look.row["readings"]] if look.row else []
    return {"base_model": base.pk, "row": asked.row, "status": status, "error": problem, "answers": answers}


def ready(request: HttpRequest, pk: UUID) -> DatasetVersion:
    version: DatasetVersion = get_object_or_404(DatasetVersion.objects.for_action(request, "dataset.view").select_related("order"), pk=pk)
    if not version.is_ready:
        raise UserError("The version has no rows yet. Ask again when its status is ready.")
    return version


def base_of(request: HttpRequest, pk: UUID | None) -> BaseModel:
    bases = BaseModel.objects.for_action(request, "base_model.view").filter(facts__isnull=False).order_by("-created_at")
    if pk is not None:
        return named(bases, pk, field="base_model")
    newest: BaseModel | None = bases.first()
    if newest is None:
        raise UserError("There is no base model yet, so nothing can tell tokens. Add one first.")
    return newest


def answer_out(reading: dict[str, Any], asked: ViewAsked) -> dict[str, Any]:
    runs = reading["last" if asked.learn_from == "last_answer" else "learnt"]
    weights = [0.0] * len(reading["ids"])
    for begin, end, weight in runs:
        weights[begin:end] = [weight] * len(weights[begin:end])
    special = set(reading["special"])
    pieces = zip(reading["ids"], reading["texts"], weights, strict=True)
    return {
        "name": reading["name"],
        "total": reading["total"],
        "learnt": within(runs, 0, asked.max_length),
        "cut": max(0, reading["total"] - asked.max_length),
        "tokens": [
            {
                "id": number,
                "text": text,
                "learnt": weight > 0 and place < asked.max_length,
                "weight": weight,
                "special": place in special,
                "cut": place >= asked.max_length,
            }
            for place, (number, text, weight) in enumerate(pieces)
        ],
    }
