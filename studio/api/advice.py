"""The API's part about what to train with: LoRA, QLoRA or full, before anything is trained; and surveys, which measure instead of guess."""

from datetime import datetime
from typing import Any
from uuid import UUID

from django.http import HttpRequest
from django.shortcuts import get_object_or_404
from ninja import Query, Router, Schema
from pydantic import Field

from studio.api.fields import Input, Line, named
from studio.basemodels.models import BaseModel
from studio.comparisons import advising
from studio.comparisons.models import Survey
from studio.datasets.models import DatasetVersion
from studio.training.advicefacts import Advice, Goal, Surveyed
from studio.training.advisor import MOST_CLIENTS
from studio.training.literature import cited
from studio.workspaces.models import Project

router = Router(tags=["Training"])


class AdviceFilters(Input):
    project: UUID
    dataset_version: UUID
    base_model: UUID
    goal: Goal = "task"
    clients: int = Field(1, ge=1, le=MOST_CLIENTS)
    worker: list[Line] = Field([], max_length=100)
    """Names of the workers that count, `worker=a&worker=b`; all where none is given."""


class FindingOut(Schema):
    key: str
    authors: str
    year: int
    title: str
    link: str
    says: str
    covers: str
    limits: str


class AdviceOut(Schema):
    advice: Advice
    """Sizes in bytes, times in seconds, each as a range."""
    survey: UUID | None
    """The newest survey of these rows with this base, whose figures the advice rests on."""
    literature: list[FindingOut]
    """Every source that the advice names."""


@router.get("/advice", response=AdviceOut, url_name="advice")
def get_advice(request: HttpRequest, filters: Query[AdviceFilters]) -> dict[str, Any]:
    """Each method side by side on the workers that count, one proposal with its reasons, the nine rows, and what nobody knows."""
    project = named(Project.objects.for_action(request, "run.estimate"), filters.project, field="project")
    base = named(BaseModel.objects.for_action(request, "run.estimate"), filters.base_model, field="base_model")
    versions = DatasetVersion.objects.for_action(request, "run.estimate").filter(dataset__project=project).select_related("dataset")
    version = named(versions, filters.dataset_version, field="dataset_version")
    found = advising.advice_for(base=base, version=version, goal=filters.goal, clients=filters.clients, on=filters.worker or None)
    return {
        "advice": found.advice,
        "survey": found.survey.pk if found.survey else None,
        "literature": [vars(finding) for finding in cited(found.advice.sources)],
    }


class SurveyIn(Input):
    dataset_version: UUID
    base_model: UUID


class SurveyOut(Schema):
    id: UUID
    dataset_version: UUID
    base_model: UUID
    status: str
    error: str
    result: Surveyed | None
    """null until it has been measured."""
    created_at: datetime
    ended_at: datetime | None


def survey_out(survey: Survey) -> dict[str, Any]:
    order = survey.order
    return {
        "id": survey.pk,
        "dataset_version": survey.dataset_version_id,
        "base_model": survey.base_model_id,
        "status": order.status,
        "error": order.error,
        "result": survey.result,
        "created_at": survey.created_at,
        "ended_at": order.ended_at,
    }


@router.post("/surveys", response={201: SurveyOut}, url_name="surveys")
def create_survey(request: HttpRequest, payload: SurveyIn) -> dict[str, Any]:
    """Looks at some of the rows with the base model, and tries learning rates: about two minutes. One that is on its way is answered."""
    versions = DatasetVersion.objects.for_action(request, "run.create").select_related("dataset__project__client")
    version = named(versions, payload.dataset_version, field="dataset_version")
    base = named(BaseModel.objects.for_action(request, "run.create"), payload.base_model, field="base_model")
    return survey_out(advising.begin_survey(request.member, base=base, version=version))  # type: ignore[attr-defined]


@router.get("/surveys/{uuid:pk}", response=SurveyOut, url_name="survey")
def get_survey(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    return survey_out(get_object_or_404(Survey.objects.for_action(request, "run.view").select_related("order"), pk=pk))


@router.post("/surveys/{uuid:pk}/stop", response={202: SurveyOut}, url_name="survey_stop")
def stop_survey(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    """Asks it to end. Nothing of it is kept."""
    visible = Survey.objects.for_action(request, "run.create").select_related(
        "order", "dataset_version__dataset__project__client", "base_model"
    )
    survey = get_object_or_404(visible, pk=pk)
    advising.stop_survey(request.member, survey)  # type: ignore[attr-defined]
    survey.order.refresh_from_db()
    return survey_out(survey)
