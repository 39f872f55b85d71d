"""The order that trains."""

import json
from pathlib import Path
from typing import Any
from uuid import UUID

from django.conf import settings

from studio.artifacts.models import Artifact
from studio.artifacts.services import record_artifact
from studio.errors import UserError
from studio.orders.kinds import OrderKind, register
from studio.orders.models import Order, Slot
from studio.orders.room import Need
from studio.runs.accuracy import record_measured
from studio.runs.models import Run
from studio.runs.services import host_of, plugin_of
from studio.training.orders import TrainPayload
from studio.training.registry import load_plugins, missing_packages
from studio.worker.tracking import TrackedRun
from studio.workspaces.models import Project

MAX_LINEAGE = 1 << 20
KIND_OF_METHOD = {"lora": Artifact.Kind.ADAPTER, "full": Artifact.Kind.MODEL, "none": Artifact.Kind.REHEARSAL}


def lineage(run: Run) -> dict[str, Any]:
    """What the result was made from, by id, hash and name."""
    base, version = run.base_model, run.dataset_version
    return {
        "run": {"id": str(run.pk), "name": run.name},
        "base_model": {"id": str(base.pk), "name": base.name, "source": base.source, "revision": base.revision, "sha256": base.sha256},
        "dataset_version": {"id": str(version.pk), "name": str(version), "sha256": version.sha256, "file_sha256": version.upload_sha256},
        "plugin": run.plugin,
        "client": run.project.client.name,
        "project": run.project.name,
    }


def tracked_name(project: Project) -> str:
    """What trackers call a project, within the length of a folder's name: with the beginning of its id, for other workspaces may have a
    client and a project of the same names.
    """
    return f"{f'{project.client.name} / {project.name}'[:88].strip()} {project.pk.hex[:8]}"


class TrainKind(OrderKind):
    kind = "train"
    queue = "train"
    counts = True
    called = "Trainings"
    billed_alone = True
    related = ("run__project",)

    def payload(self, order: Order) -> dict[str, Any]:
        run: Run = order.run
        host = host_of(order.worker)
        if host is None:
            raise UserError("The worker has not said yet what machine it runs on. Start the run again in a moment.")
        return TrainPayload(
            plugin=run.plugin,
            config=run.config,
            base=str(run.base_model.folder),
            model=run.base_model.model_facts,
            rows=str(run.dataset_version.rows_path),
            data=run.dataset_version.dataset_facts(run.base_model),
            host=host,
            prompts=run.prompts,
            lineage=lineage(run),
            checkpoints=str(order.checkpoints),
            cache=str(Path(settings.DATA_DIR, "cache", "tokens", str(run.dataset_version.pk))),
        ).model_dump(mode="json")

    def target(self, order: Order) -> Path:
        return Path(settings.DATA_DIR, "artifacts", f"{order.pk}-{order.attempt}")

    def title(self, order: Order) -> str:
        run: Run = order.run
        return run.name

    def project(self, order: Order) -> UUID | None:
        run: Run = order.run
        return run.project_id

    def fits(self, order: Order, slot: Slot) -> bool:
        """What a worker lacks is known where it has said what it has. A plugin that is broken or gone fails the run with its reason."""
        run: Run = order.run
        loaded, packages = load_plugins().get(run.plugin), slot.facts.get("packages")
        return not packages or loaded is None or loaded.plugin is None or not missing_packages(loaded.plugin, packages)

    def resumes(self, order: Order) -> bool:
        run: Run = order.run
        loaded = load_plugins().get(run.plugin)
        return loaded is not None and loaded.plugin is not None and loaded.plugin.resumes

    def expected_seconds(self, order: Order) -> float | None:
        """The middle of what was estimated before it started."""
        run: Run = order.run
        span = (run.estimate or {}).get("seconds")
        return (span["low"] + span["high"]) / 2 if span else None

    def memory(self, order: Order) -> Need | None:
        """What was estimated before it started, which earlier runs have corrected."""
        run: Run = order.run
        host = host_of(order.worker)
        return Need(run.estimate["memory"]["high"], on_gpu=bool(host and host.gpus)) if run.estimate else None

    def tracked(self, order: Order) -> TrackedRun | None:
        run: Run = order.run
        return TrackedRun(
            id=run.pk.hex,
            project=tracked_name(run.project),
            name=run.name,
            config={"plugin": run.plugin, "base_model": run.base_model.name, "dataset": str(run.dataset_version)} | run.config,
            folder=str(Path(settings.DATA_DIR, "trackers")),
        )

    def succeeded(self, order: Order, result: dict[str, Any]) -> None:
        run: Run = order.run
        record_measured(run)
        if "folder" not in result:
            return
        record_artifact(
            order,
            result,
            project=run.project,
            kind=KIND_OF_METHOD[plugin_of(run.plugin).method],
            name=run.name,
            base_model=run.base_model,
            dataset_version=run.dataset_version,
            lineage=sealed_lineage(Path(result["folder"])) | lineage(run),
        )


def sealed_lineage(folder: Path) -> dict[str, Any]:
    """What the worker wrote down beside the result: config, seed, package versions, machine. Empty where it wrote nothing."""
    path = folder / "lineage.json"
    if not path.is_file() or path.stat().st_size > MAX_LINEAGE:
        return {}
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


register(TrainKind())
