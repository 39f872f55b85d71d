"""What a run will take: steps, memory, seconds and disk, from facts alone. Pure arithmetic, asked while a form is typed.

Formulas in bytes; T = tokens in the largest batch, h = hidden size, I = intermediate size, L = layers, V = vocabulary:

    peak = overhead + weights + adapter + gradients + optimizer + activations + logits
    activations = T·L·(a·h + b·I), or T·L·r·h + T·(a·h + b·I) with gradient checkpointing

a and b were counted from the tensors that autograd keeps and checked against measured peaks on a CPU.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from studio.training.config import LoraConfig, TrainConfig
from studio.training.facts import DatasetFacts, Estimate, HostFacts, Linear, Memory, ModelFacts, Span

LOOKS = 10
"""Evaluations in a run where the config does not say."""
ALL_LINEAR = "all-linear"
OUTPUT_LAYERS = frozenset({"lm_head", "embed_out", "output"})
"""Never meant by all-linear: the layer that turns a hidden state into logits."""


def planned_steps(config: TrainConfig, *, rows: int) -> int:
    """Steps of the optimizer. An epoch's last step may have fewer rows; `max_steps`, where given, replaces epochs."""
    if config.max_steps:
        return config.max_steps
    batches = math.ceil(rows / config.batch_size)
    per_epoch = math.ceil(batches / config.gradient_accumulation)
    return max(1, math.ceil(per_epoch * config.epochs))


def target_linears(base: ModelFacts, targets: Sequence[str]) -> list[Linear]:
    """The layers that get an adapter."""
    if ALL_LINEAR in targets:
        return [linear for linear in base.linears if linear.name not in OUTPUT_LAYERS]
    return [linear for linear in base.linears if linear.name in targets]


def lora_parameters(config: LoraConfig, base: ModelFacts) -> int:
    """Exactly what peft trains: A [rank, inputs] and B [outputs, rank] for each layer, and DoRA's size per output."""
    size_per_output = 1 if config.variant == "dora" else 0
    return sum(
        linear.count * (config.rank * (linear.inputs + linear.outputs) + size_per_output * linear.outputs)
        for linear in target_linears(base, config.targets)
    )


@dataclass(frozen=True)
class Lengths:
    """Tokens of the rows after cutting: enough to foresee the largest batch and the whole run."""

    mean: float
    deviation: float
    longest: int
    supervised: float
    """Share of tokens that carry a loss."""
    measured: bool
    """False where the rows were never read as tokens, so that these are guesses."""


def row_lengths(data: DatasetFacts, *, max_length: int) -> Lengths:
    """From the histogram where there is one, from percentiles otherwise, guessed where nothing was measured."""
    tokens = data.tokens
    if tokens is None:
        return Lengths(mean=max_length * 0.5, deviation=max_length * 0.25, longest=max_length, supervised=0.7, measured=False)
    supervised = tokens.supervised / max(1, tokens.total)
    longest = min(tokens.longest, max_length)
    counted = sum(rows for _, rows in tokens.histogram)
    if counted:
        capped = [(min(edge, max_length), rows) for edge, rows in tokens.histogram]
        mean = sum(length * rows for length, rows in capped) / counted
        deviation = math.sqrt(sum(rows * (length - mean) ** 2 for length, rows in capped) / counted)
        mean = min(mean, tokens.total / max(1, data.rows))  # a bucket counts at its upper edge, which is a little high
    else:
        mean = min(tokens.total / max(1, data.rows), max_length)
        deviation = max(0.0, min(tokens.p95, max_length) - min(tokens.p50, max_length)) / 1.645
    return Lengths(mean=mean, deviation=deviation, longest=longest, supervised=supervised, measured=True)


def largest_batch(lengths: Lengths, *, batch_size: int, batches: int) -> float:
    """Tokens in the largest of n batches: the mean plus the expected maximum of n normal draws, in deviations of a batch.

    That maximum is about √(2·ln n) - (ln ln n + ln 4π) / (2·√(2·ln n)), the location of its Gumbel limit.
    """
    number = max(3, batches)
    root = math.sqrt(2 * math.log(number))
    draws = root - (math.log(math.log(number)) + math.log(4 * math.pi)) / (2 * root)
    likely = batch_size * lengths.mean + math.sqrt(batch_size) * lengths.deviation * draws
    return min(likely, float(batch_size * lengths.longest))


MIB = 1 << 20
LOGIT_ROWS = 512
"""Rows of logits at one time; `studio.ml.loss` cuts the loss into such pieces."""
CPU_OVERHEAD = 700 * MIB
GPU_OVERHEAD = 1024 * MIB
LOW, HIGH = 0.95, 1.15
"""How far measured peaks lay from the formula."""
GUESSED_LOW = 0.6
"""Where the rows were never measured."""


def uses_bf16(config: TrainConfig, host: HostFacts) -> bool:
    return host.bf16 if config.precision == "auto" else config.precision == "bf16"


def available_memory(host: HostFacts) -> int:
    """Bytes of the memory that the model will live in."""
    return max((gpu.memory for gpu in host.gpus), default=host.memory)


def lora_memory(config: LoraConfig, base: ModelFacts, data: DatasetFacts, host: HostFacts, *, checkpointing: bool) -> Memory:
    """The peak of LoRA training over frozen weights, AdamW in fp32, attention per document and the loss in pieces."""
    bf16 = uses_bf16(config, host)
    wide = 2 if bf16 else 4
    trained = lora_parameters(config, base)
    lengths = row_lengths(data, max_length=config.max_length)
    batches = planned_steps(config, rows=data.train) * config.gradient_accumulation
    tokens = largest_batch(lengths, batch_size=config.batch_size, batches=batches)
    layer = _layer_activations(config, base, bf16=bf16)
    whole_layers = 1 if checkpointing else base.layers  # the others keep their input alone
    inputs = tokens * base.layers * wide * base.hidden_size if checkpointing else 0.0
    activations = tokens * layer * whole_layers + inputs
    parts = {
        "weights": base.parameters * wide,
        "adapter": trained * (6 if bf16 else 4),  # fp32, and under autocast a bf16 copy
        "gradients": trained * 4,
        "optimizer": trained * 8,
        "activations": round(activations),
        "logits": LOGIT_ROWS * base.vocabulary * (8 if bf16 else 4),
        "overhead": GPU_OVERHEAD if host.gpus else CPU_OVERHEAD,
    }
    total = sum(parts.values())
    return Memory(**parts, low=round(total * (LOW if lengths.measured else GUESSED_LOW)), high=round(total * HIGH))


ACTIVATION_BYTES = {(False, True): (29, 8), (False, False): (36, 16), (True, True): (52, 16), (True, False): (76, 32)}
"""(DoRA, bf16) -> bytes per token and layer for each unit of hidden and of intermediate size."""


def _layer_activations(config: LoraConfig, base: ModelFacts, *, bf16: bool) -> float:
    """Bytes that one layer keeps for the backward pass, per token."""
    h, i, rank = base.hidden_size, base.intermediate_size, config.rank
    per_hidden, per_intermediate = ACTIVATION_BYTES[config.variant == "dora", bf16]
    per_token = per_hidden * h + per_intermediate * i
    per_token += rank * (48 if bf16 else 28)
    if config.dropout:
        per_token += 4 * (6 * h + i)
    return per_token


def wants_checkpointing(config: LoraConfig, base: ModelFacts, data: DatasetFacts, host: HostFacts) -> bool:
    """What `gradient_checkpointing: auto` means here: on only where the run would not fit without."""
    if config.gradient_checkpointing != "auto":
        return config.gradient_checkpointing == "on"
    return lora_memory(config, base, data, host, checkpointing=False).high > available_memory(host)


CPU_EFFICIENCY, GPU_EFFICIENCY = 0.35, 0.35
"""Share of the measured matrix speed that a whole step reaches; the rest goes to norms, casts and small ranks."""
LAYER_SECONDS = 0.003
"""Of a batch per layer, whatever its size: the cost of calling many small operations."""
START_SECONDS = 12.0
SAMPLES = 3
SAMPLE_TOKENS = 48


def lora_seconds(config: LoraConfig, base: ModelFacts, data: DatasetFacts, host: HostFacts, *, checkpointing: bool) -> Span:
    """Wall time from the arithmetic it takes and the host's measured speed.

    Per token: 2·P forward and 2·P backward in the layers (frozen weights need no gradient of their own), 6·P in the
    adapter, 6·L·h·length in attention, and 4·V·h in the head for supervised tokens.
    """
    lengths = row_lengths(data, max_length=config.max_length)
    steps = planned_steps(config, rows=data.train)
    rows = min(config.batch_size * config.gradient_accumulation, data.train) * steps if config.max_steps else data.train * config.epochs
    layer_weights = sum(linear.inputs * linear.outputs * linear.count for linear in base.linears if linear.name not in OUTPUT_LAYERS)
    forward = 2.0 * layer_weights * (1.6 if config.variant == "dora" else 1.0) + 2.0 * base.layers * base.hidden_size * lengths.mean
    head = 2.0 * base.vocabulary * base.hidden_size * lengths.supervised
    learnt = (3 if checkpointing else 2) * forward + 2 * head + 6.0 * lora_parameters(config, base)
    looks = math.ceil(steps / config.evaluate_every) + 1 if config.evaluate_every else min(steps, LOOKS) + 1
    looked_at = looks * min(data.validation, 512) * lengths.mean
    speed = host.gflops * 1e9 * (GPU_EFFICIENCY if host.gpus else CPU_EFFICIENCY)
    work = (rows * lengths.mean * learnt + looked_at * (forward + head)) / speed
    passes = steps * config.gradient_accumulation + looks * data.validation / config.batch_size
    calls = passes * base.layers * LAYER_SECONDS * (3 if config.variant == "dora" else 1)
    sample_token = base.parameters * 2 / (1e12 if host.gpus else 1e10) + base.layers * 0.0007
    said = looks * SAMPLES * SAMPLE_TOKENS * sample_token
    total = work + calls + said * 0.7 + START_SECONDS
    wide = 1.0 if lengths.measured else 1.5
    return Span(low=total / (1.5 * wide), high=total * 1.8 * wide)


def lora_disk(config: LoraConfig, base: ModelFacts) -> int:
    """The adapter in fp32, and three checkpoints that also hold AdamW's two moments."""
    adapter = 4 * lora_parameters(config, base)
    return adapter + 3 * 3 * adapter


def lora_estimate(config: LoraConfig, base: ModelFacts, data: DatasetFacts, host: HostFacts) -> Estimate:
    """Memory, time and disk of a LoRA run, with the reasons that a person should see beside the figures."""
    checkpointing = wants_checkpointing(config, base, data, host)
    lengths = row_lengths(data, max_length=config.max_length)
    reasons = []
    if checkpointing and config.gradient_checkpointing == "auto":
        reasons.append("Gradient checkpointing is turned on, since the run would not fit otherwise; it is about 40 % slower.")
    if not lengths.measured:
        reasons.append("The rows were not yet read with this model's tokenizer, so their lengths are guessed.")
    if uses_bf16(config, host) and not host.bf16:
        reasons.append("This worker computes bf16 slowly; its time may be far above the range.")
    return Estimate(
        memory=lora_memory(config, base, data, host, checkpointing=checkpointing),
        trainable_parameters=lora_parameters(config, base),
        steps=planned_steps(config, rows=data.train),
        seconds=lora_seconds(config, base, data, host, checkpointing=checkpointing),
        disk=lora_disk(config, base),
        available=available_memory(host),
        reasons=reasons,
    )


def smaller(config: LoraConfig, base: ModelFacts, data: DatasetFacts, host: HostFacts) -> LoraConfig | None:
    """The nearest settings that fit and learn the same: checkpointing first, then smaller batches that are added up."""
    tried = config
    if tried.gradient_checkpointing == "off":
        tried = tried.model_copy(update={"gradient_checkpointing": "auto"})
    while lora_estimate(tried, base, data, host).memory.high > available_memory(host):
        if tried.batch_size == 1:
            return None
        halved = math.ceil(tried.batch_size / 2)
        added_up = math.ceil(config.batch_size * config.gradient_accumulation / halved)
        if added_up > 1024:
            return None
        tried = tried.model_copy(update={"batch_size": halved, "gradient_accumulation": added_up})
    return tried
