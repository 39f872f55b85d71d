"""The API's part about prompt sets: questions that are asked together."""

from datetime import datetime
from typing import Any
from uuid import UUID

from django.http import HttpRequest
from django.shortcuts import get_object_or_404
from ninja import Query, Router, Schema
from pydantic import Field

from studio.api.fields import Input, Line, named
from studio.api.paging import Page, Paging, page
from studio.errors import UserError
from studio.serving import prompt_files
from studio.serving import prompts as services
from studio.serving.json_lists import Length
from studio.serving.models import PromptSet
from studio.workspaces.models import Client

router = Router(tags=["Prompt sets"])


class PromptIn(Input):
    turns: list[str] = Field(min_length=1, max_length=services.MOST_TURNS)
    """The questions of one conversation, in the order in which they are asked."""
    category: Line = ""


class PromptSetIn(Input):
    name: Line
    client: UUID | None = None
    """Left out, the whole workspace may use it for every client."""
    prompts: list[PromptIn] = Field([], max_length=services.MOST_PROMPTS)
    text: str = Field("", max_length=services.LONGEST_SET)
    """What could stand in a file instead: one prompt a line, or JSON lines such as MT-Bench's."""


class PromptSetChanges(Input):
    name: Line | None = None
    prompts: list[PromptIn] | None = Field(None, max_length=services.MOST_PROMPTS)
    """All of them, as they are to be."""


class PromptSetFilters(Paging):
    client: UUID | None = None


class PromptOut(Schema):
    turns: list[str]
    category: str


class PromptSetLine(Schema):
    id: UUID
    name: str
    client: UUID | None
    count: int
    """How many prompts it has."""
    created_at: datetime


class PromptSetOut(PromptSetLine):
    prompts: list[PromptOut]


def line_of(found: PromptSet) -> dict[str, Any]:
    count = found.count if hasattr(found, "count") else len(found.prompts)
    return {"id": found.pk, "name": found.name, "client": found.client_id, "count": count, "created_at": found.created_at}


def whole(found: PromptSet) -> dict[str, Any]:
    return line_of(found) | {"prompts": found.prompts}


def told(prompts: list[PromptIn]) -> list[services.Prompt]:
    return [prompt.model_dump() for prompt in prompts]


def found_for(request: HttpRequest, action: str, pk: UUID) -> PromptSet:
    found: PromptSet = get_object_or_404(PromptSet.objects.for_action(request, action).select_related("client"), pk=pk)
    return found


@router.get("/prompt-sets", response=Page[PromptSetLine], url_name="prompt_sets")
def list_prompt_sets(request: HttpRequest, filters: Query[PromptSetFilters]) -> dict[str, Any]:
    visible = PromptSet.objects.for_action(request, "prompts.view").defer("prompts").annotate(count=Length("prompts"))
    return page(request, visible, filters, show=line_of, client=filters.client)


@router.post("/prompt-sets", response={201: PromptSetOut}, url_name="prompt_sets")
def create_prompt_set(request: HttpRequest, payload: PromptSetIn) -> dict[str, Any]:
    """With `prompts`, or with `text`."""
    clients = Client.objects.for_action(request, "prompts.edit")
    client = named(clients, payload.client, field="client") if payload.client else None
    if payload.prompts and payload.text:
        raise UserError("Say the prompts once.", fields={"text": "Leave out text, or prompts."})
    prompts = told(payload.prompts) or prompt_files.read(payload.text.encode("utf-8", "replace")).prompts
    made = services.create_set(request.member, name=payload.name, client=client, prompts=prompts)  # type: ignore[attr-defined]
    return whole(made)


@router.get("/prompt-sets/{uuid:pk}", response=PromptSetOut, url_name="prompt_set")
def get_prompt_set(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    return whole(found_for(request, "prompts.view", pk))


@router.patch("/prompt-sets/{uuid:pk}", response=PromptSetOut, url_name="prompt_set")
def change_prompt_set(request: HttpRequest, pk: UUID, payload: PromptSetChanges) -> dict[str, Any]:
    """Another name, other prompts, or both."""
    found = found_for(request, "prompts.edit", pk)
    prompts = None if payload.prompts is None else told(payload.prompts)
    services.change(request.member, found, name=payload.name, prompts=prompts)  # type: ignore[attr-defined]
    return whole(found)


@router.delete("/prompt-sets/{uuid:pk}", response={204: None}, url_name="prompt_set")
def delete_prompt_set(request: HttpRequest, pk: UUID) -> None:
    """Trials that asked it keep their own copy."""
    services.delete_set(request.member, found_for(request, "prompts.edit", pk))  # type: ignore[attr-defined]
