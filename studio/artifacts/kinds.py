"""The order that writes a model, or an adapter merged into its base, as one GGUF file and proves that it runs."""

from pathlib import Path
from typing import Any

from django.conf import settings

from studio.artifacts.models import Artifact, Build
from studio.artifacts.services import record_artifact
from studio.orders.kinds import OrderKind, register
from studio.orders.models import Order
from studio.training.orders import BuildPayload


class BuildKind(OrderKind):
    kind = "build"
    time_limit = 6 * 3600

    def payload(self, order: Order) -> dict[str, Any]:
        build: Build = order.build
        source, base, version = build.source, build.source.base_model, build.source.dataset_version
        assert base is not None  # of an adapter and of a model alike
        return BuildPayload(
            **source.answering,
            quantization=build.quantization,  # type: ignore[arg-type]
            name=source.file_stem,
            rows=str(version.rows_path) if version else "",
            model=base.model_facts,
        ).model_dump()

    def target(self, order: Order) -> Path:
        return Path(settings.DATA_DIR, "artifacts", f"{order.pk}-{order.attempt}")

    def succeeded(self, order: Order, result: dict[str, Any]) -> None:
        build: Build = order.build
        build.verification = result.get("verification")
        build.save(update_fields=["verification"])
        if "folder" not in result:
            return
        source = build.source
        artifact = record_artifact(
            order,
            result,
            project=build.project,
            kind=Artifact.Kind.GGUF,
            name=f"{source.name} {build.quantization}",
            base_model=source.base_model,
            dataset_version=source.dataset_version,
            lineage=source.lineage | {"quantization": build.quantization, f"{source.kind}_sha256": source.sha256},
        )
        artifact.parents.add(source)


register(BuildKind())
