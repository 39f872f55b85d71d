"""Full fine-tuning: every weight learns, and the result is a model of its own. The loop is `studio.ml.loop`'s."""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from studio.training import DatasetFacts, Estimate, FullConfig, HostFacts, Issue, Job, ModelFacts, TrainingPlugin
from studio.training.checks import error, memory_issues, row_issues, step_issues, warning
from studio.training.memory import full_estimate, uses_bf16
from studio.training.preferences import preference_issues


class FullFinetune(TrainingPlugin):
    """Trains every weight of the model, so the result is a whole model and not an addition to one.

    It can learn more than an adapter, needs several times its memory, and forgets faster where the learning rate is too high.
    Runs on a processor, on one GPU, or spread over several.
    """

    name = "full_finetune"
    title = "Full fine-tuning"
    method = "full"
    reads = ("chat", "text", "preference")
    resumes = True
    requires = ("torch", "transformers", "safetensors")
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "Quick try": {"max_steps": 30},
        "Balanced": {},
        "Thorough": {"epochs": 5.0, "learning_rate": 1e-5, "keep": "best", "early_stopping": 3},
    }

    class Config(FullConfig):
        pass

    def check(self, config: FullConfig, base: ModelFacts, data: DatasetFacts, host: HostFacts) -> list[Issue]:
        issues = [*row_issues(config, base, data), *step_issues(config, data), *_part_issues(config, base), *_format_issues(config, host)]
        issues += [*_process_issues(config, host), *preference_issues(config, data, method=self.method)]
        if config.learning_rate > 1e-4:
            issues.append(
                warning("learning_rate", "Above 0.0001 a model whose every weight learns forgets what it knew. 0.00002 suits most tasks.")
            )
        if not any(issue.level == "error" for issue in issues):
            issues += memory_issues(self.estimate, config, base, data, host)
        return issues

    def estimate(self, config: FullConfig, base: ModelFacts, data: DatasetFacts, host: HostFacts) -> Estimate:
        return full_estimate(config, base, data, host)

    def train(self, config: FullConfig, job: Job) -> Path:
        from studio.ml.following import together

        with together(self.name, config, job) as world:
            return self._train(config, job, world)

    def _train(self, config: FullConfig, job: Job, world: Any) -> Path:
        import torch

        from studio.ml.loading import choose_arithmetic, load_base, recompute_where_needed
        from studio.ml.loop import Loop, read_rows
        from studio.ml.modelcard import model_card
        from studio.ml.modelwriting import buffers, write_model
        from studio.ml.optimizers import freeze, make_optimizer
        from studio.ml.sharding import FullLearner, follow_steps, load_parameters, shard, whole
        from studio.ml.tokens import load_tokenizer

        torch.manual_seed(config.seed)
        tokenizer = load_tokenizer(job.base)
        train, validation = read_rows(job, tokenizer, config)
        job.phase("loading", f"Loading {job.model.name}")
        pure = config.weights == "bf16"
        arithmetic = choose_arithmetic(precision="bf16" if pure else config.precision, host=job.host)
        spread = world.size > 1  # then it need not fit into one device
        model = load_base(
            job.base,
            arithmetic=replace(arithmetic, device=torch.device("cpu")) if spread else arithmetic,
            dtype=torch.bfloat16 if pure else torch.float32,
        )
        freeze(model, config)
        recompute_where_needed(model, config, job)
        parameters = shard(model, world, arithmetic=arithmetic)
        trained = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
        optimizer = make_optimizer(model, trained, config)
        if spread:
            follow_steps(model, optimizer, seed=config.seed, rank=world.rank)
        learner = FullLearner(
            model=model,
            tokenizer=tokenizer,
            arithmetic=arithmetic,
            optimizer=optimizer,
            weights=lambda: whole(trained),
            load_weights=lambda tensors: load_parameters(model, trained, tensors),
        )
        job.raise_if_stopped()
        outcome = Loop(learner, config, job, train=train, validation=validation, world=world).run()
        job.phase("saving", "Writing the model")
        tensors = whole(parameters | buffers(model))
        if world.leads:
            write_model(model, tensors, base=job.base, folder=job.out)
            (job.out / "README.md").write_text(model_card(config, job, outcome, kind="model"), encoding="utf-8")
        return job.out


def _part_issues(config: FullConfig, base: ModelFacts) -> list[Issue]:
    """What is frozen must leave something to learn."""
    if config.freeze_layers > base.layers:
        return [error("freeze_layers", f"This model has {base.layers} layers.")]
    if config.freeze_layers and not config.freeze_embeddings:
        text = "The embeddings lie below the frozen layers and still learn, which costs most of the time saved. Freeze them as well."
        return [warning("freeze_layers", text)]
    return []


def _format_issues(config: FullConfig, host: HostFacts) -> list[Issue]:
    """Number formats and optimizers that do not go together, or not on this machine."""
    pure, issues = config.weights == "bf16", []
    if pure and config.precision in ("fp32", "fp16"):
        issues.append(error("precision", f"Weights in bf16 compute in bf16. Choose auto, or mixed weights for {config.precision}."))
    elif (pure or uses_bf16(config, host)) and not host.bf16:
        issues.append(warning("precision", "This worker is slow at bf16. Mixed weights with auto or fp32 are faster here."))
    if config.optimizer != "adamw":
        if not host.gpus:
            issues.append(error("optimizer", "AdamW in 8 bits needs a GPU, and this worker has none. Weights in bf16 save memory as well."))
        elif "bitsandbytes" not in host.packages:
            issues.append(error("optimizer", "AdamW in 8 bits needs bitsandbytes, which this worker does not have."))
        elif pure:
            issues.append(error("optimizer", "AdamW in 8 bits loses small steps where weights are bf16. Choose mixed weights, or adamw."))
    return issues


def _process_issues(config: FullConfig, host: HostFacts) -> list[Issue]:
    """Several processes need a GPU each, and formats that they can add up."""
    if config.processes == 1:
        return []
    if host.gpus and config.processes > len(host.gpus):
        gpus = "one GPU" if len(host.gpus) == 1 else f"{len(host.gpus)} GPUs"
        return [error("processes", f"This worker has {gpus}, and each process needs one of its own.")]
    if config.precision == "fp16":
        return [error("processes", "Several processes cannot compute in fp16. Choose bf16 or fp32.")]
    if config.optimizer != "adamw":
        return [error("processes", "Several processes cannot share AdamW in 8 bits. Choose adamw: each keeps a share of it.")]
    issues = []
    if config.batch_size < config.processes:
        issues.append(warning("batch_size", f"A batch of {config.batch_size} leaves some of {config.processes} processes without a row."))
    if not host.gpus:
        issues.append(warning("processes", "Without GPUs the processes share this machine's cores and memory. One is as fast."))
    return issues
