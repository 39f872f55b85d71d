"""The order that writes a model, or an adapter merged into its base, as files to take home, and proves that they run."""

from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from studio.artifacts.models import Artifact, Build
from studio.basemodels.models import BaseModel
from studio.datasets.models import DatasetVersion
from studio.orders.kinds import SWEEPS, OrderKind, register
from studio.orders.models import Order
from studio.orders.room import Need
from studio.storage import hash_of, remove_folder
from studio.training.orders import BuildAbout, BuildPayload

KINDS = {
    Build.Kind.GGUF: Artifact.Kind.GGUF,
    Build.Kind.GGUF_ADAPTER: Artifact.Kind.GGUF_ADAPTER,
    Build.Kind.MERGED: Artifact.Kind.MODEL,
}

STATES_KEPT = timedelta(days=1)
"""How long an unfinished file is kept for somebody who builds again: it can be as large as the model."""


FORWARD_PASS, BESIDE = 1.2, 3 << 29
"""What answering takes against the weights, and bytes of the process and its buffers, as `studio.ml.gguf.needs` reserves them."""


LEAST_OF_A_LANGUAGE = 0.05
"""Share of the answers that were looked at."""


class BuildKind(OrderKind):
    kind = "build"
    time_limit = 6 * 3600
    called = "Builds"
    billed_alone = True

    def payload(self, order: Order) -> dict[str, Any]:
        builds = builds_of(order)
        first = builds[0]
        base, version = base_of(first), version_of(first)
        answering = first.source.answering if first.source else {"base": str(base.folder), "adapter": ""}
        return BuildPayload(
            **answering,
            kind=first.kind,  # type: ignore[arg-type]
            quantizations=[build.quantization for build in builds],  # type: ignore[misc]
            importance=any(build.importance for build in builds),
            name=first.file_stem,
            rows=str(version.rows_path) if version else "",
            model=base.model_facts,
            state=str(order.checkpoints),
            about=about(first),
        ).model_dump()

    def target(self, order: Order) -> Path:
        return Path(settings.DATA_DIR, "artifacts", f"{order.pk}-{order.attempt}")

    def memory(self, order: Order) -> Need | None:
        """Most of all takes the check beside the model in float32. With less it does it in parts, and takes longer."""
        return Need(int(base_of(builds_of(order)[0]).model_facts.parameters * 4 * FORWARD_PASS) + BESIDE)

    def title(self, order: Order) -> str:
        builds = builds_of(order)
        return f"{builds[0].made_from.name} {', '.join(build.quantization for build in builds)}" if builds else "A build"

    def project(self, order: Order) -> UUID | None:
        return order.builds.values_list("project", flat=True).first()

    def succeeded(self, order: Order, result: dict[str, Any]) -> None:
        for build in builds_of(order):
            build.verification = result["builds"][build.quantization].get("verification")
            if "folder" in result:
                build.artifact = record_part(order, build, result)
            build.save(update_fields=["verification", "artifact"])


def builds_of(order: Order) -> list[Build]:
    """In the order that they were asked for."""
    return list(
        order.builds.select_related(
            "project__client__workspace", "source__project__client", "source__base_model", "source__dataset_version__dataset", "base_model"
        ).order_by("created_at")
    )


def base_of(build: Build) -> BaseModel:
    found = build.source.base_model if build.source else build.base_model
    assert found is not None  # of an adapter and of a model alike
    return found


def version_of(build: Build) -> DatasetVersion | None:
    return build.source.dataset_version if build.source else None


def about(build: Build) -> BuildAbout:
    base, version = base_of(build), version_of(build)
    return BuildAbout(
        title=build.made_from.name,
        author=build.project.client.workspace.name,
        license=base.license,
        base_name=base.name,
        base_source=base.source,
        dataset=str(version) if version else "",
        version=build.made_from.sha256[:12],
        languages=languages_of(version) if version else [],
    )


def languages_of(version: DatasetVersion) -> list[str]:
    """What it was taught to answer in, as codes of two letters, the most first; what few of its answers are in is left out."""
    told = (version.facts or {}).get("languages", {})
    rows, least = told.get("rows", {}), told.get("looked_at", 0) * LEAST_OF_A_LANGUAGE
    return sorted((code for code, count in rows.items() if code and count >= least), key=lambda code: (-rows[code], code))


def record_part(order: Order, build: Build, result: dict[str, Any]) -> Artifact:
    """The row for one type's folder in the sealed folder; its hash is made of its files' as a manifest's is."""
    part, source = f"{build.quantization}/", build.source
    files = {name.removeprefix(part): facts for name, facts in result["files"].items() if name.startswith(part)}
    made = {"quantization": build.quantization, "importance": build.importance}
    artifact: Artifact = Artifact.objects.create(
        order=order,
        project=build.project,
        kind=KINDS[Build.Kind(build.kind)],
        name=str(build),
        base_model=base_of(build),
        dataset_version=version_of(build),
        folder_name=f"{Path(result['folder']).name}/{build.quantization}",
        files=files,
        size=sum(facts["size"] for facts in files.values()),
        sha256=hash_of(files),
        lineage=(source.lineage | {f"{source.kind}_sha256": source.sha256} if source else base_lineage(build)) | made,
    )
    if source:
        artifact.parents.add(source)
    return artifact


def base_lineage(build: Build) -> dict[str, Any]:
    base = base_of(build)
    return {
        "base_model": {"id": str(base.pk), "name": base.name, "source": base.source, "revision": base.revision, "sha256": base.sha256},
        "client": build.project.client.name,
        "project": build.project.name,
    }


def forget_states() -> list[str]:
    return forget_states_of(BuildKind.kind)


def forget_states_of(kind: str) -> list[str]:
    """Deletes what orders of a kind had written that failed or were stopped and that nobody has started again for a day."""
    ended = Order.objects.filter(kind=kind, status__in=(Order.Status.FAILED, Order.Status.STOPPED))
    did = []
    for order in ended.filter(ended_at__lt=timezone.now() - STATES_KEPT):
        with transaction.atomic():
            still = ended.select_for_update().filter(pk=order.pk, attempt=order.attempt).exists()
            if still and order.checkpoints.exists():
                remove_folder(order.checkpoints)
                did.append(f"{order}: what it had written was deleted")
    return did


register(BuildKind())
SWEEPS.append(forget_states)
