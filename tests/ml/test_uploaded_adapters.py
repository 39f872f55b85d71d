"""Adapters that were trained elsewhere: what PEFT and those who build on it save is taken, everything else is refused with its reason."""

import json
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from studio.errors import UserError
from studio.ml.gguf.peft_settings import Settings
from studio.ml.modelfacts import read_model_facts
from studio.ml.uploaded import tensors
from studio.ml.uploaded.config import of_layers
from studio.ml.uploaded.containers import Room, unpack
from studio.ml.uploaded.taking import run
from studio.training.job import Stopped
from tests.jobs import ListeningJob
from tests.ml.adapters import LINEARS, make_adapter

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def packed(folder: Path, target: Path, *, inside: str = "my-adapter/") -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, f"{inside}{path.relative_to(folder)}")
    return target


def taken(upload: Path, base: Path, job: ListeningJob, *, config: str = "") -> dict[str, Any]:
    model = read_model_facts(base, "Tiny").model_dump()
    found: dict[str, Any] = run({"upload": str(upload), "config": config, "base": str(base), "model": model}, job)["report"]
    return found


def logits(base: Path, adapter: Path) -> torch.Tensor:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    with torch.no_grad():
        return model(input_ids=torch.tensor([[1, 5, 9, 12]])).logits


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    return make_adapter(tiny_model, tmp_path / "adapter")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"rank_pattern": {"down_proj": 2}},
        {"rank_pattern": {"layers.0.+q_proj": 6, "down_proj": 2}, "alpha_pattern": {"layers.1.+_proj": 5, "k_proj": 3}, "use_rslora": True},
        {"target_modules": r".*layers\.1\..*(q|v)_proj", "rank_pattern": {"v_proj": 16}},
        {"target_modules": ["embed_tokens", "lm_head", "q_proj"], "alpha_pattern": {"lm_head": 2}},
    ],
    ids=str,
)
def test_a_folder_that_peft_saved_is_kept_and_computes_the_same(tiny_model, tmp_path, listening_job, options):
    folder = make_adapter(tiny_model, tmp_path / "adapter", **options)
    report = taken(packed(folder, tmp_path / "a.zip"), tiny_model, listening_job)
    assert {path.name for path in listening_job.out.iterdir()} == {WEIGHTS, CONFIG}
    assert torch.equal(logits(tiny_model, folder), logits(tiny_model, listening_job.out))
    assert report["parameters"] == sum(tensor.size for tensor in load_file(folder / WEIGHTS).values())
    assert report["made_with"].startswith("PEFT") and report["left_files"] == ["README.md"]
    assert not report["changes_nothing"]
    assert {"limits", "lifeline"} <= set(report["sandbox"])


def test_weights_and_settings_may_come_apart(tiny_model, adapter, listening_job):
    report = taken(adapter / WEIGHTS, tiny_model, listening_job, config=(adapter / CONFIG).read_text())
    assert report["settings"]["r"] == 4
    layers = {name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in load_file(adapter / WEIGHTS)}
    assert {layer.rpartition(".")[2] for layer in layers} == set(LINEARS)
    assert json.loads((listening_job.out / CONFIG).read_text())["target_modules"] == sorted(layers)


def one_layer(adapter: Path) -> str:
    """Leaves the adapter's product for one layer, and returns that layer's name."""
    stored = load_file(adapter / WEIGHTS)
    layer = next(name for name in sorted(stored) if ".q_proj." in name).rpartition(".lora_")[0]
    save_file({name: tensor for name, tensor in stored.items() if name.startswith(f"{layer}.")}, adapter / WEIGHTS)
    return layer.removeprefix("base_model.model.")


def test_a_rank_that_no_layer_has_and_layers_that_the_file_does_not_have_are_forgotten(tiny_model, adapter, listening_job):
    layer = one_layer(adapter)
    attack = {"r": 65536, "target_modules": "all-linear", "rank_pattern": {re.escape(layer): 4, "k_proj": 65535}}
    told = json.loads((adapter / CONFIG).read_text()) | attack
    report = taken(adapter / WEIGHTS, tiny_model, listening_job, config=json.dumps(told))
    kept = json.loads((listening_job.out / CONFIG).read_text())
    assert (kept["r"], kept["target_modules"], report["settings"]["r"]) == (4, [layer], 4)
    assert not {"rank_pattern", "alpha_pattern"} & {*kept, *report["settings"]}
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), listening_job.out)
    made = {name: parameter.numel() for name, parameter in model.named_parameters() if "lora_" in name}
    assert len(made) == 2 and sum(made.values()) == report["parameters"]


def test_a_pattern_that_would_be_looked_for_without_an_end_is_not_handed_on(tiny_model, adapter, listening_job):
    layer = one_layer(adapter)
    endless = "(([a-z0-9_.])+)+#"
    for key, first in (("rank_pattern", 4), ("alpha_pattern", 3)):
        told = json.loads((adapter / CONFIG).read_text()) | {key: {re.escape(layer): first, endless: 8}}
        job = ListeningJob(listening_job.work / key)
        taken(adapter / WEIGHTS, tiny_model, job, config=json.dumps(told))
        assert endless not in (job.out / CONFIG).read_text()
    assert json.loads((job.out / CONFIG).read_text())["alpha_pattern"] == {re.escape(layer): 3}


def test_a_layer_whose_name_ends_in_anothers_keeps_its_own_rank():
    given = Settings(peft_type="LORA", r=4, rank_pattern={"^lm_head": 2, "inner.lm_head": 4})
    found = of_layers(given, ["inner.lm_head", "lm_head"])
    again = Settings(peft_type="LORA", **{key: found[key] for key in ("r", "rank_pattern")})
    assert [again.rank(layer) for layer in ("inner.lm_head", "lm_head")] == [4, 2]


def test_names_as_other_programs_write_them_are_understood(tiny_model, adapter, listening_job):
    stored = load_file(adapter / WEIGHTS)
    odd = {name.removeprefix("base_model.model.").replace("lora_A.", "lora_A.default."): tensor for name, tensor in stored.items()}
    save_file(odd, adapter / WEIGHTS)
    taken(adapter / WEIGHTS, tiny_model, listening_job, config=(adapter / CONFIG).read_text())
    kept = load_file(listening_job.out / WEIGHTS)
    assert kept.keys() == stored.keys()
    assert all(np.array_equal(kept[name], stored[name]) for name in stored)


def test_unsloths_mark_is_told(tiny_model, adapter, listening_job):
    told = json.loads((adapter / CONFIG).read_text()) | {"unsloth_fixed": True, "base_model_name_or_path": "unsloth/tiny"}
    report = taken(adapter / WEIGHTS, tiny_model, listening_job, config=json.dumps(told))
    assert (report["made_with"], report["says_base"]) == ("Unsloth", "unsloth/tiny")
    assert any("It says that it was trained on unsloth/tiny." in note for note in listening_job.notes)


def test_what_has_learnt_nothing_is_taken_with_a_warning(tiny_model, tmp_path, listening_job):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(r=4, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "fresh")
    assert taken(packed(tmp_path / "fresh", tmp_path / "a.zip"), tiny_model, listening_job)["changes_nothing"]
    assert any("changes nothing" in note for note in listening_job.notes)


HOSTILE = {
    "auto_mapping": {"base_model_class": "Canary", "parent_library": "canary_package"},
    "megatron_core": "canary_package",
    "auto_map": {"AutoModel": "canary_package.Canary"},
    "_attn_implementation_internal": "canary/kernel",
    "quantization_config": {"quant_method": "canary"},
    "base_model_name_or_path": "../../canary",
    "eva_config": {"rho": 2.0},
    "trust_remote_code": True,
    "runtime_config": {"ephemeral_gpu_offload": True},
    "loftq_config": {"loftq_bits": 4},
}


@pytest.mark.parametrize("key", HOSTILE)
def test_settings_that_would_load_code_or_files_are_left_out(tiny_model, adapter, listening_job, key):
    told = json.loads((adapter / CONFIG).read_text()) | {key: HOSTILE[key]}
    taken(adapter / WEIGHTS, tiny_model, listening_job, config=json.dumps(told))
    kept = json.loads((listening_job.out / CONFIG).read_text())
    assert "canary" not in json.dumps(kept) and key not in kept
    allowed = {"r", "lora_alpha", "lora_dropout", "bias", "peft_type", "use_rslora", "use_dora", "fan_in_fan_out"}
    assert set(kept) <= allowed | {"init_lora_weights", "rank_pattern", "alpha_pattern", "target_modules", "inference_mode"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"peft_type": "IA3"}, "type IA3 cannot be merged"),
        ({"init_lora_weights": "pissa"}, "changes the base's own weights"),
        ({"r": -1}, "a value for r that it cannot have"),
        ({"lora_alpha": "much"}, "a value for lora_alpha"),
        ({"bias": "canary"}, "a dropout or a bias"),
        ({"rank_pattern": {"(a+)+$": 4}}, "a value|more involved|does not fit"),
        ({"modules_to_save": ["../x"]}, "no module is named"),
        ({"r": 8}, "does not fit the base model"),
    ],
)
def test_settings_that_cannot_be_are_refused(tiny_model, adapter, listening_job, change, sentence):
    told = json.loads((adapter / CONFIG).read_text()) | change
    with pytest.raises(UserError, match=sentence):
        taken(adapter / WEIGHTS, tiny_model, listening_job, config=json.dumps(told))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("", "is missing"), ("[1]", "holds no settings"), ("{", "not valid JSON"), ('{"r": NaN}', "not valid JSON"), ("[" * 9999, "JSON")],
)
def test_a_config_that_is_none_is_refused(tiny_model, adapter, listening_job, text, sentence):
    with pytest.raises(UserError, match=sentence):
        taken(adapter / WEIGHTS, tiny_model, listening_job, config=text)


def raw(header: object, data: bytes = b"\x00" * 64) -> bytes:
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head + data


def entry(begin: int = 0, end: int = 64, shape: tuple[int, ...] = (4, 4), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
FILES: dict[str, tuple[bytes, str]] = {
    "cut off": (raw({NAME: entry()})[:-1], "damaged"),
    "longer": (raw({NAME: entry()}) + b"x", "damaged"),
    "a hole": (raw({NAME: entry(4, 68)}, b"\x00" * 68), "overlap or leave a hole"),
    "an overlap": (raw({NAME: entry(), NAME + "2": entry(0, 64)}), "overlap or leave a hole"),
    "two of a name": (raw(b'{"a": %s, "a": %s}' % ((json.dumps(entry()).encode(),) * 2)), "stands in it twice"),
    "a path": (raw({"../../x": entry()}), "no name for a tensor"),
    "no shape": (raw({NAME: entry(0, 4, ())}, b"\x00" * 4), "a shape that no adapter"),
    "a shape of nothing": (raw({NAME: entry(0, 0, (0, 4))}, b""), "a shape that no adapter"),
    "a shape that overflows": (raw({NAME: entry(0, 64, (1 << 30, 1 << 30))}), "its shape needs"),
    "a wrong size": (raw({NAME: entry(0, 64, (5, 4))}), "its shape needs"),
    "a size that is text": (raw({NAME: {"dtype": "F32", "shape": ["4", 4], "data_offsets": [0, 64]}}), "impossible shape"),
    "a size that is true": (raw({NAME: {"dtype": "F32", "shape": [True, 16], "data_offsets": [0, 64]}}), "impossible shape"),
    "whole numbers": (raw({NAME: entry(0, 16, dtype="I8")}, b"\x00" * 16), "stored as I8"),
    "an unknown type": (raw({NAME: entry(0, 16, dtype="<b>")}, b"\x00" * 16), "stored as <b>"),
    "nothing": (raw({}, b""), "is empty"),
    "a long header": (struct.pack("<Q", 1 << 40) + b"{}" + b"\x00" * 64, "damaged"),
    "a deep header": (raw(b'{"a":' + b"[" * 5000), "cannot be read"),
    "a pickle": (pickle.dumps({"a": 1}), "pickled file"),
    "a pickle of another protocol": (pickle.dumps({"a": 1}, protocol=2), "pickled file"),
    "a GGUF": (b"GGUF" + b"\x00" * 60, "a GGUF file"),
    "a gzip": (b"\x1f\x8b" + b"\x00" * 60, "gzip"),
    "text": (b"hello, this is an adapter, honestly", "neither a safetensors file nor"),
    "a short file": (b"x", "neither a safetensors file nor"),
    "a broken archive": (b"PK\x03\x04" + b"\x00" * 60, "damaged"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_no_adapter_is_refused_with_its_reason(tiny_model, adapter, tmp_path, listening_job, kind):
    content, sentence = FILES[kind]
    (tmp_path / "upload").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        taken(tmp_path / "upload", tiny_model, listening_job, config=(adapter / CONFIG).read_text())
    assert not any(listening_job.out.iterdir())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused(tiny_model, adapter, listening_job, bad):
    stored = load_file(adapter / WEIGHTS)
    name = sorted(stored)[-1]
    stored[name] = stored[name].copy()
    stored[name].flat[3] = bad
    save_file(stored, adapter / WEIGHTS)
    with pytest.raises(UserError, match="not numbers"):
        taken(adapter / WEIGHTS, tiny_model, listening_job, config=(adapter / CONFIG).read_text())


def test_an_adapter_of_another_base_is_refused(tiny_model_maker, adapter, tmp_path, listening_job):
    other = tiny_model_maker(tmp_path / "other", hidden=96)
    with pytest.raises(UserError, match="does not fit the base model"):
        taken(adapter / WEIGHTS, other, listening_job, config=(adapter / CONFIG).read_text())


def links(archive: zipfile.ZipFile, folder: Path) -> None:
    link = zipfile.ZipInfo(CONFIG)
    link.external_attr = 0o120777 << 16
    archive.writestr(link, "/etc/passwd")
    archive.write(folder / WEIGHTS, WEIGHTS)


def outside(archive: zipfile.ZipFile, folder: Path) -> None:
    archive.write(folder / WEIGHTS, f"../../{WEIGHTS}")


def bomb(archive: zipfile.ZipFile, folder: Path) -> None:
    archive.write(folder / WEIGHTS, WEIGHTS)
    archive.writestr(CONFIG, b" " * (64 << 20), zipfile.ZIP_DEFLATED)


def two(archive: zipfile.ZipFile, folder: Path) -> None:
    archive.write(folder / WEIGHTS, f"a/{WEIGHTS}")
    archive.write(folder / WEIGHTS, f"b/{WEIGHTS}")


def pickled(archive: zipfile.ZipFile, folder: Path) -> None:
    archive.writestr("adapter_model.bin", pickle.dumps({}))
    archive.write(folder / CONFIG, CONFIG)


def crowd(archive: zipfile.ZipFile, folder: Path) -> None:
    for number in range(1001):
        archive.writestr(f"{number}.txt", b"")


@pytest.mark.parametrize(
    ("fill", "sentence"),
    [
        (links, "a link"),
        (outside, "adapter_config.json is missing"),
        (bomb, "larger than an adapter's can be"),
        (two, "holds 2 adapters"),
        (pickled, "pickled weights"),
        (crowd, "1,001 files"),
        (lambda archive, folder: archive.writestr("readme.txt", b"hi"), "holds no adapter_model.safetensors"),
    ],
)
def test_archives_that_are_no_adapters_folder_are_refused(
    tiny_model: Path, adapter: Path, tmp_path: Path, listening_job: ListeningJob, fill: Callable[[Any, Path], None], sentence: str
) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        fill(archive, adapter)
    before = sorted(path for path in tmp_path.rglob("*") if listening_job.work not in path.parents)
    with pytest.raises(UserError, match=sentence):
        taken(tmp_path / "a.zip", tiny_model, listening_job)
    assert sorted(path for path in tmp_path.rglob("*") if listening_job.work not in path.parents) == before


def test_pickles_beside_the_weights_stay_behind(tiny_model, adapter, tmp_path, listening_job):
    (adapter / "training_args.bin").write_bytes(pickle.dumps({"lr": 1}))
    report = taken(packed(adapter, tmp_path / "a.zip"), tiny_model, listening_job)
    assert report["left_files"] == ["README.md", "training_args.bin"]
    assert not (listening_job.out / "training_args.bin").exists()


def test_bytes_turned_at_random_are_read_or_refused_and_nothing_else(adapter, tmp_path):
    content, refused = (adapter / WEIGHTS).read_bytes(), 0
    length = struct.unpack("<Q", content[:8])[0]
    chance = np.random.default_rng(6)
    for _ in range(400):
        changed = bytearray(content)
        for place in chance.integers(0, 8 + length, chance.integers(1, 4)):
            changed[place] = chance.integers(0, 256)
        (tmp_path / "turned").write_bytes(changed)
        try:
            tensors.header(tmp_path / "turned")
        except UserError:
            refused += 1
    assert refused > 200


@pytest.mark.parametrize("room", [Room(store=20_000, disk=1 << 30), Room(store=None, disk=20_000)])
def test_more_than_there_is_room_for_is_not_unpacked(adapter, tmp_path, room):
    (tmp_path / "raw").mkdir()
    for upload in (packed(adapter, tmp_path / "a.zip"), adapter / WEIGHTS):
        with pytest.raises(UserError, match=r"has room for 0\.0 MB|may store 0\.0 MB more"):
            unpack(upload, tmp_path / "raw", room)
    assert not any((tmp_path / "raw").iterdir())


def test_a_stop_is_heeded(tiny_model, adapter, tmp_path):
    job = ListeningJob(tmp_path / "stopped", stop_after=0)
    with pytest.raises(Stopped):
        taken(adapter / WEIGHTS, tiny_model, job, config=(adapter / CONFIG).read_text())


@pytest.mark.parametrize(
    "told", [{"modules_to_save": ["model"]}, {"modules_to_save": ["layers"]}, {"trainable_token_indices": {"layers": [1]}}], ids=str
)
def test_modules_that_the_file_has_no_weights_of_are_not_copied_for_it(tiny_model, tmp_path, listening_job, told):
    folder = make_adapter(tiny_model, tmp_path / "whole", modules_to_save=["embed_tokens"])
    config = json.loads((folder / CONFIG).read_text()) | told
    with pytest.raises(UserError, match="no weights of a layer of that name"):
        taken(folder / WEIGHTS, tiny_model, listening_job, config=json.dumps(config))


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_archive_with_a_broken_stream_is_damaged(tiny_model, adapter, tmp_path, listening_job, method):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.write(adapter / WEIGHTS, WEIGHTS)
    content = bytearray(path.read_bytes())
    content[200:260] = b"\xff" * 60
    path.write_bytes(content)
    with pytest.raises(UserError, match="The archive is damaged"):
        taken(path, tiny_model, listening_job)
