"""Adapters of every kind: what PEFT's own code says beside the base, the merged weights say too, and llama.cpp where it can swap them."""

import json
import os
import re
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, TrainableTokensConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Phi3Config, Phi3ForCausalLM, Qwen2Config, Qwen2ForCausalLM

from studio.errors import UserError
from studio.ml import llamacpp
from studio.ml.gguf.adapters import export_adapter
from studio.ml.gguf.changes import KEPT, Stored
from studio.ml.gguf.exporting import export
from studio.ml.gguf.header import read_header
from studio.ml.gguf.lora import EMBEDDING, HEAD, Adapter, read_adapter
from studio.ml.gguf.merging import write_merged
from studio.ml.gguf.weights import Weights
from studio.training.orders import BuildAbout
from tests.ml.adapters import LINEARS, make_adapter, says
from tests.ml.conftest import ModelMaker

IDS = [1, 40, 77, 300, 12, 9, 150, 2, 44, 61, 205, 33]
Settings = dict[str, Any]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_model_maker: ModelMaker) -> Callable[[str], Path]:
    """Tiny models by name: `tied`, `untied`, `biased` (a Qwen2 with biases), `fused` (a Phi-3, whose layers hold several in one)."""
    folder = tmp_path_factory.mktemp("bases")
    sizes: Settings = {
        "vocab_size": 500, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
        "tie_word_embeddings": False,
    }  # fmt: skip

    def make(name: str) -> Path:
        if name == "tied":
            return tiny_model
        made = folder / name
        if name == "untied" and not made.exists():
            tiny_model_maker(made, tied=False)
        if name in ("biased", "fused") and not made.exists():
            torch.manual_seed(3)
            model = Qwen2ForCausalLM(Qwen2Config(**sizes)) if name == "biased" else Phi3ForCausalLM(Phi3Config(**sizes))
            for key, parameter in model.named_parameters():
                if "norm" not in key:
                    parameter.data.normal_(std=0.05)
            model.save_pretrained(made)
            for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
                (made / file).write_bytes((tiny_model / file).read_bytes())
        return made

    return make


def beside(base: Path, adapter: Path, *, rows: int = 0) -> Any:
    """The base with the adapter as PEFT runs it, unmerged: merging one of two uses of a shared table there changes both."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if rows:
        model.resize_token_embeddings(rows)
    return PeftModel.from_pretrained(model, adapter)


def read(base: Path, adapter: Path) -> Adapter:
    with Weights.of_model(base) as weights:
        return read_adapter(adapter, weights, tied=json.loads((base / "config.json").read_text())["tie_word_embeddings"])


def merged_tensors(base: Path, adapter: Path, folder: Path) -> dict[str, torch.Tensor]:
    write_merged(base=base, adapter=adapter, precision="f32", folder=folder)
    return load_file(folder / "model.safetensors")


MERGED: dict[str, tuple[str, Settings]] = {
    "LoRA": ("tied", {}),
    "rsLoRA": ("tied", {"use_rslora": True}),
    "DoRA": ("tied", {"use_dora": True}),
    "DoRA with rsLoRA": ("untied", {"use_dora": True, "use_rslora": True}),
    "ranks and alphas by layer": ("tied", {"rank_pattern": {"q_proj": 8, r"layers\.1\.mlp\.up_proj": 2}, "alpha_pattern": {"v_proj": 40}}),
    "patterns that choose": ("tied", {"rank_pattern": {r".*\.0\.(?:mlp|self_attn)\..*_proj": 2}, "alpha_pattern": {"q_proj|k_proj": 3.5}}),
    "rsLoRA with ranks by layer": ("tied", {"use_rslora": True, "rank_pattern": {"down_proj": 16}}),
    "an output layer": ("untied", {"target_modules": ["q_proj", "lm_head"]}),
    "an output layer with DoRA": ("untied", {"target_modules": ["q_proj", "lm_head"], "use_dora": True}),
    "words": ("untied", {"target_modules": ["q_proj", "embed_tokens"]}),
    "words with DoRA": ("untied", {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True}),
    "words and output": ("untied", {"target_modules": ["q_proj", "embed_tokens", "lm_head"], "rank_pattern": {"embed_tokens": 2}}),
    "tables in full": ("untied", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
    "one table in full": ("untied", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "norms and layers in full": ("tied", {"target_modules": ["q_proj"], "modules_to_save": ["norm", "input_layernorm", "mlp"]}),
    "a shared table in full": ("tied", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    "some tokens": ("untied", {"target_modules": ["q_proj"], "trainable_token_indices": [9, 1, 499]}),
    "some tokens of both tables": ("untied", {"trainable_token_indices": {"embed_tokens": [9, 1], "lm_head": [7]}}),
    "some tokens of a shared table": ("tied", {"trainable_token_indices": [9, 1, 499]}),
    "some tokens of a shared table, by name": ("tied", {"trainable_token_indices": {"embed_tokens": [3, 2]}}),
    "biases of its layers": ("biased", {"target_modules": ["q_proj", "v_proj"], "bias": "lora_only"}),
    "all biases": ("biased", {"target_modules": ["q_proj"], "bias": "all"}),
    "biases beside B": ("biased", {"target_modules": ["q_proj", "k_proj"], "lora_bias": True, "use_rslora": True}),
    "fused layers": ("fused", {"target_modules": ["qkv_proj", "gate_up_proj", "o_proj"]}),
    "fused layers with DoRA": ("fused", {"target_modules": ["qkv_proj", "down_proj"], "use_dora": True}),
    "another beginning": ("tied", {"init_lora_weights": "orthogonal"}),
}
"""What PEFT itself merges rightly."""


@pytest.mark.parametrize("kind", MERGED)
def test_every_tensor_is_the_one_that_peft_merges(bases: Any, tmp_path: Path, kind: str) -> None:
    name, settings = MERGED[kind]
    base = bases(name)
    adapter = make_adapter(base, tmp_path / "adapter", **settings)
    found = merged_tensors(base, adapter, tmp_path / "out")
    expected = beside(base, adapter).merge_and_unload()
    weights = expected.state_dict()
    assert found.keys() == weights.keys() - (set() if HEAD in found else {HEAD}) and (HEAD in found) == (name != "tied")
    for tensor, rows in found.items():  # PEFT adds in another order
        assert torch.allclose(rows, weights[tensor], rtol=1e-6, atol=1e-6 * float(weights[tensor].abs().max())), tensor
    plain = says(AutoModelForCausalLM.from_pretrained(base), IDS)
    assert np.abs(says(AutoModelForCausalLM.from_pretrained(tmp_path / "out"), IDS) - says(expected, IDS)).max() < 2e-5
    assert np.abs(says(expected, IDS) - plain).max() > 1e-3


APART: dict[str, tuple[Settings, bool]] = {
    "words in full": ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, True),
    "output in full": ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, True),
    "both in full, apart": ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}, True),
    "LoRA on words": ({"target_modules": ["q_proj", "embed_tokens"]}, True),
    "DoRA on words": ({"target_modules": ["q_proj", "embed_tokens"], "use_dora": True}, True),
    "LoRA on the output": ({"target_modules": ["q_proj", "lm_head"]}, True),
    "LoRA on both, apart": ({"target_modules": ["q_proj", "embed_tokens", "lm_head"]}, True),
    "LoRA on both, as one": ({"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}, False),
    "both in full, as one": ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, False),
    "tokens of the output": ({"target_modules": ["q_proj"], "trainable_token_indices": {"lm_head": [5, 7]}}, True),
    "tokens of both, apart": ({"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [1, 2], "lm_head": [2]}}, True),
    "tokens of both, as one": (
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [4, 2], "lm_head": [4, 2]}},
        False,
    ),
}
"""What training makes of a table that words and output share, and whether it is two tables from then on."""


@pytest.mark.parametrize("kind", APART)
def test_a_shared_table_becomes_two_only_where_it_was_trained_apart(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    settings, untied = APART[kind]
    adapter = make_adapter(tiny_model, tmp_path / "adapter", **settings)
    expected = says(beside(tiny_model, adapter), IDS)
    found = read(tiny_model, adapter)
    assert found.untied is untied and found.rows is None and found.swappable is False
    write_merged(base=tiny_model, adapter=adapter, precision="f32", folder=tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is not untied
    assert np.abs(says(AutoModelForCausalLM.from_pretrained(tmp_path / "out"), IDS) - expected).max() < 2e-5
    export(base=tiny_model, adapter=adapter, quantization="f32", target=tmp_path / "m.gguf", name="tiny")
    assert ("output.weight" in read_header(tmp_path / "m.gguf").tensors) is untied
    with llamacpp.Model(tmp_path / "m.gguf") as model:
        assert np.abs(model.logits(IDS) - expected).max() < 2e-3
    assert np.abs(says(AutoModelForCausalLM.from_pretrained(tiny_model), IDS) - expected).max() > 0.02


@pytest.mark.parametrize("kind", ["biases of its layers", "all biases", "biases beside B", "norms and layers in full", "fused layers"])
def test_vectors_and_fused_layers_come_into_the_gguf(bases: Any, tmp_path: Path, kind: str) -> None:
    name, settings = MERGED[kind]
    base = bases(name)
    adapter = make_adapter(base, tmp_path / "adapter", **settings)
    export(base=base, adapter=adapter, quantization="f32", target=tmp_path / "m.gguf", name="tiny")
    with llamacpp.Model(tmp_path / "m.gguf") as model:
        assert np.abs(model.logits(IDS) - says(beside(base, adapter), IDS)).max() < 2e-3


GROWN: dict[str, tuple[str, Settings]] = {
    "a shared table": ("tied", {"target_modules": ["q_proj"]}),
    "two tables": ("untied", {"target_modules": ["q_proj"]}),
    "a shared table, words in full": ("tied", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "two tables in full": ("untied", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
    "the new tokens of a shared table": ("tied", {"target_modules": ["q_proj"], "trainable_token_indices": [500, 505]}),
    "the new tokens of two tables": ("untied", {"target_modules": ["q_proj"], "trainable_token_indices": [500, 505]}),
    "LoRA on a shared table, words only": ("tied", {"target_modules": ["q_proj", "embed_tokens"]}),
    "LoRA on a shared table, output only": ("tied", {"target_modules": ["q_proj", "lm_head"]}),
    "LoRA on a shared table, as one": ("tied", {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}),
    "DoRA on two tables": ("untied", {"target_modules": ["q_proj", "embed_tokens", "lm_head"], "use_dora": True}),
}


@pytest.mark.parametrize(("kind", "rows"), [*((kind, 510) for kind in GROWN), ("two tables", 496), ("a shared table", 496)])
def test_a_vocabulary_that_grew_or_shrank_comes_along(bases: Any, tmp_path: Path, kind: str, rows: int) -> None:
    name, settings = GROWN[kind]
    base, ids = bases(name), [*IDS, rows - 5]
    adapter = make_adapter(base, tmp_path / "adapter", rows=rows, **settings)
    expected = says(beside(base, adapter, rows=rows), ids)
    assert read(base, adapter).rows == rows
    write_merged(base=base, adapter=adapter, precision="f32", folder=tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == rows
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.get_input_embeddings().weight.shape[0] == model.get_output_embeddings().weight.shape[0] == rows
    assert np.abs(says(model, ids) - expected).max() < 2e-5


def test_new_words_come_with_the_tokenizer_that_knows_them(tiny_model: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_model, tmp_path / "adapter", rows=510, trainable_token_indices=list(range(500, 510)))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_tokens([f"<word{number}>" for number in range(10)])
    tokenizer.save_pretrained(adapter)
    (adapter / "chat_template.jinja").unlink(missing_ok=True)
    assert read(tiny_model, adapter).tokenizer == adapter
    text = "Hello <word3> and <word9>"
    ids = tokenizer(text).input_ids
    assert max(ids) == 509
    expected = says(beside(tiny_model, adapter, rows=510), ids)

    export(base=tiny_model, adapter=adapter, quantization="f32", target=tmp_path / "m.gguf", name="tiny")
    with llamacpp.Model(tmp_path / "m.gguf") as model:
        assert model.tokenize(text) == ids
        assert np.abs(model.logits(ids) - expected).max() < 2e-3
    write_merged(base=tiny_model, adapter=adapter, precision="f32", folder=tmp_path / "out")
    merged = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert merged(text).input_ids == ids and merged.chat_template == (tiny_model / "chat_template.jinja").read_text()


def test_words_in_rows_that_the_base_had_to_spare_are_known_too(tiny_model_maker: ModelMaker, tmp_path: Path) -> None:
    base = tiny_model_maker(tmp_path / "base", vocabulary=480)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(500)
    model.save_pretrained(base)
    adapter = make_adapter(base, tmp_path / "adapter", trainable_token_indices=[480])
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.save_pretrained(adapter)
    assert (found := read(base, adapter)).rows is None and found.tokenizer is None  # it knows no more than the base's
    tokenizer.add_tokens(["<order>"])
    tokenizer.save_pretrained(adapter)
    assert read(base, adapter).tokenizer == adapter
    assert read(base, make_adapter(base, tmp_path / "other")).tokenizer is None


def test_a_vocabulary_that_only_one_table_follows_is_refused(bases: Any, tmp_path: Path) -> None:
    """PEFT does not save the output layer of a grown vocabulary where only the words have a LoRA."""
    adapter = make_adapter(bases("untied"), tmp_path / "adapter", rows=510, target_modules=["embed_tokens"])
    with pytest.raises(UserError, match=r"510 rows in model\.embed_tokens\.weight and 500 rows in lm_head\.weight"):
        read(bases("untied"), adapter)


def test_tokens_that_were_trained_alone_are_an_adapter_too(tiny_model: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    adapted = get_peft_model(model, TrainableTokensConfig(token_indices=[9, 4], task_type="CAUSAL_LM"))
    for name, parameter in adapted.named_parameters():
        if "delta" in name:
            parameter.data.normal_(std=0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    found = merged_tensors(tiny_model, tmp_path / "adapter", tmp_path / "out")
    assert torch.equal(found[EMBEDDING], beside(tiny_model, tmp_path / "adapter").merge_and_unload().state_dict()[EMBEDDING])


def test_a_beginning_that_changes_the_base_counts_once_it_was_turned_into_one_of_the_untouched_base(
    tiny_model: Path, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    settings = LoraConfig(r=4, lora_alpha=8, target_modules=LINEARS, init_lora_weights="pissa", task_type="CAUSAL_LM")
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), settings)
    adapted.peft_config["default"].init_lora_weights = True
    adapted.save_pretrained(tmp_path / "begun")
    adapted.peft_config["default"].init_lora_weights = "pissa"
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    expected = says(adapted, IDS)
    adapted.save_pretrained(tmp_path / "as-it-is")
    with pytest.raises(UserError, match=r"a start \(pissa\) that changes the base's own weights"):
        read(tiny_model, tmp_path / "as-it-is")
    adapted.save_pretrained(tmp_path / "turned", path_initial_model_for_weight_conversion=str(tmp_path / "begun"))
    write_merged(base=tiny_model, adapter=tmp_path / "turned", precision="f32", folder=tmp_path / "out")
    assert np.abs(says(AutoModelForCausalLM.from_pretrained(tmp_path / "out"), IDS) - expected).max() < 1e-4


REFUSALS: list[tuple[Settings, str]] = [
    ({"peft_type": "IA3"}, "type IA3"),
    ({"peft_type": "LORA", "r": 8}, "does not fit"),
    ({"r": "many"}, "no readable adapter_config.json"),
    ({"r": 0}, "no readable adapter_config.json"),
    ({"lora_alpha": float("inf")}, "no readable adapter_config.json"),
    ({"use_dora": True}, "parts of .* are missing"),
    ({"init_lora_weights": "corda"}, "changes the base's own weights"),
    ({"init_lora_weights": "OLoRA"}, "changes the base's own weights"),
    ({"init_lora_weights": "loftq"}, "changes the base's own weights"),
    ({"target_parameters": ["mlp.experts"]}, "single parameters"),
    ({"layer_replication": [[0, 2]]}, "replicated layers"),
    ({"alora_invocation_tokens": [1, 2]}, "activated LoRA"),
    ({"use_qalora": True}, "QALoRA"),
    ({"arrow_config": {"top_k": 2}, "kasa_config": {"beta": 1}}, "Arrow routing, KaSA"),
    ({"modules_to_save": ["embed_tokens"]}, "embed_tokens, which was trained in full, is missing"),
    ({"rank_pattern": {"(": 4}}, "cannot be read"),
    ({"alpha_pattern": {"x" * 300: 4}}, "more involved"),
]


@pytest.mark.parametrize(("changes", "sentence"), REFUSALS)
def test_what_weights_cannot_hold_is_refused(tiny_model: Path, plain: Path, tmp_path: Path, changes: Settings, sentence: str) -> None:
    adapter = changed(plain, tmp_path, settings=changes)
    with pytest.raises(UserError, match=sentence):
        read(tiny_model, adapter)


@pytest.mark.parametrize("pattern", [r"(.+)+x", r"(?:.|.)+x", r"(.|.)(.|.)(.|.)(.|.)(.|.)(.|.)x", r".*.*.*.*.*.*x", r"(?=.*)x", r"(a)\1"])
def test_a_pattern_that_would_be_matched_for_ever_is_refused(tiny_model: Path, plain: Path, tmp_path: Path, pattern: str) -> None:
    adapter, begun = changed(plain, tmp_path, settings={"rank_pattern": {pattern: 4}}), time.process_time()
    with pytest.raises(UserError, match="more involved than names of layers need"):
        read(tiny_model, adapter)
    assert time.process_time() - begun < 1


LAYER = "base_model.model.model.layers.0.self_attn.q_proj"
DAMAGES: dict[str, tuple[Settings, str]] = {
    "half a layer": ({f"{LAYER}.lora_B.weight": None}, "parts of model.layers.0.self_attn.q_proj are missing"),
    "another shape": ({f"{LAYER}.lora_B.weight": torch.zeros(63, 4)}, "does not fit"),
    "an unknown part": ({f"{LAYER}.lora_Q.weird": torch.zeros(2)}, "is no part of a LoRA"),
    "an unknown layer": ({f"{LAYER}s.lora_A.weight": torch.zeros(4, 64), f"{LAYER}s.lora_B.weight": torch.zeros(64, 4)}, "does not have"),
    "a bias that the base has not": ({f"{LAYER}.bias": torch.zeros(64)}, "trained a bias of model.layers.0.self_attn.q_proj"),
    "a norm of another size": ({"base_model.model.model.norm.weight": torch.zeros(63)}, "model.norm.weight does not fit"),
    "a layer in full of another size": ({f"{LAYER.replace('q', 'o')}.base_layer.weight": torch.zeros(64, 63)}, "does not fit"),
    "the same twice": ({f"{LAYER}.weight": torch.zeros(64, 64), f"{LAYER}.base_layer.weight": torch.zeros(64, 64)}, "holds two of"),
    "tokens without numbers": ({"base_model.model.lm_head.token_adapter.trainable_tokens_delta": torch.zeros(2, 64)}, "does not fit"),
    "whole numbers": ({f"{LAYER}.lora_B.weight": torch.zeros(64, 4, dtype=torch.int64)}, "stored as I64"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_not_what_it_says_is_refused(tiny_model: Path, plain: Path, tmp_path: Path, damage: str) -> None:
    tensors, sentence = DAMAGES[damage]
    with pytest.raises(UserError, match=re.escape(sentence)):
        read(tiny_model, changed(plain, tmp_path, tensors=tensors))


@pytest.mark.parametrize(
    "header",
    ['{"a": 5}', "[]", '{"a": {}}', '{"a": {"dtype": [], "shape": [1], "data_offsets": [0, 4]}}', '{"a":' * 9000]
    + [f'{{"a": {{"dtype": "F32", "shape": {shape}, "data_offsets": {offsets}}}}}' for shape, offsets in (("4", "[0, 4]"), ("[1]", "[0]"))]
    + [
        '{"a": {"dtype": "F32", "shape": [1e400], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}',
    ],
)
def test_a_damaged_header_is_refused(tiny_model: Path, plain: Path, tmp_path: Path, header: str) -> None:
    adapter = changed(plain, tmp_path)
    (adapter / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(64))
    with pytest.raises(UserError, match=r"cannot be read|lies outside"):
        read(tiny_model, adapter)


def test_tokens_outside_the_table_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_model, tmp_path / "adapter", trainable_token_indices=[1, 2])
    for indices in ([1, 500], [1, -1], [2, 2]):
        with pytest.raises(UserError, match="500 rows do not hold"):
            read(tiny_model, changed(adapter, tmp_path / "other", settings={"trainable_token_indices": indices}))


def test_an_adapter_lets_go_of_its_file(tiny_model: Path, plain: Path) -> None:
    with read(tiny_model, plain) as adapter:
        assert adapter.stored is not None and adapter.stored.weights.whole(f"{LAYER}.lora_A.weight").shape == (4, 64)
    with pytest.raises(KeyError):
        adapter.stored.weights.whole(f"{LAYER}.lora_A.weight")
    open_files = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        read(tiny_model, plain)  # nobody closes it
    assert len(os.listdir("/proc/self/fd")) == open_files


def test_few_of_its_matrices_are_in_memory_at_a_time(tmp_path: Path) -> None:
    tensors = {f"{number}.lora_A.weight": torch.full((64, 16_384), float(number)) for number in range(12)}
    save_file(tensors, tmp_path / "adapter.safetensors")
    stored = Stored(tmp_path / "adapter.safetensors")
    for name, tensor in tensors.items():
        assert np.array_equal(stored.kept(name), tensor.numpy()) and stored.kept(name) is stored.kept(name)
    assert sum(matrix.nbytes for matrix in stored._kept.values()) <= KEPT < sum(tensor.nbytes for tensor in tensors.values())


SWAPPED: dict[str, tuple[str, Settings]] = {
    "LoRA": ("tied", {}),
    "rsLoRA": ("tied", {"use_rslora": True}),
    "ranks and alphas by layer": MERGED["ranks and alphas by layer"],
    "rsLoRA with ranks by layer": MERGED["rsLoRA with ranks by layer"],
    "layers that do not count": ("tied", {"alpha_pattern": {"down_proj": 0, "q_proj": 3}}),
    "beside biases": ("biased", {}),
    "fused layers": MERGED["fused layers"],
    "an output layer": MERGED["an output layer"],
    "words": MERGED["words"],
    "words and output": MERGED["words and output"],
}


@pytest.mark.parametrize("kind", SWAPPED)
@pytest.mark.parametrize("precision", ["f16", "f32", "q8_0"])
def test_llamacpp_says_with_the_adapter_what_peft_says(bases: Any, tmp_path: Path, kind: str, precision: Any) -> None:
    name, settings = SWAPPED[kind]
    base = bases(name)
    adapter = make_adapter(base, tmp_path / "adapter", **settings)
    expected, plain = says(beside(base, adapter), IDS), says(AutoModelForCausalLM.from_pretrained(base), IDS)
    made = export_adapter(base=base, adapter=adapter, target=tmp_path / "adapter.gguf", precision=precision)
    assert made["size"] == (tmp_path / "adapter.gguf").stat().st_size and [path.name for path in tmp_path.glob(".*")] == []
    export(base=base, adapter=None, quantization="f32", target=tmp_path / "base.gguf", name="tiny")
    with llamacpp.Model(tmp_path / "base.gguf", adapter=tmp_path / "adapter.gguf") as model:
        found = model.logits(IDS)
    far = np.abs(plain - expected).max()
    assert np.abs(found - expected).max() < (0.02 * far if precision == "q8_0" else 2e-3) and far > 0.02


@pytest.mark.parametrize("small", [1e-5, 1.0, 100.0])
def test_an_adapter_in_q8_0_keeps_its_digits_however_small_its_numbers_are(
    tiny_model: Path, plain: Path, tmp_path: Path, small: float
) -> None:
    """A scale in f16 has few digits left below 6e-5, where most of a briefly trained B lies."""
    tensors = {name: tensor * small for name, tensor in load_file(plain / "adapter_model.safetensors").items() if "lora_B" in name}
    adapter = changed(plain, tmp_path, tensors=tensors)
    export_adapter(base=tiny_model, adapter=adapter, target=tmp_path / "adapter.gguf", precision="q8_0")
    header, found = read_header(tmp_path / "adapter.gguf"), products(tmp_path / "adapter.gguf")
    assert {tensor.type for tensor in header.tensors.values()} == {"Q8_0"} and header.get("general.file_type") == 7
    export_adapter(base=tiny_model, adapter=adapter, target=tmp_path / "exact.gguf", precision="f32")
    exact = products(tmp_path / "exact.gguf")
    for name, product in exact.items():
        assert np.linalg.norm(found[name] - product) < 0.015 * np.linalg.norm(product), name


def products(path: Path) -> dict[str, Any]:
    """What an adapter adds to each layer, as llama.cpp computes it: alpha / rank times B A, the rank being what its shape says."""
    reader, alpha = gguf.GGUFReader(path), read_header(path).get("adapter.lora.alpha")
    parts = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    layers = {name.rpartition(".")[0] for name in parts}
    return {
        layer: parts[f"{layer}.lora_b"].astype(np.float64) @ parts[f"{layer}.lora_a"] * alpha / parts[f"{layer}.lora_a"].shape[0]
        for layer in layers
    }


def test_ranks_that_cancel_each_other_are_kept_exact(tiny_model: Path, plain: Path, tmp_path: Path) -> None:
    """As peft writes an adapter that began with parts of the base: both products, one of them taken off."""
    dice = torch.Generator().manual_seed(1)
    a, b = torch.randn(4, 64, generator=dice), torch.randn(64, 4, generator=dice)
    both = torch.cat([a + 0.001 * torch.randn(4, 64, generator=dice), a]), torch.cat([b, -b], dim=1)
    tensors = {f"{LAYER}.lora_A.weight": both[0].contiguous(), f"{LAYER}.lora_B.weight": both[1].contiguous()}
    adapter = changed(plain, tmp_path, tensors=tensors, settings={"rank_pattern": {"layers.0.self_attn.q_proj": 8}})
    export_adapter(base=tiny_model, adapter=adapter, target=tmp_path / "adapter.gguf", precision="q8_0")
    exact = {name for name, tensor in read_header(tmp_path / "adapter.gguf").tensors.items() if tensor.type == "F32"}
    assert exact == {"blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b"}


@pytest.mark.parametrize("rank", [4, 32, 40])
def test_an_adapter_in_q8_0_withstands_large_numbers_within_the_model(tiny_model: Path, tmp_path: Path, rank: int) -> None:
    """What A makes of the model's numbers is rounded as well, with a scale in f16."""
    plain = make_adapter(tiny_model, tmp_path / "plain", r=rank)
    larger = {name: tensor * (30 if "lora_A" in name else 1) for name, tensor in load_file(plain / "adapter_model.safetensors").items()}
    adapter = changed(plain, tmp_path, tensors=larger)
    expected = says(beside(tiny_model, adapter), IDS)
    export_adapter(base=tiny_model, adapter=adapter, target=tmp_path / "adapter.gguf", precision="q8_0")
    tensors = read_header(tmp_path / "adapter.gguf").tensors
    assert {tensor.shape[0] for name, tensor in tensors.items() if "lora_b" in name} == {32 if rank <= 32 else 64}
    export(base=tiny_model, adapter=None, quantization="f32", target=tmp_path / "base.gguf", name="tiny")
    with llamacpp.Model(tmp_path / "base.gguf", adapter=tmp_path / "adapter.gguf") as model:
        found = model.logits(IDS)
    plainly = says(AutoModelForCausalLM.from_pretrained(tiny_model), IDS)
    assert np.abs(found - expected).max() < 0.05 * np.abs(plainly - expected).max()


def test_columns_that_are_no_whole_blocks_are_kept_exact(tiny_model_maker: ModelMaker, tmp_path: Path) -> None:
    base = tiny_model_maker(tmp_path / "base", hidden=48, intermediate=96)
    adapter = make_adapter(base, tmp_path / "adapter")
    export_adapter(base=base, adapter=adapter, target=tmp_path / "adapter.gguf", precision="q8_0")
    kinds = {name: tensor.type for name, tensor in read_header(tmp_path / "adapter.gguf").tensors.items()}
    assert {kind for name, kind in kinds.items() if "ffn_down" in name} == {"Q8_0"} and kinds["blk.0.attn_q.weight.lora_a"] == "F32"


def test_a_layer_that_q8_0_cannot_hold_is_exact(tiny_model: Path, plain: Path, tmp_path: Path) -> None:
    huge = torch.full((64, 4), 1e12)
    adapter = changed(plain, tmp_path, tensors={f"{LAYER}.lora_B.weight": huge, f"{LAYER}.lora_A.weight": torch.full((4, 64), 1e12)})
    export_adapter(base=tiny_model, adapter=adapter, target=tmp_path / "adapter.gguf", precision="q8_0")
    kinds = {name: tensor.type for name, tensor in read_header(tmp_path / "adapter.gguf").tensors.items()}
    assert {name for name, kind in kinds.items() if kind == "F32"} == {"blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b"}


@pytest.mark.parametrize("kind", ["LoRA on words", "LoRA on the output", "words in full", "LoRA on both, as one", "tokens of the output"])
def test_what_llamacpp_cannot_swap_is_refused(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    adapter = make_adapter(tiny_model, tmp_path / "adapter", **APART[kind][0])
    with pytest.raises(UserError, match="cannot be swapped"):
        export_adapter(base=tiny_model, adapter=adapter, target=tmp_path / "adapter.gguf")
    assert not list(tmp_path.glob("*.gguf"))


def test_a_gguf_adapter_says_what_it_is_and_where_it_comes_from(tiny_model: Path, plain: Path, tmp_path: Path) -> None:
    about = BuildAbout(title="Order bot", author="Acme", license="apache-2.0", base_name="Tiny", base_source="hub:acme/tiny@abc")
    for precision, number, kind in (("f16", 1, "F16"), ("f32", 0, "F32")):
        target = tmp_path / f"{precision}.gguf"
        export_adapter(base=tiny_model, adapter=plain, target=target, precision=precision, name="bot", about=about)
        header = read_header(target)
        said = {key: header.get(f"general.{key}") for key in ("type", "architecture", "name", "author", "license", "file_type")}
        assert said == {
            "type": "adapter", "architecture": "llama", "name": "Order bot", "author": "Acme", "license": "apache-2.0", "file_type": number,
        }  # fmt: skip
        assert header.get("general.base_model.0.name") == "tiny" and header.get("adapter.lora.alpha") == 12
        assert {tensor.type for tensor in header.tensors.values()} == {kind}
    first = (tmp_path / "f16.gguf").read_bytes()
    export_adapter(base=tiny_model, adapter=plain, target=tmp_path / "f16.gguf", name="bot", about=about)
    assert (tmp_path / "f16.gguf").read_bytes() == first


def test_numbers_that_f16_cannot_hold_are_refused_and_f32_takes_them(tiny_model: Path, plain: Path, tmp_path: Path) -> None:
    adapter = changed(plain, tmp_path, tensors={f"{LAYER}.lora_B.weight": torch.full((64, 4), 70_000.0)})
    with pytest.raises(UserError, match=r"layers\.0\.self_attn\.q_proj.*Build it in f32"):
        export_adapter(base=tiny_model, adapter=adapter, target=tmp_path / "adapter.gguf")
    assert not list(tmp_path.glob("*.gguf")) and not list(tmp_path.glob(".*"))
    export_adapter(base=tiny_model, adapter=adapter, target=tmp_path / "adapter.gguf", precision="f32")


@pytest.fixture(scope="module")
def plain(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA on all linear layers. Read it, do not write into it."""
    return make_adapter(tiny_model, tmp_path_factory.mktemp("plain"))


def changed(adapter: Path, folder: Path, *, settings: Settings | None = None, tensors: dict[str, Any] | None = None) -> Path:
    """A copy with other settings and tensors; None takes one away."""
    copy = folder / "changed"
    copy.mkdir(parents=True, exist_ok=True)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps(config | (settings or {})))
    found = load_file(adapter / "adapter_model.safetensors") | (tensors or {})
    save_file({name: tensor for name, tensor in found.items() if tensor is not None}, copy / "adapter_model.safetensors")
    return copy
