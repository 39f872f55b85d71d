"""Which tensor of a model gets which type. The mixes are llama.cpp's."""

from dataclasses import dataclass

from studio.ml.gguf.header import TENSOR_TYPES
from studio.ml.gguf.writing import TYPE_NUMBERS


@dataclass(frozen=True)
class Recipe:
    file_type: int
    """general.file_type, llama.cpp's `llama_ftype`."""
    default: str
    """Type of the matrices that no rule gives another."""


RECIPES = {
    "f16": Recipe(1, "F16"),
    "bf16": Recipe(32, "BF16"),
    "q8_0": Recipe(7, "Q8_0"),
    "q4_k_m": Recipe(15, "Q4_K"),
}
NARROWER = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""What llama.cpp takes where a row is no multiple of 256."""


def tensor_type(name: str, shape: tuple[int, ...], *, quantization: str, layers: int, grouped: bool, tied: bool) -> str:
    """The type of a tensor, by its name in the GGUF and its shape (rows, columns).

    Source: llama.cpp, src/llama-quant.cpp (`llama_tensor_get_type`). `grouped` is grouped-query attention,
    `tied` a model whose output layer is its embedding.
    """
    default = RECIPES[quantization].default
    if len(shape) < 2:
        return "F32"
    if default in ("F16", "BF16"):
        return default
    chosen = _mixed(name, shape, default=default, layers=layers, grouped=grouped, tied=tied)
    if shape[-1] % _block(chosen)[0]:
        chosen = NARROWER.get(chosen, "F16")
    return chosen if shape[-1] % _block(chosen)[0] == 0 else "F16"


def _mixed(name: str, shape: tuple[int, ...], *, default: str, layers: int, grouped: bool, tied: bool) -> str:
    if default != "Q4_K":
        return default
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        return "Q8_0" if shape[-1] % 256 else "Q6_K"
    if name.endswith((".attn_v.weight", ".ffn_down.weight")) and _more_bits(int(name.split(".")[1]), layers):
        return "Q6_K"
    if name.endswith(".attn_v.weight") and layers == 80 and grouped:  # Llama 2 and 3 with 70B: eight heads share it
        return "Q5_K"
    return default


def _more_bits(layer: int, layers: int) -> bool:
    """llama.cpp's `use_more_bits`: the first and last eighth, and every third between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _block(kind: str) -> tuple[int, int]:
    _, weights, size = TENSOR_TYPES[TYPE_NUMBERS[kind]]
    return weights, size
