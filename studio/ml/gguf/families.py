"""The table of model families that a GGUF can be built from: what each is called in llama.cpp, and where it differs. No weights.

Names, keys and what llama.cpp computes with them follow its converter (conversion/), its loader (src/models/) and
gguf-py/gguf/constants.py (MIT); what the models compute follows transformers' modeling files.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from studio.errors import UserError
from studio.ml.gguf.header import Entry
from studio.ml.gguf.rope import layer_settings
from studio.ml.gguf.settings import Config, positive, whole

ATTENTION = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
}
GATED = {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
BEFORE = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
AFTER = {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm"}
AROUND = {"input_layernorm": "attn_norm", "pre_feedforward_layernorm": "ffn_norm", **AFTER}
QK_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
FUSED = {
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}

QKV_BIASES = frozenset({"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"})
ALL_BIASES = frozenset({*ATTENTION, *GATED})

NO_ROPE_EVERY = 4
"""llama.cpp leaves every fourth layer of a SmolLM3 without rotation, whatever its config says."""
GEMMA3_EVERY = 6
"""llama.cpp takes every sixth layer of a Gemma 3 for one without a window where the file says nothing."""


def nothing(config: Config) -> dict[str, Entry]:
    return {}


@dataclass(frozen=True)
class Family:
    """One row of the table: how the class in config.json is called in llama.cpp, and where it differs."""

    arch: str
    """general.architecture."""
    shown: str
    names: Mapping[str, str]
    """Names inside a layer, all of which must be there."""
    ropes: tuple[str, ...]
    """Ways to stretch the context that llama.cpp computes as transformers does."""
    interleaved_rope: bool = False
    """True where llama.cpp pairs neighbouring columns for rope: rows of q and k are then reordered."""
    partial_rope: bool = False
    """True where a part of each head may stay unrotated."""
    biases: frozenset[str] = frozenset()
    """Names inside a layer that may have a bias."""
    activation: tuple[str, str] = ("hidden_act", "silu")
    """The setting, and the one function that llama.cpp computes."""
    norm_shift: float = 0.0
    """What llama.cpp's norms want added to each weight."""
    tables: tuple[bool, ...] = (True, False)
    """Whether words and output may share one table: True with, False without."""
    free_heads: bool = True
    """True where heads times head_dim may differ from hidden_size."""
    window: Literal["keys", "always", "if used", "never"] = "never"
    """"keys" where llama.cpp knows the sliding window; else whether a config's sliding_window counts, and the file's context then ends
    where it begins to matter."""
    defaults: Config = field(default_factory=dict)
    """What transformers' config class takes where config.json is silent."""
    keys: Callable[[Config], dict[str, Entry]] = nothing
    """Keys of its own, without the architecture before each; raises UserError for what llama.cpp would compute otherwise."""


def _granite_keys(config: Config) -> dict[str, Entry]:
    names = {
        "embedding_multiplier": "embedding_scale",
        "residual_multiplier": "residual_scale",
        "attention_multiplier": "attention.scale",
        "logits_scaling": "logit_scale",
    }
    return {key: Entry("FLOAT32", positive(config.get(name, 1.0), name)) for name, key in names.items()}


def _gemma2_keys(config: Config) -> dict[str, Entry]:
    _refuse_attention(config, broad=46)
    if _windowed(config, every=2) != _every(2, config):
        raise UserError("The base model's windowed layers are not every other one, as llama.cpp takes them to be. No GGUF can be built.")
    caps = ("attn_logit_softcapping", "final_logit_softcapping")
    found = {key: Entry("FLOAT32", positive(config.get(key), key)) for key in caps}
    return found | {"attention.sliding_window": Entry("UINT32", whole(config, "sliding_window"))}


def _gemma3_keys(config: Config) -> dict[str, Entry]:
    _refuse_attention(config, broad=62)
    if config.get("attn_logit_softcapping") is not None:
        raise UserError("The base model caps its attention logits, which llama.cpp does not do for a Gemma 3. No GGUF can be built.")
    found = {}
    if config.get("final_logit_softcapping") is not None:
        found["final_logit_softcapping"] = Entry("FLOAT32", positive(config["final_logit_softcapping"], "final_logit_softcapping"))
    windowed = _windowed(config, every=whole(config, "sliding_window_pattern", default=GEMMA3_EVERY))
    if any(windowed):
        found["attention.sliding_window"] = Entry("UINT32", whole(config, "sliding_window"))
        found["rope.freq_base_swa"] = Entry("FLOAT32", _local_theta(config))
        if windowed != _every(GEMMA3_EVERY, config):
            found["attention.sliding_window_pattern"] = Entry("ARRAY", list(windowed), "BOOL")
    return found


def _local_theta(config: Config) -> float:
    settings = layer_settings(config, "sliding_attention")
    if settings.get("rope_type", "default") != "default":
        raise UserError("The base model stretches the context of its windowed layers, which llama.cpp does not do. No GGUF can be built.")
    return positive(settings.get("rope_theta") or config.get("rope_local_base_freq") or 10_000.0, "rope_local_base_freq")


def _refuse_attention(config: Config, *, broad: int) -> None:
    """`broad` is the number of layers of the family's 27B, whose queries llama.cpp scales by hidden_size / heads, not by head_dim."""
    is_broad = config["num_hidden_layers"] == broad
    computed = config["hidden_size"] // config["num_attention_heads"] if is_broad else config["head_dim"]
    if config.get("query_pre_attn_scalar") != computed:
        raise UserError(
            f"The base model scales its queries by {config.get('query_pre_attn_scalar')}, llama.cpp by {computed} for a model of its size. "
            "No GGUF can be built from it."
        )
    if config.get("use_bidirectional_attention"):
        raise UserError("The base model looks at words that follow, which llama.cpp does not do for it. No GGUF can be built from it.")


def _smollm3_keys(config: Config) -> dict[str, Entry]:
    given = config.get("no_rope_layers")
    every = whole(config, "no_rope_layer_interval", default=NO_ROPE_EVERY)
    rotated = [bool(flag) for flag in given] if isinstance(given, list) else _every(every, config)
    if rotated != _every(NO_ROPE_EVERY, config):
        raise UserError("The base model's layers without rotation are not every fourth one, as llama.cpp takes them to be.")
    return {}


def _every(number: int, config: Config) -> list[bool]:
    """For each layer whether it is none of every `number`th."""
    return [(layer + 1) % number != 0 for layer in range(config["num_hidden_layers"])]


def _windowed(config: Config, *, every: int) -> list[bool]:
    """For each layer whether it has a window; every `every`th has none where config.json does not say."""
    given = config.get("layer_types")
    if given is None:
        return _every(every, config)
    known = isinstance(given, list) and all(kind in ("sliding_attention", "full_attention") for kind in given)
    if not known or len(given) != config["num_hidden_layers"]:
        raise UserError("The base model's layer_types name layers that llama.cpp does not have. No GGUF can be built from it.")
    return [kind == "sliding_attention" for kind in given]


STRETCHED = ("default", "linear", "yarn")
GEMMA: dict[str, Any] = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}
LLAMA = {**BEFORE, **ATTENTION, **GATED}

FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family(
        arch="llama",
        shown="Llama (SmolLM2, Llama 2 and 3, TinyLlama)",
        names=LLAMA,
        ropes=(*STRETCHED, "llama3", "longrope"),
        interleaved_rope=True,
        biases=ALL_BIASES,
    ),
    "MistralForCausalLM": Family(
        arch="llama",
        shown="Mistral",
        names=LLAMA,
        ropes=(*STRETCHED, "llama3", "longrope"),
        interleaved_rope=True,
        window="always",
        defaults={"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131_072},
    ),
    "Qwen2ForCausalLM": Family(
        arch="qwen2",
        shown="Qwen2 and Qwen2.5",
        names=LLAMA,
        ropes=STRETCHED,
        biases=QKV_BIASES,
        free_heads=False,
        window="if used",
    ),
    "Qwen3ForCausalLM": Family(
        arch="qwen3",
        shown="Qwen3",
        names={**LLAMA, **QK_NORMS},
        ropes=STRETCHED,
        window="if used",
        defaults={"head_dim": 128},
    ),
    "Gemma2ForCausalLM": Family(
        arch="gemma2",
        shown="Gemma 2",
        names={**AROUND, **ATTENTION, **GATED},
        ropes=("default", "linear"),
        activation=("hidden_activation", "gelu_pytorch_tanh"),
        norm_shift=1.0,
        tables=(True,),
        window="keys",
        defaults={**GEMMA, "max_position_embeddings": 8192, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        keys=_gemma2_keys,
    ),
    "Gemma3ForCausalLM": Family(
        arch="gemma3",
        shown="Gemma 3 (text)",
        names={**AROUND, **ATTENTION, **GATED, **QK_NORMS},
        ropes=("default", "linear"),
        activation=("hidden_activation", "gelu_pytorch_tanh"),
        norm_shift=1.0,
        window="keys",
        defaults={**GEMMA, "max_position_embeddings": 131_072, "rope_theta": 1_000_000.0},
        keys=_gemma3_keys,
    ),
    "Phi3ForCausalLM": Family(
        arch="phi3",
        shown="Phi-3 and Phi-4-mini",
        names={**BEFORE, **FUSED},
        ropes=("default", "longrope"),
        partial_rope=True,
        free_heads=False,
        window="always",
        defaults={"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096},
    ),
    "SmolLM3ForCausalLM": Family(
        arch="smollm3",
        shown="SmolLM3",
        names=LLAMA,
        ropes=STRETCHED,
        interleaved_rope=True,
        window="if used",
        defaults={"num_key_value_heads": 4, "rope_theta": 2_000_000.0, "tie_word_embeddings": True},
        keys=_smollm3_keys,
    ),
    "Olmo2ForCausalLM": Family(
        arch="olmo2",
        shown="OLMo 2",
        names={**AFTER, **ATTENTION, **GATED, **QK_NORMS},
        ropes=STRETCHED,
        tables=(False,),
        free_heads=False,
        defaults={"rms_norm_eps": 1e-5},
    ),
    "GraniteForCausalLM": Family(
        arch="granite",
        shown="Granite 3",
        names=LLAMA,
        ropes=(*STRETCHED, "llama3"),
        interleaved_rope=True,
        biases=ALL_BIASES,
        keys=_granite_keys,
    ),
}
SEEING = {"Gemma3ForConditionalGeneration": "Gemma3ForCausalLM"}
"""Classes that also see images, and the family that their text is of."""
