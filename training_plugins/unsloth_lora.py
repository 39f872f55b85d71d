"""LoRA and QLoRA through Unsloth's kernels, on an NVIDIA GPU. The loop is `studio.ml.loop`'s; the adapter's files are peft's."""

import os
from pathlib import Path
from typing import Any, Literal

from studio.training import HostFacts, Issue, Job, LoraConfig, setting
from studio.training.memory import target_linears, wants_checkpointing
from training_plugins.peft_lora import PeftLora

ON_CPU = "ADAPTER_STUDIO_UNSLOTH_ON_CPU"
"""Set to 1, Unsloth runs without a GPU: slowly, without its kernels, and only so that tests go the same way through this code."""
NO_GPU = "Unsloth needs an NVIDIA GPU, and the worker has none. LoRA (PEFT) trains the same adapter without one."


class UnslothLora(PeftLora):
    """Trains the same adapter as LoRA (PEFT), with Unsloth's kernels: faster, in less memory, also beside a base model in 4 bits.

    It needs an NVIDIA GPU. On a worker without one nothing is trained in its place: choose LoRA (PEFT), which runs anywhere and whose
    adapters are used in the same way. Unsloth runs in a process of its own, sends no statistics, downloads and installs nothing, and
    keeps what it compiles in the run's own folder.
    """

    name = "unsloth_lora"
    title = "LoRA (Unsloth)"
    requires = ("torch", "transformers", "peft", "safetensors", "unsloth", "bitsandbytes")  # type: ignore[assignment]

    class Config(LoraConfig):
        variant: Literal["lora", "rslora"] = setting("lora", label="Variant", advanced=True)
        """Plain LoRA, or rsLoRA (scaled by the root of the rank)."""

    def host_issues(self, host: HostFacts) -> list[Issue]:
        if host.gpus or os.environ.get(ON_CPU) == "1":
            return []
        return [Issue(level="error", message=NO_GPU, instead=PeftLora.name)]

    def train(self, config: Any, job: Job) -> Path:
        from studio.ml import unsloth

        job.phase("loading", "Starting Unsloth")
        unsloth.start(job.work, on_cpu=not job.host.gpus)

        import torch

        from studio.ml.adapters import Adapter
        from studio.ml.loading import choose_arithmetic
        from studio.ml.loop import Learner, Loop, read_rows
        from studio.ml.modelcard import model_card
        from studio.ml.tokens import load_tokenizer

        tokenizer = load_tokenizer(job.base)
        train, validation = read_rows(job, tokenizer, config)
        job.phase("loading", f"Loading {job.model.name}")
        arithmetic = choose_arithmetic(precision=config.precision, host=job.host)
        checkpointing = wants_checkpointing(config, job.model, job.data, job.host)
        base = unsloth.load_model(
            job.base,
            arithmetic=arithmetic,
            max_length=config.max_length,
            quantization=config.quantization,
            checkpointing=checkpointing,
            seed=config.seed,
        )
        model = unsloth.add_adapter(
            base,
            targets=[linear.name for linear in target_linears(job.model, config.targets)],
            rank=config.rank,
            alpha=config.alpha,
            dropout=config.dropout,
            rslora=config.variant == "rslora",
            checkpointing=checkpointing,
            seed=config.seed,
            work=job.work,
        )
        adapter = Adapter(model)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        learner = Learner(
            model=model,
            tokenizer=tokenizer,
            arithmetic=arithmetic,
            optimizer=torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True),
            weights=adapter.weights,
            load_weights=adapter.load,
        )
        job.raise_if_stopped()
        outcome = Loop(learner, config, job, train=train, validation=validation).run()
        job.phase("saving", "Writing the adapter")
        adapter.save(job.out, base_name=job.model.name)
        (job.out / "README.md").write_text(model_card(config, job, outcome), encoding="utf-8")
        return job.out
