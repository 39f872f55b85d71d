"""What a config.json says about one model, and what it becomes in the file: names, keys, tensors that no checkpoint holds. No weights.

Which families there are, and where each differs, stands in families.py; the rotation of positions in rope.py.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from studio.errors import UserError
from studio.ml.gguf import rope
from studio.ml.gguf.families import FAMILIES, SEEING, Family
from studio.ml.gguf.header import Entry
from studio.ml.gguf.rope import Array, Rope
from studio.ml.gguf.settings import Config, positive, read_config, whole

LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
IGNORED = re.compile(r".*rotary_emb\.inv_freq|.*\.masked_bias")
"""Buffers that old checkpoints carry and nobody reads."""
OUTER_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
EMBEDDING = "model.embed_tokens.weight"
MOST_LAYERS = 512
"""LLAMA_MAX_LAYERS."""


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
    """Tokens that the file is right for."""
    norm_epsilon: float
    rope: Rope
    tied: bool
    own: dict[str, Entry]
    """Keys of the family alone, without the architecture before each."""
    notes: tuple[str, ...] = ()
    """Sentences for whoever builds a file of it."""

    def tensor_name(self, name: str) -> str | None:
        """The name in the GGUF of a tensor of the base, None for a buffer that is left out. Raises UserError for an unknown one."""
        stem, _, kind = name.rpartition(".")
        if IGNORED.fullmatch(name) or (self.tied and name == "lm_head.weight"):
            return None
        layer = LAYER.fullmatch(stem)
        new = self.family.names.get(layer[2]) if layer else OUTER_NAMES.get(stem)
        known = kind == "weight" or (kind == "bias" and layer is not None and layer[2] in self.family.biases)
        if new is None or not known or (layer and int(layer[1]) >= self.layers):
            raise UserError(f"The base model has a tensor that no {self.family.shown} has: {name}. It cannot be built into a GGUF.")
        return f"blk.{int(layer[1])}.{new}.{kind}" if layer else f"{new}.{kind}"

    def needed(self) -> list[str]:
        """Names in the GGUF, without ".weight", of everything that a whole checkpoint of this shape has."""
        outer = ["token_embd", "output_norm"] + ([] if self.tied else ["output"])
        return outer + [f"blk.{layer}.{name}" for layer in range(self.layers) for name in self.family.names.values()]

    def heads_of(self, name: str) -> int:
        """How many heads the rows of a tensor of the base are reordered in; 0 leaves them as they are."""
        if not self.family.interleaved_rope:
            return 0
        if ".self_attn.q_proj." in name:
            return self.heads
        return self.kv_heads if ".self_attn.k_proj." in name else 0

    def shift_of(self, name: str) -> float:
        """What is added to every weight of a tensor of the base: 1 where llama.cpp's norms hold 1 + weight."""
        return self.family.norm_shift if name.endswith("norm.weight") else 0.0

    @property
    def may_untie(self) -> bool:
        """False where llama.cpp always writes with the table of words: an output of its own could not be read."""
        return False in self.family.tables


def read_shape(folder: Path) -> Shape:
    """The shape of a supported model. Raises UserError where `supported` would."""
    config = read_config(folder)
    name = _architecture(config)
    family = FAMILIES.get(name)
    if family is None:
        raise _unknown(name)
    config = {**family.defaults, **config}
    config["head_dim"] = config.get("head_dim") or whole(config, "hidden_size") // whole(config, "num_attention_heads")
    _refuse_settings(config, family)
    heads, head_size = whole(config, "num_attention_heads"), whole(config, "head_dim")
    context = whole(config, "max_position_embeddings")
    usable, notes = _window(config, family, context)
    rotation = rope.read_rope(config, kinds=family.ropes, head_size=head_size, partial=family.partial_rope, context=context)
    if rotation.kind == "longrope" and rotation.original < usable:
        notes += (
            f"Up to {rotation.original:,} tokens this model reads places as it first learnt them, beyond that stretched. llama.cpp goes by "
            f"the context it is started with, not by the text: start it with {rotation.original:,} where texts are shorter.",
        )
    return Shape(
        family=family,
        layers=whole(config, "num_hidden_layers", most=MOST_LAYERS),
        hidden=whole(config, "hidden_size"),
        intermediate=whole(config, "intermediate_size"),
        heads=heads,
        kv_heads=whole(config, "num_key_value_heads", default=heads),
        head_size=head_size,
        context=usable,
        norm_epsilon=positive(config.get("rms_norm_eps", 1e-6), "rms_norm_eps"),
        rope=rotation,
        tied=bool(config.get("tie_word_embeddings", False)),
        own=family.keys(config),
        notes=notes,
    )


def supported(folder: Path) -> None:
    """Raises UserError with the list of families where no GGUF can be built from the model in `folder`. Reads config.json only."""
    read_shape(folder)


def entries(shape: Shape, *, vocabulary: int) -> dict[str, Entry]:
    """The keys that describe the architecture, without general.* and tokenizer.*."""
    numbers = {
        "block_count": shape.layers,
        "context_length": shape.context,
        "embedding_length": shape.hidden,
        "feed_forward_length": shape.intermediate,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "attention.key_length": shape.head_size,
        "attention.value_length": shape.head_size,
        "vocab_size": vocabulary,
    }
    found = {key: Entry("UINT32", value) for key, value in numbers.items()}
    found["attention.layer_norm_rms_epsilon"] = Entry("FLOAT32", shape.norm_epsilon)
    found |= rope.entries(shape.rope) | shape.own
    return {f"{shape.family.arch}.{key}": entry for key, entry in found.items()}


def extra_tensors(shape: Shape) -> dict[str, Array]:
    """Tensors that the file needs and no checkpoint holds, by name: divisors of the rope frequencies, each of shape (columns / 2,)."""
    return rope.tensors(shape.rope)


def _architecture(config: Config) -> str:
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def _unknown(name: str) -> UserError:
    if name in SEEING:
        text = FAMILIES[SEEING[name]].shown
        return UserError(f"{name} also sees images, which a GGUF built here cannot hold. Choose a {text}.", code="unsupported_architecture")
    known = "; ".join(dict.fromkeys(family.shown for family in FAMILIES.values()))
    return UserError(
        f"A GGUF cannot be built from {name[:80] or 'this model'} yet. Supported are: {known}.", code="unsupported_architecture"
    )


def _refuse_settings(config: Config, family: Family) -> None:
    hidden, heads, head_size = (whole(config, key) for key in ("hidden_size", "num_attention_heads", "head_dim"))
    kv_heads = whole(config, "num_key_value_heads", default=heads)
    whole(config, "num_hidden_layers", most=MOST_LAYERS)
    if heads % kv_heads or head_size % 2:
        raise UserError(f"The base model's config.json has {heads} heads, {kv_heads} of keys, of {head_size} columns. Register it again.")
    if not family.free_heads and heads * head_size != hidden:
        raise UserError(f"The base model's heads are not a {heads}th of its width, which llama.cpp expects of a {family.shown}.")
    if config.get("quantization_config"):
        raise UserError("The base model's weights are quantized already. Register the unquantized model and build from that.")
    setting, expected = family.activation
    if config.get(setting, expected) != expected:
        raise UserError(f"The base model uses {config[setting]} where llama.cpp expects {expected}, so no GGUF can be built from it.")
    if config.get("attention_bias") and "self_attn.q_proj" not in family.biases:
        raise UserError(f"The base model's attention has biases, which llama.cpp does not know of a {family.shown}. No GGUF can be built.")
    if config.get("mlp_bias") and "mlp.up_proj" not in family.biases:
        raise UserError(f"The base model's feed-forward layers have biases, which llama.cpp does not know of a {family.shown}.")
    if bool(config.get("tie_word_embeddings", False)) not in family.tables:
        shared = "shares one table for words and output" if config.get("tie_word_embeddings") else "has a table of its own for its output"
        raise UserError(f"The base model {shared}, which llama.cpp does not expect of a {family.shown}. No GGUF can be built from it.")


def _window(config: Config, family: Family, context: int) -> tuple[int, tuple[str, ...]]:
    """The context within which a sliding window makes no difference, where llama.cpp does not know it of the family."""
    window = config.get("sliding_window")
    counts = family.window == "always" or (family.window == "if used" and config.get("use_sliding_window"))
    if not counts or window is None:
        return context, ()
    size = whole(config, "sliding_window")
    if size >= context:
        return context, ()
    return size, (
        f"This model's attention reaches back {size:,} tokens, which llama.cpp does not do for it. "
        f"The file's context ends there instead of at {context:,}, and is right within it.",
    )
