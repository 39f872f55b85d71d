"""Every build is proved: what is measured, what is refused, and what a file that lies or misbehaves can reach."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from studio.ml import llamacpp
from studio.ml.gguf.adapters import export_adapter
from studio.ml.gguf.asking import Answer, Logits, Refused, _believed, ask_llamacpp
from studio.ml.gguf.cases import BUILT_IN, MOST_LOGITS, make_case, within
from studio.ml.gguf.comparing import Comparison, compare, judge
from studio.ml.gguf.exporting import export
from studio.ml.gguf.limits import ANSWER_TOKENS, LIMITS, reasons_against
from studio.ml.gguf.verifying import UNTAKEN, verify, verify_adapter, verify_all, verify_merged
from studio.training.orders import BuildPayload
from tests.jobs import ListeningJob
from tests.ml.adapters import make_adapter
from tests.ml.conftest import ModelMaker

PLENTY = 64 << 30
FIGURES = {*UNTAKEN, "passed", "reasons"}


def built(base: Path, path: Path, *, adapter: Path | None = None, quantization: str = "f16") -> Path:
    export(base=base, adapter=adapter, quantization=quantization, target=path, name="tiny")
    return path


def test_files_of_several_types_are_proved_in_one_go(tiny_model: Path, listening_job: ListeningJob, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_model, tmp_path / "adapter")
    files = {
        "f16": built(tiny_model, tmp_path / "a.gguf", adapter=adapter),
        "q8_0": built(tiny_model, tmp_path / "b.gguf", adapter=adapter, quantization="q8_0"),
        "bare": built(tiny_model, tmp_path / "c.gguf"),
        "cut": tmp_path / "d.gguf",
    }
    files["cut"].write_bytes(files["f16"].read_bytes()[:-64])
    quantizations = {"f16": "f16", "q8_0": "q8_0", "bare": "f16", "cut": "f16"}
    found = verify_all(
        files, quantizations=quantizations, base=tiny_model, adapter=adapter, rows=[], job=listening_job, threads=1, memory=PLENTY
    )
    assert list(found) == list(files) and all(set(figures) == FIGURES for figures in found.values())
    for figures in (found["f16"], found["q8_0"]):
        assert figures["passed"], figures["reasons"]
        assert figures["tokenizer_equal"] == figures["tokenizer_texts"] == 200
        assert figures["greedy_equal"] + figures["greedy_undecided"] == figures["greedy_prompts"] == 10
        assert 0 < figures["top1"] <= 1 and figures["tokens"] > 100
        assert min(figures[name] for name in ("tokens_per_second", "prompt_tokens_per_second", "load_seconds", "memory")) > 0
        assert {"limits", "lifeline"} <= set(figures["sandbox"])
    assert found["f16"]["mean_kl"] < found["q8_0"]["mean_kl"]
    assert found["bare"]["loads"] and "nats per token" in found["bare"]["reasons"][0]
    assert not found["cut"]["loads"] and "not a sound GGUF file" in found["cut"]["reasons"][0]
    assert found["cut"]["perplexity"] is None and found["cut"]["memory"] is None
    assert list(listening_job.work.iterdir()) == []
    json.dumps(found, allow_nan=False)


def test_an_adapter_is_proved_on_its_base(tiny_model: Path, listening_job: ListeningJob, tmp_path: Path) -> None:
    adapter, other = make_adapter(tiny_model, tmp_path / "adapter"), make_adapter(tiny_model, tmp_path / "other", seed=8)
    export_adapter(base=tiny_model, adapter=adapter, target=tmp_path / "adapter.gguf")
    asked: dict[str, Any] = {"gguf": tmp_path / "adapter.gguf", "base": tiny_model, "rows": [], "job": listening_job, "threads": 1}
    found = verify_adapter(**asked, adapter=adapter, memory=PLENTY)
    assert found["passed"] and set(found) == FIGURES, found["reasons"]
    assert found["mean_kl"] < 1e-3 and list(listening_job.work.iterdir()) == []
    wrong = verify_adapter(**asked, adapter=other, memory=0, base_gguf=built(tiny_model, tmp_path / "base.gguf"))
    assert not wrong["passed"] and wrong["loads"]


def test_a_merged_folder_is_proved_with_transformers(tiny_model: Path, listening_job: ListeningJob, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_model, tmp_path / "adapter")
    asked: dict[str, Any] = {"base": tiny_model, "adapter": adapter, "rows": BUILT_IN[:3], "job": listening_job, "memory": PLENTY}
    merged = merged_by_peft(tiny_model, adapter, tmp_path / "merged")
    found = verify_merged(folder=merged, precision="f32", **asked)
    assert found["passed"] and set(found) == FIGURES, found["reasons"]
    assert found["mean_kl"] < 1e-6 and found["top1"] == 1.0 and found["greedy_prompts"] is None
    assert not verify_merged(folder=tiny_model, precision="f32", **asked)["passed"]
    (merged / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert "template" in verify_merged(folder=merged, precision="f32", **asked)["reasons"][0]
    (merged / "model.safetensors").write_bytes(b"\0" * 100)
    broken = verify_merged(folder=merged, precision="f32", **asked)
    assert not broken["loads"] and "cannot load the folder" in broken["reasons"][0]


@pytest.mark.parametrize("tied", [True, False])
def test_a_vocabulary_that_grew_in_training_is_proved_with_its_own_tokenizer(
    tiny_model_maker: ModelMaker, listening_job: ListeningJob, tmp_path: Path, tied: bool
) -> None:
    base = tiny_model_maker(tmp_path / "base", tied=tied)
    adapter = make_adapter(base, tmp_path / "adapter", rows=502)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        (adapter / name).write_bytes((base / name).read_bytes())
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    tokenizer.add_tokens(["Paris", "capital"])
    tokenizer.save(str(adapter / "tokenizer.json"))
    rows = [{"messages": [{"role": "user", "content": "The capital?"}, {"role": "assistant", "content": "Paris."}]}]
    files = {"new": built(base, tmp_path / "a.gguf", adapter=adapter), "old": built(base, tmp_path / "b.gguf")}
    found = verify_all(
        files, quantizations=dict.fromkeys(files, "f16"), base=base, adapter=adapter, rows=rows, job=listening_job, threads=1, memory=0
    )
    assert found["new"]["passed"], found["new"]["reasons"]
    assert not found["old"]["passed"]


def merged_by_peft(base: Path, adapter: Path, folder: Path) -> Path:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((base / name).read_bytes())
    return folder


def test_an_answer_is_judged_by_where_the_reference_would_have_gone() -> None:
    def said(*likeliest: int, second: tuple[int, float] = (9, 0.0)) -> np.ndarray:
        logits = np.zeros((len(likeliest), 10), np.float32)
        for place, number in enumerate(likeliest):
            logits[place, second[0]] = second[1]
            logits[place, number] = 1.0
        return logits

    def judged(logits: np.ndarray, answer: list[int]) -> tuple[int, int]:
        comparison = Comparison()
        judge(comparison, logits, answer, [2])
        return comparison.equal, comparison.undecided

    assert judged(said(5, 6, 2), [5, 6, 2]) == (1, 0)
    assert judged(said(5, 6, 7), [5, 6, 7]) == (0, 0)  # it ended where the reference goes on
    assert judged(said(5, 2, 7), [5, 2, 7]) == (0, 0)  # it went on where the reference ends
    assert judged(said(5, 6, 2), [5, 8, 2]) == (0, 0)
    assert judged(said(5, 6, 2, second=(8, 0.9)), [5, 8, 2]) == (0, 1)
    assert judged(said(*[5] * ANSWER_TOKENS), [5] * ANSWER_TOKENS) == (1, 0)
    assert judged(said(5), [4_000_000]) == (0, 0)


def test_figures_that_are_no_numbers_are_none_and_fail() -> None:
    comparison, logits = Comparison(), np.zeros((3, 5), np.float32)
    compare(logits, [1, 2, 3], [(comparison, np.full((3, 5), np.nan, np.float32))])
    figures = UNTAKEN | comparison.figures() | {"tokenizer_equal": 1, "tokenizer_texts": 1, "template": True, "stops": True}
    assert figures["mean_kl"] is None and figures["perplexity"] is None
    assert reasons_against(figures, "f16") == ["The file's answers hold values that are not numbers."]


def test_a_coarse_type_may_be_far_away_if_it_still_chooses_the_models_words() -> None:
    figures = UNTAKEN | {"tokenizer_equal": 1, "tokenizer_texts": 1, "template": True, "stops": True, "perplexity": 9.0}
    assert reasons_against(figures | {"mean_kl": 0.7, "top1": 0.6}, "q2_k") == []
    assert "likeliest next words" in reasons_against(figures | {"mean_kl": 0.7, "top1": 0.2}, "q2_k")[0]
    assert reasons_against(figures | {"mean_kl": 0.1, "top1": 0.2}, "q2_k") == []  # a model that hardly prefers one word
    assert "nats per token" in reasons_against(figures | {"mean_kl": 3.7, "top1": 0.27}, "q2_k")[0]


def test_a_comparison_knows_the_divergence_of_two_words() -> None:
    ours, theirs = np.log(np.array([[0.5, 0.5]] * 40)), np.log(np.array([[0.9, 0.1]] * 40))
    comparison = Comparison()
    compare(ours.astype(np.float32), [0] * 40, [(comparison, theirs.astype(np.float32))])
    figures = comparison.figures()
    assert figures["tokens"] == 40
    assert figures["mean_kl"] == pytest.approx(0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1), rel=1e-5)
    assert figures["perplexity"] == pytest.approx(1 / 0.9, rel=1e-5) and figures["perplexity_reference"] == pytest.approx(2, rel=1e-5)


def test_every_type_that_can_be_built_has_a_limit() -> None:
    kinds = BuildPayload.model_json_schema()["properties"]["quantizations"]["items"]["enum"]
    assert set(LIMITS) == set(kinds)
    assert all(limit.mean_kl > 0 for limit in LIMITS.values())


def test_as_many_tokens_are_weighed_as_the_disk_may_take() -> None:
    rows = [[7] * 256] * 10
    assert within(rows, columns=500) == rows
    for columns in (49_152, 262_144, 4_000_000):
        chosen = within(rows, columns=columns)
        assert 0 < sum(map(len, chosen)) * columns * 4 <= MOST_LOGITS and min(map(len, chosen)) > 1


@pytest.fixture
def answer(tiny_model: Path, tmp_path: Path) -> dict[str, Any]:
    """A sound answer to `make_case(tiny_model, BUILT_IN[:1])`."""
    case = make_case(tiny_model, BUILT_IN[:1])
    return {
        "vocabulary": 500, "texts": case.text_ids, "letters": case.letter_ids, "ends": [True] * len(case.ends), "answers": [[5, 2]],
        "chats": case.chat_ids, "tokens_per_second": 10.0, "prompt_tokens_per_second": 20.0, "load_seconds": 0.1, "memory": 1 << 20,
        "sandbox": ["limits"],
    }  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"vocabulary": 0}, {"vocabulary": 10**12}, {"vocabulary": "500"}, {"texts": [[1]]}, {"letters": None}, {"ends": [1]},
        {"answers": [[]]}, {"answers": [[1] * 50]}, {"answers": [[500]]}, {"answers": [[-1]]}, {"answers": [[1], [1]]},
        {"tokens_per_second": -1.0}, {"tokens_per_second": 1e99}, {"memory": 10**30}, {"sandbox": "<b>"}, {"sandbox": ["x" * 99]},
        {"more": 1},
    ],
)  # fmt: skip
def test_an_answer_that_makes_no_sense_is_not_believed(
    tiny_model: Path, answer: dict[str, Any], change: dict[str, Any], tmp_path: Path
) -> None:
    case, path = make_case(tiny_model, BUILT_IN[:1]), tmp_path / "answer.json"
    path.write_text(json.dumps(answer))
    assert _believed(path, case) == Answer(**answer)
    path.write_text(json.dumps(answer | change))
    with pytest.raises(Refused, match=r"makes no sense|something else"):
        _believed(path, case)


def test_what_the_process_leaves_must_be_a_plain_file_of_the_right_size(tiny_model: Path, tmp_path: Path) -> None:
    case, path = make_case(tiny_model, BUILT_IN[:1]), tmp_path / "answer.json"
    for content in (b"", b"{", b"[" * 100_000, b'{"tokens_per_second": NaN}', b"\xff\xfe", b" " * (17 << 20)):
        path.write_bytes(content)
        with pytest.raises(Refused, match="makes no sense"):
            _believed(path, case)
    path.unlink()
    (tmp_path / "secret").write_text("{}")
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(Refused, match="without an answer"):
        _believed(path, case)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(Refused, match="makes no sense"):
        _believed(path, case)
    np.zeros(11, np.float32).tofile(tmp_path / "logits.f32")
    with pytest.raises(Refused, match="number of logits"):
        Logits(tmp_path / "logits.f32", tokens=2, columns=5)


def test_a_file_that_asks_for_too_much_memory_is_refused(
    tiny_model: Path, listening_job: ListeningJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from studio.ml.gguf import asking

    monkeypatch.setattr(asking, "WORKING_MEMORY", 40 << 20)
    path = built(tiny_model, tmp_path / "m.gguf")
    with pytest.raises(Refused, match=r"without an answer|too little memory|could not load"):
        ask_llamacpp(path, make_case(tiny_model, BUILT_IN[:1]), folder=listening_job.work, job=listening_job, threads=1)


def test_a_process_that_does_not_answer_in_time_is_given_up(
    tiny_model: Path, listening_job: ListeningJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from studio.ml.gguf import asking

    monkeypatch.setattr(asking, "LONGEST_CHILD", 0.01)
    found = verify(
        gguf=built(tiny_model, tmp_path / "m.gguf"), base=tiny_model, adapter=None, quantization="f16", rows=[], job=listening_job
    )
    assert not found["passed"] and "did not answer" in found["reasons"][0]


LOCKED_IN = """
import json, os, socket, sys
from pathlib import Path
from studio.ml import sandbox
folder, secret, port = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
bounds = sandbox.Bounds(memory=1 << 30, mapped=4 << 30, seconds=60, file=1 << 20)
held = sandbox.enter(folder=folder, reads=[], bounds=bounds, parent=os.getppid())
def tried(action):
    try:
        action()
    except OSError as error:
        return type(error).__name__
    return "done"
result = {
    "held": held,
    "read": tried(secret.read_text),
    "write": tried(lambda: secret.with_name("new").write_text("x")),
    "own": tried(lambda: (folder / "own").write_text("x")),
    "connect": tried(lambda: socket.create_connection(("127.0.0.1", port), timeout=5)),
    "large": tried(lambda: (folder / "large").write_bytes(bytes(2 << 20))),
    "library": tried(lambda: __import__("decimal")),
    "status": Path("/proc/self/status").read_text(),
}
try:
    bytearray(2 << 30)
except MemoryError:
    result["memory"] = "refused"
(folder / "result.json").write_text(json.dumps(result))
"""


def test_a_process_that_is_locked_in_reaches_nothing_but_its_folder(tmp_path: Path) -> None:
    folder, secret = tmp_path / "own", tmp_path / "secret"
    folder.mkdir()
    secret.write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        arguments = [sys.executable, "-c", LOCKED_IN, str(folder), str(secret), str(server.getsockname()[1])]
        subprocess.run(arguments, check=True, env=os.environ | {"OPENBLAS_NUM_THREADS": "1"}, timeout=60)
    result = json.loads((folder / "result.json").read_text())
    assert result["own"] == result["library"] == "done" and result["large"] == "OSError" and result["memory"] == "refused"
    assert "limits" in result["held"]
    if "only_its_files" in result["held"]:  # as far as this machine's kernel lets a process lock itself in
        assert result["read"] == result["write"] == "PermissionError"
    if {"no_network", "no_tcp"} & set(result["held"]):
        assert result["connect"] != "done"
    if "no_new_privileges" in result["held"]:
        assert "NoNewPrivs:\t1" in result["status"]


def test_speed_is_measured_where_the_file_is_open(tiny_model: Path, tmp_path: Path) -> None:
    with llamacpp.Model(built(tiny_model, tmp_path / "m.gguf"), context=256) as model:
        model.generate([1, 5, 6], count=5)
        assert model.read == 3 and model.reading_seconds > 0 and model.load_seconds > 0


def test_rows_of_the_client_are_what_is_weighed(tiny_model_maker: ModelMaker, tiny_model: Path) -> None:
    rows = [{"text": "The capital of France is Paris, a city of two million."}, *BUILT_IN[:2]]
    case = make_case(tiny_model, rows)
    assert len(case.sequences) == 3 and len(case.prompts) == 3 and len(case.chats) == 2
    assert case.ends == [2]
