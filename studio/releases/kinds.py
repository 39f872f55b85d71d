"""The order that measures a release on held-out rows, and the one in production beside it."""

from pathlib import Path
from typing import Any

from studio.datasets.models import DatasetVersion
from studio.orders.kinds import OrderKind, register
from studio.orders.models import Order
from studio.releases.models import Evaluation, Release
from studio.training.orders import EvaluatedModel, EvaluationPayload

KEPT = ("rows", "of", "tokens", "unit", "loss", "before", "change", "low", "high", "learnt", "unknown", "cut", "samples")


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
        evaluation.result = {name: result.get(name) for name in KEPT}
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
