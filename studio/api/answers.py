"""The API's part about kept answers: reading and judging them, and whether a project keeps any."""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from django.http import HttpRequest
from django.shortcuts import get_object_or_404
from ninja import Query, Router, Schema
from pydantic import Field

from studio.api.fields import Input, Line, Moment
from studio.api.paging import ClientsPaging, Page, page_of
from studio.serving import answers, keeping
from studio.serving.models import KeptAnswer
from studio.workspaces.models import Project

router = Router(tags=["Deployments"])


class Pointed(Schema):
    id: UUID
    name: str


class JudgedOut(Schema):
    id: UUID
    thumb: int
    """1 good, -1 bad, 0 where nobody has said."""
    corrected: bool
    """Whether somebody has said what it should have answered."""
    judged_at: datetime | None


class AnswerOut(Schema):
    id: UUID
    """The endpoint gave it to its caller as `chatcmpl-` with 32 hexadecimal digits; every call takes it in either form."""
    project: UUID
    deployment: Pointed | None
    """null where a release was asked by its own name, or the deployment is gone."""
    release: Pointed | None
    key: str | None
    """Name of the key that asked."""
    at: datetime
    until: datetime
    """When it is deleted."""
    question: str
    """How what was last asked begins."""
    beginning: str
    """How the answer begins."""
    thumb: int
    corrected: bool
    judged_by: str | None
    judged_at: datetime | None


class WholeAnswer(AnswerOut):
    messages: list[Any]
    """As they were sent, without what the release puts before them."""
    answer: dict[str, Any]
    correction: str


class AnswerFilters(ClientsPaging):
    project: UUID | None = None
    deployment: UUID | None = None
    release: UUID | None = None
    judged: Literal["", "open", "good", "bad", "corrected"] = ""
    q: Line = ""
    """How words of the conversation or its answer begin; it has all of them."""
    since: Moment | None = None
    until: Moment | None = None
    """Not that moment itself."""


class JudgementIn(Input):
    thumb: Literal[-1, 0, 1] | None = None
    """1 good, -1 bad, 0 neither; null leaves it as it is."""
    correction: str | None = Field(None, max_length=answers.LONGEST_CORRECTION)
    """What it should have answered; empty takes it back, null leaves it as it is."""


class KeepingOut(Schema):
    days: int | None
    """For so many days requests and answers are kept; null where nothing is."""


class KeepingIn(Input):
    days: int | None = Field(..., ge=1, le=keeping.LONGEST_DAYS)
    """null stops keeping, and deletes what was kept."""
    confirm: bool = False
    """Needed where this deletes answers that are kept now."""


def answer_out(kept: Any) -> dict[str, Any]:
    return {
        "id": kept.pk,
        "project": kept.project_id,
        "deployment": {"id": kept.deployment.pk, "name": str(kept.deployment)} if kept.deployment else None,
        "release": kept.release,
        "key": kept.key.name if kept.key else None,
        "at": kept.at,
        "until": kept.until,
        "question": kept.question,
        "beginning": kept.beginning,
        "thumb": kept.thumb,
        "corrected": kept.is_corrected,
        "judged_by": kept.judged_by.email if kept.judged_by else None,
        "judged_at": kept.judged_at,
    }


@router.get("/answers", response=Page[AnswerOut], url_name="answers")
def list_answers(request: HttpRequest, filters: Query[AnswerFilters]) -> dict[str, Any]:
    """What is kept of what deployments were asked and answered, the newest first. A project keeps nothing unless it says so."""
    visible = answers.visible(request, "answer.view").defer("messages", "answer", "words", "correction")
    named = {name: value for name in ("project", "deployment", "release") if (value := getattr(filters, name)) is not None}
    times = {"at__gte": filters.since, "at__lt": filters.until}
    rows = filters.of(visible).filter(**named, **{name: moment for name, moment in times.items() if moment is not None})
    wanted = answers.Wanted(judged=filters.judged, typed=filters.q).of(rows, request.member)  # type: ignore[attr-defined]
    return page_of(request, wanted, filters, show=answer_out, among=visible, by="at")


def named(request: HttpRequest, name: str, action: str) -> KeptAnswer:
    return get_object_or_404(answers.visible(request, action).defer("words"), pk=answers.as_pk(name))


@router.get("/answers/{pk}", response=WholeAnswer, url_name="answer")
def get_answer(request: HttpRequest, pk: str) -> dict[str, Any]:
    kept = named(request, pk, "answer.view")
    return answer_out(kept) | {"messages": kept.messages, "answer": kept.answer, "correction": kept.correction}


@router.post("/answers/{pk}/judge", response=JudgedOut, url_name="answer_judge")
def judge_answer(request: HttpRequest, pk: str, payload: JudgementIn) -> dict[str, Any]:
    """Says whether an answer is good, or what it should have been. A key that is narrowed to deployments can judge what it asked itself."""
    kept = named(request, pk, "answer.judge")
    answers.judge(request.member, kept, thumb=payload.thumb, correction=payload.correction)  # type: ignore[attr-defined]
    # Without the text: what answers a repeat of this call is kept elsewhere, and longer.
    return {"id": kept.pk, "thumb": kept.thumb, "corrected": bool(kept.correction), "judged_at": kept.judged_at}


@router.delete("/answers/{pk}", response={204: None}, url_name="answer")
def delete_answer(request: HttpRequest, pk: str) -> None:
    """Deletes one for good, before its time is over."""
    keeping.delete(request.member, named(request, pk, "answer.keep"))  # type: ignore[attr-defined]


@router.get("/projects/{uuid:pk}/keeping", response=KeepingOut, url_name="project_keeping")
def get_keeping(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    """Whether the project keeps requests and answers of the endpoint, and for how long."""
    project = get_object_or_404(Project.objects.for_action(request, "project.view"), pk=pk)
    found = keeping.keeping_of(project)
    return {"days": found.days if found else None}


@router.patch("/projects/{uuid:pk}/keeping", response=KeepingOut, url_name="project_keeping")
def update_keeping(request: HttpRequest, pk: UUID, payload: KeepingIn) -> dict[str, Any]:
    """Keeps them for so many days, or no more. What it deletes is said first, and deleted with `confirm`."""
    project = get_object_or_404(Project.objects.for_action(request, "answer.keep").select_related("client"), pk=pk)
    keeping.set_keeping(request.member, project, days=payload.days, confirmed=payload.confirm)  # type: ignore[attr-defined]
    return {"days": payload.days}
