"""A build ends with one file and the figures that prove it; a file that says something else than the model does not pass."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, processors

from studio.errors import UserError
from studio.ml import llamacpp
from studio.ml.gguf import vocabulary
from studio.ml.gguf.building import held_out, run
from studio.ml.gguf.exporting import export
from studio.ml.gguf.header import InvalidGguf, read_header
from studio.ml.gguf.verifying import BUILT_IN, ask_llamacpp, make_case, verify
from studio.training.facts import ModelFacts
from studio.training.job import Job, Phase, Stopped
from tests.ml.conftest import CHATML, ModelMaker


class BuildJob(Job):
    """A job that remembers what it was told."""

    def __init__(self, folder: Path, *, stop_at: str = ""):
        self.work, self.out = folder / "work", folder / "out"
        self.work.mkdir(parents=True)
        self.out.mkdir()
        self.stop_at = stop_at
        self.phases: list[str] = []
        self.notes: list[str] = []
        self.steps: list[tuple[float, float, str]] = []

    def rows(self, split: Literal["train", "validation"]) -> Iterator[dict[str, Any]]:
        return iter(())

    def stopping(self) -> bool:
        return bool(self.phases) and self.phases[-1] == self.stop_at

    def phase(self, name: Phase, text: str = "") -> None:
        self.phases.append(name)

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


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    def row(number: int, text: str) -> str:
        return json.dumps({"messages": [{"role": "user", "content": f"{text} {number}"}, {"role": "assistant", "content": "Paris."}]})

    splits = ["train"] * 12 + ["validation"] * 3
    table = pyarrow.table(
        {
            "index": list(range(15)),
            "line": list(range(1, 16)),
            "split": splits,
            "row": [row(number, split) for number, split in enumerate(splits)],
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    return tmp_path / "rows.parquet"


@pytest.mark.parametrize("quantization", ["f16", "bf16", "q8_0", "q4_k_m"])
def test_a_build_leaves_one_file_with_the_figures_that_prove_it(tiny_model: Path, rows: Path, tmp_path: Path, quantization: str) -> None:
    job = BuildJob(tmp_path / "job")
    result = run(payload(tiny_model, quantizations=[quantization], rows=str(rows)), job)["builds"][quantization]

    folder = job.out / quantization
    assert [path.name for path in folder.iterdir()] == [f"acme-support-{quantization}.gguf"] == [result["file"]]
    assert result["size"] == (folder / result["file"]).stat().st_size
    verification = result["verification"]
    assert verification["passed"] and verification["reasons"] == [] == job.notes
    assert verification["loads"] and verification["template"] and verification["stops"]
    assert verification["tokenizer_equal"] == verification["tokenizer_texts"] >= 40
    assert verification["greedy_prompts"] == 10
    assert 0 <= verification["mean_kl"] <= verification["max_kl"] < 0.01
    assert verification["perplexity"] == pytest.approx(verification["perplexity_reference"], rel=0.01)
    assert verification["tokens_per_second"] > 0
    assert job.phases == ["converting", "checking"]
    assert ("bytes" in {unit for _, _, unit in job.steps}) and job.steps[-1] == (4, 4, "checks")
    json.dumps(result, allow_nan=False)


def test_the_rows_that_were_held_out_are_asked_first(rows: Path) -> None:
    questions = [row["messages"][0]["content"].split()[0] for row in held_out(str(rows))]
    assert questions == ["validation"] * 3 + ["train"] * 7
    assert held_out("") == []


def test_rows_of_plain_text_can_be_compared_on(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    export(base=tiny_model, adapter=None, quantization="f16", target=path, name="tiny")
    found = checked(path, tiny_model, tmp_path / "job", rows=[{"text": "The capital of France is Paris, a city of two million."}])
    assert found["passed"], found["reasons"]
    assert found["greedy_prompts"] == 1


def test_a_build_that_is_stopped_leaves_no_file_half_done(tiny_model: Path, tmp_path: Path) -> None:
    converting, checking = BuildJob(tmp_path / "one", stop_at="converting"), BuildJob(tmp_path / "two", stop_at="checking")
    for job in (converting, checking):
        with pytest.raises(Stopped):
            run(payload(tiny_model), job)
    assert [path for path in converting.out.rglob("*") if path.is_file()] == []


def test_a_base_that_no_gguf_can_be_built_from_is_refused_before_anything_runs(tiny_model: Path, tmp_path: Path) -> None:
    job, base = BuildJob(tmp_path / "job"), tmp_path / "base"
    base.mkdir()
    config = json.loads((tiny_model / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"architectures": ["GPT2LMHeadModel"]}))
    with pytest.raises(UserError, match="Supported are"):
        run(payload(base), job)
    assert job.phases == [] and list(job.out.iterdir()) == []


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
    with pytest.raises(InvalidGguf):
        checked(path, tiny_model, tmp_path / "again")


def test_a_process_of_llamacpp_that_dies_is_a_failed_check(tiny_model: Path, tmp_path: Path) -> None:
    path, job = tmp_path / "m.gguf", BuildJob(tmp_path / "job")
    export(base=tiny_model, adapter=None, quantization="f16", target=path, name="tiny")
    unknown = replace(make_case(tiny_model, BUILT_IN), sequences=[[1, 100_000]])
    answered = ask_llamacpp(path, unknown, folder=job.work, job=job, threads=1)
    assert "ended without an answer (exit 1)" in answered["refused"]


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


def test_llamacpp_speaks_of_a_file(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    export(base=tiny_model, adapter=None, quantization="f16", target=path, name="tiny")
    with llamacpp.Model(path, context=256) as model:
        ids = model.tokenize("Hello 123 wörld<|im_end|>")
        assert ids == Tokenizer.from_file(str(tiny_model / "tokenizer.json")).encode("Hello 123 wörld<|im_end|>").ids
        assert model.text(ids) == "Hello 123 wörld" and model.ends(ids[-1]) and not model.ends(ids[0])
        first = model.logits(ids * 15)  # longer than one batch
        assert first.shape == (len(ids) * 15, 500) and np.array_equal(first[:3], model.logits(ids * 15)[:3])
        answer = model.generate(ids, count=5)
        assert answer[0] == int(model.logits(ids)[-1].argmax()) and len(answer) <= 5
        with pytest.raises(ValueError, match="do not fit"):
            model.logits(ids * 100)
    assert llamacpp.rendered(path, [[{"role": "user", "content": "Hi"}]]) == ["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"]
    (tmp_path / "not.gguf").write_bytes(b"GGUF nonsense")
    with pytest.raises(UserError, match="could not load"):
        llamacpp.Model(tmp_path / "not.gguf")
