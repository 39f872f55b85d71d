"""Base and adapter become one model as safetensors: what PEFT makes of them, in any format, resumable, never half a folder."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from studio.errors import UserError
from studio.ml.gguf import merging
from studio.ml.gguf.merging import write_merged
from studio.training.job import Stopped
from tests.ml.adapters import LINEARS, make_adapter, says
from tests.ml.conftest import ModelMaker

IDS = [1, 40, 77, 300, 12, 9, 150, 2, 44, 61, 205, 33]
MERGES = """
import pathlib, sys
from studio.ml.gguf.merging import write_merged
base, adapter, folder = map(pathlib.Path, sys.argv[1:])
write_merged(base=base, adapter=adapter, precision="f32", folder=folder)
"""
DIES = """
import itertools, json, os, pathlib, sys
from studio.ml.gguf.merging import write_merged
base, adapter, folder = map(pathlib.Path, sys.argv[1:4])
asked = itertools.count()
stopping = lambda: next(asked) == 4 and os._exit(9)
write_merged(base=base, adapter=adapter, folder=folder / "out", state=folder / "state", stopping=stopping, **json.loads(sys.argv[4]))
"""
"""A process that is gone in the middle of a shard."""
TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def merged_by_peft(base: Path, adapter: Path) -> Any:
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter).merge_and_unload().eval()


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def contents(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


@pytest.mark.parametrize("precision", ["f32", "f16", "bf16"])
def test_every_tensor_is_the_one_that_peft_merges_rounded_once(tiny_model: Path, tmp_path: Path, precision: Any) -> None:
    adapter = make_adapter(tiny_model, tmp_path / "adapter")
    made = write_merged(base=tiny_model, adapter=adapter, precision=precision, folder=tmp_path / "out")
    expected, found = merged_by_peft(tiny_model, adapter).state_dict(), tensors_of(tmp_path / "out")
    assert found.keys() == expected.keys() - {"lm_head.weight"}
    assert made["shards"] == 1 and made["tensors"] == len(found) and made["changed"] == 14
    for name, tensor in found.items():
        assert tensor.dtype is TYPES[precision]
        wanted = expected[name].to(tensor.dtype)
        # PEFT adds in another order: a weight that stands between two may be rounded to either
        assert (tensor != wanted).float().mean() < (1 if precision == "f32" else 1e-3), name
        step = {"f32": 2e-6, "f16": 1e-3, "bf16": 8e-3}[precision]
        assert torch.allclose(tensor.float(), wanted.float(), rtol=step, atol=1e-6), name


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_transformers_loads_the_folder_and_says_what_peft_says(tiny_model: Path, tmp_path: Path, precision: Any) -> None:
    adapter = make_adapter(tiny_model, tmp_path / "adapter")
    write_merged(base=tiny_model, adapter=adapter, precision=precision, folder=tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype is TYPES[precision]
    assert np.abs(says(model.float(), IDS) - says(merged_by_peft(tiny_model, adapter), IDS)).max() < (1e-5 if precision == "f32" else 0.05)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("Hello 12").input_ids == AutoTokenizer.from_pretrained(tiny_model)("Hello 12").input_ids
    assert tokenizer.chat_template == (tiny_model / "chat_template.jinja").read_text()
    assert (tmp_path / "out" / "generation_config.json").read_bytes() == (tiny_model / "generation_config.json").read_bytes()


def test_a_base_is_written_as_it_is_where_there_is_no_adapter(tiny_model: Path, tmp_path: Path) -> None:
    write_merged(base=tiny_model, adapter=None, precision="f32", folder=tmp_path / "out")
    expected, found = load_file(tiny_model / "model.safetensors"), tensors_of(tmp_path / "out")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_shards_hold_no_more_than_they_may_and_an_index_finds_all_of_them(tiny_model: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_model, tmp_path / "adapter")
    table = 500 * 64 * 4  # the largest tensor, which fills a shard of its own
    made = write_merged(base=tiny_model, adapter=adapter, precision="f32", folder=tmp_path / "out", shard_bytes=100_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert [file.name for file in files] == [f"model-{number:05}-of-{len(files):05}.safetensors" for number in range(1, len(files) + 1)]
    assert made["shards"] == len(files) == len({*index["weight_map"].values()}) > 2
    sizes = [sum(tensor.nbytes for tensor in load_file(file).values()) for file in files]
    assert index["metadata"]["total_size"] == sum(sizes)
    assert max(sizes) == table and sorted(sizes)[-2] <= 100_000
    assert all(index["weight_map"][name] == file.name for file in files for name in load_file(file))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert np.abs(says(model, IDS) - says(merged_by_peft(tiny_model, adapter), IDS)).max() < 1e-5


@pytest.mark.parametrize(("most", "shards"), [(1e9, 1), (500 * 64 * 4, None), (1, 20)])
def test_the_boundary_of_a_shard_may_stand_anywhere(tiny_model: Path, tmp_path: Path, most: float, shards: int | None) -> None:
    made = write_merged(base=tiny_model, adapter=None, precision="f32", folder=tmp_path / "out", shard_bytes=most)
    assert shards is None or made["shards"] == shards
    expected, found = load_file(tiny_model / "model.safetensors"), tensors_of(tmp_path / "out")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_the_bytes_depend_neither_on_threads_nor_on_how_the_base_is_cut(tiny_model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    adapter = make_adapter(tiny_model, tmp_path / "adapter", use_dora=True)
    write_merged(base=tiny_model, adapter=adapter, precision="bf16", folder=tmp_path / "one", threads=1, shard_bytes=60_000)
    shards = tmp_path / "shards"
    write_merged(base=tiny_model, adapter=None, precision="f32", folder=shards, shard_bytes=30_000)
    (shards / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    monkeypatch.setattr(merging, "PIECE", 1000)
    write_merged(base=shards, adapter=adapter, precision="bf16", folder=tmp_path / "two", threads=3, shard_bytes=60_000)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_the_bytes_do_not_depend_on_the_processor(tiny_model_maker: ModelMaker, tmp_path: Path) -> None:
    base = tiny_model_maker(tmp_path / "base", hidden=72, intermediate=136, tied=False)
    adapter = make_adapter(base, tmp_path / "adapter", use_dora=True, r=5, target_modules=[*LINEARS, "embed_tokens", "lm_head"])
    for kernels in ("", "none"):
        command = [sys.executable, "-c", MERGES, base, adapter, tmp_path / f"out{kernels}"]
        subprocess.run(command, env=os.environ | {"ADAPTER_STUDIO_KERNELS": kernels}, check=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "outnone")


@pytest.mark.parametrize("with_state", [True, False])
def test_what_was_stopped_goes_on_after_its_last_whole_shard(tiny_model: Path, tmp_path: Path, with_state: bool) -> None:
    adapter = make_adapter(tiny_model, tmp_path / "adapter")
    arguments: dict[str, Any] = {"base": tiny_model, "adapter": adapter, "precision": "f16", "shard_bytes": 40_000, "threads": 1}
    write_merged(**arguments, folder=tmp_path / "whole")
    state, asked = tmp_path / "state" if with_state else None, iter(range(100))
    with pytest.raises(Stopped):
        write_merged(**arguments, folder=tmp_path / "out", state=state, stopping=lambda: next(asked) == 3)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))
    before = {file: file.stat().st_mtime_ns for file in state.rglob("*.safetensors")} if state else {}
    assert len(before) == (3 if state else 0)
    seen: list[tuple[int, int]] = []
    write_merged(**arguments, folder=tmp_path / "out", state=state, progress=lambda done, total: seen.append((done, total)))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert {file: file.stat().st_mtime_ns for file in before} == before  # they were not written again
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1]


def test_a_process_that_is_killed_leaves_nothing_half_done_and_what_it_finished_counts(tiny_model: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_model, tmp_path / "adapter")
    arguments: dict[str, Any] = {"precision": "f32", "shard_bytes": 40_000, "threads": 1}
    write_merged(base=tiny_model, adapter=adapter, **arguments, folder=tmp_path / "whole")
    child = subprocess.run([sys.executable, "-c", DIES, tiny_model, adapter, tmp_path, json.dumps(arguments)], check=False)
    assert child.returncode == 9
    assert not (tmp_path / "out").exists() and list((tmp_path / "state").rglob("*.part"))
    finished = list((tmp_path / "state").rglob("*.safetensors"))
    finished[-1].write_bytes(finished[-1].read_bytes()[:-1])  # and what the disk has lost does not count
    (tmp_path / "state" / "merged-of-another-adapter").mkdir()
    write_merged(base=tiny_model, adapter=adapter, **arguments, folder=tmp_path / "out", state=tmp_path / "state")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert len(list((tmp_path / "state").glob("merged-*"))) == 1


def test_another_adapter_begins_anew(tiny_model: Path, tmp_path: Path) -> None:
    one, two = make_adapter(tiny_model, tmp_path / "one"), make_adapter(tiny_model, tmp_path / "two", seed=8)
    state = tmp_path / "state"
    write_merged(base=tiny_model, adapter=one, precision="f32", folder=tmp_path / "first", state=state)
    write_merged(base=tiny_model, adapter=two, precision="f32", folder=tmp_path / "second", state=state)
    write_merged(base=tiny_model, adapter=two, precision="f32", folder=tmp_path / "third")
    assert contents(tmp_path / "second") == contents(tmp_path / "third") != contents(tmp_path / "first")


def test_what_f16_cannot_hold_is_refused_by_name_and_leaves_nothing(tiny_model_maker: ModelMaker, tmp_path: Path) -> None:
    base, name = tiny_model_maker(tmp_path / "base"), "model.layers.1.mlp.up_proj.weight"
    weights = load_file(base / "model.safetensors")
    weights[name][0, 0] = 70_000.0
    save_file(weights, base / "model.safetensors")
    with pytest.raises(UserError, match=name):
        write_merged(base=base, adapter=None, precision="f16", folder=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    write_merged(base=base, adapter=None, precision="bf16", folder=tmp_path / "out")


def test_buffers_and_a_shared_output_layer_are_left_out(tiny_model_maker: ModelMaker, tmp_path: Path) -> None:
    base = tiny_model_maker(tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    more = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
        "model.layers.0.attn.bias": torch.ones(1, 1, 8, 8),
        "model.layers.0.attn.masked_bias": torch.tensor(-1e4),
        "lm_head.weight": weights["model.embed_tokens.weight"].clone(),
    }
    save_file(weights | more, base / "model.safetensors")
    write_merged(base=base, adapter=None, precision="f32", folder=tmp_path / "out")
    assert tensors_of(tmp_path / "out").keys() == weights.keys()


def test_a_family_without_a_gguf_is_merged_too(tiny_model: Path, tmp_path: Path) -> None:
    """GPT-2 keeps its layers as [inputs, outputs], which peft calls fan_in_fan_out, and its table of words under another name."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=500, n_positions=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2)
    base = tmp_path / "base"
    GPT2LMHeadModel(config).save_pretrained(base)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).write_bytes((tiny_model / name).read_bytes())
    for number, settings in enumerate([{}, {"use_dora": True}, {"bias": "all"}, {"lora_bias": True}]):
        adapter = make_adapter(base, tmp_path / f"adapter{number}", target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, **settings)
        folder = tmp_path / f"out{number}"
        write_merged(base=base, adapter=adapter, precision="f32", folder=folder)
        expected = merged_by_peft(base, adapter)
        for name, tensor in tensors_of(folder).items():
            assert torch.allclose(tensor, expected.state_dict()[name], rtol=1e-5, atol=1e-6), name
        assert np.abs(says(AutoModelForCausalLM.from_pretrained(folder), IDS) - says(expected, IDS)).max() < 1e-5


def test_only_files_that_are_known_come_along_and_none_that_is_a_link(tiny_model_maker: ModelMaker, tmp_path: Path) -> None:
    base = tiny_model_maker(tmp_path / "base")
    (base / "modeling_own.py").write_text("print('hello')")
    (base / "vocab.json").write_text("{}")
    for name in ("config.json", "tokenizer_config.json"):
        settings = json.loads((base / name).read_text())
        (base / name).write_text(json.dumps(settings | {"auto_map": {"AutoModel": "modeling_own.Own"}, "_name_or_path": "/home/somebody"}))
    write_merged(base=base, adapter=None, precision="f32", folder=tmp_path / "out")
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.json"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names | {"chat_template.jinja"}
    assert not any("own" in file.read_text() or "somebody" in file.read_text() for file in (tmp_path / "out").glob("*.json"))
    secret = tmp_path / "secret"
    secret.write_text("{}")
    (base / "vocab.json").unlink()
    (base / "vocab.json").symlink_to(secret)
    with pytest.raises(UserError, match=r"vocab\.json is a link"):
        write_merged(base=base, adapter=None, precision="f32", folder=tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_quantized_weights_are_refused(tiny_model_maker: ModelMaker, tmp_path: Path) -> None:
    base = tiny_model_maker(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(UserError, match="quantized already"):
        write_merged(base=base, adapter=None, precision="f32", folder=tmp_path / "out")


def test_it_loads_no_torch() -> None:
    code = "import sys, studio.ml.gguf.merging, studio.ml.gguf.adapters; print({'torch', 'transformers', 'django'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
