"""The order that measures a comparison's results: what the worker is told of them, and what of its answer is taken in."""

from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

from django.db.models import Q

from studio.artifacts.buildable import kinds_of
from studio.artifacts.models import Artifact, Build
from studio.artifacts.quantizations import estimated_size, refuse_unsupported
from studio.basemodels.models import BaseModel
from studio.comparisons import measured, services
from studio.comparisons.models import Arm, ArmRun, Comparison
from studio.errors import UserError
from studio.orders.kinds import OrderKind
from studio.orders.models import Order
from studio.orders.room import Need
from studio.releases.models import Release
from studio.training.orders import ComparedArm, ComparedResult, ComparisonPayload, EvaluatedModel
from studio.training.scoring import Judge, metrics_of

FORWARD_PASS, BESIDE = 1.25, 3 << 29
"""What measuring takes against the weights, and bytes of the process."""
FEWEST_ROWS, MOST_ROWS = 48, 200
"""Held-out rows that are asked for; of large models the worker takes fewer, as `ml.heldout` says."""
READ_IN_A_SECOND = 2e10
"""Tokens times weights that two processor cores read, about."""
ROW_TOKENS = 200
"""Of a row that nobody has counted."""


class MeasuringKind(OrderKind):
    kind = "comparison"
    called = "Measuring of comparisons"
    time_limit = 24 * 3600
    related = ("comparison__project",)

    def payload(self, order: Order) -> dict[str, Any]:
        comparison = comparison_of(order)
        trained = services.comparable(comparison).select_related("arm__base_model", "arm__dataset_version", "run__order")
        found = trained.prefetch_related("run__order__artifacts")
        arms = [arm for arm in map(compared, by_arm(list(found))) if arm is not None]
        if not arms:
            raise UserError("No run of this comparison left an adapter or a model, so there is nothing to measure.")
        return ComparisonPayload(
            arms=arms,
            probe=str(comparison.probe.rows_path) if comparison.probe else "",
            probe_name=str(comparison.probe)[:200] if comparison.probe else "",
            metrics=metrics_of(comparison.metrics),
            judges=judges_of(comparison),
            rows=rows_to_measure(list(found)),
            state=order.checkpoints,
        ).model_dump(mode="json")

    def target(self, order: Order) -> Path:
        return order.folder / "result"

    def title(self, order: Order) -> str:
        return f"Measuring of {comparison_of(order).name}"

    def project(self, order: Order) -> UUID | None:
        return comparison_of(order).project_id

    def memory(self, order: Order) -> Need | None:
        comparison = comparison_of(order)
        bases = [arm.base_model for arm in comparison.arms.select_related("base_model")]
        sizes = [base.model_facts.parameters for base in bases if base.is_ready]
        sizes += [judge.parameters for judge in judges_of(comparison).values()]
        return Need(int(max(sizes) * 4 * FORWARD_PASS) + BESIDE) if sizes else None

    def succeeded(self, order: Order, result: dict[str, Any]) -> None:
        """Whatever cannot have been measured is refused with ValueError before the verdict reads it."""
        if not result.get("folder"):
            return  # it was stopped
        comparison = comparison_of(order)
        measured.read(Path(result["folder"]), measured.Asked.of(comparison))
        services.measured(comparison)


def comparison_of(order: Order) -> Comparison:
    known = Comparison.objects.select_related("project__client__workspace", "probe__dataset", "order")
    found: Comparison = known.get(Q(order=order) | Q(before=order))
    return found


def by_arm(trained: list[ArmRun]) -> list[list[ArmRun]]:
    found: dict[int, list[ArmRun]] = {}
    for each in trained:
        found.setdefault(each.arm.number, []).append(each)
    return [found[number] for number in sorted(found)]


def rows_to_measure(trained: list[ArmRun]) -> int:
    """Held-out rows that all results together take about as long to read as the longest run took, within the bounds."""
    seconds = max(each.run.order.seconds for each in trained)
    one_row = sum(each.arm.base_model.model_facts.parameters * tokens_of_row(each.arm) for each in trained) / READ_IN_A_SECOND
    return max(FEWEST_ROWS, min(MOST_ROWS, int(seconds / max(one_row, 1e-9))))


def tokens_of_row(arm: Arm) -> float:
    facts = arm.dataset_version.dataset_facts(arm.base_model)
    return facts.tokens.total / facts.rows if facts.tokens and facts.rows else ROW_TOKENS


def compared(runs: list[ArmRun]) -> ComparedArm | None:
    """An arm with what its runs left; None where that is nothing that answers, such as a rehearsal."""
    arm = runs[0].arm
    results = [result_of(each, artifact) for each in runs if (artifact := each.run.artifact) is not None and artifact.is_chattable]
    if not results:
        return None
    base = model_of(arm, name=arm.base_model.name, base=str(arm.base_model.folder))
    return ComparedArm(number=arm.number, rows=str(arm.dataset_version.rows_path), base=base, results=results)


def result_of(trained: ArmRun, artifact: Artifact) -> ComparedResult:
    arm, gguf = trained.arm, None
    with suppress(UserError):  # of a family that no GGUF is built from
        refuse_unsupported(arm.base_model.model_facts)
        gguf = estimated_size(arm.base_model.model_facts, "q8_0")
    return ComparedResult(
        seed=trained.seed,
        model=model_of(arm, name=f"{arm.name}, seed {trained.seed}", **artifact.answering),
        size=artifact.size,
        gguf_size=gguf,
        gguf_adapter=gguf is not None and Build.Kind.GGUF_ADAPTER in kinds_of(artifact),
    )


def model_of(arm: Arm, *, name: str, base: str, adapter: str = "") -> EvaluatedModel:
    facts = arm.base_model.model_facts
    return EvaluatedModel(name=name, base=base, adapter=adapter, parameters=facts.parameters, context=facts.context_length)


def judges_of(comparison: Comparison) -> dict[str, EvaluatedModel]:
    """By the metric's name; without those that are gone since, whose metric then says nothing."""
    found = {}
    for metric in metrics_of(comparison.metrics):
        if isinstance(metric, Judge) and (judge := judge_of(comparison, metric.model)) is not None:
            found[metric.name] = judge
    return found


def judge_of(comparison: Comparison, target: str) -> EvaluatedModel | None:
    """A base model of the workspace, or a release of the client, as it is asked by everybody."""
    kind, _, pk = target.partition(":")
    client = comparison.project.client
    if kind == "base":
        base = BaseModel.objects.filter(workspace=client.workspace, pk=pk).first()
        if base is None or not base.is_ready:
            return None
        facts = base.model_facts
        return EvaluatedModel(name=base.name, base=str(base.folder), parameters=facts.parameters, context=facts.context_length)
    release = Release.objects.filter(project__client=client, pk=pk).select_related("artifact__base_model").first()
    if release is None or not release.artifact.is_chattable or release.base_model is None or not release.base_model.is_ready:
        return None
    facts = release.base_model.model_facts
    told = {"name": release.name, "parameters": facts.parameters, "context": facts.context_length}
    return EvaluatedModel.model_validate(told | release.artifact.answering)
