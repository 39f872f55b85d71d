"""Which model families a GGUF can be built from, as one table, and what their config.json becomes in the file. No weights.

Names, keys and the rope rule follow llama.cpp's own converter (conversion/ and gguf-py/gguf/constants.py, MIT).
"""

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from studio.errors import UserError
from studio.ml.gguf.header import Entry

LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
IGNORED = re.compile(r".*rotary_emb\.inv_freq|.*\.masked_bias")
"""Buffers that old checkpoints carry and nobody reads."""


@dataclass(frozen=True)
class Family:
    """One row of the table: how the class in config.json is called in llama.cpp, and where it differs."""

    arch: str
    """general.architecture."""
    shown: str
    interleaved_rope: bool
    """True where llama.cpp pairs neighbouring columns for rope: rows of q and k are then reordered."""
    layer_names: dict[str, str] = field(default_factory=dict)
    """Names inside a layer beyond LAYER_NAMES."""


LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTER_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
QK_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}

FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family("llama", "Llama (SmolLM2, Llama 2 and 3, TinyLlama)", interleaved_rope=True),
    "MistralForCausalLM": Family("llama", "Mistral", interleaved_rope=True),
    "Qwen2ForCausalLM": Family("qwen2", "Qwen2 and Qwen2.5", interleaved_rope=False),
    "Qwen3ForCausalLM": Family("qwen3", "Qwen3", interleaved_rope=False, layer_names=QK_NORMS),
}
ROPE_SCALINGS = ("default", "linear", "llama3")


@dataclass(frozen=True)
class Shape:
    """What a config.json says about one model, with the defaults that its family has."""

    family: Family
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    context: int
    norm_epsilon: float
    rope_theta: float
    rope_scaling: dict[str, Any]
    tied: bool

    def tensor_name(self, name: str) -> str | None:
        """The name in the GGUF of a tensor of the base, None for a buffer that is left out. Raises UserError for an unknown one."""
        stem, _, kind = name.rpartition(".")
        if IGNORED.fullmatch(name) or (self.tied and name == "lm_head.weight"):
            return None
        layer = LAYER.fullmatch(stem)
        new = (LAYER_NAMES | self.family.layer_names).get(layer[2]) if layer else OUTER_NAMES.get(stem)
        if new is None or kind not in ("weight", "bias") or (layer and int(layer[1]) >= self.layers):
            raise UserError(f"The base model has a tensor that no {self.family.shown} has: {name}. It cannot be built into a GGUF.")
        return f"blk.{int(layer[1])}.{new}.{kind}" if layer else f"{new}.{kind}"

    def heads_of(self, name: str) -> int:
        """How many heads the rows of a tensor of the base are reordered in; 0 leaves them as they are."""
        if not self.family.interleaved_rope:
            return 0
        if ".self_attn.q_proj." in name:
            return self.heads
        return self.kv_heads if ".self_attn.k_proj." in name else 0

    def shift_of(self, name: str) -> float:
        """What is added to every weight of a tensor of the base: 1 where llama.cpp's norms hold 1 + weight."""
        return 0.0


def read_shape(folder: Path) -> Shape:
    """The shape of a supported model. Raises UserError where `supported` would."""
    config = _config(folder)
    family = FAMILIES.get(_architecture(config))
    if family is None:
        name, known = _architecture(config) or "this model", "; ".join(entry.shown for entry in FAMILIES.values())
        raise UserError(f"A GGUF cannot be built from {name} yet. Supported are: {known}.", code="unsupported_architecture")
    _refuse_settings(config)
    heads = int(config["num_attention_heads"])
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return Shape(
        family=family,
        layers=int(config["num_hidden_layers"]),
        hidden=int(config["hidden_size"]),
        intermediate=int(config["intermediate_size"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_size=int(config.get("head_dim") or int(config["hidden_size"]) // heads),
        context=int(config["max_position_embeddings"]),
        norm_epsilon=float(config.get("rms_norm_eps", 1e-6)),
        rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0),
        rope_scaling=rope if _scaling(rope) != "default" else {},
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def supported(folder: Path) -> None:
    """Raises UserError with the list of families where no GGUF can be built from the model in `folder`. Reads config.json only."""
    read_shape(folder)


def entries(shape: Shape, *, vocabulary: int) -> dict[str, Entry]:
    """The keys that describe the architecture, without general.* and tokenizer.*."""
    arch = shape.family.arch
    numbers = {
        "block_count": shape.layers,
        "context_length": shape.context,
        "embedding_length": shape.hidden,
        "feed_forward_length": shape.intermediate,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "attention.key_length": shape.head_size,
        "attention.value_length": shape.head_size,
        "rope.dimension_count": shape.head_size,
        "vocab_size": vocabulary,
    }
    found = {f"{arch}.{key}": Entry("UINT32", value) for key, value in numbers.items()}
    found[f"{arch}.attention.layer_norm_rms_epsilon"] = Entry("FLOAT32", shape.norm_epsilon)
    found[f"{arch}.rope.freq_base"] = Entry("FLOAT32", shape.rope_theta)
    if _scaling(shape.rope_scaling) == "linear":
        found[f"{arch}.rope.scaling.type"] = Entry("STRING", "linear")
        found[f"{arch}.rope.scaling.factor"] = Entry("FLOAT32", float(shape.rope_scaling["factor"]))
    return found


def rope_factors(shape: Shape) -> npt.NDArray[np.float32] | None:
    """Divisors of the rope frequencies, shape (head_size / 2,), where the model has Llama 3's scaling; else None.

    Source: transformers' `_compute_llama3_parameters`, as llama.cpp's converter writes it (rope_freqs.weight).
    """
    scaling = shape.rope_scaling
    if _scaling(scaling) != "llama3":
        return None
    factor, low, high = float(scaling["factor"]), float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    original = float(scaling["original_max_position_embeddings"])
    frequencies = 1.0 / shape.rope_theta ** (np.arange(0, shape.head_size, 2, dtype=np.float32) / shape.head_size)
    turns = original * frequencies / (2 * math.pi)
    smooth = (turns - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    return np.where(turns > high, 1.0, np.where(turns < low, factor, between)).astype(np.float32)


def _config(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError("The base model has no readable config.json. Register it again.") from error
    return config


def _architecture(config: dict[str, Any]) -> str:
    names = config.get("architectures") or [""]
    return str(names[0])


def _scaling(rope: dict[str, Any]) -> str:
    return str(rope.get("rope_type") or rope.get("type") or "default")


def _refuse_settings(config: dict[str, Any]) -> None:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if _scaling(rope) not in ROPE_SCALINGS:
        raise UserError(f"The base model stretches its context with {_scaling(rope)}. A GGUF can be built for: {', '.join(ROPE_SCALINGS)}.")
    if config.get("use_sliding_window"):
        raise UserError("The base model uses sliding-window attention, which a GGUF of this family cannot hold.")
    if config.get("quantization_config"):
        raise UserError("The base model's weights are quantized already. Register the unquantized model and build from that.")
    if config.get("hidden_act", "silu") != "silu":
        raise UserError(f"The base model uses {config['hidden_act']} where llama.cpp expects silu, so no GGUF can be built from it.")
