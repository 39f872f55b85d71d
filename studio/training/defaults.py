"""What each setting should be in the case at hand, and why, in plain words. Arithmetic on facts alone: it is asked at every key press.

Figures come from published runs and other tools' examples; each function names its source. Where nothing is known about a case (no
tokens measured, no worker, a way to train that is neither LoRA nor full) the plugin's own default stays, and no reason is invented.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from studio.training.asking import estimate_of
from studio.training.config import LoraConfig, TrainConfig
from studio.training.facts import DatasetFacts, HostFacts, ModelFacts
from studio.training.form import FormField, as_text, check_config, figure, form_fields
from studio.training.memory import lora_parameters, planned_steps, target_linears
from studio.training.plugin import TrainingPlugin
from studio.training.preferences import ADVISED

METHODS = ("lora", "full")
LEARNING_RATE = {"lora": 2e-4, "full": 2e-5}
LARGE = 14_000_000_000
"""Parameters from which a base model wants half of the usual learning rate."""
PIECE = 64
"""Max length is a multiple of this many tokens; matrix kernels work in tiles of that size."""
SHORTEST = 512
"""A max length is not cut below this to fit into memory; a smaller base model serves better then."""


@dataclass(frozen=True)
class Suggestion:
    """A default for the case at hand."""

    value: Any
    reason: str
    """Goes on after the value: "since 99 of 100 rows have at most 431 tokens"."""

    @property
    def sentence(self) -> str:
        return f"{as_text(self.value)}, {self.reason}."


def suggest(plugin: TrainingPlugin, *, base: ModelFacts, data: DatasetFacts, host: HostFacts | None) -> dict[str, Suggestion]:
    """`{setting: suggestion}` for the settings that depend on the case. Empty for a method that trains no model.

    A suggestion outside a plugin's own bounds is left out.
    """
    if plugin.method not in METHODS:
        return {}
    wanted = {
        "learning_rate": learning_rate(plugin.method, base, data),
        "epochs": epochs(plugin.method, data),
        "max_length": max_length(plugin, base, data),
        "rank": rank(plugin, base, data),
        "alpha": Suggestion(0.0, ""),  # follows the rank
        "batch_size": batch_size(plugin.method, data),
        "weight_decay": Suggestion(0.01, "as usual where all weights are trained: it keeps them from growing")
        if plugin.method == "full"
        else None,
        "modules_to_save": new_tokens(base),
    }
    known = plugin.Config.model_fields
    found = {name: suggestion for name, suggestion in wanted.items() if suggestion is not None and name in known}
    if "alpha" in found and "rank" in found:
        found["alpha"] = Suggestion(
            2.0 * found["rank"].value, "twice the rank, so that another rank does not change the adapter's strength"
        )
    found = allowed(plugin, found)
    if host is not None:
        found = allowed(plugin, found | fitted(plugin, found, base=base, data=data, host=host))
    return allowed(plugin, found | {"warmup": warmup(plugin, found, data)})


def allowed(plugin: TrainingPlugin, found: dict[str, Suggestion]) -> dict[str, Suggestion]:
    """What the plugin's Config has, and takes; nothing where a rule of its own about several settings speaks against them."""
    found = {name: suggestion for name, suggestion in found.items() if name in plugin.Config.model_fields}
    _, errors = check_config(plugin.Config, values_of(found))
    if "" in errors:
        return {}
    return {name: suggestion for name, suggestion in found.items() if name not in errors}


def values_of(found: dict[str, Suggestion]) -> dict[str, Any]:
    return {name: suggestion.value for name, suggestion in found.items()}


def learning_rate(method: str, base: ModelFacts, data: DatasetFacts) -> Suggestion:
    """LoRA 2e-4 and full 2e-5, as in Axolotl's and Unsloth's examples; the factor of ten is also what Schulman et al. measured ("LoRA
    Without Regret", 2025). Half of it for large models (Dettmers et al. 2023, "QLoRA", table 9: 1e-4 from 33B on). Pairs of answers: see
    `studio.training.preferences`.
    """
    if data.shape == "preference":
        return Suggestion(float(ADVISED[method]), "since pairs of answers need far smaller steps than examples do")
    usual = LEARNING_RATE[method]
    if base.parameters >= LARGE:
        return Suggestion(usual / 2, f"half of the usual, since {base.name} is large")
    if method == "full":
        return Suggestion(usual, "since all weights need about a tenth of what an adapter needs")
    return Suggestion(usual, f"as usual for an adapter beside a model of {counted(base.parameters)} parameters")


def new_tokens(base: ModelFacts) -> Suggestion | None:
    """What has to be trained in full so that tokens which the model has never seen get a meaning."""
    if not base.new_tokens:
        return None
    learnt = ["embed_tokens"] if base.tied else ["embed_tokens", "lm_head"]
    return Suggestion(learnt, f"since {base.name} has tokens that it has never seen")


READ_EPOCHS = {"lora": 3, "full": 2}
FEWEST_READ, MOST_READ, MOST_EPOCHS = 100, 25_000, 25
"""Rows that a run should read, an epoch's rows counted again each time."""


def epochs(method: str, data: DatasetFacts) -> Suggestion:
    """OpenAI's rule for chat models ("Data preparation and analysis for chat model fine-tuning", OpenAI Cookbook): three epochs, more where
    that is fewer than 100 rows, fewer where it is more than 25,000. Two for full fine-tuning, which learns by heart sooner (Biderman et al.
    2024, "LoRA Learns Less and Forgets Less"). One for pairs of answers (Ivison et al. 2024, "Unpacking DPO and PPO").
    """
    rows = max(1, data.train)
    shown = counted(rows)
    if data.shape == "preference":
        return Suggestion(1.0, "since pairs of answers are soon learnt by heart")
    usual = READ_EPOCHS[method]
    if rows * usual < FEWEST_READ:
        return Suggestion(float(min(MOST_EPOCHS, FEWEST_READ // rows)), f"since {shown} rows are few and have to be read more often")
    if rows * usual > MOST_READ:
        return Suggestion(float(max(1, MOST_READ // rows)), f"since {shown} rows are many and need not be read as often")
    return Suggestion(float(usual), f"as usual for {shown} rows")


def max_length(plugin: TrainingPlugin, base: ModelFacts, data: DatasetFacts) -> Suggestion | None:
    """Room for 99 of 100 rows, in whole pieces, and no more than the model can read."""
    ceiling = base.context_length
    if data.tokens is None:
        default = plugin.Config.model_fields["max_length"].default
        return Suggestion(ceiling, f"since {base.name} reads no more") if default > ceiling else None
    tokens = data.tokens
    wanted = max(PIECE, math.ceil(tokens.p99 / PIECE) * PIECE)
    if wanted > ceiling:
        return Suggestion(ceiling, f"since {base.name} reads no more; the longest row has {counted(tokens.longest)} tokens")
    if tokens.longest <= wanted:
        return Suggestion(wanted, f"since the longest row has {counted(tokens.longest)} tokens")
    return Suggestion(wanted, f"since 99 of 100 rows have at most {counted(tokens.p99)} tokens")


RANKS = (16, 32, 64, 128)
BITS_PER_PARAMETER = 2.0
"""That a trained weight can hold; a token to learn is worth about one."""


def rank(plugin: TrainingPlugin, base: ModelFacts, data: DatasetFacts) -> Suggestion | None:
    """The smallest rank whose adapter can hold what the answers say: about 2 bits for a weight against 1 for a token
    (Allen-Zhu and Li 2024, "Physics of Language Models 3.3"; Schulman et al. 2025, "LoRA Without Regret").
    """
    config = plugin.Config()
    if not isinstance(config, LoraConfig):
        return None
    targets = target_linears(base, config.targets)
    narrowest = min((min(linear.inputs, linear.outputs) for linear in targets), default=RANKS[0])
    if narrowest < RANKS[0]:
        return Suggestion(max(1, 1 << (narrowest.bit_length() - 1)), f"since the model's layers are only {narrowest} wide")
    if data.tokens is None:
        return Suggestion(RANKS[0], "which suits most tasks")
    learnt = data.tokens.supervised * data.train / max(1, data.rows)
    widths = [width for width in RANKS if width <= narrowest]
    holding = (width for width in widths if BITS_PER_PARAMETER * lora_parameters(config.model_copy(update={"rank": width}), base) >= learnt)
    width = next(holding, None)
    if width is None:
        return Suggestion(widths[-1], f"the largest that pays; {counted(learnt)} tokens are more than an adapter holds")
    if width == widths[0]:
        return Suggestion(width, f"which has room for the {counted(learnt)} tokens to learn")
    return Suggestion(width, f"since a smaller adapter has no room for {counted(learnt)} tokens to learn")


STEPS_AN_EPOCH = 100
SMALLEST_STEP, LARGEST_STEP = 4, {"lora": 16, "full": 32}
"""Rows in a step. Adapters lose more by large batches than full fine-tuning (Schulman et al. 2025)."""


def batch_size(method: str, data: DatasetFacts) -> Suggestion:
    """Rows in a step: a power of two with which an epoch has about a hundred steps, from 4 to 16 (LoRA) or 32 (full). Other tools take 4
    to 16 whatever the rows: LLaMA-Factory 2 × 8, Axolotl 2 × 2, Unsloth 2 × 4.
    """
    rows = max(1, data.train)
    wanted = 1 << max(0, (rows // STEPS_AN_EPOCH).bit_length() - 1)
    size = min(max(wanted, SMALLEST_STEP), LARGEST_STEP[method])
    steps = math.ceil(rows / size)
    return Suggestion(size, f"with which {counted(rows)} rows are {counted(steps)} step{'s' if steps != 1 else ''} an epoch")


def warmup(plugin: TrainingPlugin, found: dict[str, Suggestion], data: DatasetFacts) -> Suggestion:
    """About ten steps, and 3 to 10 % of a run: the range of QLoRA's (3 %), LLaMA-Factory's and Axolotl's (10 %) examples."""
    steps = planned_steps(plugin.Config(**values_of(found)), rows=data.train)
    share = min(0.1, max(0.03, round(10 / steps, 2)))
    rising = math.ceil(share * steps)
    return Suggestion(share, f"so that it rises over the first {rising} of {counted(steps)} steps")


def fitted(
    plugin: TrainingPlugin, found: dict[str, Suggestion], *, base: ModelFacts, data: DatasetFacts, host: HostFacts
) -> dict[str, Suggestion]:
    """What has to change so that a run with `found` fits into the host's memory, by the plugin's own estimate; empty where it fits.

    Rows in a step stay the same. Where nothing fits, batches of one row are left, and the plugin's check says the rest.
    """
    config = plugin.Config(**values_of(found))
    at_once = config.batch_size * config.gradient_accumulation

    def fits(change: dict[str, Any]) -> bool:
        estimate, _ = estimate_of(plugin, (config.model_copy(update=change), base, data, host))
        return estimate is None or estimate.memory.high <= estimate.available

    if fits({}):
        return {}
    smallest = {"batch_size": 1, "gradient_accumulation": at_once}
    change = next((change for change in smaller_ways(plugin, config, host) if fits(change)), smallest)
    reasons = {
        "batch_size": f"since {at_once} rows at once would not fit into the worker's memory",
        "gradient_accumulation": f"so that each step still learns from {at_once} rows",
        "max_length": "since longer rows would not fit into the worker's memory",
    }
    return {
        name: Suggestion(value, reasons.get(name, "since it would not fit into the worker's memory otherwise"))
        for name, value in change.items()
    }


def smaller_ways(plugin: TrainingPlugin, config: TrainConfig, host: HostFacts) -> Iterator[dict[str, Any]]:
    """Changes that save memory, what costs least first: smaller batches that are added up, then sparing formats, then shorter rows."""
    at_once = config.batch_size * config.gradient_accumulation
    batches = [size for size in halvings(config.batch_size, least=1) if at_once % size == 0]
    for length in halvings(config.max_length, least=SHORTEST):
        for sparing in sparing_formats(plugin, host):
            for size in batches:
                batch = {"batch_size": size, "gradient_accumulation": at_once // size} if size != config.batch_size else {}
                yield ({"max_length": length} if length != config.max_length else {}) | sparing | batch


def halvings(number: int, *, least: int) -> Iterator[int]:
    """The number, its half, and so on in whole pieces where it has some, as long as they are not below `least`."""
    yield number
    while (number := number // 2) >= least:
        yield number - number % PIECE if number > PIECE else number


def sparing_formats(plugin: TrainingPlugin, host: HostFacts) -> Iterator[dict[str, Any]]:
    """No change, and the smaller number formats that the plugin knows and the host can use."""
    yield {}
    on_gpu = bool(host.gpus) and "bitsandbytes" in host.packages
    for name, value, can in (("weights", "bf16", True), ("quantization", "4bit", on_gpu)):
        if can and check_config(plugin.Config, {name: value})[0] is not None:
            yield {name: value}


def counted(number: float) -> str:
    """949, 12 345, 4.9 million: a number within a sentence."""
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:.1f}".removesuffix(".0") + f" {word}"
    return figure(round(number))


def preset_changes(plugin: TrainingPlugin, name: str, found: dict[str, Suggestion]) -> dict[str, Any]:
    """A preset in the case at hand: what it changes against the case's defaults.

    A preset is written against the plugin's own defaults. Where the case has another default, a figure moves in proportion: five epochs
    where three are usual are fifteen where nine are.
    """
    preset = plugin.presets[name]
    changes: dict[str, Any] = {}
    for field in form_fields(plugin.Config):
        if field.name in preset:
            default = found[field.name].value if field.name in found else field.default
            value = in_proportion(field, preset[field.name], default)
            changes |= {field.name: value} if value != default else {}
    _, errors = check_config(plugin.Config, values_of(found) | changes)
    return preset if errors else changes


def in_proportion(field: FormField, value: Any, suggested: Any) -> Any:
    if field.kind not in ("integer", "number") or not field.default or suggested == field.default:
        return value
    moved = value * suggested / field.default
    if field.kind == "integer":
        return max(1, round(moved))
    whole = all(float(each).is_integer() for each in (value, suggested, field.default))
    return float(round(moved)) if whole else float(f"{moved:.3g}")
