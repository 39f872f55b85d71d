"""Records what orders left, and asks for builds."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from django.db import transaction

from studio.artifacts.models import Artifact, Build
from studio.audit.services import record
from studio.basemodels.models import BaseModel
from studio.datasets.writers import Writer
from studio.errors import UserError
from studio.orders.models import Order
from studio.orders.services import place, request_stop
from studio.workspaces.models import Client, Member, Project, hold

PRECISIONS: dict[str, dict[str, str]] = {
    Build.Kind.GGUF_ADAPTER: {"f16": "2 bytes per weight.", "f32": "4 bytes per weight."},
    Build.Kind.MERGED: {
        "bf16": "As most models are published.",
        "f16": "Finer steps, a smaller range.",
        "f32": "Everything, at twice the size.",
    },
}
"""What merged weights and GGUF adapters can be stored as, the first by default."""
QUANTIZATIONS: dict[str, tuple[str, str]] = {
    "q8_0": ("q8_0 · recommended", "About 1 byte per weight. Answers as the original does, at half its size."),
    "q4_k_m": ("q4_k_m · smallest", "About 5 bits per weight. Runs on small machines; answers may differ a little."),
    "f16": ("f16 · exact", "2 bytes per weight. The reference, for further work."),
}


def record_artifact(order: Order, result: dict[str, Any], **columns: Any) -> Artifact:
    """The row for a folder that was sealed by the worker; its hash is the manifest's."""
    artifact: Artifact = Artifact.objects.create(
        order=order, folder_name=Path(result["folder"]).name, sha256=result["sha256"], size=result["size"], files=result["files"], **columns
    )
    return artifact


def writers(member: Member, client: Client) -> Iterable[Writer]:
    """The client's own models, which can write rows for its datasets."""
    found = Artifact.objects.for_action(member, "artifact.view").filter(project__client=client).select_related("base_model", "project")
    for artifact in found:
        if artifact.is_chattable:
            base = artifact.base_model
            context = base.model_facts.context_length if base and base.is_ready else 0
            yield Writer(
                f"artifact:{artifact.pk}",
                artifact.name,
                f"Models of {client.name}",
                base=artifact.answering["base"],
                adapter=artifact.answering["adapter"],
                context=context,
            )


def request_builds(
    member: Member,
    *,
    source: Artifact | None = None,
    base_model: BaseModel | None = None,
    project: Project,
    kind: str = Build.Kind.GGUF,
    quantizations: list[str],
    importance: bool = False,
) -> list[Build]:
    """Builds in the queue, in the order of `quantizations`, all of one order: the weights are read once.

    What succeeded or is on its way is answered instead of being made again. Give a `source`, or a `base_model` as it is.
    """
    _refuse(source, base_model, kind=kind, quantizations=quantizations, importance=importance)
    with transaction.atomic():
        hold(source or project)
        wanted = dict(project=project, source=source, base_model=None if source else base_model, kind=kind, importance=importance)
        known = {
            build.quantization: build
            for build in Build.objects.filter(**wanted, quantization__in=quantizations).select_related("order").order_by("created_at")
            if build.order.is_live or build.passed
        }
        missing = [name for name in quantizations if name not in known]
        if missing:
            order = place(member, kind="build", client=project.client)
        for name in missing:
            known[name] = build = Build.objects.create(**wanted, quantization=name, order=order)
            record(member, "build.create", build, change={"kind": [None, kind], "quantization": [None, name]})
    return [known[name] for name in quantizations]


def _refuse(source: Artifact | None, base_model: BaseModel | None, *, kind: str, quantizations: list[str], importance: bool) -> None:
    if source is not None and not source.is_chattable:
        raise UserError(f"A file is built from an adapter or a model; this is a {source.get_kind_display().lower()}.")
    if source is None and (base_model is None or not base_model.is_ready):
        raise UserError("This base model is not here yet. Wait until it has been read, then build from it.")
    choices = QUANTIZATIONS if kind == Build.Kind.GGUF else PRECISIONS[kind]
    unknown = [name for name in quantizations if name not in choices]
    if unknown or not quantizations:
        text = f"Choose from {', '.join(choices)}."
        raise UserError(text, fields={"quantization": text})


def stop_build(member: Member, build: Build) -> None:
    """Stops the whole order: what was asked for together is made together."""
    with transaction.atomic():
        request_stop(build.order)
        record(member, "build.stop", build)
