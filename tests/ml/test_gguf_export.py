"""Base and adapter become one GGUF: the same bytes as merging with PEFT and quantizing with ggml, and never half a file."""

import ctypes
import json
import shutil
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
from studio.ml.gguf.exporting import Target, estimated_size, export, export_all
from studio.ml.gguf.header import read_header
from studio.ml.gguf.metadata import size_label
from studio.ml.gguf.quantizing import OutOfRange
from studio.ml.gguf.recipes import RECIPES
from studio.ml.gguf.serving import prepare
from studio.ml.gguf.writing import TYPE_NUMBERS
from studio.storage import commit_folder
from studio.training.job import Stopped
from studio.training.orders import BuildAbout
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


def ggml_bytes(rows: np.ndarray, kind: str, importance: np.ndarray | None = None) -> np.ndarray:
    if kind == "F32":
        return rows.view(np.uint8).reshape(-1)
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(TYPE_NUMBERS[kind])]
    out = np.empty(rows.size // block * size, np.uint8)
    quantize = llamacpp.library().ggml_quantize_chunk
    weights = None if importance is None else ctypes.c_void_p(importance.ctypes.data)
    quantize(
        TYPE_NUMBERS[kind], ctypes.c_void_p(rows.ctypes.data), ctypes.c_void_p(out.ctypes.data), ctypes.c_int64(0),
        ctypes.c_int64(rows.shape[0]), ctypes.c_int64(rows.shape[1]), weights,
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
        # PEFT adds the product to the weight in another order; a value on the edge between two steps may fall to either side, and in
        # q4_k_m the scale of a block with it
        assert np.mean(expected != tensor.data.view(np.uint8).reshape(-1)) < 5e-3, name


def test_all_types_come_out_of_one_pass_with_the_bytes_of_ggml(tiny_model_maker: ModelMaker, tmp_path: Path) -> None:
    wide_model = tiny_model_maker(tmp_path / "wide", hidden=256, intermediate=256, layers=1, tied=False, vocabulary=300)
    shape, weights = read_shape(wide_model), load_file(wide_model / "model.safetensors")
    generator = np.random.default_rng(5)
    importance = {
        name: generator.exponential(size=weight.shape[1]).astype(np.float32)
        for name, weight in weights.items()
        if ".layers." in name and weight.ndim == 2
    }
    targets = [Target(kind, tmp_path / f"{kind}.gguf") for kind in RECIPES]
    targets += [Target(kind, tmp_path / f"{kind}-weighed.gguf", importance=True) for kind in RECIPES if kind[0] != "f"]
    made = export_all(base=wide_model, adapter=None, targets=targets, name="tiny", importance=importance)

    assert [answer["size"] for answer in made] == [target.path.stat().st_size for target in targets]
    for target in targets:
        estimate = estimated_size(wide_model, target.quantization, importance=target.importance)
        assert estimate == pytest.approx(target.path.stat().st_size, abs=64)  # the name differs
        assert ("quantize.imatrix.entries_count" in read_header(target.path).entries) is (
            target.importance and RECIPES[target.quantization].weighed
        )
        found = {tensor.name: tensor for tensor in gguf.GGUFReader(target.path).tensors}
        for name, weight in weights.items():
            rows, tensor = weight.numpy(), found[str(shape.tensor_name(name))]
            if shape.heads_of(name):
                rows = reordered_as_llamacpp_does(rows, shape.heads_of(name))
            counts = importance.get(name) if target.importance else None
            expected = ggml_bytes(np.ascontiguousarray(rows), tensor.tensor_type.name, counts)
            assert np.array_equal(expected, tensor.data.view(np.uint8).reshape(-1)), (target.path.name, name)
    for kind in ("q8_0", "q4_k_m"):
        alone = built(wide_model, tmp_path / "alone", quantization=kind).read_bytes()
        assert alone == (tmp_path / f"{kind}.gguf").read_bytes()
        assert (alone == (tmp_path / f"{kind}-weighed.gguf").read_bytes()) is not RECIPES[kind].weighed


def test_the_bytes_do_not_depend_on_threads_places_times_or_order(wide_model: Path, adapter_of: AdapterMaker, tmp_path: Path) -> None:
    adapter = adapter_of(wide_model)
    expected = built(wide_model, tmp_path / "one", adapter=adapter, quantization="q4_k_m", threads=1).read_bytes()
    assert built(wide_model, tmp_path / "three", adapter=adapter, quantization="q4_k_m", threads=3).read_bytes() == expected
    for folder in (wide_model, adapter):
        shutil.copytree(folder, tmp_path / "elsewhere" / folder.name, copy_function=shutil.copyfile)
    moved = tmp_path / "elsewhere" / wide_model.name
    turned_around(moved / "model.safetensors")
    turned_around(tmp_path / "elsewhere" / adapter.name / "adapter_model.safetensors")
    again = built(moved, tmp_path / "moved", adapter=tmp_path / "elsewhere" / adapter.name, quantization="q4_k_m")
    assert again.read_bytes() == expected


def turned_around(file: Path) -> None:
    """The same tensors in the other order, in the header and in the data."""
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    header.pop("__metadata__", None)
    content, entries = b"", {}
    for name, entry in reversed(header.items()):
        begin, end = entry["data_offsets"]
        entries[name] = entry | {"data_offsets": [len(content), len(content) + end - begin]}
        content += data[begin:end]
    head = json.dumps(entries).encode()
    file.write_bytes(len(head).to_bytes(8, "little") + head + content)


def test_the_file_says_what_it_is_and_where_it_comes_from(wide_model: Path, tmp_path: Path) -> None:
    about = BuildAbout(
        title="Support\nassistant\u202e PHI-3 " + "x" * 300,
        author="Northwind",
        license="apache-2.0",
        base_name="shown otherwise",
        base_source="hub:somebody/SmolLM2-135M@0123456789abcdef",
        dataset="Answers of 2025",
        version="0123456789ab",
        languages=["en", "de", ""],
    )
    header = read_header(built(wide_model, tmp_path, about=about))
    name = str(header.get("general.name"))
    assert name.startswith("Support assistant phi_3 xxx") and len(name) <= 200
    told = {key.removeprefix("general."): entry.value for key, entry in header.entries.items() if key.startswith("general.")}
    assert told == {
        "architecture": "llama", "type": "model", "name": name, "author": "Northwind", "version": "0123456789ab", "size_label": "2.0M",
        "license": "apache-2.0", "base_model.count": 1, "base_model.0.name": "SmolLM2-135M", "base_model.0.organization": "somebody",
        "base_model.0.version": "0123456789abcdef", "dataset.count": 1, "dataset.0.name": "Answers of 2025", "languages": ["en", "de"],
        "quantization_version": 2, "file_type": 1,
    }  # fmt: skip
    plain = read_header(built(wide_model, tmp_path / "plain"))
    assert plain.get("general.name") == "tiny" and "general.author" not in plain.entries and "general.base_model.count" not in plain.entries


@pytest.mark.parametrize(("weights", "label"), [(134_515_008, "135M"), (1_235_814_400, "1.2B"), (6_738_415_616, "6.7B"), (90_000, "90K")])
def test_the_size_of_a_model_is_named_as_llamacpp_names_it(weights: int, label: str) -> None:
    assert size_label(weights) == label == gguf.size_label(weights, 0, 0, 0)


MEASURED = """
import sys
from pathlib import Path
from studio.ml.gguf.exporting import Target, export_all

base, out, state = map(Path, sys.argv[1:4])
targets = [Target(kind, out / f"{kind}.gguf") for kind in ("q8_0", "q4_0")]
export_all(base=base, adapter=None, targets=targets, name="large", threads=2, state=state)
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])  # ru_maxrss begins with what the parent held
"""


def test_memory_does_not_grow_with_the_model(tiny_model_maker: ModelMaker, tmp_path: Path) -> None:
    """Ten layers of a large model, which takes no disk since it is all zeros, need no more than one of them."""
    peaks = []
    for layers in (1, 10):
        base = tiny_model_maker(tmp_path / f"base-{layers}", layers=layers, hidden=64, intermediate=128)
        enlarged(base, layers=layers)
        command = [sys.executable, "-c", MEASURED, base, tmp_path / f"out-{layers}", tmp_path / f"state-{layers}"]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert sum(path.stat().st_size for path in (tmp_path / "out-10").iterdir()) > 100 << 20
    assert peaks[1] < peaks[0] + (40 << 10), peaks


def enlarged(base: Path, *, layers: int, hidden: int = 1024, intermediate: int = 4096) -> None:
    """Gives a tiny model the sizes of a large one; the file has holes where its weights would be."""
    config = json.loads((base / "config.json").read_text())
    sizes = {"hidden_size": hidden, "intermediate_size": intermediate, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64}
    (base / "config.json").write_text(json.dumps(config | sizes))
    shapes = {"model.embed_tokens.weight": [config["vocab_size"], hidden], "model.norm.weight": [hidden]}
    for layer in range(layers):
        shapes |= {
            f"model.layers.{layer}.{name}.weight": size
            for name, size in {
                "input_layernorm": [hidden],
                "post_attention_layernorm": [hidden],
                "self_attn.q_proj": [hidden, hidden],
                "self_attn.k_proj": [hidden // 4, hidden],
                "self_attn.v_proj": [hidden // 4, hidden],
                "self_attn.o_proj": [hidden, hidden],
                "mlp.gate_proj": [intermediate, hidden],
                "mlp.up_proj": [intermediate, hidden],
                "mlp.down_proj": [hidden, intermediate],
            }.items()
        }
    header, offset = {}, 0
    for name, size in shapes.items():
        header[name] = {"dtype": "BF16", "shape": size, "data_offsets": [offset, offset := offset + 2 * int(np.prod(size))]}
    head = json.dumps(header).encode()
    with (base / "model.safetensors").open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.truncate(8 + len(head) + offset)


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

    assert alone.adapter is None and swapped.model == alone.model != whole.model
    assert swapped.adapter and whole.adapter is None
    killed = cache / f".{alone.model.name}.1.1.part"
    killed.write_bytes(b"half")
    made = {path: path.stat().st_mtime_ns for path in cache.glob("*.gguf")}
    prepare(base=base, adapter=lora, cache=cache)
    assert {path: path.stat().st_mtime_ns for path in cache.glob("*.gguf")} == made
    assert not killed.exists()

    monkeypatch.setattr(serving, "MOST", alone.model.stat().st_size + swapped.adapter.stat().st_size)
    prepare(base=base, adapter=lora, cache=cache)
    assert {*cache.glob("*.gguf")} == {alone.model, swapped.adapter}  # what was not used for longest made room


def test_a_small_adapter_is_served_as_it_is_and_a_large_one_in_half_the_memory(
    tiny_model_maker: ModelMaker, adapter_of: AdapterMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_model_maker(tmp_path / "unsealed-base")
    for name, folder in (("base", base), ("lora", adapter_of(base, name="unsealed-lora"))):
        commit_folder(folder, tmp_path / name)
    sizes = []
    for most in (serving.EXACT_UP_TO, 0):
        monkeypatch.setattr(serving, "EXACT_UP_TO", most)
        served = prepare(base=tmp_path / "base", adapter=tmp_path / "lora", cache=tmp_path / f"cache-{most}")
        assert served.adapter
        sizes.append(sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(served.adapter).tensors))
    assert sizes[0] == 2 * sizes[1]


def test_beside_a_base_in_q8_0_an_adapter_is_served_in_it_too(
    tiny_model_maker: ModelMaker, adapter_of: AdapterMaker, tmp_path: Path
) -> None:
    base = tiny_model_maker(tmp_path / "unsealed-base")
    for name, folder in (("base", base), ("lora", adapter_of(base, name="unsealed-lora"))):
        commit_folder(folder, tmp_path / name)
    served = prepare(base=tmp_path / "base", adapter=tmp_path / "lora", cache=tmp_path / "cache", precision="q8_0")
    assert served.adapter
    tensors = gguf.GGUFReader(served.adapter).tensors
    assert {tensor.tensor_type.name for tensor in tensors} == {"Q8_0"}
    assert {int(tensor.shape[0]) for tensor in tensors if tensor.name.endswith("lora_b")} == {32}  # ranks are filled up to whole blocks
    exact = prepare(base=tmp_path / "base", adapter=tmp_path / "lora", cache=tmp_path / "cache", precision="f16")
    assert exact.adapter not in (None, served.adapter)


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


def test_an_adapter_beyond_f16_is_served_in_f32(tiny_model_maker: ModelMaker, adapter_of: AdapterMaker, tmp_path: Path) -> None:
    base = tiny_model_maker(tmp_path / "unsealed-base")
    adapter = adapter_of(base)
    weights = load_file(adapter / "adapter_model.safetensors")
    next(tensor for name, tensor in weights.items() if "lora_A" in name)[0, 0] = 70_000.0
    save_file(weights, adapter / "adapter_model.safetensors")
    for folder in (base, adapter):
        commit_folder(folder, tmp_path / f"sealed-{folder.name}")

    files = prepare(base=tmp_path / "sealed-unsealed-base", adapter=tmp_path / "sealed-adapter", cache=tmp_path / "cache")

    assert files.adapter and {tensor.type for tensor in read_header(files.adapter).tensors.values()} == {"F32"}


def test_what_does_not_fit_the_model_is_refused_before_a_weight_is_read(
    wide_model: Path, tiny_model_maker: ModelMaker, tmp_path: Path
) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    target = Target("q4_k_m", tmp_path / "out" / "a.gguf", importance=True)
    with pytest.raises(UserError, match=f"importance of {name} was measured on another model"):
        export_all(base=wide_model, adapter=None, targets=[target], name="tiny", importance={name: np.ones(8, np.float32)})
    with pytest.raises(UserError, match="q9 is no type"):
        built(wide_model, tmp_path / "out", quantization="q9")
    base = tiny_model_maker(tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    for shape, sentence in (((0, 64), r"shape \[0, 64\]"), ((2, 2, 64), r"shape \[2, 2, 64\]")):
        save_file(weights | {name: torch.zeros(shape)}, base / "model.safetensors")
        with pytest.raises(UserError, match=sentence):
            built(base, tmp_path / "out")
    query = "model.layers.0.self_attn.q_proj.weight"
    save_file(weights | {query: weights[query][:-1].contiguous()}, base / "model.safetensors")
    with pytest.raises(UserError, match="63 rows, which 4 heads cannot share"):
        built(base, tmp_path / "out")
    save_file({stored: weight for stored, weight in weights.items() if stored != name}, base / "model.safetensors")
    with pytest.raises(UserError, match=r"incomplete: blk\.0\.ffn_up"):
        built(base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


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
