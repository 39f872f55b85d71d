"""What a run will take: steps, memory, seconds and disk, from facts alone. Pure arithmetic, asked while a form is typed.

Formulas in bytes; T = tokens in the largest batch, h = hidden size, I = intermediate size, L = layers, V = vocabulary:

    peak = overhead + weights + adapter + optimizer + the larger of two moments:
           activations + logits              before the first gradient; gradients too where batches are added up
           gradients + one layer             after the last one
    activations = T·L·(a·h + b·I), or T·L·r·h + T·(a·h + b·I) with gradient checkpointing

a and b were counted from the tensors that autograd keeps and checked against measured peaks on a CPU.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from studio.training.config import FullConfig, LoraConfig, PreferenceConfig, TrainConfig
from studio.training.facts import DatasetFacts, Estimate, HostFacts, Linear, Memory, ModelFacts, Span
from studio.training.form import form_fields
from studio.training.preferences import REFERENCED

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
    """Exactly what learns: A [rank, inputs] and B [outputs, rank] for each layer, DoRA's size per output, and tables in full."""
    size_per_output = 1 if config.variant == "dora" else 0
    ranks: dict[str, int] = getattr(config, "rank_pattern", {})
    matrices = sum(
        linear.count * (ranks.get(linear.name, config.rank) * (linear.inputs + linear.outputs) + size_per_output * linear.outputs)
        for linear in target_linears(base, config.targets)
    )
    tables = set(getattr(config, "modules_to_save", ()))
    return matrices + min(len(tables), 1 if base.tied else 2) * base.vocabulary * base.hidden_size


def output_learns(config: LoraConfig, base: ModelFacts) -> bool:
    """True where the table that tokens are chosen with is trained in full beside the adapter."""
    tables = getattr(config, "modules_to_save", ())
    return "lm_head" in tables or (base.tied and "embed_tokens" in tables)


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
    answers = 2 * data.rows - data.unpaired if data.shape == "preference" else data.rows  # both of a pair are counted, each as a row
    counted_rows = max(1, answers)
    longest = min(tokens.longest, max_length)
    counted = sum(rows for _, rows in tokens.histogram)
    if counted:
        capped = [(min(edge, max_length), rows) for edge, rows in tokens.histogram]
        mean = sum(length * rows for length, rows in capped) / counted
        deviation = math.sqrt(sum(rows * (length - mean) ** 2 for length, rows in capped) / counted)
        mean = min(mean, tokens.total / counted_rows)  # a bucket counts at its upper edge, which is a little high
    else:
        mean = min(tokens.total / counted_rows, max_length)
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
CPU_OVERHEAD = 670 * MIB
"""530 were measured for Python, torch, transformers and peft; the rest is what the allocator and the matrix library hold besides."""
GPU_OVERHEAD = 1024 * MIB
LOW, HIGH = 0.9, 1.15
"""How far measured peaks lay from the formula."""
GUESSED_LOW = 0.6
"""Where the rows were never measured."""


def uses_bf16(config: TrainConfig, host: HostFacts) -> bool:
    return host.bf16 if config.precision == "auto" else config.precision == "bf16"


def half_precision(config: TrainConfig, host: HostFacts) -> bool:
    """True where the arithmetic takes two bytes per number."""
    return config.precision == "fp16" or uses_bf16(config, host)


def available_memory(host: HostFacts) -> int:
    """Bytes of the memory that the model will live in."""
    return max((gpu.memory for gpu in host.gpus), default=host.memory)


@dataclass(frozen=True)
class Recipe:
    """What one way to train keeps in memory. Bytes are those of one process; several on one processor share its memory."""

    trained: int
    """Parameters that learn, over all processes."""
    half: bool
    """The arithmetic takes two bytes per number."""
    weights: float
    """Bytes of the base model."""
    copies: float
    """Bytes of its matrices' copies in the arithmetic's format, which the backward pass lets go of one by one."""
    adapter: float
    """Bytes of what is trained beside it."""
    gradients: float
    optimizer: float
    head_gradient: float
    """Bytes of the output layer's own gradient in fp32, which the loss makes; 0 where that layer is frozen."""
    head_product: float
    """Bytes of one piece's share of it, before it is added, and of the layer's copy in the arithmetic's format."""
    kept: float
    """Bytes of one token that one layer keeps for the backward pass."""
    carried: float
    """Bytes of one token between two layers: all that a layer with checkpointing keeps."""
    layers: int
    """Layers that the backward pass goes through."""
    forward: float
    """Multiplications and additions per token in the layers."""
    backward: float
    """The same on the way back, as a multiple of `forward`."""
    head_backward: float
    passes: float = 1.0
    """Forward passes over the training rows before the first step: a preference loss's look at its reference."""
    processes: int = 1


def base_bytes(base: ModelFacts, *, wide: int, quantization: str = "none") -> float:
    """Bytes of frozen weights. Quantization touches the linear layers alone, the output layer excepted.

    8 bits: one scale in fp32 per output (LLM.int8). 4 bits: NF4 with an 8-bit scale per 64 weights
    and one in fp32 per 256 scales (double quantization, Dettmers et al. 2023), 0.516 bytes in all.
    """
    if quantization == "none":
        return float(base.parameters * wide)
    inner = [linear for linear in base.linears if linear.name not in OUTPUT_LAYERS]
    weights = sum(linear.inputs * linear.outputs * linear.count for linear in inner)
    scales = sum(4 * linear.outputs * linear.count for linear in inner)
    small = weights + scales if quantization == "8bit" else weights * (0.5 + 1 / 64 + 4 / (64 * 256))
    unpacked = 2 * max((linear.inputs * linear.outputs for linear in inner), default=0)  # the layer that is being multiplied
    return small + unpacked + (base.parameters - weights) * 2


def kept_bytes(base: ModelFacts, *, half: bool, norms: int, inputs: float) -> float:
    """Bytes that one layer keeps of one token for the backward pass, attention being one kernel.

    That is: `norms` for each unit of hidden size, for both norms; queries and attention's answer, keys and values; gate, its
    activation and the other half of the feed-forward part; `inputs` of matrices that learn, in numbers; a sum per head and a scale
    per norm in fp32. These sums are to the byte what autograd keeps of a Llama (tests/ml/test_kept.py); other families are near.
    """
    queries, keys = base.heads * base.head_size, base.kv_heads * base.head_size
    wide = 2 if half else 4
    return norms * base.hidden_size + wide * (2 * queries + 2 * keys + 3 * base.intermediate_size + inputs) + 4 * base.heads + 8


def per_layer(base: ModelFacts, linears: Sequence[Linear], side: str) -> float:
    """Inputs or outputs of these linear layers, in numbers per token, of one layer of the model."""
    return float(sum(getattr(linear, side) * linear.count for linear in linears)) / max(1, base.layers)


def shared_inputs(base: ModelFacts) -> int:
    """Numbers per token that matrices read, where those that read the same share it: what the two norms give, and two inner ones."""
    return 2 * base.hidden_size + base.heads * base.head_size + base.intermediate_size


def lora_kept_bytes(config: LoraConfig, base: ModelFacts, *, half: bool) -> float:
    """A frozen norm keeps its input in fp32. Under autocast every adapter has an input of its own, for peft casts it up and torch down;
    those that `studio.ml.lora` computes read what their neighbours read, and after attention what attention keeps anyway.

    Besides an adapter keeps its narrow middle; with dropout a mask and what it left; with DoRA its layer's output twice more.
    """
    found = target_linears(base, config.targets)
    own = per_layer(base, found, "inputs")
    fused = half and not config.dropout and config.variant != "dora" and config.quantization == "none"
    inputs = own if half else shared_inputs(base)
    if fused:
        inputs = min(own, shared_inputs(base) - base.heads * base.head_size)
    kept = kept_bytes(base, half=half, norms=8, inputs=inputs)
    middle = sum(linear.count for linear in found) / max(1, base.layers) * config.rank
    dropped = 2 * own if config.dropout else 0
    doubled = 2 * per_layer(base, found, "outputs") if config.variant == "dora" else 0
    return kept + (2 if half else 4) * (middle + dropped + doubled)


def full_kept_bytes(config: FullConfig, base: ModelFacts, *, half: bool) -> float:
    """A norm that learns keeps what it scales as well. Weights in fp32 under autocast cast the input of every matrix for itself."""
    mixed = config.weights == "mixed"
    inner = [linear for linear in base.linears if linear.name not in OUTPUT_LAYERS]
    inputs = per_layer(base, inner, "inputs") if mixed and half else shared_inputs(base)
    if half:
        inputs -= base.heads * base.head_size  # the layer after attention reads the very tensor that attention keeps
    return kept_bytes(base, half=half, norms=16 if mixed else 12, inputs=inputs)


def unread_bytes(config: LoraConfig, base: ModelFacts, host: HostFacts) -> int:
    """Of a table of words that learns nothing: a processor maps the file where it holds the very format, and reads the rows that occur."""
    format_ = "float32" if not half_precision(config, host) else "bfloat16" if uses_bf16(config, host) else "float16"
    learns = "embed_tokens" in getattr(config, "modules_to_save", ())
    if host.gpus or base.tied or learns or config.quantization != "none" or base.dtype != format_:
        return 0
    return (4 if format_ == "float32" else 2) * base.vocabulary * base.hidden_size


def lora_recipe(config: LoraConfig, base: ModelFacts, data: DatasetFacts, host: HostFacts) -> Recipe:
    """An adapter in fp32 beside frozen weights, AdamW in fp32."""
    half = half_precision(config, host)
    wide = 2 if half else 4
    trained = lora_parameters(config, base)
    dora = config.variant == "dora"
    layer_weights = inner_weights(base)
    return Recipe(
        trained=trained,
        half=half,
        weights=base_bytes(base, wide=wide, quantization=config.quantization) - unread_bytes(config, base, host),
        copies=0,
        adapter=trained * (6 if half else 4),  # fp32, and under autocast a copy in half precision
        gradients=trained * 4,
        optimizer=trained * 8,
        head_gradient=4.0 * base.vocabulary * base.hidden_size if output_learns(config, base) else 0.0,
        head_product=4.0 * base.vocabulary * base.hidden_size if output_learns(config, base) else 0.0,
        kept=lora_kept_bytes(config, base, half=half),
        carried=wide * base.hidden_size,
        layers=base.layers,
        forward=2.0 * layer_weights * (1.6 if dora else 1.0) + 2.0 * trained,
        backward=(layer_weights + 2 * trained) / (layer_weights + trained),
        head_backward=2.0 if output_learns(config, base) else 1.0,
        passes=reference_passes(config, data),
    )


def full_recipe(config: FullConfig, base: ModelFacts, data: DatasetFacts, host: HostFacts) -> Recipe:
    """Every weight that is not frozen learns.

    Bytes per trained parameter: mixed 4 (weight) + 4 (gradient) + 8 (AdamW's two moments), and 2 for each linear layer's copy in
    half precision; bf16 2 + 2 + 4. An 8-bit AdamW, which only GPUs have, keeps two bytes and a scale in fp32 per 256 of them.
    """
    pure = config.weights == "bf16"
    half = pure or half_precision(config, host)
    table = base.vocabulary * base.hidden_size
    tables = table if base.tied else 2 * table
    layer_size = max(0, base.parameters - tables) / max(1, base.layers)
    frozen_layers = min(config.freeze_layers, base.layers)
    trained = round(base.parameters - layer_size * frozen_layers - (table if config.freeze_embeddings else 0))
    wide = 2 if pure else 4
    head_learns = not (base.tied and config.freeze_embeddings)
    small = config.optimizer != "adamw" and bool(host.gpus)
    through = base.layers - (frozen_layers if config.freeze_embeddings else 0)
    copies = 2 * inner_weights(base) * through / base.layers if half and not pure else 0.0
    share = config.processes
    return Recipe(
        trained=trained,
        half=half,
        weights=base.parameters * wide / share,
        copies=2 * copies / base.layers if share > 1 else copies,  # of shards two layers at a time are gathered
        adapter=0,
        gradients=trained * wide / share,
        optimizer=_optimizer_bytes(config, trained, small=small) / share,
        head_gradient=4.0 * table if head_learns else 0.0,
        head_product=(2.0 if pure else 4.0) * table if head_learns else 0.0,
        kept=full_kept_bytes(config, base, half=half),
        carried=(2 if pure else 4) * base.hidden_size,
        layers=through,
        forward=2.0 * inner_weights(base),
        backward=2.0 * through / base.layers,
        head_backward=2.0 if head_learns else 1.0,
        passes=reference_passes(config, data),
        processes=share,
    )


def _optimizer_bytes(config: FullConfig, trained: int, *, small: bool) -> float:
    if not small:
        return trained * (4.0 if config.weights == "bf16" else 8.0)
    if config.optimizer == "paged_adamw_8bit":
        return 0.0  # it gives way to main memory where the GPU is full
    return trained * 2 * (1 + 4 / 256)


def inner_weights(base: ModelFacts) -> int:
    """Weights of the linear layers below the output layer."""
    return sum(linear.inputs * linear.outputs * linear.count for linear in base.linears if linear.name not in OUTPUT_LAYERS)


def reference_passes(config: PreferenceConfig, data: DatasetFacts) -> float:
    """Forward passes over all rows that a preference loss makes before the first step, in readings of the rows."""
    return 1.0 if data.shape == "preference" and config.preference in REFERENCED else 0.0


def readings(config: TrainConfig, data: DatasetFacts) -> int:
    """How often a row goes through the model in one batch: pairs have two answers, and KTO reads a third."""
    if data.shape != "preference":
        return 1
    return 3 if isinstance(config, PreferenceConfig) and config.preference == "kto" else 2


def working_memory(
    recipe: Recipe, config: TrainConfig, base: ModelFacts, data: DatasetFacts, host: HostFacts, *, checkpointing: bool
) -> Memory:
    """The peak of a training, by what takes it at that moment: of one device, or of all processes that share a machine's memory."""
    lengths = row_lengths(data, max_length=config.max_length)
    batches = planned_steps(config, rows=data.train) * config.gradient_accumulation
    at_once = math.ceil(config.batch_size / recipe.processes) * readings(config, data)
    tokens = largest_batch(lengths, batch_size=at_once, batches=batches)
    whole_layers = (1 if checkpointing else recipe.layers) + 1  # what is worked out on the way is about one layer's more
    carried = recipe.carried * tokens * recipe.layers if checkpointing else 0.0  # the other layers keep their input alone
    before = {
        "weights": recipe.weights + recipe.copies,
        "gradients": recipe.gradients if config.gradient_accumulation > 1 else 0.0,
        "activations": recipe.kept * tokens * whole_layers + carried,
        "logits": loss_bytes(recipe, base, rows=tokens * lengths.supervised),
    }
    after = {
        "weights": recipe.weights,
        "gradients": recipe.gradients,
        "activations": 2 * recipe.kept * tokens,
        "logits": recipe.head_gradient,
    }
    moment = max(before, after, key=lambda parts: sum(parts.values()))
    parts = {
        "adapter": recipe.adapter,
        "optimizer": recipe.optimizer,
        "overhead": GPU_OVERHEAD if host.gpus else CPU_OVERHEAD,
        **moment,
    }
    sharing = 1 if host.gpus else recipe.processes
    whole = {name: round(value * sharing) for name, value in parts.items()}
    total = sum(whole.values())
    return Memory(**whole, low=round(total * (LOW if lengths.measured else GUESSED_LOW)), high=round(total * HIGH))


def loss_bytes(recipe: Recipe, base: ModelFacts, *, rows: float) -> float:
    """Of the loss over pieces of at most LOGIT_ROWS rows, as `studio.ml.loss` works it out, the larger of two moments.

    First the logits in fp32 and as much to sum their exponentials; then the logits, their slope in half precision, and the
    product that is added to the output layer's gradient.
    """
    piece = min(LOGIT_ROWS, rows) * base.vocabulary
    return max(8 * piece + recipe.head_gradient, (6 if recipe.half else 4) * piece + recipe.head_gradient + recipe.head_product)


def recipe_of(config: LoraConfig | FullConfig, base: ModelFacts, data: DatasetFacts, host: HostFacts) -> Recipe:
    if isinstance(config, FullConfig):
        return full_recipe(config, base, data, host)
    return lora_recipe(config, base, data, host)


def wants_checkpointing(config: LoraConfig | FullConfig, base: ModelFacts, data: DatasetFacts, host: HostFacts) -> bool:
    """What `gradient_checkpointing: auto` means here: on only where the run would not fit without."""
    if config.gradient_checkpointing != "auto":
        return config.gradient_checkpointing == "on"
    recipe = recipe_of(config, base, data, host)
    return working_memory(recipe, config, base, data, host, checkpointing=False).high > available_memory(host)


ALONE = 0.35
"""Share of its matrix speed that a whole step reaches on a machine of which nothing else was measured."""
ODD_SHAPES = 0.8
"""What a layer's matrices and narrow adapters reach of the speed of the large square ones that were measured."""
TOGETHER = 0.83
"""What two threads reach of twice the speed of one (1.58 times was measured), on processors."""
FP32_SLOWER = 4.4
"""How much slower fp32 products are where bf16 is fast: 4.4 was measured on a processor with avx512_bf16."""
FORWARD_SHARE = 0.35
"""Of the time that small operations take in a forward and backward pass."""
LOGIT_TRAFFIC = 8
"""Bytes per logit that the loss keeps or rewrites, counted as small operations."""
LAYER_SECONDS = 0.003
"""Of a batch per layer, whatever its size: the cost of calling many small operations."""
START_SECONDS = 12.0
SAMPLES = 3
SAMPLE_TOKENS = 48


def working_seconds(
    recipe: Recipe, config: TrainConfig, base: ModelFacts, data: DatasetFacts, host: HostFacts, *, checkpointing: bool
) -> Span:
    """Wall time from the arithmetic it takes and the host's measured speed.

    Per token, in matrices: 2·P forward in the layers, 2·P back through them and 2·P more where they learn themselves, 6·L·h·length
    in attention, and in the head 2·V·h forward, as much back, and once more where it learns, for supervised tokens. Beside them go
    norms, activations and casts, whose time is that of the bytes they keep at the speed that was measured for such operations.
    """
    lengths = row_lengths(data, max_length=config.max_length)
    steps = planned_steps(config, rows=data.train)
    rows = min(config.batch_size * config.gradient_accumulation, data.train) * steps if config.max_steps else data.train * config.epochs
    tokens = rows * lengths.mean * readings(config, data)
    forward = recipe.forward + 2.0 * base.layers * base.hidden_size * lengths.mean
    head = 2.0 * base.vocabulary * base.hidden_size * lengths.supervised
    learnt = (1 + recipe.backward + checkpointing) * forward + (1 + recipe.head_backward) * head
    looks = math.ceil(steps / config.evaluate_every) + 1 if config.evaluate_every else min(steps, LOOKS) + 1
    read = looks * min(data.validation, 512) + recipe.passes * (data.train + data.validation)
    read_tokens = read * lengths.mean * readings(config, data)
    speed = host.gflops * 1e9 * (recipe.processes if host.gpus else 1)
    if host.bf16 and not recipe.half:
        speed /= FP32_SLOWER
    matrices = (tokens * learnt + read_tokens * (forward + head)) / speed
    if host.traffic:
        layers = recipe.kept * base.layers
        loss = LOGIT_TRAFFIC * base.vocabulary * lengths.supervised
        small = tokens * (layers * (1 + FORWARD_SHARE * checkpointing) + loss) + read_tokens * FORWARD_SHARE * (layers + loss)
        work = (matrices / ODD_SHAPES + small / host.traffic) / TOGETHER
    else:
        work = matrices / ALONE
    batches = steps * config.gradient_accumulation + read / config.batch_size
    calls = batches * base.layers * LAYER_SECONDS * (3 if isinstance(config, LoraConfig) and config.variant == "dora" else 1)
    sample_token = base.parameters * 2 / (1e12 if host.gpus else 1e10) + base.layers * 0.0007
    said = looks * SAMPLES * SAMPLE_TOKENS * sample_token
    total = work + calls + said * 0.7 + START_SECONDS
    wide = 1.0 if lengths.measured else 1.5
    return Span(low=total / (1.5 * wide), high=total * 1.8 * wide)


KEPT_STATES = 3
"""The last two and the best."""


def lora_estimate(config: LoraConfig, base: ModelFacts, data: DatasetFacts, host: HostFacts) -> Estimate:
    """Memory, time and disk of a LoRA run, with the reasons that a person should see beside the figures."""
    recipe = lora_recipe(config, base, data, host)
    adapter = 4 * recipe.trained  # in fp32; a state also holds AdamW's two moments
    return _estimate(recipe, config, base, data, host, disk=adapter + KEPT_STATES * 3 * adapter)


def full_estimate(config: FullConfig, base: ModelFacts, data: DatasetFacts, host: HostFacts) -> Estimate:
    """Memory, time and disk of a run that trains every weight; the memory of one GPU, or of a processor's processes together."""
    recipe = full_recipe(config, base, data, host)
    wide = 2 if config.weights == "bf16" else 4
    state = recipe.trained * wide + _optimizer_bytes(config, recipe.trained, small=False)
    return _estimate(recipe, config, base, data, host, disk=round(base.parameters * wide + KEPT_STATES * state))


def estimate(config: TrainConfig, base: ModelFacts, data: DatasetFacts, host: HostFacts) -> Estimate:
    """What settings of either way take; others are thought of as training every weight, which nothing exceeds."""
    if isinstance(config, LoraConfig):
        return lora_estimate(config, base, data, host)
    if not isinstance(config, FullConfig):
        config = FullConfig.model_validate({name: value for name, value in config if name in FullConfig.model_fields})
    return full_estimate(config, base, data, host)


def _estimate(
    recipe: Recipe, config: LoraConfig | FullConfig, base: ModelFacts, data: DatasetFacts, host: HostFacts, *, disk: int
) -> Estimate:
    checkpointing = wants_checkpointing(config, base, data, host)
    return Estimate(
        memory=working_memory(recipe, config, base, data, host, checkpointing=checkpointing),
        trainable_parameters=recipe.trained,
        steps=planned_steps(config, rows=data.train),
        seconds=working_seconds(recipe, config, base, data, host, checkpointing=checkpointing),
        disk=disk,
        available=available_memory(host),
        reasons=list(_reasons(recipe, config, data, host, checkpointing=checkpointing)),
    )


def _reasons(recipe: Recipe, config: LoraConfig | FullConfig, data: DatasetFacts, host: HostFacts, *, checkpointing: bool) -> Iterator[str]:
    if checkpointing and config.gradient_checkpointing == "auto":
        yield "Gradient checkpointing is turned on, since the run would not fit otherwise; it is about 40 % slower."
    if data.tokens is None:
        yield "The rows were not yet read with this model's tokenizer, so their lengths are guessed."
    if uses_bf16(config, host) and not host.bf16:
        yield "This worker computes bf16 slowly; its time may be far above the range."
    if recipe.passes:
        yield "Every pair is read once before the first step, to compare with."
    if isinstance(config, FullConfig) and config.optimizer == "paged_adamw_8bit" and host.gpus:
        yield "The optimizer is not counted: it moves to main memory where the GPU is full, which takes time."
    if recipe.processes > 1 and host.gpus:
        yield f"This is the memory of each of {recipe.processes} GPUs."


Estimator = Callable[[Any, ModelFacts, DatasetFacts, HostFacts], Estimate]
"""A plugin's `estimate`."""
MOST_ACCUMULATED = 1024
SHORTEST = 128
"""Tokens; rows cut shorter than that teach little."""
FEWER_BITS = {"none": ("8bit", "4bit"), "8bit": ("4bit",)}
CLEARLY_LESS = 0.8
"""Share of what settings that ran out of memory were thought to need: no others are worth a try."""


def fitting_changes(
    estimate: Estimator, config: Any, base: ModelFacts, data: DatasetFacts, host: HostFacts, *, ran_out: bool = False
) -> Any | None:
    """The settings nearest to `config` that fit into the host's memory, those first that lose the least; None where none do.

    In this order: gradient checkpointing, which only takes time; smaller batches that are added up, which learn the same;
    on a GPU a base in 8, then in 4 bits, where the config knows it; a shorter max length, halved until it fits.
    With `ran_out` the settings as they are were tried and did not fit, whatever was thought: clearly less is asked for.
    """
    most = CLEARLY_LESS * _besides_program(estimate(config, base, data, host).memory) if ran_out else math.inf

    def fits(tried: Any) -> bool:
        memory = estimate(tried, base, data, host).memory
        return memory.high <= available_memory(host) and _besides_program(memory) <= most

    return next(filter(fits, _ever_smaller(config, host)), None)


def _besides_program(memory: Memory) -> int:
    return memory.weights + memory.adapter + memory.gradients + memory.optimizer + memory.activations + memory.logits


def _ever_smaller(config: Any, host: HostFacts) -> Iterator[Any]:
    yield config
    if config.gradient_checkpointing != "on":
        config = config.model_copy(update={"gradient_checkpointing": "on"})
    for worse in _ever_worse(config, host):
        yield from _ever_smaller_batches(worse)


def _ever_smaller_batches(config: Any) -> Iterator[Any]:
    """The batch, its half, its quarter, ... down to one row, as many rows in a step."""
    yield config
    batch, rows = config.batch_size, config.batch_size * config.gradient_accumulation
    while batch > 1:
        batch = math.ceil(batch / 2)
        accumulation = math.ceil(rows / batch)
        if accumulation > MOST_ACCUMULATED:
            return
        yield config.model_copy(update={"batch_size": batch, "gradient_accumulation": accumulation})


def _ever_worse(config: Any, host: HostFacts) -> Iterator[Any]:
    """The settings, then those that lose something: fewer bits, then rows that are cut."""
    yield config
    if host.gpus:
        for bits in filter(config.goes_with, FEWER_BITS[config.quantization]) if isinstance(config, LoraConfig) else ():
            config = config.model_copy(update={"quantization": bits})
            yield config
    while config.max_length // 2 >= SHORTEST:
        config = config.model_copy(update={"max_length": config.max_length // 2})
        yield config


def changes(before: TrainConfig, after: TrainConfig) -> dict[str, Any]:
    """The settings of `after` that are others than in `before`."""
    return {name: value for name, value in after if value != getattr(before, name)}


def changes_in_words(before: TrainConfig, after: TrainConfig) -> str:
    """The same as a part of a sentence: `batch size 2 and accumulation 8`."""
    labels = {field.name: field.label.lower() for field in form_fields(type(after))}
    words = [f"{labels[name]} {value}" for name, value in changes(before, after).items()]
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))
