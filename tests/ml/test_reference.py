"""The model that builds are compared with says the same whether it is held in memory or read layer by layer."""

import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from studio.ml.gguf.reference import Reference
from studio.training.job import Stopped
from tests.jobs import ListeningJob
from tests.ml.adapters import make_adapter
from tests.ml.conftest import ModelMaker

SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
SPECIAL: dict[str, dict[str, Any]] = {
    "gemma2": {"sliding_window": 4, "query_pre_attn_scalar": 8, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "gemma3_text": {"sliding_window": 4, "query_pre_attn_scalar": 8, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "smollm3": {"num_hidden_layers": 4},
    "granite": {"logits_scaling": 3.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3},
}
SEQUENCES = [[1, 5, 90, 33, 7, 7, 12, 60], [2, 3, 4], [1, 80, 81, 82, 83]]
IN_MEMORY, FROM_DISK = 64 << 30, 0


def base_of(folder: Path, kind: str, **changes: Any) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = SIZES | SPECIAL.get(kind, {}) | changes
    if "layer_types" in settings:
        settings["layer_types"] = settings["layer_types"][: settings["num_hidden_layers"]]
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings), dtype=torch.float32)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.3)
    model.save_pretrained(folder)
    return folder


def remember(inputs: dict[str, list[torch.Tensor]], name: str, rows: torch.Tensor) -> None:
    inputs.setdefault(name, []).append(rows)


def by_peft(base: Path, adapter: Path | None) -> list[np.ndarray]:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()
    if adapter:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    with torch.no_grad():
        return [model(input_ids=torch.tensor([ids])).logits[0].numpy() for ids in SEQUENCES]


@pytest.mark.parametrize(
    ("kind", "changes", "trained"),
    [
        ("llama", {"tie_word_embeddings": True}, None),
        ("llama", {"tie_word_embeddings": True}, {"use_rslora": True}),
        ("mistral", {}, {"use_dora": True}),
        ("qwen2", {"tie_word_embeddings": False}, {"modules_to_save": ["lm_head", "embed_tokens"]}),
        ("qwen3", {"tie_word_embeddings": True}, {}),
        ("gemma2", {}, {}),
        ("gemma3_text", {}, {}),
        ("phi3", {"original_max_position_embeddings": 64}, None),
        ("smollm3", {}, {}),
        ("olmo2", {}, {}),
        ("granite", {}, {"use_dora": True}),
    ],
)
def test_layer_by_layer_it_says_what_it_says_in_memory(
    kind: str, changes: Any, trained: Any, listening_job: ListeningJob, tmp_path: Path
) -> None:
    base = base_of(tmp_path / "base", kind, **changes)
    adapter = None if trained is None else make_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "down_proj"], **trained)
    expected = by_peft(base, adapter)
    for memory in (IN_MEMORY, FROM_DISK):
        inputs: dict[str, list[torch.Tensor]] = {}
        with Reference(base, adapter, job=listening_job, memory=memory) as reference:
            assert reference.streamed == (memory == FROM_DISK)
            found = list(reference.forward(SEQUENCES, seen=partial(remember, inputs)))
            again = list(reference.forward(SEQUENCES, keep=[1, 2, 3]))
        for ours, theirs, last in zip(found, expected, again, strict=True):
            assert ours.dtype == np.float32 and np.allclose(ours, theirs, atol=1e-4)
            assert np.allclose(last, ours[-len(last) :], atol=1e-5)
        assert "lm_head.weight" in inputs
        assert sum(len(rows) for rows in inputs["model.layers.2.mlp.down_proj.weight"]) == sum(len(ids) for ids in SEQUENCES)
        assert inputs["model.layers.2.mlp.down_proj.weight"][0].shape[1] == 48


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "trained",
    [
        {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True},
        {"target_modules": ["lm_head", "embed_tokens"]},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens", "lm_head"], "rows": 510},
        {"modules_to_save": ["norm", "input_layernorm"]},
        {"trainable_token_indices": [3, 4, 77]},
        {"bias": "all"},
        {"rows": 510},
        {"rows": 490},
    ],
    ids=str,
)
def test_tables_of_an_adapter_are_used_as_peft_uses_them(
    tiny_model_maker: ModelMaker, listening_job: ListeningJob, tmp_path: Path, tied: bool, trained: dict[str, Any]
) -> None:
    """What PEFT computes while it runs, not what it merges: where one table has two uses, it merges a change of one into both."""
    base = tiny_model_maker(tmp_path / "base", tied=tied, hidden=32, intermediate=48)
    adapter = make_adapter(base, tmp_path / "adapter", **trained)
    said: list[list[np.ndarray]] = []
    for memory in (IN_MEMORY, FROM_DISK):
        with Reference(base, adapter, job=listening_job, memory=memory) as reference:
            said.append(list(reference.forward([[1, 3, 77, 300, 12], [3, 4, 5]])))
    for held, read in zip(*said, strict=True):
        assert held.shape[1] == trained.get("rows", 500) and np.allclose(held, read, atol=1e-4)


def test_a_stop_is_heard_between_two_layers(tmp_path: Path) -> None:
    base = base_of(tmp_path / "base", "llama")
    for memory, looks in ((IN_MEMORY, 1), (FROM_DISK, 5)):
        job = ListeningJob(tmp_path / str(memory), stop_after=looks)
        with Reference(base, None, job=job, memory=memory) as reference, pytest.raises(Stopped):
            list(reference.forward(SEQUENCES))


def test_a_deep_model_needs_memory_for_one_layer(listening_job: ListeningJob, tmp_path: Path) -> None:
    """24 layers of 0.8 MB each; torch's own memory is not seen by tracemalloc, numpy's is, and weights are read by numpy."""
    base = base_of(tmp_path / "base", "llama", num_hidden_layers=24, hidden_size=128, intermediate_size=384, head_dim=32)
    with Reference(base, None, job=listening_job, memory=FROM_DISK) as reference:
        tracemalloc.start()
        list(reference.forward(SEQUENCES))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    layer = (base / "model.safetensors").stat().st_size / 24
    assert layer < peak < 3 * layer
    assert any("layer by layer" in note for note in listening_job.notes)
