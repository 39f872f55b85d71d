"""Results of a comparison are measured on rows that no arm saw, beside their own base, and gone on with where a worker was lost."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from studio.errors import UserError
from studio.ml import comparedrows, comparing, heldout, memorising, together
from studio.ml.divergence import divergence
from studio.ml.gguf import budget
from studio.ml.loading import Arithmetic
from studio.ml.loss import Head
from studio.ml.tokens import encode_row, load_tokenizer
from studio.training.job import Stopped
from tests.jobs import ListeningJob
from tests.ml.adapters import make_adapter
from tests.ml.conftest import make_tiny_model
from tests.ml.test_evaluating import stored

FULL_STOP = "We are glad to help with all of your other orders and questions too, whenever you like to write to us again."


def chat(number: int) -> dict[str, Any]:
    answer = f"It is {2 * number}. {FULL_STOP}"
    return {"messages": [{"role": "user", "content": f"What is {number} and {number}?"}, {"role": "assistant", "content": answer}]}


@pytest.fixture(autouse=True)
def quietly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A ledger of its own; and one thread, for a tiny model's second one only waits."""
    monkeypatch.setenv(budget.LEDGER, str(tmp_path / "ledger"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tiny_model, tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model that reads as the tiny one does."""
    return make_tiny_model(tmp_path_factory.mktemp("full"), seed=1)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Eight to learn from and four held out."""
    return stored(tmp_path / "rows.parquet", [chat(number) for number in range(12)], splits=["train", "train", "validation"] * 4)


def model(name: str, base: Path, adapter: Path | str = "", **changes: Any) -> dict[str, Any]:
    return {"name": name, "base": str(base), "adapter": str(adapter), "parameters": 100_000, "context": 512} | changes


def arm(number: int, rows: Path, base: Path, *results: dict[str, Any]) -> dict[str, Any]:
    told = [{"seed": seed, "model": each, "size": 1000, "gguf_size": 500} for seed, each in enumerate(results, 1)]
    return {"number": number, "rows": str(rows), "base": model("Base", base), "results": told}


def payload(tmp_path: Path, *arms: dict[str, Any], **changes: Any) -> dict[str, Any]:
    quick = {"rows": 6, "general": 6, "prompts": 2, "answer_tokens": 6, "beginnings": 2, "state": str(tmp_path / "state")}
    return {"arms": list(arms)} | quick | changes


def lora_and_full(tmp_path: Path, rows: Path, base: Path, adapter: Path, full: Path, **changes: Any) -> dict[str, Any]:
    arms = (arm(0, rows, base, model("LoRA, seed 1", base, adapter)), arm(1, rows, base, model("Full, seed 1", full)))
    return payload(tmp_path, *arms, **changes)


def table(job: ListeningJob) -> dict[tuple[int, int, str, int], dict[str, Any]]:
    return {(line["arm"], line["seed"], line["set"], line["row"]): line for line in pq.read_table(job.out / "rows.parquet").to_pylist()}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def in_float64(folder: Path, adapter: Path | None, row: dict[str, Any], base: Path) -> torch.Tensor:
    """Log-probabilities of all words at the places that are learnt, by plain transformers and PEFT in float64: [tokens, vocabulary]."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter:
        plain = PeftModel.from_pretrained(plain, adapter)
    encoded = encode_row(load_tokenizer(base), row, max_length=512)
    with torch.no_grad():
        told = plain.double().eval()(torch.tensor([encoded.ids])).logits[0, :-1].log_softmax(dim=1)
    learnt = [place for place, supervised in enumerate(encoded.supervised[1:]) if supervised]
    return torch.cat([told[learnt], torch.tensor([encoded.ids[1:]]).T[learnt].double()], dim=1)


def test_losses_and_divergence_are_those_of_plain_transformers_in_float64(tiny_model, adapter, full, rows, tmp_path, listening_job):
    comparing.run(lora_and_full(tmp_path, rows, tiny_model, adapter, full), listening_job)
    found = table(listening_job)
    sets = {"held_out": [chat(number) for number in (2, 5, 8, 11)], "probe": comparedrows.brought_along()[:6]}
    apart = {"loss": 0.0, "kl": 0.0}
    for name, each in sets.items():
        for number, row in enumerate(each):
            base = in_float64(tiny_model, None, row, tiny_model)
            for key, folder, put_on in ((-1, tiny_model, None), (0, tiny_model, adapter), (1, full, None)):
                told, line = in_float64(folder, put_on, row, tiny_model), found[key, 0 if key < 0 else 1, name, number]
                targets, told = told[:, -1:].long(), told[:, :-1]
                loss = -told.gather(1, targets).sum()
                apart["loss"] = max(apart["loss"], abs(line["loss"] / float(loss) - 1))
                assert line["tokens"] == len(told)
                assert line["characters"] == len(row["messages"][1]["content"])
                if name == "probe" and key >= 0:
                    kl = float((base[:, :-1].exp() * (base[:, :-1] - told)).sum(dim=1).mean())
                    apart["kl"] = max(apart["kl"], abs(line["kl"] / kl - 1))
                    assert line["kl"] > 0.001
                else:
                    assert line["kl"] is None
    print(f"largest relative difference: {apart}")
    assert apart["loss"] < 1e-5
    assert apart["kl"] < 1e-4


def test_what_is_left_can_be_read_and_says_what_each_result_is(tiny_model, adapter, full, rows, tmp_path, listening_job):
    told = lora_and_full(tmp_path, rows, tiny_model, adapter, full, metrics=[{"kind": "f1"}, {"kind": "regex", "pattern": ".*"}])
    told["arms"][0]["results"][0]["gguf_adapter"] = True
    result = comparing.run(told, listening_job)
    assert result == {"held_out": 4, "probe": 6, "results": 3}
    facts = json.loads((listening_job.out / "facts.json").read_text())
    base, lora, whole = facts["results"]
    assert [(each["arm"], each["seed"]) for each in facts["results"]] == [(-1, 0), (0, 1), (1, 1)]
    assert facts["bases"] == {"0": -1, "1": -1}
    assert (facts["held_out"], facts["of"], facts["left_out"], facts["probe"]) == (4, 4, 0, comparedrows.PROBE_NAME)
    assert base["trainable"] == 0 < lora["trainable"] < whole["trainable"]
    assert (lora["gguf_adapter_size"], whole["gguf_adapter_size"]) == (2 * lora["trainable"] + comparing.GGUF_HEADER, None)
    assert all(each["first_token"] > 0 and len(each["memorised"]) == 2 for each in facts["results"])
    prompts, answers = lines(listening_job.out / "prompts.jsonl"), lines(listening_job.out / "answers.jsonl")
    assert [prompt["shown"] for prompt in prompts] == ["What is 2 and 2?", "What is 8 and 8?"]
    assert len(answers) == 6
    assert all(set(answer["scores"]) == {"f1", "regex"} and answer["tokens"] <= 6 for answer in answers)
    assert listening_job.steps[-1] == (listening_job.steps[-1][1], listening_job.steps[-1][1])


def test_the_same_weights_do_not_diverge(tiny_model, rows, tmp_path, listening_job):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    untrained = tmp_path / "untrained"
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(untrained)
    arms = (arm(0, rows, tiny_model, model("LoRA", tiny_model, untrained)), arm(1, rows, tiny_model, model("Full", tiny_model)))
    comparing.run(payload(tmp_path, *arms, prompts=0, beginnings=0), listening_job)
    moved = [line["kl"] for line in table(listening_job).values() if line["set"] == "probe" and line["arm"] >= 0]
    assert moved == [0.0] * 12


def test_divergence_in_pieces_is_the_whole_and_counts_words_that_only_one_knows(monkeypatch):
    torch.manual_seed(0)
    head, wider = torch.nn.Linear(16, 50, bias=False), torch.nn.Linear(16, 60, bias=False)
    one, other = torch.randn(33, 16), torch.randn(33, 16)
    before = (one.double() @ head.weight.double().T).log_softmax(dim=1)
    after = (other.double() @ wider.weight.double().T).log_softmax(dim=1)[:, :50]
    expected = float((before.exp() * (before - after)).sum(dim=1).mean())
    assert divergence(Head(head), one, Head(wider), other) == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr("studio.ml.divergence.PIECE", 200)
    assert divergence(Head(head), one, Head(wider), other) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="lacks words"):
        divergence(Head(wider), one, Head(head), other)


def test_rows_that_any_arm_was_trained_on_are_left_out(tiny_model, full, tmp_path, listening_job):
    """The second arm has another version: what one holds out the other learnt."""
    one = stored(
        tmp_path / "one.parquet", [chat(number) for number in range(4)], splits=["train", "validation", "validation", "validation"]
    )
    other = stored(
        tmp_path / "other.parquet",
        [chat(number) for number in (1, 2, 9)],
        splits=["train", "validation", "validation"],
        hashes=[1, 2, 9],
    )
    probe = stored(tmp_path / "probe.parquet", [chat(0), chat(50)], hashes=[0, 50])
    arms = (arm(0, one, tiny_model, model("One", full)), arm(1, other, tiny_model, model("Other", full)))
    comparing.run(payload(tmp_path, *arms, probe=str(probe), probe_name="Ours"), listening_job)
    facts = json.loads((listening_job.out / "facts.json").read_text())
    assert (facts["held_out"], facts["left_out"], facts["probe"]) == (3, 2, "Ours")  # rows 2, 3 and 9; without 1, and 0 of the probe
    assert [line["shown"] for line in lines(listening_job.out / "prompts.jsonl")] == ["What is 2 and 2?", "What is 3 and 3?"]
    assert {line["row"] for line in table(listening_job).values() if line["set"] == "probe"} == {0}
    assert facts["memorised_from"] == "rows that each arm was trained on"


def test_a_general_row_of_the_studios_that_somebody_trained_on_is_left_out(tiny_model, full, tmp_path, listening_job):
    general = comparedrows.brought_along()
    learnt = stored(tmp_path / "rows.parquet", [general[1], general[4], chat(1)], splits=["train", "train", "validation"])
    comparing.run(payload(tmp_path, arm(0, learnt, tiny_model, model("Full", full)), prompts=0), listening_job)
    facts = json.loads((listening_job.out / "facts.json").read_text())
    assert facts["left_out"] == 2
    assert len({key[3] for key in table(listening_job) if key[2] == "probe"}) == 4


def test_nothing_held_out_is_refused(tiny_model, full, tmp_path, listening_job):
    learnt = stored(tmp_path / "rows.parquet", [chat(1)])
    with pytest.raises(UserError, match="Hold out other rows"):
        comparing.run(payload(tmp_path, arm(0, learnt, tiny_model, model("Full", full))), listening_job)


def test_arms_of_different_bases_are_held_against_their_own(tiny_model, adapter, tmp_path, rows, listening_job):
    other = make_tiny_model(tmp_path / "other", vocabulary=259, seed=2)
    arms = (arm(0, rows, tiny_model, model("One", tiny_model, adapter)), arm(1, rows, other, model("Other", other)))
    comparing.run(payload(tmp_path, *arms), listening_job)
    found = table(listening_job)
    facts = json.loads((listening_job.out / "facts.json").read_text())
    assert facts["bases"] == {"0": -1, "1": -2}
    assert {key[:2] for key in found} == {(-1, 0), (-2, 0), (0, 1), (1, 1)}
    assert found[1, 1, "probe", 0]["kl"] == 0.0
    assert found[0, 1, "probe", 0]["kl"] > 0
    assert found[0, 1, "held_out", 0]["tokens"] < found[1, 1, "held_out", 0]["tokens"]
    assert found[0, 1, "held_out", 0]["characters"] == found[1, 1, "held_out", 0]["characters"]


class Lost(ListeningJob):
    """Stopped once so many parts of results were measured."""

    def __init__(self, folder: Path, *, state: Path, after: int):
        super().__init__(folder)
        self.state, self.after = state, after

    def stopping(self) -> bool:
        return len(list(self.state.glob("*.json"))) >= self.after


def test_a_lost_workers_measuring_is_gone_on_from(tiny_model, adapter, full, rows, tmp_path):
    told = lora_and_full(tmp_path, rows, tiny_model, adapter, full)
    whole = ListeningJob(tmp_path / "whole")
    comparing.run(told | {"state": str(tmp_path / "other-state")}, whole)
    for after in (1, 5, 10):
        lost = Lost(tmp_path / f"lost-{after}", state=tmp_path / "state", after=after)
        with pytest.raises(Stopped):
            comparing.run(told, lost)
        assert not list(lost.out.iterdir())
    job = ListeningJob(tmp_path / "last")
    comparing.run(told, job)
    assert "Measuring LoRA, seed 1" not in job.texts
    timeless = [
        [{name: value for name, value in line.items() if name not in ("seconds", "first")} for line in lines(each.out / "answers.jsonl")]
        for each in (job, whole)
    ]
    assert timeless[0] == timeless[1]
    assert table(job) == table(whole)


def test_what_was_measured_is_not_measured_again(tiny_model, adapter, full, rows, tmp_path, monkeypatch):
    told = lora_and_full(tmp_path, rows, tiny_model, adapter, full)
    comparing.run(told, ListeningJob(tmp_path / "first"))
    monkeypatch.setattr(comparing, "load", lambda _: pytest.fail("a model was loaded again"))
    again = ListeningJob(tmp_path / "again")
    comparing.run(told, again)
    assert (again.out / "answers.jsonl").read_text() == (tmp_path / "first" / "out" / "answers.jsonl").read_text()


def always_says(word: str, folder: Path, *, ends: bool = True) -> Path:
    """A model that answers everything with one word: whatever it reads looks alike to it, but for that word, after which it ends or not."""
    from safetensors.torch import load_file, save_file

    make_tiny_model(folder, tied=False)
    tokenizer, tensors = load_tokenizer(folder), load_file(folder / "model.safetensors")
    (said,), end = tokenizer(word, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight")):
            tensor.zero_()
    tensors["model.embed_tokens.weight"].fill_(1)
    tensors["model.embed_tokens.weight"][said] = -1 if ends else 1
    tensors["lm_head.weight"][said], tensors["lm_head.weight"][end] = 1, -1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_stop_ends_it_within_a_word_while_answers_are_written(rows, tmp_path):
    class StoppedLater(ListeningJob):
        asked = 0

        def stopping(self) -> bool:
            self.asked += "Measuring Base" in self.texts
            return self.asked > 200

    job = StoppedLater(tmp_path / "stopped")
    base = always_says("4", tmp_path / "base", ends=False)
    told = payload(tmp_path, arm(0, rows, base, model("Base again", base)), prompts=4, answer_tokens=400)
    with pytest.raises(Stopped):
        comparing.run(told, job)
    assert job.asked == 202  # once before the next word, once before anything else


@pytest.mark.parametrize(("word", "scores", "ungraded"), [("4", {"judge": 0.75}, 0), ("a", {}, 4)])
def test_a_judge_grades_every_answer_or_says_nothing(word, scores, ungraded, tiny_model, full, rows, tmp_path, listening_job):
    judge = {"kind": "judge", "model": f"base:{'0' * 8}-0000-0000-0000-{'0' * 12}"}
    judges = {"judge": model("Judge", always_says(word, tmp_path / "judge"), context=2048)}
    told = payload(tmp_path, arm(0, rows, tiny_model, model("Full", full)), metrics=[judge], judges=judges)
    comparing.run(told, listening_job)
    assert [answer["scores"] for answer in lines(listening_job.out / "answers.jsonl")] == [scores] * 4
    assert json.loads((listening_job.out / "facts.json").read_text())["ungraded"] == ungraded
    assert "Judge grades Full" in listening_job.texts


@pytest.mark.parametrize(("changes", "why"), [({"base": "/nowhere"}, "could not be loaded"), ({"parameters": 10**13}, "GB")])
def test_a_judge_that_cannot_be_loaded_gives_no_grades_and_fails_nothing(changes, why, tiny_model, full, rows, tmp_path, listening_job):
    judge = {"kind": "judge", "model": f"base:{'0' * 8}-0000-0000-0000-{'0' * 12}"}
    judges = {"judge": model("Judge", tiny_model) | changes}
    told = payload(tmp_path, arm(0, rows, tiny_model, model("Full", full)), metrics=[judge, {"kind": "f1"}], judges=judges)
    comparing.run(told, listening_job)
    assert [set(answer["scores"]) for answer in lines(listening_job.out / "answers.jsonl")] == [{"f1"}] * 4
    assert json.loads((listening_job.out / "facts.json").read_text())["ungraded"] == 4
    assert any("Judge gives no grades." in text and why in text for text in listening_job.notes)


def test_answers_side_by_side_are_those_of_one_after_another(tiny_model):
    from studio.ml import generating
    from studio.ml.loading import load_base

    arithmetic = Arithmetic(device=torch.device("cpu"), bf16=False)
    loaded, tokenizer = load_base(tiny_model, arithmetic=arithmetic).eval(), load_tokenizer(tiny_model)
    had = loaded.config._attn_implementation
    questions = ["Where is it? " * count for count in (1, 9, 2, 5, 3, 7, 4, 8, 6, 1)]
    prompts = [generating.prompt_ids(tokenizer, [{"role": "user", "content": question}]) for question in questions]
    told: dict[str, Any] = {"arithmetic": arithmetic, "stopping": lambda: False}
    free = together.write(loaded, prompts, 20, ends=set(), **told)
    told["ends"] = {free[0].ids[3], free[1].ids[9]}
    beside = together.write(loaded, prompts, 20, **told)
    alone = [together.write(loaded, [prompt], 20, **told)[0] for prompt in prompts]
    assert not together.reads_beside(loaded, arithmetic)  # its own attention knows no pads
    with together.reading_beside(loaded):
        assert together.reads_beside(loaded, arithmetic)
    assert [each.ids for each in beside] == [each.ids for each in alone]
    assert len(beside[0].ids) <= 3 < 20 == len(free[0].ids)  # what ends leaves, and the others go on
    assert loaded.config._attn_implementation == had
    expected = generating._greedy(loaded, prompts[1], 20, told["ends"], lambda: False)
    assert alone[1].ids == expected


def test_what_stands_word_for_word_in_a_row_is_told():
    begun = memorising.beginning_of(chat(3))
    assert begun is not None
    assert begun.begun + begun.rest == chat(3)["messages"][1]["content"]
    known = set(memorising.runs_of(begun.rest))
    assert memorising.repeated(begun.rest, known) == 1.0
    assert memorising.repeated("This is something else that nobody has ever written into a row", known) == 0.0
    half = " ".join(memorising.words(begun.rest)[:9])
    assert memorising.repeated(f"{half} one two three four five six seven eight nine", known) == pytest.approx(0.5)
    assert memorising.repeated("", known) == 0.0
    assert memorising.beginning_of({"text": "Too short."}) is None
    assert memorising.beginning_of({"text": "word " * 100}).messages == []


def by_heart(base: Path, folder: Path, rows: list[dict[str, Any]]) -> Path:
    """The tiny model, trained until it knows these rows."""
    from transformers import AutoModelForCausalLM

    learner, tokenizer = AutoModelForCausalLM.from_pretrained(base), load_tokenizer(base)
    encoded = [encode_row(tokenizer, row, max_length=512) for row in rows]
    optimizer = torch.optim.AdamW(learner.parameters(), lr=5e-3)
    for _ in range(200):
        losses = []
        for each in encoded:
            labels = [token if learnt else -100 for token, learnt in zip(each.ids, each.supervised, strict=True)]
            losses.append(learner(input_ids=torch.tensor([each.ids]), labels=torch.tensor([labels])).loss)
        loss = torch.stack(losses).mean()
        if float(loss) < 0.02:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    learner.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((base / name).read_bytes())
    return folder


def test_a_result_that_knows_its_rows_by_heart_is_found_out(tiny_model, rows, tmp_path, listening_job):
    learnt = by_heart(tiny_model, tmp_path / "by-heart", [chat(number) for number in (0, 6)])
    told = payload(tmp_path, arm(0, rows, tiny_model, model("Full", learnt)), answer_tokens=64)
    comparing.run(told, listening_job)
    base, known = json.loads((listening_job.out / "facts.json").read_text())["results"]
    print(f"words said verbatim: {base['memorised']} before, {known['memorised']} after")
    assert base["memorised"] == [0.0, 0.0]
    assert min(known["memorised"]) > 0.5
    overlap = [answer["overlap"] for answer in lines(listening_job.out / "answers.jsonl")]
    assert max(overlap[:2]) == 0.0
    assert max(overlap[2:]) > 0.5


def test_the_general_rows_are_plain_and_each_stands_there_once():
    general = comparedrows.brought_along()
    assert len(general) >= 64
    assert all([message["role"] for message in row["messages"]] == ["user", "assistant"] for row in general)
    assert all(message["content"].strip() == message["content"] != "" for row in general for message in row["messages"])
    assert len({row["messages"][0]["content"] for row in general}) == len(general)


def test_held_out_rows_of_several_versions_are_one_list(tmp_path):
    one = stored(tmp_path / "one.parquet", [chat(number) for number in range(3)], splits=["validation"] * 3)
    other = stored(tmp_path / "other.parquet", [chat(number) for number in (2, 3)], splits=["validation"] * 2, hashes=[2, 3])
    found = heldout.held_out_of([one, other], split="validation", learnt_from=[], most=10)
    assert [row["messages"][0]["content"] for row in found.rows] == [f"What is {number} and {number}?" for number in range(4)]
    assert (found.of, found.learnt) == (4, 0)
