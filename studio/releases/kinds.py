"""The order that measures a release on held-out rows, and the one in production beside it."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from studio.datasets.models import DatasetVersion
from studio.orders.kinds import OrderKind, register
from studio.orders.models import Order
from studio.releases.models import Evaluation, Release
from studio.training.orders import EvaluatedModel, EvaluationPayload

Text = Annotated[str, StringConstraints(max_length=4000)]


class Sample(BaseModel):
    prompt: Text
    answer: Text
    before: Text | None
    expected: Text


class Figures(BaseModel):
    """What a worker may say that it measured; the process itself is not believed. Stored as `Evaluation.result`."""

    model_config = ConfigDict(allow_inf_nan=False)

    rows: int = Field(ge=1)
    of: int = Field(ge=1)
    tokens: int = Field(ge=1)
    unit: Literal["token", "character"]
    loss: float = Field(ge=0)
    before: float | None = Field(ge=0)
    change: float | None
    low: float | None
    high: float | None
    learnt: int = Field(ge=0)
    unknown: list[Text] = Field(max_length=2)
    cut: int = Field(ge=0)
    samples: list[Sample] = Field(max_length=20)


class EvaluationKind(OrderKind):
    kind = "evaluation"
    time_limit = 6 * 3600

    def payload(self, order: Order) -> dict[str, Any]:
        evaluation = evaluation_of(order)
        release, against, version = evaluation.release, evaluation.against, evaluation.dataset_version
        learnt_from = release.artifact.dataset_version_id == version.pk
        return EvaluationPayload(
            rows=str(version.rows_path),
            split="validation" if learnt_from else "",
            shape=version.dataset_facts(None).shape,
            release=model_of(release),
            before=model_of(against) if against else None,
        ).model_dump()

    def target(self, order: Order) -> Path:
        return Path(order.folder, "result")  # it leaves no files

    def title(self, order: Order) -> str:
        return f"Evaluation of {evaluation_of(order).release}"

    def succeeded(self, order: Order, result: dict[str, Any]) -> None:
        evaluation = evaluation_of(order)
        if "loss" not in result:  # it was stopped before it had measured anything
            return
        evaluation.result = Figures.model_validate(result).model_dump()
        evaluation.save(update_fields=["result"])


def evaluation_of(order: Order) -> Evaluation:
    paths = [f"{side}__artifact__{part}" for side in ("release", "against") for part in ("base_model", "dataset_version")]
    found: Evaluation = order.evaluations.select_related("dataset_version", *paths).get()
    return found


def model_of(release: Release) -> EvaluatedModel:
    artifact, asked = release.artifact, release.asked_with
    base = artifact.base_model
    version: DatasetVersion | None = artifact.dataset_version
    return EvaluatedModel(
        name=release.name,
        **artifact.answering,
        parameters=base.model_facts.parameters if base and base.is_ready else 0,
        context=base.model_facts.context_length if base and base.is_ready else 0,
        system=asked.get("system", ""),
        stop=asked.get("stop", []),
        learnt=str(version.rows_path) if version else "",
    )


register(EvaluationKind())
