"""What an adapter's further settings need of the base model and the worker, said in plain words before anything runs."""

import re
from collections.abc import Iterator, Mapping
from typing import Literal, TypeVar

from pydantic import field_validator

from studio.training.config import LoraConfig, setting
from studio.training.facts import HostFacts, Issue, ModelFacts
from studio.training.memory import target_linears

N = TypeVar("N", int, float)
TABLES = ("embed_tokens", "lm_head")
"""Layers that can be trained in full: the table that tokens are read with, and the one they are chosen with."""
CHANGING = ("pissa", "olora")
"""Beginnings that move a part of the base's weights into the adapter."""
MOST_PATTERNS = 64
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
FAST = 2e-3
"""Learning rate of B above which LoRA+ tends to run away."""
OLORA_FAST = 1e-4
"""Learning rate above which OLoRA was measured to make the validation loss worse: docs/benchmarks.md."""


class PeftConfig(LoraConfig):
    """What LoRA through peft can be told besides."""

    initialization: Literal["default", "pissa", "olora", "eva"] = setting(
        "default", label="Initialization", advanced=True, hint="What the adapter's matrices begin with. Only default begins with chance."
    )
    """PiSSA and OLoRA begin with the strongest parts of the weights, EVA with what the layers see in the rows."""
    lora_plus: float = setting(
        0.0,
        label="LoRA+ ratio",
        advanced=True,
        ge=0,
        le=128,
        search=(1, 16),
        log=True,
        hint="B is the adapter's second matrix, A the first.",
    )
    """B learns so many times as fast as A: 16 is usual, with half of the learning rate. 0 and 1 turn it off."""
    rank_pattern: dict[str, int] = setting({}, label="Rank by layer", advanced=True)
    """Layers with a rank of their own, such as q_proj: 8, v_proj: 32."""
    alpha_pattern: dict[str, float] = setting({}, label="Alpha by layer", advanced=True)
    """Layers with an alpha of their own, such as v_proj: 64."""
    modules_to_save: list[str] = setting(
        [], label="Trained in full", advanced=True, hint="Needed where the model has to learn new tokens or another language."
    )
    """embed_tokens, lm_head or both: they are trained whole beside the adapter and saved with it, which makes it large."""
    table_rate: float = setting(0.1, label="Rate of what is trained in full", advanced=True, gt=0, le=10, log=True, search=(0.01, 1))
    """Its learning rate, as a multiple of the adapter's."""

    def goes_with(self, bits: str) -> bool:
        return super().goes_with(bits) and (bits == "none" or self.initialization not in CHANGING)

    @field_validator("rank_pattern")
    @classmethod
    def known_ranks(cls, value: dict[str, int]) -> dict[str, int]:
        return refuse_odd(value, most=512)

    @field_validator("alpha_pattern")
    @classmethod
    def known_alphas(cls, value: dict[str, float]) -> dict[str, float]:
        return refuse_odd(value, most=4096)


def refuse_odd(pattern: dict[str, N], *, most: int) -> dict[str, N]:
    """The same pattern. Raises ValueError where a name is no name of a layer, or a number is not above 0 and at most `most`."""
    if len(pattern) > MOST_PATTERNS:
        raise ValueError(f"At most {MOST_PATTERNS} layers can have a number of their own.")
    for name, number in pattern.items():
        if not NAME.fullmatch(name):
            raise ValueError(f"{name[:60]!r} is no name of a layer, such as q_proj.")
        if not 0 < number <= most:
            raise ValueError(f"{name}: the number must be above 0 and at most {most}.")
    return pattern


def lora_issues(config: PeftConfig, base: ModelFacts, host: HostFacts) -> list[Issue]:
    return [
        *_quantization_issues(config, host),
        *_pattern_issues(config, base),
        *_beginning_issues(config),
        *_speed_issues(config),
        *_table_issues(config, base),
    ]


def _quantization_issues(config: LoraConfig, host: HostFacts) -> Iterator[Issue]:
    if config.quantization == "none":
        return
    if "bitsandbytes" not in host.packages:
        yield _error("quantization", f"{config.quantization} needs the package bitsandbytes, which no worker has. Choose none.")
    elif config.quantization == "8bit" and config.variant == "dora":
        yield _error("quantization", "DoRA runs beside a base in 4 bits, or without quantization, not in 8 bits.")
    elif not host.gpus:
        yield _note("quantization", f"On a processor {config.quantization} saves memory and takes about a fifth longer.")


def _pattern_issues(config: PeftConfig, base: ModelFacts) -> Iterator[Issue]:
    there = sorted({linear.name for linear in target_linears(base, config.targets)})
    patterns: dict[str, Mapping[str, float]] = {"rank_pattern": config.rank_pattern, "alpha_pattern": config.alpha_pattern}
    for field, pattern in patterns.items():
        unknown = [name for name in pattern if name not in there]
        if unknown:
            yield _error(field, f"{', '.join(unknown)} gets no adapter. These layers do: {', '.join(there)}.")
    for name in sorted(config.rank_pattern.keys() - config.alpha_pattern.keys()):
        rank = config.rank_pattern[name]
        own, usual = scale(config.alpha, rank, config), scale(config.alpha, config.rank, config)
        if not usual / 4 <= own <= usual * 4:
            fitting = round(config.alpha * usual / own)
            yield _warning(
                "rank_pattern",
                f"{name} would count {own / usual:.2g} times as much as the other layers. With an alpha of {fitting} it counts the same.",
            )


def scale(alpha: float, rank: int, config: LoraConfig) -> float:
    """What an adapter's output is multiplied with."""
    return float(alpha / (rank**0.5 if config.variant == "rslora" else rank))


def _beginning_issues(config: PeftConfig) -> Iterator[Issue]:
    if config.initialization not in CHANGING:
        return
    if config.quantization != "none":
        yield _error(
            "initialization", "PiSSA and OLoRA need the base's exact weights. Choose default or eva, or a base without quantization."
        )
        return
    if config.dropout:
        yield _warning("dropout", "Parts of the model itself begin inside the adapter, and dropout would drop them. Set it to 0.")
    if config.initialization == "olora" and config.learning_rate > OLORA_FAST:
        yield _warning("learning_rate", "OLoRA moves the model further at each step and loses what it knew at this rate. 0.00005 suits it.")
    yield _note(
        "initialization", f"The result is stored with rank {2 * config.rank}, twice the trained one, so that it fits the base as it is."
    )


def _speed_issues(config: PeftConfig) -> Iterator[Issue]:
    fast = config.learning_rate * config.lora_plus
    if config.lora_plus > 1 and fast > FAST:
        fitting = float(f"{FAST / config.lora_plus:.1g}")
        yield _warning("lora_plus", f"B would learn at {fast:g}, which is fast. A learning rate of {fitting:g} suits this ratio.")
    if config.variant == "dora":
        yield _note("variant", "DoRA takes about one and a half times as long as plain LoRA.")


def _table_issues(config: PeftConfig, base: ModelFacts) -> Iterator[Issue]:
    unknown = [name for name in config.modules_to_save if name not in TABLES]
    if unknown:
        yield _error("modules_to_save", f"{', '.join(unknown)} cannot be trained in full here. {' and '.join(TABLES)} can.")
        return
    twice = [name for name in config.modules_to_save if name in config.targets]
    if twice:
        yield _error("modules_to_save", f"{twice[0]} stands among the targets as well. It can be trained in full or by an adapter.")
    elif base.new_tokens and "embed_tokens" not in config.modules_to_save:
        them = "a token" if base.new_tokens == 1 else f"{base.new_tokens} tokens"
        yield _warning(
            "modules_to_save", f"{base.name} has {them} that it has never seen. Train embed_tokens in full to give them a meaning."
        )
    elif config.modules_to_save:
        tables = 2 if base.tied else len(set(config.modules_to_save))
        size = tables * base.vocabulary * base.hidden_size * 4 / 1e6
        shared = " This model's output layer is its embedding: both learn as one." if base.tied else ""
        yield _note("modules_to_save", f"The adapter grows by {size:,.0f} MB.{shared}")


def _error(field: str, message: str) -> Issue:
    return Issue(level="error", field=field, message=message)


def _warning(field: str, message: str) -> Issue:
    return Issue(level="warning", field=field, message=message)


def _note(field: str, message: str) -> Issue:
    return Issue(level="note", field=field, message=message)
