"""The order that takes adapters out of a fully trained model: what the worker is told, and what of its answer is taken in."""

from pathlib import Path
from typing import Any, Literal
from uuid import UUID

from django.conf import settings
from pydantic import BaseModel, ConfigDict, Field

from studio.artifacts.kinds import forget_states_of
from studio.artifacts.models import Artifact
from studio.comparisons.models import Extraction
from studio.orders.kinds import OrderKind
from studio.orders.models import Order
from studio.orders.room import Need
from studio.storage import hash_of
from studio.training.extraction import called, folder_of, linears
from studio.training.orders import ExtractionPayload

FORWARD_PASS, BESIDE = 1.25, 3 << 29
"""What measuring takes against the weights, and bytes of the process."""


class Strict(BaseModel):
    """What a worker may say; the process itself is not believed."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class LayerFound(Strict):
    name: str = Field(max_length=300)
    outputs: int = Field(ge=1)
    inputs: int = Field(ge=1)
    share: float = Field(ge=0, le=1.01)
    """Of all that changed in linear layers."""
    held: list[float] = Field(max_length=12)
    """For each rank, the share of its own change."""


class RestFound(Strict):
    part: Literal["words", "output", "norms", "biases", "other"]
    share: float = Field(ge=0, le=1.01)
    """Of the squares of all changes."""
    kept: bool
    """Whether it went into the adapters whole."""


class RankFound(Strict):
    rank: int = Field(ge=0)
    folder: str = Field(max_length=40)
    size: int = Field(ge=0)
    parameters: int = Field(ge=0)
    energy: float = Field(ge=0, le=1.01)
    """Share of the squares of the linear layers' changes."""
    loss: float | None
    """Nats per token on the held-out rows; None where it was not measured."""
    kept: float | None
    """Share of the model's gain; None where it gained nothing, or where that was not measured."""
    low: float | None
    high: float | None
    why: str = Field(max_length=300)
    """Why it was not measured."""


class Found(Strict):
    """What `Extraction.result` holds."""

    layers: list[LayerFound] = Field(max_length=20_000)
    linear: float = Field(ge=0, le=1.01)
    """Share of the squares of all changes that lies in linear layers."""
    rest: list[RestFound] = Field(max_length=5)
    ranks: list[RankFound] = Field(min_length=1, max_length=12)
    source_size: int = Field(ge=0)
    rows: int = Field(ge=0)
    tokens: int = Field(ge=0)
    base_loss: float | None
    full_loss: float | None


class ExtractionKind(OrderKind):
    kind = "extraction"
    called = "Taking adapters out of models"
    time_limit = 24 * 3600
    related = ("extraction__source__base_model",)

    def payload(self, order: Order) -> dict[str, Any]:
        extraction = extraction_of(order)
        source = extraction.source
        assert source.base_model is not None  # else it was refused
        return ExtractionPayload(
            name=source.name,
            base=str(source.base_model.folder),
            source=str(source.folder),
            model=source.base_model.model_facts,
            ranks=extraction.ranks,
            tables=extraction.keeps_tables,
            rows=str(source.dataset_version.rows_path) if source.dataset_version else "",
            state=str(order.checkpoints),
        ).model_dump(mode="json")

    def target(self, order: Order) -> Path:
        return Path(settings.DATA_DIR, "artifacts", f"{order.pk}-{order.attempt}")

    def memory(self, order: Order) -> Need | None:
        """The more of taking the largest layer apart, and of measuring beside the base in float32."""
        base = extraction_of(order).source.base_model
        assert base is not None  # as above
        apart = max(min(each.inputs, each.outputs) ** 2 * 24 + each.inputs * each.outputs * 24 for each in linears(base.model_facts))
        return Need(max(apart, int(base.model_facts.parameters * 4 * FORWARD_PASS)) + BESIDE)

    def title(self, order: Order) -> str:
        return str(extraction_of(order))

    def project(self, order: Order) -> UUID | None:
        found: UUID | None = Extraction.objects.filter(order=order).values_list("source__project", flat=True).first()
        return found

    def succeeded(self, order: Order, result: dict[str, Any]) -> None:
        extraction = extraction_of(order)
        found = Found.model_validate({name: result.get(name) for name in Found.model_fields})
        if [each.rank for each in found.ranks] != extraction.ranks:
            raise ValueError("other ranks were taken than those that were asked for")
        for each in found.ranks:
            record_rank(extraction, each, result)
        extraction.result = found.model_dump(mode="json")
        extraction.save(update_fields=["result"])


def extraction_of(order: Order) -> Extraction:
    related = ("source__project__client", "source__base_model", "source__dataset_version")
    found: Extraction = Extraction.objects.select_related(*related).get(order=order)
    return found


def record_rank(extraction: Extraction, found: RankFound, result: dict[str, Any]) -> Artifact:
    """The row for one rank's folder in the sealed folder; its hash is made of its files' as a manifest's is."""
    source, folder = extraction.source, folder_of(found.rank)
    files = {name.removeprefix(f"{folder}/"): facts for name, facts in result["files"].items() if name.startswith(f"{folder}/")}
    if not {"adapter_model.safetensors", "adapter_config.json"} <= files.keys():
        raise ValueError(f"the adapter of {called(found.rank)} is missing")
    told = {"id": str(extraction.pk), "rank": found.rank, "energy": found.energy, "kept": found.kept}
    made: Artifact = Artifact.objects.create(
        order=extraction.order,
        project=source.project,
        kind=Artifact.Kind.ADAPTER,
        name=f"{source.name[:140]}, {called(found.rank)}",
        base_model=source.base_model,
        dataset_version=source.dataset_version,
        folder_name=f"{Path(result['folder']).name}/{folder}",
        files=files,
        size=sum(facts["size"] for facts in files.values()),
        sha256=hash_of(files),
        lineage=source.lineage | {"model_sha256": source.sha256, "extracted": told},
    )
    made.parents.add(source)
    return made


def forget_states() -> list[str]:
    return forget_states_of(ExtractionKind.kind)
