"""Conversations of the playground that somebody shares within the workspace, and takes back."""

from collections.abc import Sequence
from typing import Annotated, Any

from django.db import transaction
from django.db.models.fields.json import KT
from django.db.models.functions import Left
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from studio.audit.services import record
from studio.errors import UserError
from studio.serving.columns import Column, client_of
from studio.serving.json_lists import Length
from studio.serving.keeping import plain
from studio.serving.models import Talk
from studio.workspaces.models import Client, Member, ScopedQuerySet

MOST_TURNS = 100
Text = Annotated[str, Field(max_length=100_000)]
Figure = Annotated[float, Field(ge=0, le=1e9)]


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    text: Text
    tokens: Annotated[int, Field(ge=0, le=10**9)] | None = None
    seconds: Figure | None = None
    first: Figure | None = None
    error: Annotated[str, Field(max_length=2000)] = ""


class Turn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    prompt: Annotated[str, Field(min_length=1, max_length=100_000)]
    answers: list[Answer | None]
    """One for each column; None where it was not asked, for it came later."""


TURNS = TypeAdapter(Annotated[list[Turn], Field(min_length=1, max_length=MOST_TURNS)])


def listed(rows: ScopedQuerySet) -> ScopedQuerySet:
    """As lists show them: how the `first` question begins and how many `questions` there are, without the rest, which may be megabytes."""
    found: ScopedQuerySet = rows.select_related("client", "user").defer("turns")
    return found.annotate(first=Left(KT("turns__0__prompt"), 80), questions=Length("turns"))


def share(member: Member, *, client: Client | None, columns: Sequence[Column], turns: Any, asked_with: dict[str, Any]) -> Talk:
    """Stores a conversation as it stands on the page, with the names that its columns have now.

    It is its columns' client's; where base models alone are left, that of the page's `client`: what was said may still be theirs.
    """
    try:
        said = [turn.model_dump() for turn in TURNS.validate_python(turns)]
    except ValidationError as problem:
        raise UserError(f"The conversation cannot be shared. It needs a question, and has at most {MOST_TURNS}.") from problem
    if not columns or any(len(turn["answers"]) != len(columns) for turn in said):
        fields = {"turns": "Each question has one answer for each column; null where it was not asked."}
        raise UserError("The answers do not fit the columns. Ask again, then share.", fields=fields)
    with transaction.atomic():
        made: Talk = Talk.objects.create(
            workspace=member.workspace,
            client=client_of(columns) or client,
            columns=[column.kept for column in columns],
            asked_with=plain(asked_with),
            turns=plain(said),
            user=member.user,
        )
        record(member, "talk.share", made, change={"columns": [None, [column.title for column in columns]], "questions": [None, len(said)]})
    return made


def may_delete(member: Member, talk: Talk) -> bool:
    """Whoever shared it, and those who run the workspace."""
    return talk.user_id == member.user_id or member.role in (Member.Role.OWNER, Member.Role.ADMIN)


def delete(member: Member, talk: Talk) -> None:
    if not may_delete(member, talk):
        raise UserError("Only whoever shared a conversation, or an admin, can delete it. Ask one of them.")
    with transaction.atomic():
        record(member, "talk.delete", talk)
        talk.delete()
