"""Records what orders left, and asks for builds."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from django.db import transaction

from studio.artifacts.models import Artifact, Build
from studio.audit.services import record
from studio.datasets.writers import Writer
from studio.errors import UserError
from studio.orders.models import Order
from studio.orders.services import place, request_stop
from studio.workspaces.models import Client, Member, hold

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


def request_build(member: Member, *, artifact: Artifact, quantization: str) -> Build:
    """A build in the queue. One that succeeded or is on its way is answered instead of being made again."""
    if not artifact.is_chattable:
        raise UserError(f"A GGUF file is built from an adapter or a model; this is a {artifact.get_kind_display().lower()}.")
    if quantization not in QUANTIZATIONS:
        text = f"Choose from {', '.join(QUANTIZATIONS)}."
        raise UserError(text, fields={"quantization": text})
    with transaction.atomic():
        hold(artifact)
        for known in Build.objects.filter(source=artifact, quantization=quantization).select_related("order"):
            if known.order.is_live or known.passed:
                return known
        order = place(member, kind="build", client=artifact.project.client)
        build: Build = Build.objects.create(project=artifact.project, source=artifact, quantization=quantization, order=order)
        record(member, "build.create", build, change={"quantization": [None, quantization]})
    return build


def stop_build(member: Member, build: Build) -> None:
    with transaction.atomic():
        request_stop(build.order)
        record(member, "build.stop", build)
