"""Base and adapter become one GGUF: the same bytes as merging with PEFT and quantizing with ggml, and never half a file."""

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from studio.errors import UserError
from studio.ml import llamacpp
from studio.ml.gguf import serving
from studio.ml.gguf.adapters import export_adapter
from studio.ml.gguf.architectures import read_shape, supported
from studio.ml.gguf.exporting import estimated_size, export
from studio.ml.gguf.header import read_header
from studio.ml.gguf.quantizing import OutOfRange
from studio.ml.gguf.serving import prepare
from studio.ml.gguf.writing import TYPE_NUMBERS
from studio.storage import commit_folder
from studio.training.job import Stopped
from tests.ml.conftest import ModelMaker

AdapterMaker = Callable[..., Path]
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IDS = [1, 40, 77, 300, 12, 9, 150, 2, 44, 61, 205, 33]


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory, tiny_model_maker: ModelMaker) -> Path:
    """Rows of 256 weights, so that the K-quants apply."""
    return tiny_model_maker(tmp_path_factory.mktemp("wide"), hidden=256, intermediate=512, layers=3, tied=False)


@pytest.fixture
def adapter_of(tmp_path: Path) -> AdapterMaker:
    def make(base: Path, *, name: str = "adapter", **settings: Any) -> Path:
        """An adapter with random weights in both of its matrices; DoRA's magnitudes are moved too."""
        torch.manual_seed(7)
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
            LoraConfig(**({"r": 4, "lora_alpha": 12, "target_modules": LINEARS, "task_type": "CAUSAL_LM"} | settings)),
        )
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.data.normal_(std=0.05)
            if "magnitude" in key:
                parameter.data.mul_(torch.rand_like(parameter) + 0.5)
        model.save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


def merged(base: Path, adapter: Path | None) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return (PeftModel.from_pretrained(model, adapter).merge_and_unload() if adapter else model).eval()


def built(base: Path, folder: Path, *, adapter: Path | None = None, quantization: str = "f16", **options: Any) -> Path:
    target = folder / f"{quantization}.gguf"
    export(base=base, adapter=adapter, quantization=quantization, target=target, name="tiny", **options)
    return target


def logits_in_llamacpp(path: Path, ids: list[int]) -> np.ndarray:
    with llamacpp.Model(path) as model:
        return model.logits(ids)


def logits_in_transformers(model: Any, ids: list[int]) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].float().numpy()


def ggml_bytes(rows: np.ndarray, kind: str) -> np.ndarray:
    if kind == "F32":
        return rows.view(np.uint8).reshape(-1)
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(TYPE_NUMBERS[kind])]
    out = np.empty(rows.size // block * size, np.uint8)
    quantize = llamacpp.library().ggml_quantize_chunk
    quantize(
        TYPE_NUMBERS[kind], ctypes.c_void_p(rows.ctypes.data), ctypes.c_void_p(out.ctypes.data), ctypes.c_int64(0),
        ctypes.c_int64(rows.shape[0]), ctypes.c_int64(rows.shape[1]), None,
    )  # fmt: skip
    return out


def reordered_as_llamacpp_does(rows: np.ndarray, heads: int) -> np.ndarray:
    """convert_hf_to_gguf's `LlamaModel.permute`."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


@pytest.mark.parametrize("quantization", ["f16", "bf16", "q8_0", "q4_k_m"])
def test_every_tensor_has_the_bytes_of_ggml_for_the_model_that_peft_merged(
    wide_model: Path, adapter_of: AdapterMaker, tmp_path: Path, quantization: str
) -> None:
    adapter = adapter_of(wide_model)
    shape, weights = read_shape(wide_model), merged(wide_model, adapter).state_dict()
    path = built(wide_model, tmp_path, adapter=adapter, quantization=quantization)
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}

    assert len(found) == len(weights)
    for name, weight in weights.items():
        rows = weight.numpy()
        if shape.heads_of(name):
            rows = reordered_as_llamacpp_does(rows, shape.heads_of(name))
        tensor = found[str(shape.tensor_name(name))]
        expected = ggml_bytes(np.ascontiguousarray(rows), tensor.tensor_type.name)
        # PEFT adds the product to the weight in another order; a value on the edge between two steps may fall to either side
        assert np.mean(expected != tensor.data.view(np.uint8).reshape(-1)) < 1e-4, name


def test_the_bytes_do_not_depend_on_the_number_of_threads(wide_model: Path, adapter_of: AdapterMaker, tmp_path: Path) -> None:
    adapter = adapter_of(wide_model)
    contents = []
    for threads in (1, 3):
        (tmp_path / str(threads)).mkdir()
        contents.append(built(wide_model, tmp_path / str(threads), adapter=adapter, quantization="q4_k_m", threads=threads).read_bytes())
    assert contents[0] == contents[1]


VARIANTS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "rsLoRA": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "DoRA with rsLoRA": {"use_dora": True, "use_rslora": True},
    "ranks and alphas by layer": {"rank_pattern": {"q_proj": 8, r"layers\.1\.mlp\.up_proj": 2}, "alpha_pattern": {"v_proj": 40}},
    "some layers only": {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_file_answers_as_the_merged_model_for_every_kind_of_adapter(
    tiny_model: Path, adapter_of: AdapterMaker, tmp_path: Path, variant: str
) -> None:
    adapter = adapter_of(tiny_model, **VARIANTS[variant])
    expected = logits_in_transformers(merged(tiny_model, adapter), IDS)
    found = logits_in_llamacpp(built(tiny_model, tmp_path, adapter=adapter), IDS)
    plain = logits_in_transformers(merged(tiny_model, None), IDS)
    assert np.abs(found - expected).max() < 0.01 < 10 * np.abs(plain - expected).max()


@pytest.mark.parametrize("variant", [name for name in VARIANTS if "DoRA" not in name])
def test_an_adapter_beside_the_base_answers_as_the_merged_model(
    tiny_model: Path, adapter_of: AdapterMaker, tmp_path: Path, variant: str
) -> None:
    adapter = adapter_of(tiny_model, **VARIANTS[variant])
    expected = logits_in_transformers(merged(tiny_model, adapter), IDS)
    export_adapter(base=tiny_model, adapter=adapter, target=tmp_path / "adapter.gguf")
    with llamacpp.Model(built(tiny_model, tmp_path), adapter=tmp_path / "adapter.gguf") as model:
        found = model.logits(IDS)
    assert np.abs(found - expected).max() < 0.01


def test_a_dora_adapter_cannot_be_swapped_but_is_served_merged(
    tiny_model_maker: ModelMaker, adapter_of: AdapterMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_model_maker(tmp_path / "unsealed-base")
    dora, lora = adapter_of(base, name="dora", use_dora=True), adapter_of(base, name="lora")
    with pytest.raises(UserError, match="with DoRA or with tables of its own cannot be swapped"):
        export_adapter(base=base, adapter=dora, target=tmp_path / "dora.gguf")
    assert not (tmp_path / "dora.gguf").exists()
    for folder in (base, dora, lora):
        commit_folder(folder, tmp_path / f"sealed-{folder.name}")
    base, dora, lora, cache = tmp_path / "sealed-unsealed-base", tmp_path / "sealed-dora", tmp_path / "sealed-lora", tmp_path / "cache"

    alone, swapped, whole = (prepare(base=base, adapter=adapter, cache=cache) for adapter in (None, lora, dora))

    assert alone["adapter"] is None and swapped["model"] == alone["model"] != whole["model"]
    assert swapped["adapter"] and whole["adapter"] is None
    killed = cache / f".{alone['model'].name}.1.1.part"
    killed.write_bytes(b"half")
    made = {path: path.stat().st_mtime_ns for path in cache.glob("*.gguf")}
    prepare(base=base, adapter=lora, cache=cache)
    assert {path: path.stat().st_mtime_ns for path in cache.glob("*.gguf")} == made
    assert not killed.exists()

    monkeypatch.setattr(serving, "MOST", alone["model"].stat().st_size + swapped["adapter"].stat().st_size)
    prepare(base=base, adapter=lora, cache=cache)
    assert {*cache.glob("*.gguf")} == {alone["model"], swapped["adapter"]}  # what was not used for longest made room


def test_llama_3_scaling_of_the_context_is_kept(tiny_model_maker: ModelMaker, tmp_path: Path) -> None:
    base = tiny_model_maker(tmp_path / "base", context=2048)
    config = json.loads((base / "config.json").read_text())
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config["rope_parameters"] = {"rope_theta": 500.0, "original_max_position_embeddings": 64, **scaling}
    (base / "config.json").write_text(json.dumps(config))
    ids = (IDS * 20)[:200]
    found = logits_in_llamacpp(built(base, tmp_path), ids)
    assert np.abs(found - logits_in_transformers(merged(base, None), ids)).max() < 0.01


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_qwen_models_answer_as_in_transformers(tiny_model: Path, tmp_path: Path, family: str) -> None:
    torch.manual_seed(3)
    sizes: dict[str, Any] = {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 512, "eos_token_id": 2, "tie_word_embeddings": True,
    }  # fmt: skip
    model = Qwen2ForCausalLM(Qwen2Config(**sizes)) if family == "qwen2" else Qwen3ForCausalLM(Qwen3Config(**sizes, head_dim=32))
    for parameter in model.parameters():
        parameter.data.normal_(std=0.1)
    base = tmp_path / "base"
    model.save_pretrained(base)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (base / name).write_bytes((tiny_model / name).read_bytes())
    path = built(base, tmp_path)
    assert np.abs(logits_in_llamacpp(path, IDS) - logits_in_transformers(model.eval(), IDS)).max() < 0.02
    tokens = read_header(path).get("tokenizer.ggml.tokens")
    assert isinstance(tokens, list) and len(tokens) == 512 and tokens[-1] == "[PAD511]"


def test_an_export_that_is_stopped_or_fails_leaves_nothing(wide_model: Path, tiny_model_maker: ModelMaker, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with pytest.raises(Stopped):
        built(wide_model, folder, stopping=lambda: True)
    base = tiny_model_maker(tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    for value, refusal in ((float("nan"), UserError), (70_000.0, OutOfRange)):
        weights[name][0, 0] = value
        save_file(weights, base / "model.safetensors")
        with pytest.raises(refusal, match=name):
            built(base, folder)
    assert list(folder.iterdir()) == []
    built(base, folder, quantization="bf16")  # which holds what f16 cannot
    assert [path.name for path in folder.iterdir()] == ["bf16.gguf"]


def test_building_and_serving_load_no_torch_until_they_compare() -> None:
    code = "import sys, studio.ml.gguf.building, studio.ml.gguf.serving; print({'torch', 'transformers', 'django'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_progress_counts_the_bytes_of_the_result(wide_model: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = built(wide_model, tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] <= seen[-1][1] < path.stat().st_size == estimated_size(wide_model, "f16")
    assert sorted(seen) == seen


def test_a_family_that_is_not_known_is_refused_with_the_list(tiny_model_maker: ModelMaker, tmp_path: Path) -> None:
    base = tiny_model_maker(tmp_path / "base")
    supported(base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"architectures": ["MambaForCausalLM"]}))
    with pytest.raises(UserError, match=r"MambaForCausalLM yet.*SmolLM2.*Qwen3"):
        supported(base)
    (base / "config.json").write_text(json.dumps(config | {"rope_parameters": {"rope_type": "longrope"}}))
    with pytest.raises(UserError, match="long_factor"):
        supported(base)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"modules_to_save": ["lm_head"]}, "lm_head, which was trained in full, is missing"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base's own weights"),
        ({"peft_type": "IA3"}, "type IA3"),
        ({"r": 8}, "does not fit"),
        ({"use_dora": True}, "incomplete"),
        ({"rank_pattern": {"(": 4}}, "cannot be read"),
    ],
)
def test_an_adapter_that_cannot_be_added_to_weights_is_refused(
    tiny_model: Path, adapter_of: AdapterMaker, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    adapter = adapter_of(tiny_model)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=sentence):
        built(tiny_model, tmp_path / "out", adapter=adapter)
    assert not list((tmp_path / "out").glob("*"))


def test_an_adapter_of_another_base_is_refused(tiny_model: Path, wide_model: Path, adapter_of: AdapterMaker, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="base that it was trained on"):
        built(tiny_model, tmp_path, adapter=adapter_of(wide_model))


def test_a_model_in_shards_gives_the_same_file(wide_model: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    LlamaForCausalLM.from_pretrained(wide_model, dtype=torch.float32).save_pretrained(shards, max_shard_size="1MB")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (shards / name).write_bytes((wide_model / name).read_bytes())
    assert len(list(shards.glob("*.safetensors"))) > 1
    (tmp_path / "whole").mkdir()
    assert built(shards, tmp_path).read_bytes() == built(wide_model, tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("damage", ["cut", "no header", "outside"])
def test_damaged_weights_are_refused(tiny_model_maker: ModelMaker, tmp_path: Path, damage: str) -> None:
    base = tiny_model_maker(tmp_path / "base")
    file = base / "model.safetensors"
    raw = file.read_bytes()
    if damage == "cut":
        file.write_bytes(raw[:-100])
    elif damage == "no header":
        file.write_bytes(b"\xff" * 64)
    else:
        (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    with pytest.raises(UserError):
        built(base, tmp_path / "out")
