"""LoRA and its kin through peft. The adapter is `studio.ml.adapters`, its settings `studio.training.lora`, the loop `studio.ml.loop`."""

import math
from pathlib import Path
from typing import Any, ClassVar

from studio.training import DatasetFacts, Estimate, HostFacts, Issue, Job, LoraConfig, ModelFacts, TrainingPlugin
from studio.training.lora import CHANGING, PeftConfig, lora_issues
from studio.training.memory import (
    ALL_LINEAR,
    available_memory,
    lora_estimate,
    planned_steps,
    smaller,
    target_linears,
    uses_bf16,
    wants_checkpointing,
)
from studio.training.preferences import preference_issues

FEWEST_ROWS = 10


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
        issues = [*_target_issues(config, base), *_row_issues(config, base, data), *_step_issues(config, data)]
        if uses_bf16(config, host) and not host.bf16:
            issues.append(_warning("precision", "This worker is slow at bf16. Auto or fp32 is faster here."))
        issues += preference_issues(config, data, method=self.method)
        if isinstance(config, PeftConfig):
            issues += lora_issues(config, base, host)
        if config.learning_rate > 1e-3:
            issues.append(_warning("learning_rate", "Above 0.001 an adapter tends to forget what the model knew. 0.0002 suits most tasks."))
        if not any(issue.level == "error" for issue in issues):
            issues += self._memory_issues(config, base, data, host)
        return issues

    def estimate(self, config: LoraConfig, base: ModelFacts, data: DatasetFacts, host: HostFacts) -> Estimate:
        return lora_estimate(config, base, data, host)

    def _memory_issues(self, config: LoraConfig, base: ModelFacts, data: DatasetFacts, host: HostFacts) -> list[Issue]:
        needed, there = lora_estimate(config, base, data, host).memory.high, available_memory(host)
        if needed <= there:
            return []
        text = f"Needs about {_gigabytes(needed)}, the largest worker has {_gigabytes(there)}."
        fitting = smaller(config, base, data, host)
        if fitting is None:
            return [_error("max_length", f"{text} Choose a smaller base model or a shorter max length.")]
        less = _gigabytes(lora_estimate(fitting, base, data, host).memory.high)
        if fitting.batch_size == config.batch_size:
            return [_error("gradient_checkpointing", f"{text} With gradient checkpointing on auto it needs about {less}.")]
        change = f"Batch size {fitting.batch_size} with accumulation {fitting.gradient_accumulation}"
        return [_error("batch_size", f"{text} {change} needs about {less} and learns the same.")]

    def train(self, config: PeftConfig, job: Job) -> Path:
        import torch

        from studio.ml.adapters import Adapter, add_matrices, begin_from_rows, train_tables
        from studio.ml.loading import choose_arithmetic, load_base
        from studio.ml.loop import Learner, Loop, read_rows
        from studio.ml.modelcard import model_card
        from studio.ml.tokens import load_tokenizer

        torch.manual_seed(config.seed)
        tokenizer = load_tokenizer(job.base)
        train, validation = read_rows(job, tokenizer, config)
        job.phase("loading", f"Loading {job.model.name}")
        arithmetic = choose_arithmetic(precision=config.precision, host=job.host)
        base = load_base(job.base, arithmetic=arithmetic, quantization=config.quantization)
        if wants_checkpointing(config, job.model, job.data, job.host):
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            if config.gradient_checkpointing == "auto":
                job.note("Gradient checkpointing is on: the run would not fit into memory otherwise.")
        model = add_matrices(base, config)
        adapter = Adapter(model, tables=train_tables(model, config.modules_to_save, dtype=arithmetic.dtype))
        if config.initialization in CHANGING:
            job.phase("preparing", "Beginning with parts of the weights")
            adapter.begin_from_weights(config.initialization, resume=job.resume, stopping=job.raise_if_stopped)
        elif config.initialization == "eva" and not job.resume:  # all that it changes is in the state
            job.phase("preparing", "Beginning with what the layers see in the rows")
            begin_from_rows(model, train, arithmetic=arithmetic, job=job)
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
        return [_error("targets", f"{', '.join(unknown)} not found. Available: {', '.join(available)}.")]
    found = target_linears(base, config.targets)
    if not found:
        return [_error("targets", "This model has no linear layer that an adapter could be put beside.")]
    narrowest = min(min(linear.inputs, linear.outputs) for linear in found)
    if config.rank > narrowest:
        return [_warning("rank", f"The narrowest of these layers is {narrowest} wide. A higher rank than that adds size, not ability.")]
    return []


def _row_issues(config: LoraConfig, base: ModelFacts, data: DatasetFacts) -> list[Issue]:
    issues = []
    if data.shape == "preference":
        issues.append(_error("", "These rows are preferences (chosen and rejected answers). This plugin learns from chat and text rows."))
    if data.train < FEWEST_ROWS:
        issues.append(
            _error("", f"There are only {data.train} training rows. At least {FEWEST_ROWS} are needed, and 100 to see an effect.")
        )
    if config.max_length > base.context_length:
        issues.append(_error("max_length", f"{_spaced(config.max_length)} is more than this model's {_spaced(base.context_length)}."))
    elif data.tokens and data.tokens.p95 > config.max_length:
        longest = _spaced(data.tokens.longest)
        limit = _spaced(config.max_length)
        issues.append(
            _warning("max_length", f"More than one row in twenty is longer than {limit} tokens and will be cut. The longest has {longest}.")
        )
    if data.validation == 0:
        issues.append(Issue(level="note", message="There are no validation rows, so nothing will show when it starts to learn by heart."))
    return issues


def _step_issues(config: LoraConfig, data: DatasetFacts) -> list[Issue]:
    issues = []
    at_once = config.batch_size * config.gradient_accumulation
    if at_once > data.train >= FEWEST_ROWS:
        issues.append(
            _warning("batch_size", f"One step would read {at_once} rows, and there are only {data.train}. Choose a smaller batch.")
        )
    steps = planned_steps(config, rows=data.train)
    if steps < 10 <= data.train:
        issues.append(
            _warning("epochs", f"That is only {steps} {'step' if steps == 1 else 'steps'}. More epochs or a smaller batch learn more.")
        )
    elif math.ceil(config.warmup * steps) * 2 > steps:
        issues.append(_warning("warmup", "More than half of the run would be warm-up. 0.05 suits most runs."))
    return issues


def _error(field: str, message: str) -> Issue:
    return Issue(level="error", field=field, message=message)


def _warning(field: str, message: str) -> Issue:
    return Issue(level="warning", field=field, message=message)


def _spaced(number: int) -> str:
    return f"{number:,}".replace(",", "\N{NO-BREAK SPACE}")


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.0f} GB" if size >= 1e10 else f"{size / 1e9:.1f} GB"
