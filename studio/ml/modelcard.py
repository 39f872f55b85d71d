"""README.md beside a result: what a person who finds it alone should know. No torch."""

import json
from typing import Any

from studio.training import Job, TrainConfig


def model_card(config: TrainConfig, job: Job, outcome: Any, *, kind: str = "adapter") -> str:
    """`kind` is adapter or model; `outcome` the loop's."""
    looks = sorted(outcome.validation_losses.items())
    lines = [
        "---",
        f"base_model: {json.dumps(job.model.name)}",
        *_head(kind, job),
        "pipeline_tag: text-generation",
        "---",
        "",
        f"# An adapter for {job.model.name}" if kind == "adapter" else f"# {job.model.name}, fine-tuned",
        "",
        f"- Rows: {job.data.name}, {job.data.train} for training and {job.data.validation} for validation",
        f"- Steps: {outcome.steps}{' (stopped early)' if outcome.stopped else ''}, {outcome.tokens} tokens",
        f"- Training loss: {outcome.losses[0]:.4f} at first, {outcome.losses[-1]:.4f} at last",
    ]
    if looks:
        lines.append(f"- Validation loss: {looks[0][1]:.4f} at step {looks[0][0]}, {looks[-1][1]:.4f} at step {looks[-1][0]}")
    lines += ["", f"Where the {kind} came from, with the dataset version's hash and the base model's revision, stands in `lineage.json`."]
    return "\n".join([*lines, "", "## Settings", "", "```json", config.model_dump_json(indent=2), "```", ""])


def _head(kind: str, job: Job) -> list[str]:
    if kind == "adapter":
        return ["library_name: peft", "tags: [lora]"]
    licence = [f"license: {json.dumps(job.model.license)}"] if job.model.license else []
    return ["base_model_relation: finetune", "library_name: transformers", *licence]
