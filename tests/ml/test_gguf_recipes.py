"""Which tensor gets which type. The tables are what llama.cpp's own tool chose; scripts/compare_with_llama_quantize.py asks it again."""

import pytest

from studio.ml.gguf.recipes import RECIPES, Model, tensor_type

LAYERS = 30
MORE = [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 27, 28, 29]
"""The layers that get more bits in an "_M" mix of 30."""
EVERY = list(range(LAYERS))
PARTS = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]

MIXES: dict[str, tuple[int, str, str, str, dict[str, dict[str, list[int]]]]] = {
    "f32": (0, "F32", "F32", "F32", {}),
    "f16": (1, "F16", "F16", "F16", {}),
    "bf16": (32, "BF16", "BF16", "BF16", {}),
    "q8_0": (7, "Q8_0", "Q8_0", "Q8_0", {}),
    "q6_k": (18, "Q6_K", "Q6_K", "Q6_K", {}),
    "q5_k_m": (17, "Q5_K", "Q5_K", "Q6_K", {"attn_v": {"Q6_K": MORE}, "ffn_down": {"Q6_K": MORE}}),
    "q5_k_s": (16, "Q5_K", "Q5_K", "Q6_K", {}),
    "q4_k_m": (15, "Q4_K", "Q4_K", "Q6_K", {"attn_v": {"Q6_K": MORE}, "ffn_down": {"Q6_K": MORE}}),
    "q4_k_s": (14, "Q4_K", "Q4_K", "Q6_K", {"attn_v": {"Q5_K": [0, 1, 2, 3]}, "ffn_down": {"Q5_K": [0, 1, 2]}}),
    "q4_0": (2, "Q4_0", "Q4_0", "Q6_K", {}),
    "q3_k_m": (
        12, "Q3_K", "Q3_K", "Q6_K",
        {"attn_v": {"Q5_K": [0, 1], "Q4_K": EVERY[2:]}, "ffn_down": {"Q5_K": [0], "Q4_K": EVERY[1:]}, "attn_output": {"Q4_K": EVERY}},
    ),
    "q2_k": (10, "Q2_K", "Q2_K", "Q6_K", {"attn_v": {"Q3_K": EVERY}, "ffn_down": {"Q3_K": EVERY}, "attn_output": {"Q3_K": EVERY}}),
    "iq4_nl": (25, "IQ4_NL", "IQ4_NL", "Q6_K", {"ffn_down": {"Q5_K": [0, 1, 2]}}),
    "iq4_xs": (30, "IQ4_XS", "IQ4_XS", "Q6_K", {"ffn_down": {"Q5_K": [0, 1, 2]}}),
    "mxfp4": (38, "MXFP4", "Q8_0", "Q8_0", {}),
}  # fmt: skip
"""File type, type of most matrices, of token_embd, of output, and the exceptions: part -> type -> layers. Three heads share a value."""


def model(
    *, arch: str = "llama", layers: int = LAYERS, heads: int = 9, kv_heads: int = 3, tied: bool = False, importance: bool = False
) -> Model:
    return Model(arch, layers, heads, kv_heads, tied, importance)


def kind(name: str, quantization: str, *, of: Model, columns: int = 512) -> str:
    return tensor_type(f"{name}.weight", (8, columns), quantization=quantization, model=of)


def by_layer(part: str, quantization: str, *, of: Model, columns: int = 512) -> list[str]:
    return [kind(f"blk.{layer}.{part}", quantization, of=of, columns=columns) for layer in range(of.layers)]


def test_every_type_that_can_be_asked_for_has_a_mix() -> None:
    assert set(MIXES) == set(RECIPES)


@pytest.mark.parametrize("quantization", MIXES)
def test_each_tensor_gets_the_type_that_llamacpp_gives_it(quantization: str) -> None:
    number, default, embedding, output, exceptions = MIXES[quantization]
    assert RECIPES[quantization].file_type == number
    assert kind("token_embd", quantization, of=model()) == embedding
    assert kind("output", quantization, of=model()) == kind("token_embd", quantization, of=model(tied=True)) == output
    for part in PARTS:
        expected = [default] * LAYERS
        for exception, layers in exceptions.get(part, {}).items():
            for layer in layers:
                expected[layer] = exception
        assert by_layer(part, quantization, of=model()) == expected, part
    assert tensor_type("blk.0.attn_norm.weight", (512,), quantization=quantization, model=model()) == "F32"
    assert tensor_type("blk.0.attn_q.bias", (512,), quantization=quantization, model=model()) == "F32"


def test_a_fused_matrix_counts_as_the_values_in_it() -> None:
    assert by_layer("attn_qkv", "q4_k_m", of=model()) == by_layer("attn_v", "q4_k_m", of=model())


def test_values_that_four_heads_share_get_more_bits() -> None:
    shared = model(heads=16, kv_heads=4)
    assert {quantization: set(by_layer("attn_v", quantization, of=shared)) for quantization in ("q2_k", "iq4_nl", "iq4_xs", "q4_0")} == {
        "q2_k": {"Q4_K"}, "iq4_nl": {"Q5_K"}, "iq4_xs": {"Q5_K"}, "q4_0": {"Q4_0"},
    }  # fmt: skip


def test_an_importance_matrix_changes_what_guards_the_first_layers() -> None:
    measured = model(importance=True)
    assert set(by_layer("ffn_down", "iq4_nl", of=measured)) == {"IQ4_NL"}
    assert set(by_layer("ffn_down", "iq4_xs", of=measured)) == {"IQ4_XS"}
    assert by_layer("ffn_down", "q4_0", of=measured) == ["Q4_1"] * 3 + ["Q4_0"] * 27
    assert by_layer("ffn_down", "q4_k_m", of=measured) == by_layer("ffn_down", "q4_k_m", of=model())


def test_a_model_of_70_billion_weights_gets_more_bits_for_its_values() -> None:
    large = model(layers=80, heads=64, kv_heads=8)
    assert set(by_layer("attn_v", "q4_k_m", of=large)) == {"Q6_K", "Q5_K"}
    assert set(by_layer("attn_v", "q2_k", of=large)) == {"Q5_K"}
    assert set(by_layer("attn_v", "q4_k_m", of=model(arch="qwen2", layers=80, heads=64, kv_heads=8))) == {"Q6_K", "Q5_K"}
    assert set(by_layer("attn_v", "q4_k_m", of=model(arch="qwen3", layers=80, heads=64, kv_heads=8))) == {"Q6_K", "Q4_K"}
    assert set(by_layer("attn_v", "q4_k_m", of=model(layers=80, heads=64, kv_heads=64))) == {"Q6_K", "Q4_K"}


@pytest.mark.parametrize(
    ("quantization", "narrow", "output"),
    [
        ("q6_k", "Q8_0", "Q8_0"),
        ("q5_k_s", "Q5_1", "Q8_0"),
        ("q4_k_s", "Q5_0", "Q8_0"),
        ("q3_k_m", "Q4_0", "Q8_0"),
        ("q2_k", "Q4_0", "Q8_0"),
        ("iq4_xs", "IQ4_NL", "Q8_0"),
        ("iq4_nl", "IQ4_NL", "Q8_0"),
        ("q4_0", "Q4_0", "Q8_0"),
        ("mxfp4", "MXFP4", "Q8_0"),
    ],
)
def test_rows_that_are_no_multiple_of_256_fall_back_as_in_llamacpp(quantization: str, narrow: str, output: str) -> None:
    assert kind("blk.9.ffn_up", quantization, of=model(), columns=576) == narrow
    assert kind("output", quantization, of=model(), columns=576) == output
    assert kind("blk.9.ffn_up", quantization, of=model(), columns=577) == "F16"
    assert kind("output", quantization, of=model(), columns=577) == "F16"


def test_types_of_one_weight_have_no_blocks_to_fit() -> None:
    assert [kind("blk.0.ffn_up", name, of=model(), columns=577) for name in ("f32", "f16", "bf16")] == ["F32", "F16", "BF16"]
