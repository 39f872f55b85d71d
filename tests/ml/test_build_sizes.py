"""What the web process says of builds before anything runs is what the worker then does: families, types, sizes."""

import json
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest

from studio.artifacts import quantizations
from studio.ml.gguf.exporting import estimated_size
from studio.ml.gguf.families import FAMILIES
from studio.ml.gguf.recipes import RECIPES
from studio.ml.modelfacts import read_model_facts
from studio.training.orders import Quantization
from tests.ml.conftest import ModelMaker

SMOLLM2 = {"hidden": 576, "intermediate": 1536, "layers": 30, "heads": 9, "kv_heads": 3, "vocabulary": 49_152, "tied": True}
ONE_BILLION = {"hidden": 2048, "intermediate": 5632, "layers": 22, "heads": 32, "kv_heads": 4, "vocabulary": 49_152, "tied": False}


def shaped_as(tiny: Path, shape: dict[str, Any]) -> Path:
    """A base model of this shape whose weights are a hole in the disk."""
    hidden, inner = shape["hidden"], shape["intermediate"]
    head = hidden // shape["heads"]
    tensors = {"model.embed_tokens.weight": (shape["vocabulary"], hidden), "model.norm.weight": (hidden,)}
    if not shape["tied"]:
        tensors["lm_head.weight"] = (shape["vocabulary"], hidden)
    for layer in range(shape["layers"]):
        kept = {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (shape["kv_heads"] * head, hidden),
            "self_attn.v_proj": (shape["kv_heads"] * head, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }
        tensors |= {f"model.layers.{layer}.{name}.weight": size for name, size in kept.items()}
    header, offset = {}, 0
    for name, size in tensors.items():
        length = 2 * size[0] * (size[1] if len(size) == 2 else 1)
        header[name] = {"dtype": "BF16", "shape": size, "data_offsets": [offset, offset + length]}
        offset += length
    written = json.dumps(header).encode()
    with (tiny / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(written)) + written)
        file.truncate(8 + len(written) + offset)
    config = json.loads((tiny / "config.json").read_text())
    config |= {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv_heads"],
        "head_dim": head,
        "vocab_size": shape["vocabulary"],
        "tie_word_embeddings": shape["tied"],
    }
    (tiny / "config.json").write_text(json.dumps(config))
    return tiny


@pytest.mark.parametrize("shape", [SMOLLM2, ONE_BILLION], ids=["SmolLM2-135M", "1.2B"])
def test_the_size_that_the_form_shows_is_the_size_of_the_file(tmp_path: Path, tiny_model_maker: ModelMaker, shape: dict[str, Any]) -> None:
    base = shaped_as(tiny_model_maker(tmp_path / "base"), shape)
    facts = read_model_facts(base)
    for name in RECIPES:
        assert quantizations.estimated_size(facts, name) == pytest.approx(estimated_size(base, name), rel=0.05), name


def test_the_web_process_knows_the_families_and_the_types_that_can_be_built() -> None:
    assert {name: family.shown for name, family in FAMILIES.items()} == quantizations.SUPPORTED
    assert set(RECIPES) == set(quantizations.QUANTIZATIONS) == set(get_args(Quantization))
    assert {name: recipe.weighed for name, recipe in RECIPES.items()} == {
        name: entry.importance for name, entry in quantizations.QUANTIZATIONS.items()
    }


def test_types_are_offered_from_the_largest_to_the_smallest() -> None:
    sizes = [entry.bits for entry in quantizations.QUANTIZATIONS.values()]
    assert all(one >= next_one for one, next_one in pairwise(sizes))
