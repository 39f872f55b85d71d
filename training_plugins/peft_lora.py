"""LoRA and its kin through peft. The adapter is `studio.ml.adapters`, its settings `studio.training.lora`, the loop `studio.ml.loop`."""

from pathlib import Path
from typing import Any, ClassVar

from studio.training import DatasetFacts, Estimate, HostFacts, Issue, Job, LoraConfig, ModelFacts, TrainingPlugin
from studio.training.checks import error, memory_issues, row_issues, step_issues, warning
from studio.training.lora import CHANGING, PeftConfig, lora_issues
from studio.training.memory import ALL_LINEAR, lora_estimate, target_linears, uses_bf16
from studio.training.preferences import preference_issues


class PeftLora(TrainingPlugin):
    """Trains a small adapter beside a frozen model: quick, light, and the base stays as it is. Runs on a processor or a GPU."""

    name = "peft_lora"
    title = "LoRA (PEFT)"
    method = "lora"
    reads = ("chat", "text", "preference")
    resumes = True
    requires = ("torch", "transformers", "peft", "safetensors")
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "Quick try": {"max_steps": 30},
        "Balanced": {},
        "Thorough": {"epochs": 5.0, "rank": 32, "alpha": 64.0, "learning_rate": 1e-4, "keep": "best", "early_stopping": 3},
    }

    class Config(PeftConfig):
        pass

    def check(self, config: LoraConfig, base: ModelFacts, data: DatasetFacts, host: HostFacts) -> list[Issue]:
        issues = [*_target_issues(config, base), *row_issues(config, base, data), *step_issues(config, data)]
        if uses_bf16(config, host) and not host.bf16:
            issues.append(warning("precision", "This worker is slow at bf16. Auto or fp32 is faster here."))
        issues += preference_issues(config, data, method=self.method)
        if isinstance(config, PeftConfig):
            issues += lora_issues(config, base, host)
        if config.learning_rate > 1e-3:
            issues.append(warning("learning_rate", "Above 0.001 an adapter tends to forget what the model knew. 0.0002 suits most tasks."))
        if not any(issue.level == "error" for issue in issues):
            issues += memory_issues(self.estimate, config, base, data, host)
        return issues

    def estimate(self, config: LoraConfig, base: ModelFacts, data: DatasetFacts, host: HostFacts) -> Estimate:
        return lora_estimate(config, base, data, host)

    def train(self, config: PeftConfig, job: Job) -> Path:
        import torch

        from studio.ml.adapters import Adapter, add_matrices, begin_from_rows, train_tables
        from studio.ml.loading import choose_arithmetic, load_base, recompute_where_needed
        from studio.ml.loop import Learner, Loop, read_rows
        from studio.ml.lora import fuse_lora
        from studio.ml.modelcard import model_card
        from studio.ml.tokens import load_tokenizer

        torch.manual_seed(config.seed)
        tokenizer = load_tokenizer(job.base)
        train, validation = read_rows(job, tokenizer, config)
        job.phase("loading", f"Loading {job.model.name}")
        arithmetic = choose_arithmetic(precision=config.precision, host=job.host)
        base = load_base(job.base, arithmetic=arithmetic, quantization=config.quantization)
        recompute_where_needed(base, config, job)
        model = add_matrices(base, config)
        adapter = Adapter(model, tables=train_tables(model, config.modules_to_save, dtype=arithmetic.dtype))
        if config.initialization in CHANGING:
            job.phase("preparing", "Beginning with parts of the weights")
            adapter.begin_from_weights(config.initialization, resume=job.resume, stopping=job.raise_if_stopped)
        elif config.initialization == "eva" and not job.resume:  # all that it changes is in the state
            job.phase("preparing", "Beginning with what the layers see in the rows")
            begin_from_rows(model, train, arithmetic=arithmetic, job=job)
        fuse_lora(model)
        groups = adapter.groups(rate=config.learning_rate, b_ratio=config.lora_plus or 1.0, table_ratio=config.table_rate)
        learner = Learner(
            model=model,
            tokenizer=tokenizer,
            arithmetic=arithmetic,
            optimizer=torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True),
            weights=adapter.weights,
            load_weights=adapter.load,
        )
        job.raise_if_stopped()
        outcome = Loop(learner, config, job, train=train, validation=validation).run()
        job.phase("saving", "Writing the adapter")
        adapter.save(job.out, base_name=job.model.name)
        (job.out / "README.md").write_text(model_card(config, job, outcome), encoding="utf-8")
        return job.out


def _target_issues(config: LoraConfig, base: ModelFacts) -> list[Issue]:
    available = sorted({linear.name for linear in base.linears})
    unknown = [name for name in config.targets if name != ALL_LINEAR and name not in available]
    if unknown:
        return [error("targets", f"{', '.join(unknown)} not found. Available: {', '.join(available)}.")]
    found = target_linears(base, config.targets)
    if not found:
        return [error("targets", "This model has no linear layer that an adapter could be put beside.")]
    narrowest = min(min(linear.inputs, linear.outputs) for linear in found)
    if config.rank > narrowest:
        return [warning("rank", f"The narrowest of these layers is {narrowest} wide. A higher rank than that adds size, not ability.")]
    return []
