"""Trains with the plugin that an order names, and writes down what the result was made from."""

import json
import platform
import socket
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from studio.checkpoints import newest, step_of
from studio.errors import UserError
from studio.storage import files_in
from studio.training.asking import issues_of
from studio.training.config import TrainConfig
from studio.training.form import check_config
from studio.training.job import Job
from studio.training.orders import TrainPayload
from studio.training.plugin import TrainingPlugin
from studio.training.registry import find, missing_packages
from studio.worker.result import refuse_what_is_no_result

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "safetensors",
    "tokenizers",
    "accelerate",
    "bitsandbytes",
    "unsloth",
    "numpy",
    "pydantic",
    "pyarrow",
)


def run(payload: dict[str, Any], job: Job) -> dict[str, Any]:
    """Trains; `job.out` then holds what the plugin left there and lineage.json.

    Raises UserError where plugin, packages, settings or the plugin's own check speak against it.
    """
    order = TrainPayload.model_validate(payload)
    plugin = find(order.plugin)
    if plugin.resumes and (state := newest(job.checkpoints)):
        job.resume = state
        job.note(f"Resumed from step {step_of(state)}.")
    job.phase("preparing")
    refuse_missing_packages(plugin)
    config = valid_config(plugin, order.config)
    check(plugin, config, job)
    plugin.train(config, job)
    refuse_what_is_no_result(job)  # before a line is written into it
    if files_in(job.out):
        lineage = lineage_of(order, plugin, config)
        (job.out / "lineage.json").write_text(json.dumps(lineage, indent=1, ensure_ascii=False, sort_keys=True))
    elif not job.stopping():
        raise RuntimeError(f"the plugin {plugin.name} left no files in job.out")
    return {}


def refuse_missing_packages(plugin: TrainingPlugin) -> None:
    missing = missing_packages(plugin, installed(plugin.requires))
    if missing:
        raise UserError(f"{plugin.title} needs {', '.join(missing)}, which this worker does not have. Install it, then start again.")


def valid_config(plugin: TrainingPlugin, values: dict[str, Any]) -> TrainConfig:
    config, errors = check_config(plugin.Config, values)
    if config is None:
        named = "; ".join(f"{name}: {reason}" for name, reason in errors.items())
        raise UserError(f"The settings are not valid. {named}", fields=errors, code="invalid_config")
    return config


def check(plugin: TrainingPlugin, config: TrainConfig, job: Job) -> None:
    """Refuses what the plugin says cannot work; its warnings become notes of the run."""
    if job.data.shape not in plugin.reads:
        raise UserError(
            f"{plugin.title} learns from {' or '.join(plugin.reads)} rows; this dataset has {job.data.shape} rows. Choose another."
        )
    issues = issues_of(plugin, (config, job.model, job.data, job.host))
    if errors := [issue for issue in issues if issue.level == "error"]:
        fields = {issue.field: issue.message for issue in errors if issue.field}
        raise UserError(" ".join(issue.message for issue in errors), fields=fields)
    for issue in issues:
        if issue.level == "warning":
            job.note(issue.message, level="warning")


def lineage_of(order: TrainPayload, plugin: TrainingPlugin, config: TrainConfig) -> dict[str, Any]:
    """Everything that another person needs to make the same result again."""
    return {
        **order.lineage,
        "plugin": plugin.name,
        "config": config.model_dump(mode="json"),
        "seed": config.seed,
        "packages": installed((*PACKAGES, *plugin.requires)),
        "python": platform.python_version(),
        "host": socket.gethostname(),
    }


def installed(names: tuple[str, ...]) -> dict[str, str]:
    """Versions of those packages that are there; nothing is imported."""
    versions = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
