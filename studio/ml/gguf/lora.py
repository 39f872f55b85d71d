"""What an adapter makes of the weights of its base, a few rows at a time: LoRA, rsLoRA, DoRA, tables in its own words.

What cannot be is refused. No torch.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from studio.errors import UserError
from studio.ml.gguf.weights import Array, Weights

PREFIX = "base_model.model."
PART = re.compile(r"(?P<layer>.+)\.(?P<part>lora_A|lora_B|lora_magnitude_vector)(\.weight)?")
LONGEST_PATTERN = 200
EMBEDDING = "model.embed_tokens.weight"
TABLES = {"embed_tokens": "model.embed_tokens", "lm_head": "lm_head"}
"""What modules_to_save may name, and where it stands in every family that is built."""
COMPARED = 4096
"""Rows at a time."""
REFUSED = {
    "trainable_token_indices": "trained token embeddings",
    "target_parameters": "adapters on single parameters (target_parameters)",
    "layer_replication": "replicated layers",
    "fan_in_fan_out": "transposed layers (fan_in_fan_out)",
    "lora_bias": "trained biases (lora_bias)",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
    "megatron_config": "Megatron layers",
}
"""Settings that change what an adapter computes, in words."""
SHIFTING = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to begin that change the base's weights, which the adapter alone does not tell."""


@dataclass(frozen=True)
class Change:
    """One matrix's change: W' = W + scale · B A, and for DoRA each row of it brought to its magnitude."""

    a: Array
    """Shape (rank, inputs)."""
    b: Array
    """Shape (outputs, rank)."""
    scale: float
    magnitude: Array | None = None
    """Shape (outputs,): the length of each row under DoRA."""

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])

    def applied(self, rows: Array, start: int) -> Array:
        """Rows [start, start + len(rows)) of W as they are after the change. `rows` may be overwritten.

        DoRA: peft's `DoraLinearLayer`, arXiv 2402.09353 eq. 5: m · (W + scale BA) / ‖W + scale BA‖ per output row.
        """
        stop = start + len(rows)
        rows += (self.b[start:stop] @ self.a) * np.float32(self.scale)
        if self.magnitude is not None:
            lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))
            with np.errstate(divide="ignore", invalid="ignore"):  # a row of zeros is refused by name when it is quantized
                rows *= (self.magnitude[start:stop] / lengths)[:, None]
        return rows


@dataclass(frozen=True)
class Whole:
    """A matrix that was trained in full (peft's modules_to_save) and takes the place of the base's. It stays in its file."""

    file: Path
    name: str

    def applied(self, rows: Array, start: int) -> Array:
        """Rows [start, start + len(rows)) of it, in place of the base's."""
        with Weights([self.file]) as stored:
            return stored.rows(self.name, start, start + len(rows))


@dataclass(frozen=True)
class Adapter:
    changes: dict[str, Change | Whole]
    """By the name of the tensor in the base, such as model.layers.0.self_attn.q_proj.weight."""
    rows: int | None = None
    """Rows of the embedding where the vocabulary grew in training; None where it is the base's."""
    tokenizer: Path | None = None
    """The folder whose tokenizer counts where the vocabulary grew."""
    untied: bool = False
    """The base shares one table for words and output, and training changed one of them alone: `lm_head.weight` stands in `changes`, or
    keeps the base's embedding, and both are written."""

    @property
    def swappable(self) -> bool:
        """True where llama.cpp can add it to a running model: DoRA and whole matrices must be merged."""
        return all(isinstance(change, Change) and change.magnitude is None for change in self.changes.values())


NOTHING = Adapter({})


def read_adapter(folder: Path, base: Weights, *, tied: bool) -> Adapter:
    """The changes that the adapter in `folder` makes to `base`. Raises UserError for what cannot be added to weights."""
    config = _config(folder)
    _refuse_settings(config)
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise UserError("The adapter has no adapter_model.safetensors. Only adapters saved as safetensors are read.")
    parts: dict[str, dict[str, Array]] = {}
    with Weights([file]) as stored:
        whole = _whole(file, stored, config, base, tied=tied)
        for name in stored.places:
            if name.removeprefix(PREFIX) not in whole:
                layer, part = _split(name)
                parts.setdefault(layer, {})[part] = stored.whole(name)
    if not parts:
        raise UserError("The adapter is empty. Train it again.")
    changes: dict[str, Change | Whole] = {
        f"{layer}.weight": _change(layer, found, config, base, tied=tied) for layer, found in sorted(parts.items())
    }
    return Adapter(changes | {name: change for name, change in whole.items() if name in base.places})


def _config(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError("The adapter has no readable adapter_config.json. Train or upload it again.") from error
    return config


def _refuse_settings(config: dict[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise UserError(f"An adapter of type {config.get('peft_type')} cannot be built into a GGUF; LoRA, rsLoRA and DoRA can.")
    held = [words for key, words in REFUSED.items() if config.get(key)]
    if config.get("bias", "none") != "none":
        held.append("trained biases")
    begin = config.get("init_lora_weights", True)
    if isinstance(begin, str) and begin.lower().startswith(SHIFTING):
        held.append(f"a start ({begin}) that changes the base's own weights")
    if held:
        raise UserError(f"The adapter holds {', '.join(held)}, which cannot be built into a GGUF. Train it as plain LoRA, rsLoRA or DoRA.")


def _whole(file: Path, stored: Weights, config: dict[str, Any], base: Weights, *, tied: bool) -> dict[str, Whole]:
    """The tables among the adapter's tensors. Where the base shares one for words and output, so must the adapter."""
    kept = config.get("modules_to_save") or []
    if not isinstance(kept, list) or not set(kept) <= set(TABLES):
        raise UserError(f"The adapter trained {kept} in full. Only {' and '.join(TABLES)} can be built into a GGUF.")
    names = [f"{TABLES[name]}.weight" for name in kept]
    for name in names:
        place = base.places.get(name) or (base.places.get(EMBEDDING) if tied else None)
        if place is None or PREFIX + name not in stored.places or stored.places[PREFIX + name].shape != place.shape:
            raise UserError(f"The adapter's {name} does not fit the base model. Choose the base that it was trained on.")
    if names and tied and (len(set(names)) < len(TABLES) or not _same(stored, *names)):
        raise UserError("The adapter trained embed_tokens and lm_head apart, which this base model shares. Train them as one.")
    return {name: Whole(file, PREFIX + name) for name in names}


def _same(stored: Weights, one: str, other: str) -> bool:
    rows = stored.places[PREFIX + one].shape[0]
    pieces = ((start, min(rows, start + COMPARED)) for start in range(0, rows, COMPARED))
    return all(np.array_equal(stored.rows(PREFIX + one, *piece), stored.rows(PREFIX + other, *piece)) for piece in pieces)


def _split(name: str) -> tuple[str, str]:
    match = PART.fullmatch(name.removeprefix(PREFIX))
    if match is None:
        raise UserError(f"The adapter holds {name}, which is no part of a LoRA. It cannot be built into a GGUF.")
    return match["layer"], match["part"]


def _change(layer: str, parts: dict[str, Array], config: dict[str, Any], base: Weights, *, tied: bool) -> Change:
    place = base.places.get(f"{layer}.weight")
    if layer == "lm_head" and tied:
        raise UserError("The adapter changes lm_head, which this base model shares with its embedding. Train without it.")
    if place is None or len(place.shape) != 2:
        raise UserError(f"The adapter changes {layer}, which the base model does not have. Choose the base that it was trained on.")
    a, b, magnitude = parts.get("lora_A"), parts.get("lora_B"), parts.get("lora_magnitude_vector")
    if a is None or b is None or (magnitude is None) == bool(config.get("use_dora")):
        raise UserError(f"The adapter is incomplete: parts of {layer} are missing. Train it again.")
    rank, alpha = _by_pattern(config, "rank_pattern", layer, config["r"]), _by_pattern(config, "alpha_pattern", layer, config["lora_alpha"])
    outputs, inputs = place.shape
    if a.shape != (rank, inputs) or b.shape != (outputs, rank) or (magnitude is not None and magnitude.size != outputs):
        raise UserError(f"The adapter's {layer} does not fit the base model. Choose the base that it was trained on.")
    scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    return Change(a, b, scale, None if magnitude is None else magnitude.reshape(-1))


def _by_pattern(config: dict[str, Any], key: str, layer: str, default: Any) -> Any:
    """peft's rule (`get_pattern_key`): the first pattern that matches the end of the layer's name."""
    for pattern, value in (config.get(key) or {}).items():
        if len(pattern) > LONGEST_PATTERN:
            raise UserError(f"A pattern in the adapter's {key} is longer than {LONGEST_PATTERN} characters.")
        try:
            if re.match(rf"(.*\.)?({pattern})$", layer):
                return value
        except re.error as error:
            raise UserError(f"The adapter's {key} holds a pattern that cannot be read: {pattern}") from error
    return default
