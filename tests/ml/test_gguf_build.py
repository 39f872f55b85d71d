"""A build ends with one file and the figures that prove it; a file that says something else than the model does not pass."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pyarrow
import pyarrow.parquet
import pytest
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, processors

from studio.errors import UserError
from studio.ml.gguf import budget, build_adapter, vocabulary
from studio.ml.gguf.asking import Refused, ask_llamacpp
from studio.ml.gguf.build import begun
from studio.ml.gguf.building import run
from studio.ml.gguf.cases import BUILT_IN, MOST_LOGITS, make_case
from studio.ml.gguf.choosing import held_out, learnt
from studio.ml.gguf.exporting import export
from studio.ml.gguf.header import read_header
from studio.ml.gguf.verifying import verify
from studio.training.facts import ModelFacts
from studio.training.job import Job, Phase, Stopped
from studio.training.orders import BuildPayload
from tests.ml.adapters import make_adapter
from tests.ml.conftest import CHATML, ModelMaker


class BuildJob(Job):
    """A job that remembers what it was told."""

    def __init__(self, folder: Path, *, stop_at: str = "", pauses: bool = False):
        self.work, self.out = folder / "work", folder / "out"
        self.work.mkdir(parents=True)
        self.out.mkdir()
        self.stop_at, self.pauses = stop_at, pauses
        self.phases: list[str] = []
        self.texts: list[str] = []
        self.notes: list[str] = []
        self.steps: list[tuple[float, float, str]] = []

    def rows(self, split: Literal["train", "validation"]) -> Iterator[dict[str, Any]]:
        return iter(())

    def stopping(self) -> bool:
        return bool(self.phases) and self.phases[-1] == self.stop_at

    def pausing(self) -> bool:
        return self.pauses and self.stopping()

    def phase(self, name: Phase, text: str = "") -> None:
        self.phases.append(name)
        self.texts.append(text)

    def progress(self, done: float, total: float, unit: str = "") -> None:
        self.steps.append((done, total, unit))

    def metric(self, *, step: int, total: int, **values: float) -> None: ...

    def sample(self, *, step: int, prompt: str, answer: str) -> None: ...

    def checkpoint(self, *, step: int, folder: Path) -> None: ...

    def note(self, text: str, *, level: Literal["info", "warning"] = "info") -> None:
        self.notes.append(text)


FACTS = ModelFacts(
    name="tiny", architecture="LlamaForCausalLM", family="llama", parameters=1, hidden_size=64, layers=2, intermediate_size=128,
    vocabulary=500, heads=4, kv_heads=2, head_size=16, context_length=512, tied=True, dtype="float32", size=1, linears=[],
    chat_template=True,
)  # fmt: skip


def payload(base: Path, **changes: Any) -> dict[str, Any]:
    return {"base": str(base), "quantizations": ["q8_0"], "name": "acme-support", "model": FACTS.model_dump()} | changes


def checked(path: Path, base: Path, folder: Path, *, quantization: str = "f16", rows: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return verify(gguf=path, base=base, adapter=None, quantization=quantization, rows=rows or [], job=BuildJob(folder))


@pytest.fixture(autouse=True)
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that run side by side do not wait for each other's memory."""
    monkeypatch.setenv(budget.LEDGER, str(tmp_path / "ledger"))


def stored(path: Path, *, train: int, validation: int) -> Path:
    """A version's rows: short chats, each of which says which split it is of."""

    def row(number: int, text: str) -> str:
        return json.dumps({"messages": [{"role": "user", "content": f"{text} {number}"}, {"role": "assistant", "content": "Paris."}]})

    splits = ["train"] * train + ["validation"] * validation
    table = pyarrow.table(
        {
            "index": list(range(len(splits))),
            "line": list(range(1, len(splits) + 1)),
            "split": splits,
            "row": [row(number, split) for number, split in enumerate(splits)],
        }
    )
    pyarrow.parquet.write_table(table, path)
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return stored(tmp_path / "rows.parquet", train=12, validation=3)


def files(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("quantization", ["f16", "bf16", "q8_0", "q4_k_m"])
def test_a_build_leaves_one_file_with_the_figures_that_prove_it(tiny_model: Path, rows: Path, tmp_path: Path, quantization: str) -> None:
    job = BuildJob(tmp_path / "job")
    result = run(payload(tiny_model, quantizations=[quantization], rows=str(rows)), job)["builds"][quantization]

    folder = job.out / quantization
    assert [path.name for path in folder.glob("*.gguf")] == [f"acme-support-{quantization}.gguf"] == [result["file"]]
    assert result["size"] == (folder / result["file"]).stat().st_size
    verification = result["verification"]
    assert verification["passed"] and verification["reasons"] == [] == job.notes
    assert verification["loads"] and verification["template"] and verification["stops"]
    assert verification["tokenizer_equal"] == verification["tokenizer_texts"] >= 40
    assert (verification["rows_from"], verification["greedy_prompts"]) == ("validation", 3)
    assert 0 <= verification["mean_kl"] <= verification["max_kl"] < 0.01
    assert verification["perplexity"] == pytest.approx(verification["perplexity_reference"], rel=0.01)
    assert verification["tokens_per_second"] > 0
    assert job.phases == ["converting", "checking"]
    assert "bytes" in {unit for _, _, unit in job.steps}
    json.dumps(result, allow_nan=False)


def test_several_types_are_written_in_one_pass_each_with_what_lies_beside_it(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    job = BuildJob(tmp_path / "job")
    built = run(payload(tiny_model, quantizations=["f16", "q4_0", "q8_0"], rows=str(rows)), job)["builds"]
    assert list(built) == ["f16", "q4_0", "q8_0"]
    assert built["q8_0"]["tensor_types"] == {"Q8_0": 15, "F32": 5}
    assert job.texts[0] == "Writing 3 files in one pass"
    assert {path.name for path in job.out.iterdir()} == set(built)
    for name, facts in built.items():
        folder = job.out / name
        assert {"README.md", "Modelfile", "report.json", facts["file"]} <= {path.name for path in folder.iterdir()}
        report = json.loads((folder / "report.json").read_text())
        assert (report["quantization"], report["kind"], report["importance"]) == (name, "gguf", False)
        assert report["verification"] == facts["verification"] and report["kernels"] == facts["kernels"]
        assert "xllamacpp" in report["packages"]
        assert str(tmp_path) not in (folder / "report.json").read_text()


def test_a_model_whose_name_no_file_can_have_becomes_a_file_all_the_same(tiny_model: Path, tmp_path: Path) -> None:
    job = BuildJob(tmp_path / "job")
    assert run(payload(tiny_model, name=""), job)["builds"]["q8_0"]["file"] == "model-q8_0.gguf"


def test_importance_is_measured_on_training_rows_and_shows_what_it_buys(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    job, without = BuildJob(tmp_path / "job"), BuildJob(tmp_path / "without")
    asked = payload(tiny_model, quantizations=["q8_0", "q4_0"], importance=True, rows=str(rows))
    built = run(asked, job)["builds"]
    [plain] = run(payload(tiny_model, quantizations=["q4_0"], rows=str(rows)), without)["builds"].values()

    bought, verification = built["q4_0"]["verification"]["plain"], built["q4_0"]["verification"]
    assert bought == {"mean_kl": plain["verification"]["mean_kl"], "perplexity": plain["verification"]["perplexity"], "size": plain["size"]}
    assert verification["passed"] and verification["mean_kl"] != bought["mean_kl"]
    assert "plain" not in built["q8_0"]["verification"]
    assert [path.name for path in job.out.rglob("importance.*")] == ["importance.imatrix"]
    assert read_header(job.out / "q4_0" / "importance.imatrix").get("imatrix.chunk_count") == 12
    assert job.phases[:2] == ["evaluating", "converting"]
    assert list(job.work.rglob("*.gguf")) == []


def test_an_adapter_becomes_a_file_that_is_swapped_on_its_base(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    job, adapter = BuildJob(tmp_path / "job"), make_adapter(tiny_model, tmp_path / "adapter")
    asked = payload(tiny_model, adapter=str(adapter), kind="gguf_adapter", quantizations=["f16", "f32"], rows=str(rows))
    built = run(asked, job)["builds"]
    for name, facts in built.items():
        assert facts["file"] == f"acme-support-lora-{name}.gguf" and facts["verification"]["passed"]
        assert facts["verification"]["mean_kl"] < 1e-3
        assert facts["tensor_types"] == {name.upper(): 28}
        folder = job.out / name
        assert {"README.md", "Modelfile", "report.json", facts["file"]} <= {path.name for path in folder.iterdir()}
        assert facts["size"] == (folder / facts["file"]).stat().st_size < 100_000
    assert list(job.work.rglob("*.gguf")) == []


def test_an_adapter_is_merged_into_a_model_for_transformers(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    job, adapter = BuildJob(tmp_path / "job"), make_adapter(tiny_model, tmp_path / "adapter", use_dora=True)
    asked = payload(tiny_model, adapter=str(adapter), kind="merged", quantizations=["bf16", "f32"], rows=str(rows))
    built = run(asked, job)["builds"]
    assert built["f32"]["verification"]["mean_kl"] < 1e-9 < built["bf16"]["verification"]["mean_kl"] < 1e-5
    for name, facts in built.items():
        folder = job.out / name
        assert facts["verification"]["passed"] and facts["file"] == "" and facts["tensor_types"] == {name.upper(): 20}
        names = {path.name for path in folder.iterdir()}
        assert {"model.safetensors", "config.json", "tokenizer.json", "README.md", "report.json"} <= names and "Modelfile" not in names
        assert "adapter_model.safetensors" not in names


def test_rows_to_compare_on_are_validation_rows_alone(tmp_path: Path) -> None:
    def said(found: Iterable[dict[str, Any]]) -> list[str]:
        return [row["messages"][0]["content"] for row in found]

    rows = str(stored(tmp_path / "some.parquet", train=5, validation=50))
    assert said(held_out(rows, parameters=10**9).rows) == [f"validation {number}" for number in range(5, 45)]
    assert len(held_out(rows, parameters=2 * 10**9).rows) == 20 and len(held_out(rows, parameters=10**11).rows) == 10
    assert said(learnt(rows)) == [f"train {number}" for number in range(5)]
    assert held_out("", parameters=1).rows == [] == list(learnt(""))


def test_where_there_is_no_validation_split_importance_is_measured_on_other_rows(tmp_path: Path) -> None:
    rows = str(stored(tmp_path / "train.parquet", train=30, validation=0))
    compared = held_out(rows, parameters=10**9)
    assert compared.split == "train" and len(compared.rows) == 10
    assert len(list(learnt(rows))) == 20
    assert not [row for row in learnt(rows) if row in compared.rows]


def test_of_answers_that_were_compared_the_better_ones_count(tmp_path: Path) -> None:
    def said(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    pair = {"prompt": said("user", "Hi"), "chosen": said("assistant", "Hello!"), "rejected": said("assistant", "What?")}
    disliked = {"prompt": said("user", "Hi"), "rejected": said("assistant", "No.")}
    table = pyarrow.table({"split": ["validation"] * 2, "row": [json.dumps(pair), json.dumps(disliked)]})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    [row] = held_out(str(tmp_path / "rows.parquet"), parameters=1).rows
    assert [message["content"] for message in row["messages"]] == ["Hi", "Hello!"]


def test_rows_of_plain_text_can_be_compared_on(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    export(base=tiny_model, adapter=None, quantization="f16", target=path, name="tiny")
    found = checked(path, tiny_model, tmp_path / "job", rows=[{"text": "The capital of France is Paris, a city of two million."}])
    assert found["passed"], found["reasons"]
    assert found["greedy_prompts"] == 1


@pytest.mark.parametrize("at", ["evaluating", "converting", "checking"])
def test_a_build_that_is_stopped_leaves_nothing_to_go_on_from(tiny_model: Path, rows: Path, tmp_path: Path, at: str) -> None:
    job, state = BuildJob(tmp_path / "job", stop_at=at), tmp_path / "state"
    with pytest.raises(Stopped):
        run(payload(tiny_model, quantizations=["q4_0"], importance=True, rows=str(rows), state=str(state)), job)
    assert not state.exists()
    assert at == "checking" or files(job.out) == []


def test_a_build_that_is_paused_keeps_what_it_had_written(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    asked = payload(tiny_model, quantizations=["q4_0"], importance=True, rows=str(rows), state=str(tmp_path / "state"))
    with pytest.raises(Stopped):
        run(asked, BuildJob(tmp_path / "paused", stop_at="checking", pauses=True))
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "state").rglob("*") if path.suffix in (".part", ".safetensors")}
    assert len(kept) == 3
    job = BuildJob(tmp_path / "again")
    result = run(asked, job)["builds"]["q4_0"]
    assert result["verification"]["passed"]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_build_that_is_killed_is_gone_on_from(tiny_model: Path, tmp_path: Path) -> None:
    """A killed process cannot tidy up: the next attempt finds the files that were whole, and makes the same of the rest."""
    asked = payload(tiny_model, quantizations=["f16", "q8_0"], state=str(tmp_path / "state"))
    killed = SPAWN.Process(target=build_until_killed, args=(asked, tmp_path / "killed"))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    begun = sorted((tmp_path / "state").rglob("*.part"))
    assert len(begun) == 2
    job, other = BuildJob(tmp_path / "again"), BuildJob(tmp_path / "other")
    run(asked, job)
    assert sorted(path.stat().st_ino for path in job.out.rglob("*.gguf")) == sorted(path.stat().st_ino for path in begun)
    run(payload(tiny_model, quantizations=["f16", "q8_0"]), other)
    for path in job.out.rglob("*.gguf"):
        assert path.read_bytes() == (other.out / path.relative_to(job.out)).read_bytes()


ROOT = Path(__file__).resolve().parents[2]
SPAWN = multiprocessing.get_context("spawn")


def build_until_killed(asked: dict[str, Any], folder: Path) -> None:
    class Killed(BuildJob):
        def phase(self, name: Phase, text: str = "") -> None:
            if name == "checking":
                os.kill(os.getpid(), signal.SIGKILL)

    run(asked, Killed(folder))


def test_an_error_leaves_nothing_to_go_on_from(tiny_model: Path, tmp_path: Path) -> None:
    """The seam between two layers holds a weight that f16 does not; nothing before it tells."""
    base = copied(tiny_model, tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][-1, -1] = 1e30
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    job = BuildJob(tmp_path / "job")
    with pytest.raises(UserError, match=r"which f16 cannot hold"):
        run(payload(base, quantizations=["f16"], state=str(tmp_path / "state")), job)
    assert not (tmp_path / "state").exists() and files(job.out) == []


def copied(base: Path, folder: Path) -> Path:
    folder.mkdir()
    for file in base.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def refused(job: BuildJob, asked: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        run(asked, job)
    assert job.phases == [] and files(job.out) == []


def test_a_base_that_no_gguf_can_be_built_from_is_refused_before_anything_runs(tiny_model: Path, tmp_path: Path) -> None:
    job, base = BuildJob(tmp_path / "job"), tmp_path / "base"
    base.mkdir()
    config = json.loads((tiny_model / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"architectures": ["GPT2LMHeadModel"]}))
    refused(job, payload(base), "Supported are")


def test_an_importance_that_cannot_be_measured_is_refused_before_anything_runs(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    job, few = BuildJob(tmp_path / "job"), stored(tmp_path / "few.parquet", train=10, validation=0)
    refused(job, payload(tiny_model, quantizations=["q4_k_m"], importance=True), "there are none. Build without it")
    refused(job, payload(tiny_model, quantizations=["q4_k_m"], importance=True, rows=str(few)), "there are none")
    refused(job, payload(tiny_model, quantizations=["f16", "q8_0"], importance=True, rows=str(rows)), "changes none of these types")


def test_what_cannot_be_swapped_or_merged_is_refused_before_anything_runs(tiny_model: Path, tmp_path: Path) -> None:
    job, dora = BuildJob(tmp_path / "job"), make_adapter(tiny_model, tmp_path / "dora", use_dora=True)
    swapped = {"kind": "gguf_adapter", "quantizations": ["f16"]}
    refused(job, payload(tiny_model, **swapped), "is built from an adapter")
    refused(job, payload(tiny_model, **swapped | {"adapter": str(dora)}), "cannot be swapped")
    refused(job, payload(tiny_model, **swapped | {"adapter": str(dora), "quantizations": ["q8_0"]}), "is f16 or f32, not q8_0")
    refused(job, payload(tiny_model, kind="merged", quantizations=["q4_0"]), "not q4_0")
    config = json.loads((dora / "adapter_config.json").read_text())
    (dora / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "IA3"}))
    for kind in ("gguf", "gguf_adapter", "merged"):
        refused(job, payload(tiny_model, kind=kind, quantizations=["f16"], adapter=str(dora)), "IA3")


def test_a_disk_that_is_too_small_is_told_before_anything_runs(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=300 << 20))
    refused(BuildJob(tmp_path / "job"), payload(tiny_model), r"need 0\.3 GB of disk; 0\.3 GB are free")


WAITS = """
import json, sys
from pathlib import Path
from studio.ml.gguf import budget
from studio.ml.gguf.building import run
from studio.training.job import Stopped
from tests.jobs import ListeningJob

folder = Path(sys.argv[2])
job = ListeningJob(folder / "job", stop_after=0)
with budget.reserved(budget.limit(), job=ListeningJob(folder / "holder"), limit=budget.limit(), folder=budget.ledger()):
    try:
        run(json.loads(sys.argv[1]), job)
    except Stopped:
        assert job.phases == ["preparing"]
print([name for name in ("torch", "transformers", "peft") if name in sys.modules])
"""


def test_what_waits_for_memory_has_loaded_nothing_large(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_model, tmp_path / "adapter")
    asked = payload(tiny_model, adapter=str(adapter), rows=str(rows), quantizations=["q4_0"], importance=True)
    command = [sys.executable, "-c", WAITS, json.dumps(asked), str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (ended.returncode, ended.stdout) == (0, "[]\n"), ended.stderr


def test_a_build_waits_for_memory_that_others_hold(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(budget.LIMIT, str(2 << 30))
    holder, job = BuildJob(tmp_path / "holder"), BuildJob(tmp_path / "job", stop_at="preparing")
    with budget.reserved(1 << 30, job=holder, limit=2 << 30, folder=budget.ledger()), pytest.raises(Stopped):
        run(payload(tiny_model), job)
    assert job.phases == ["preparing"] and job.texts[0].startswith("Waiting for memory: 1.6 GB are needed")
    assert files(job.out) == []


def test_a_file_of_other_weights_does_not_pass(tiny_model: Path, tiny_model_maker: ModelMaker, tmp_path: Path) -> None:
    other = tiny_model_maker(tmp_path / "other", seed=5)
    weights = json.loads((other / "config.json").read_text())
    assert weights["hidden_size"] == 64
    path = tmp_path / "m.gguf"
    export(base=other, adapter=None, quantization="f16", target=path, name="tiny")
    found = checked(path, tiny_model, tmp_path / "job")
    assert found["loads"] and not found["passed"]
    assert "nats per token" in found["reasons"][0]


def test_a_file_with_another_template_or_end_does_not_pass(tiny_model: Path, tiny_model_maker: ModelMaker, tmp_path: Path) -> None:
    other = tiny_model_maker(tmp_path / "other", template=CHATML.replace("assistant\n", "bot\n"))
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        settings = json.loads((other / name).read_text())
        (other / name).write_text(json.dumps(settings | {"eos_token_id": 5} | ({"eos_token": "!"} if "eos_token" in settings else {})))
    tokenizer = (other / "tokenizer.json").read_text().replace("<|im_end|>", "<|im_stop|>")  # llama.cpp knows the first by its name
    (other / "tokenizer.json").write_text(tokenizer)
    path = tmp_path / "m.gguf"
    export(base=other, adapter=None, quantization="f16", target=path, name="tiny")
    found = checked(path, tiny_model, tmp_path / "job")
    assert not found["passed"] and not found["template"] and not found["stops"]
    assert found["tokenizer_equal"] < found["tokenizer_texts"]
    assert len(found["reasons"]) >= 3


def test_a_file_that_llamacpp_refuses_is_reported_with_its_reason(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    export(base=tiny_model, adapter=None, quantization="f16", target=path, name="tiny")
    path.write_bytes(path.read_bytes().replace(b"blk.1.attn_q.weight", b"blk.1.attn_z.weight"))
    found = checked(path, tiny_model, tmp_path / "job")
    assert not found["loads"] and not found["passed"]
    assert "could not load the file" in found["reasons"][0] and "attn_q" in found["reasons"][0]
    path.write_bytes(path.read_bytes()[:-64])
    assert "not a sound GGUF file" in checked(path, tiny_model, tmp_path / "again")["reasons"][0]


def test_a_process_of_llamacpp_that_dies_is_a_failed_check(tiny_model: Path, tmp_path: Path) -> None:
    path, job = tmp_path / "m.gguf", BuildJob(tmp_path / "job")
    export(base=tiny_model, adapter=None, quantization="f16", target=path, name="tiny")
    unknown = replace(make_case(tiny_model, BUILT_IN), sequences=[[1, 100_000]])
    with pytest.raises(Refused, match=r"ended without an answer \(exit 1\)"):
        ask_llamacpp(path, unknown, folder=job.work, job=job, threads=1)


def test_a_model_without_a_template_gets_the_one_it_is_trained_with(tiny_model_maker: ModelMaker, tmp_path: Path) -> None:
    base = tiny_model_maker(tmp_path / "base", template=None)
    path = tmp_path / "m.gguf"
    export(base=base, adapter=None, quantization="f16", target=path, name="tiny")
    found = checked(path, base, tmp_path / "job")
    assert found["passed"], found["reasons"]
    assert "### " in str(read_header(path).get("tokenizer.chat_template"))


def test_a_tokenizer_that_came_out_of_a_gguf_goes_back_as_it_was(tiny_model: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for file in tiny_model.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    built = vocabulary.entries(tiny_model, rows=500)
    verbatim = {key: entry.value for key, entry in built.items()} | {"tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.note": 0.5}
    (base / "gguf_tokenizer.json").write_text(json.dumps(verbatim))
    copied = vocabulary.entries(base, rows=510)
    assert copied["tokenizer.ggml.eos_token_id"] == built["tokenizer.ggml.eos_token_id"]  # generation_config.json's
    assert copied["tokenizer.ggml.merges"] == built["tokenizer.ggml.merges"]
    assert copied["tokenizer.ggml.note"].type == "FLOAT32"
    assert copied["tokenizer.ggml.tokens"].value[-1] == "[PAD509]"
    with pytest.raises(UserError, match="only 499 rows"):
        vocabulary.entries(base, rows=499)


def test_a_sentencepiece_tokenizer_is_rebuilt_with_its_scores(tiny_model_maker: ModelMaker, tmp_path: Path) -> None:
    """The shape of Llama 2's, Mistral's and TinyLlama's tokenizer.json: pieces, merges of every split, bytes to fall back on."""
    base = tiny_model_maker(tmp_path / "base")
    vocabulary_ids, merges = pieces_of_words(["▁the", "▁capital", "▁of", "▁France", "▁is", "he", "▁Paris", "ing", "▁12", "er", "▁▁"])
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary_ids, merges=merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(base / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": "{{ bos_token }}" + CHATML}
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    (base / "chat_template.jinja").unlink()
    path = tmp_path / "m.gguf"
    export(base=base, adapter=None, quantization="f16", target=path, name="tiny")
    header = read_header(path)
    assert header.get("tokenizer.ggml.model") == "llama" and header.get("tokenizer.ggml.add_bos_token") is True
    found = checked(path, base, tmp_path / "job")
    assert found["passed"], found["reasons"]


def pieces_of_words(words: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary with special tokens, all bytes, and every beginning of the words; merges as transformers makes them of a score."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += sorted({letter for word in words for letter in word} | set("abcdefghijklmnopqrstuvwxyz▁"))
    for word in words:
        tokens += [word[:length] for length in range(2, len(word) + 1) if word[:length] not in tokens]
    ids = {token: number for number, token in enumerate(tokens)}
    merges = []
    for token in tokens[259:]:
        splits = [(token[:place], token[place:]) for place in range(1, len(token))]
        merges += sorted((pair for pair in splits if pair[0] in ids and pair[1] in ids), key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    return ids, merges


def test_an_adapter_is_checked_on_one_base_whatever_its_types(tiny_model: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(bytes(1000))
    order = BuildPayload.model_validate(
        payload(tiny_model, adapter=str(adapter), kind="gguf_adapter", quantizations=["f16", "f32"], state=str(tmp_path / "state"))
    )
    build = begun(order, BuildJob(tmp_path / "job"))
    assert build_adapter.disk(build, [5000]) == 5000 + 4 * 1000 + MOST_LOGITS
