"""Which tensor of a model gets which type. The mixes are llama.cpp's own: the same tensors get the same types as from its tool.

Source: llama.cpp, src/llama-quant.cpp (`llama_tensor_get_type_impl`, `tensor_type_fallback`), without what belongs to mixtures of experts.
It counts attn_v and ffn_down as they come; every layer of the families that are built has one of each, so the count is the layer.
"""

from dataclasses import dataclass

from studio.ml.gguf.header import TENSOR_TYPES
from studio.ml.gguf.writing import TYPE_NUMBERS


@dataclass(frozen=True)
class Recipe:
    file_type: int
    """general.file_type, llama.cpp's `llama_ftype`."""
    default: str
    """Type of the matrices that no rule gives another."""
    weighed: bool = True
    """Whether an importance matrix changes the file."""


RECIPES = {
    "f32": Recipe(0, "F32", weighed=False),
    "f16": Recipe(1, "F16", weighed=False),
    "bf16": Recipe(32, "BF16", weighed=False),
    "q8_0": Recipe(7, "Q8_0", weighed=False),
    "q6_k": Recipe(18, "Q6_K"),
    "q5_k_m": Recipe(17, "Q5_K"),
    "q5_k_s": Recipe(16, "Q5_K"),
    "q4_k_m": Recipe(15, "Q4_K"),
    "q4_k_s": Recipe(14, "Q4_K"),
    "q4_0": Recipe(2, "Q4_0"),
    "q3_k_m": Recipe(12, "Q3_K"),
    "q2_k": Recipe(10, "Q2_K"),
    "iq4_nl": Recipe(25, "IQ4_NL"),
    "iq4_xs": Recipe(30, "IQ4_XS"),
    # llama.cpp knows MXFP4 for mixtures of experts only and makes q8_0 of all else. This mix of a dense model is our own:
    # the matrices inside layers in MXFP4, the embedding and the output in Q8_0.
    "mxfp4": Recipe(38, "MXFP4", weighed=False),
}
PLAIN = ("F32", "F16", "BF16")
NARROWER = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL"}
"""What takes the place of a type where a row is no multiple of 256."""


@dataclass(frozen=True)
class Model:
    """What of a model its mix depends on."""

    arch: str
    """general.architecture."""
    layers: int
    heads: int
    kv_heads: int
    tied: bool
    """The embedding is the output layer too."""
    importance: bool = False
    """An importance matrix is at hand."""

    @property
    def sharing(self) -> int:
        """How many heads share one key and value."""
        return self.heads // self.kv_heads

    @property
    def large(self) -> bool:
        """llama.cpp's LLM_TYPE_70B, whose small attn_v gets more bits."""
        return self.layers == 80 and (self.arch == "qwen2" or (self.arch == "llama" and self.heads != self.kv_heads))


def tensor_type(name: str, shape: tuple[int, ...], *, quantization: str, model: Model) -> str:
    """The type of a tensor, by its name in the GGUF and its shape (rows, columns)."""
    default = RECIPES[quantization].default
    if len(shape) < 2:
        return "F32"
    if default in PLAIN:
        return default
    chosen = _mixed(name, shape[-1], quantization=quantization, model=model)
    if shape[-1] % _block(chosen):
        chosen = NARROWER.get(chosen, "F16")
    return chosen if shape[-1] % _block(chosen) == 0 else "F16"


def _mixed(name: str, columns: int, *, quantization: str, model: Model) -> str:
    default = RECIPES[quantization].default
    outer = name in ("output.weight", "token_embd.weight")
    if quantization == "mxfp4":
        return "Q8_0" if outer else default
    if name == "output.weight" or (model.tied and name == "token_embd.weight"):
        return "Q8_0" if default == "Q8_0" or columns % _block(default) else "Q6_K"
    if outer:
        return default
    _, number, part, _ = name.split(".")
    if part in ("attn_v", "attn_qkv"):
        chosen = _value(int(number), quantization=quantization, model=model)
        return "Q5_K" if model.large and chosen in ("Q3_K", "Q4_K") else chosen
    if part == "ffn_down":
        return _down(int(number), quantization=quantization, model=model)
    if part == "attn_output":
        return {"q2_k": "Q3_K", "q3_k_m": "Q4_K"}.get(quantization, default)
    return default


def _value(layer: int, *, quantization: str, model: Model) -> str:
    if quantization == "q2_k":
        return "Q4_K" if model.sharing >= 4 else "Q3_K"
    if quantization == "q3_k_m":
        return "Q5_K" if layer < 2 else "Q4_K"
    if quantization in ("q4_k_m", "q5_k_m") and _more_bits(layer, model.layers):
        return "Q6_K"
    if (quantization == "q4_k_s" and layer < 4) or (quantization in ("iq4_nl", "iq4_xs") and model.sharing >= 4):
        return "Q5_K"
    return RECIPES[quantization].default


def _down(layer: int, *, quantization: str, model: Model) -> str:
    early = layer < model.layers // 8
    if quantization == "q2_k":
        return "Q3_K"
    if quantization == "q3_k_m":
        return "Q5_K" if layer < model.layers // 16 else "Q4_K"
    if quantization in ("q4_k_m", "q5_k_m") and _more_bits(layer, model.layers):
        return "Q6_K"
    if early and (quantization == "q4_k_s" or (quantization in ("iq4_nl", "iq4_xs") and not model.importance)):
        return "Q5_K"
    if early and quantization == "q4_0" and model.importance:
        return "Q4_1"
    return RECIPES[quantization].default


def _more_bits(layer: int, layers: int) -> bool:
    """llama.cpp's `use_more_bits`: the first and last eighth, and every third between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _block(kind: str) -> int:
    """Weights that share a block."""
    return TENSOR_TYPES[TYPE_NUMBERS[kind]][1]
