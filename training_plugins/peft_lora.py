"""LoRA, rsLoRA and DoRA through peft: names the adapter's settings and its files. The loop is `studio.ml.loop`'s."""

import math
from pathlib import Path
from typing import Any, ClassVar

from studio.training import DatasetFacts, Estimate, HostFacts, Issue, Job, LoraConfig, ModelFacts, TrainingPlugin
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
SETTINGS = (
    "alpha_pattern",
    "bias",
    "fan_in_fan_out",
    "init_lora_weights",
    "lora_alpha",
    "lora_dropout",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
    "task_type",
    "use_dora",
    "use_rslora",
)
"""What of peft's config goes into the result: no paths, nothing that loading would have to obey."""


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

    class Config(LoraConfig):
        pass

    def check(self, config: LoraConfig, base: ModelFacts, data: DatasetFacts, host: HostFacts) -> list[Issue]:
        issues = [*_target_issues(config, base), *_row_issues(config, base, data), *_step_issues(config, data)]
        if uses_bf16(config, host) and not host.bf16:
            issues.append(_warning("precision", "This worker is slow at bf16. Auto or fp32 is faster here."))
        issues += preference_issues(config, data, method=self.method)
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

    def train(self, config: LoraConfig, job: Job) -> Path:
        import torch
        from peft import LoraConfig as Adapter
        from peft import get_peft_model

        from studio.ml.loading import choose_arithmetic, load_base
        from studio.ml.loop import Learner, Loop, read_rows
        from studio.ml.tokens import load_tokenizer

        torch.manual_seed(config.seed)
        tokenizer = load_tokenizer(job.base)
        train, validation = read_rows(job, tokenizer, config)
        job.phase("loading", f"Loading {job.model.name}")
        arithmetic = choose_arithmetic(precision=config.precision, host=job.host)
        base = load_base(job.base, arithmetic=arithmetic)
        if wants_checkpointing(config, job.model, job.data, job.host):
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            if config.gradient_checkpointing == "auto":
                job.note("Gradient checkpointing is on: the run would not fit into memory otherwise.")
        model = get_peft_model(
            base,
            Adapter(
                r=config.rank,
                lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft divides it, so a fraction is as good
                lora_dropout=config.dropout,
                target_modules=ALL_LINEAR if ALL_LINEAR in config.targets else list(config.targets),
                use_rslora=config.variant == "rslora",
                use_dora=config.variant == "dora",
                task_type="CAUSAL_LM",
            ),
        )
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        learner = Learner(
            model=model,
            tokenizer=tokenizer,
            arithmetic=arithmetic,
            optimizer=torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True),
            weights=lambda: adapter_tensors(model),
            load_weights=lambda tensors: load_adapter(model, tensors),
        )
        job.raise_if_stopped()
        outcome = Loop(learner, config, job, train=train, validation=validation).run()
        job.phase("saving", "Writing the adapter")
        save_adapter(model, job.out, base_name=job.model.name)
        (job.out / "README.md").write_text(model_card(config, job, outcome), encoding="utf-8")
        return job.out


def adapter_tensors(model: Any) -> dict[str, Any]:
    """What is trained, under the names of peft's files; not copied."""
    from peft import get_peft_model_state_dict

    # "auto" would ask the hub whether the base has grown; nothing but the adapter is trained here
    return {name: tensor.detach() for name, tensor in get_peft_model_state_dict(model, save_embedding_layers=False).items()}


def save_adapter(model: Any, folder: Path, *, base_name: str) -> None:
    """adapter_model.safetensors and an adapter_config.json of known keys, as every peft reader expects them."""
    import json

    from safetensors.torch import save_file

    tensors = {name: tensor.cpu().contiguous() for name, tensor in adapter_tensors(model).items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    known = model.peft_config["default"].to_dict()
    settings = {name: _plain(known[name]) for name in SETTINGS if name in known}
    settings |= {"base_model_name_or_path": base_name, "inference_mode": True}
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")


def load_adapter(model: Any, tensors: dict[str, Any]) -> None:
    """Puts what `adapter_tensors` gave back into the same adapter."""
    from peft import set_peft_model_state_dict

    if tensors.keys() != adapter_tensors(model).keys():
        raise RuntimeError("the saved adapter has other layers than this one")
    set_peft_model_state_dict(model, tensors)


def model_card(config: LoraConfig, job: Job, outcome: Any) -> str:
    """What a person who finds the adapter alone should know."""
    import json

    looks = sorted(outcome.validation_losses.items())
    lines = [
        "---",
        f"base_model: {json.dumps(job.model.name)}",
        "library_name: peft",
        "pipeline_tag: text-generation",
        "tags: [lora]",
        "---",
        "",
        f"# An adapter for {job.model.name}",
        "",
        f"- Rows: {job.data.name}, {job.data.train} for training and {job.data.validation} for validation",
        f"- Steps: {outcome.steps}{' (stopped early)' if outcome.stopped else ''}, {outcome.tokens} tokens",
        f"- Training loss: {outcome.losses[0]:.4f} at first, {outcome.losses[-1]:.4f} at last",
    ]
    if looks:
        lines.append(f"- Validation loss: {looks[0][1]:.4f} at step {looks[0][0]}, {looks[-1][1]:.4f} at step {looks[-1][0]}")
    lines += ["", "Where the adapter came from, with the dataset version's hash and the base model's revision, stands in `lineage.json`."]
    return "\n".join([*lines, "", "## Settings", "", "```json", config.model_dump_json(indent=2), "```", ""])


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


def _plain(value: Any) -> Any:
    if isinstance(value, set):
        return sorted(value)
    return getattr(value, "value", value)


def _error(field: str, message: str) -> Issue:
    return Issue(level="error", field=field, message=message)


def _warning(field: str, message: str) -> Issue:
    return Issue(level="warning", field=field, message=message)


def _spaced(number: int) -> str:
    return f"{number:,}".replace(",", "\N{NO-BREAK SPACE}")


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.0f} GB" if size >= 1e10 else f"{size / 1e9:.1f} GB"
