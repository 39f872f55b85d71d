"""A release is measured on held-out rows beside the one in production: adapters, whole models, chats and texts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from studio.errors import UserError
from studio.ml import evaluating, heldout
from studio.ml.evaluating import Measured, compared, interval, run, until
from studio.ml.gguf import budget
from studio.releases.kinds import Figures
from studio.releases.verdict import verdict
from studio.training.job import Stopped
from tests.jobs import ListeningJob
from tests.ml.adapters import make_adapter
from tests.ml.conftest import make_tiny_model

QUESTIONS = [f"What is {number} and {number}?" for number in range(12)]


def chat(number: int) -> dict[str, Any]:
    question, answer = {"role": "user", "content": QUESTIONS[number % 12]}, {"role": "assistant", "content": f"It is {2 * number}."}
    return {"messages": [question, answer]}


def stored(path: Path, rows: list[dict[str, Any]], *, splits: list[str] | None = None, hashes: list[int] | None = None) -> Path:
    """A version's rows, as far as an evaluation reads them."""
    table = pyarrow.table(
        {
            "split": splits or ["train"] * len(rows),
            "hash": pyarrow.array(hashes or range(len(rows)), pyarrow.uint64()),
            "row": [json.dumps(row) for row in rows],
        }
    )
    pyarrow.parquet.write_table(table, path)
    return path


@pytest.fixture(autouse=True)
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(budget.LEDGER, str(tmp_path / "ledger"))


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tiny_model, tmp_path_factory.mktemp("adapter"))


def payload(rows: Path, **changes: Any) -> dict[str, Any]:
    return {"rows": str(rows), "shape": "chat"} | changes


def side(base: Path, adapter: Path | None = None, **changes: Any) -> dict[str, Any]:
    return {"name": "acme-v1.0.0", "base": str(base), "adapter": str(adapter or ""), "parameters": 100_000, "context": 512} | changes


def test_an_adapter_is_measured_beside_its_base(tiny_model, adapter, tmp_path, listening_job):
    rows = stored(tmp_path / "rows.parquet", [chat(number) for number in range(12)])
    told = payload(rows, release=side(tiny_model, adapter), before=side(tiny_model, name="acme-v0.9.0"))
    result = run(told, listening_job)
    assert (result["rows"], result["of"], result["unit"], result["learnt"]) == (12, 12, "token", 0)
    assert result["loss"] != pytest.approx(result["before"], rel=1e-4)
    assert result["low"] <= result["change"] <= result["high"]
    assert result["change"] == pytest.approx((result["loss"] / result["before"] - 1) * 100)
    assert result["unknown"] == ["acme-v1.0.0", "acme-v0.9.0"]
    assert [sample["expected"] for sample in result["samples"]] == ["It is 0.", "It is 4.", "It is 8.", "It is 14.", "It is 18."]
    assert all(isinstance(sample[which], str) for sample in result["samples"] for which in ("prompt", "answer", "before"))
    assert listening_job.steps[-1][0] == 12
    assert "Measuring acme-v0.9.0" in listening_job.texts


def test_the_loss_is_the_one_that_transformers_gives(tiny_model, adapter, tmp_path, listening_job):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from studio.ml.tokens import encode_row, load_tokenizer

    chats = [chat(number) for number in range(3)]
    result = run(payload(stored(tmp_path / "rows.parquet", chats), release=side(tiny_model, adapter)), listening_job)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), adapter).eval()
    total, count, tokenizer = 0.0, 0, load_tokenizer(tiny_model)
    for row in chats:
        encoded = encode_row(tokenizer, row, max_length=512)
        with torch.no_grad():
            losses = -model(torch.tensor([encoded.ids])).logits[0].log_softmax(dim=1)
        for place, (token, learnt) in enumerate(zip(encoded.ids[1:], encoded.supervised[1:], strict=True)):
            total, count = total + float(losses[place, token]) * learnt, count + learnt
    assert result["tokens"] == count
    assert result["loss"] == pytest.approx(total / count, rel=1e-4)
    assert (result["before"], result["change"], result["low"]) == (None, None, None)
    assert [sample["before"] for sample in result["samples"]] == [None] * 3


def test_the_same_release_twice_did_not_change(tiny_model, tmp_path, listening_job):
    rows = stored(tmp_path / "rows.parquet", [chat(number) for number in range(9)])
    result = run(payload(rows, release=side(tiny_model), before=side(tiny_model)), listening_job)
    assert (result["change"], result["low"], result["high"]) == (0, 0, 0)


def test_a_whole_model_of_other_tokens_is_compared_by_the_character(tiny_model, tmp_path, listening_job):
    other = make_tiny_model(tmp_path / "other", vocabulary=259, seed=1)
    rows = stored(tmp_path / "rows.parquet", [chat(number) for number in range(9)])
    result = run(payload(rows, release=side(other), before=side(tiny_model)), listening_job)
    assert result["unit"] == "character"
    assert result["change"] == pytest.approx((result["loss"] / result["before"] - 1) * 100)


def test_texts_are_measured_and_gone_on_with(tiny_model, tmp_path, listening_job):
    texts = [{"text": f"Delivery number {number} left our warehouse today and will be with you soon."} for number in range(8)]
    result = run(payload(stored(tmp_path / "rows.parquet", texts), shape="text", release=side(tiny_model)), listening_job)
    assert result["rows"] == 8
    sample = result["samples"][0]
    assert sample["prompt"] == "Delivery number 0 left our"
    assert sample["expected"] == "warehouse today and will be with you soon."


def test_of_compared_answers_the_better_one_counts(tiny_model, tmp_path, listening_job):
    pair = {
        "prompt": [{"role": "user", "content": "Hi?"}],
        "chosen": [{"role": "assistant", "content": "Hello."}],
        "rejected": [{"role": "assistant", "content": "What."}],
    }
    result = run(payload(stored(tmp_path / "rows.parquet", [pair]), shape="preference", release=side(tiny_model)), listening_job)
    assert (result["rows"], result["samples"][0]["expected"]) == (1, "Hello.")


def test_what_it_is_asked_with_counts(tiny_model, tmp_path, listening_job):
    chats = [chat(number) for number in range(9)]
    rows = stored(tmp_path / "rows.parquet", chats)
    told = payload(rows, release=side(tiny_model, system="You add numbers."), before=side(tiny_model))
    assert run(told, listening_job)["change"] != 0
    assert heldout.as_asked(chats[0], "Be kind.")["messages"][0] == {"role": "system", "content": "Be kind."}
    own = heldout.as_asked(chats[0], "Be brief.")
    assert heldout.as_asked(own, "Be kind.") == own


def test_rows_that_were_trained_on_are_left_out_for_both(tiny_model, tmp_path, listening_job):
    rows = stored(tmp_path / "rows.parquet", [chat(number) for number in range(12)])
    one = stored(tmp_path / "one.parquet", [chat(0)] * 3, hashes=[0, 1, 50], splits=["train", "train", "train"])
    other = stored(tmp_path / "other.parquet", [chat(0)] * 3, hashes=[1, 2, 3], splits=["train", "train", "validation"])
    told = payload(rows, release=side(tiny_model, learnt=str(one)), before=side(tiny_model, learnt=str(other)))
    result = run(told, listening_job)
    assert (result["learnt"], result["of"], result["rows"], result["unknown"]) == (3, 9, 9, [])


def test_rows_that_were_all_trained_on_are_refused(tiny_model, tmp_path, listening_job):
    rows = stored(tmp_path / "rows.parquet", [chat(number) for number in range(4)])
    with pytest.raises(UserError, match="All 4 of these rows were trained on"):
        run(payload(rows, release=side(tiny_model, learnt=str(rows))), listening_job)


def test_only_validation_rows_of_its_own_version_are_measured(tiny_model, tmp_path, listening_job):
    rows = stored(tmp_path / "rows.parquet", [chat(number) for number in range(4)], splits=["train", "validation"] * 2)
    result = run(payload(rows, split="validation", release=side(tiny_model, learnt=str(rows))), listening_job)
    assert (result["rows"], result["learnt"]) == (2, 0)


def test_a_row_that_is_too_long_is_left_out(tiny_model, tmp_path, listening_job):
    long = {"messages": [{"role": "user", "content": "word " * 900}, {"role": "assistant", "content": "Yes."}]}
    result = run(payload(stored(tmp_path / "rows.parquet", [chat(0), long]), release=side(tiny_model)), listening_job)
    assert (result["rows"], result["cut"]) == (1, 1)
    with pytest.raises(UserError, match="No row fits"):
        run(payload(stored(tmp_path / "long.parquet", [long]), release=side(tiny_model)), ListeningJob(tmp_path / "again"))


def test_a_question_that_leaves_no_room_for_an_answer_is_not_asked(tiny_model, adapter, tmp_path, listening_job):
    long = {"messages": [{"role": "user", "content": "word " * 60}, {"role": "assistant", "content": "Yes."}]}
    rows = stored(tmp_path / "rows.parquet", [long, chat(1), long, chat(2)])
    told = payload(rows, release=side(tiny_model, adapter), before=side(tiny_model, name="acme-v0.9.0"))
    assert len(run(told, listening_job)["samples"]) == 4
    told["before"]["context"] = 256  # measured they are still
    result = run(told, ListeningJob(tmp_path / "narrow"))
    assert [sample["prompt"] for sample in result["samples"]] == [QUESTIONS[1], QUESTIONS[2]]
    told["before"]["system"] = "Mind. " * 40
    assert run(told, ListeningJob(tmp_path / "system"))["samples"] == []


def test_of_a_prompt_only_the_last_words_logits_are_computed(tiny_model):
    from transformers import AutoModelForCausalLM

    from studio.ml.generating import answer
    from studio.ml.tokens import load_tokenizer

    model, seen = AutoModelForCausalLM.from_pretrained(tiny_model), []
    model.get_output_embeddings().register_forward_hook(lambda module, given, made: seen.append(made.shape[1]))
    answer(model, load_tokenizer(tiny_model), chat(1)["messages"][:1], 8)
    assert set(seen) == {1}


def test_a_stop_is_heeded(tiny_model, tmp_path):
    rows = stored(tmp_path / "rows.parquet", [chat(number) for number in range(4)])
    for looks in (0, 2, 4):
        with pytest.raises(Stopped):
            run(payload(rows, release=side(tiny_model)), ListeningJob(tmp_path / f"stop-{looks}", stop_after=looks))


def test_a_model_that_is_larger_than_the_machine_is_refused(tiny_model, tmp_path, listening_job):
    rows = stored(tmp_path / "rows.parquet", [chat(0)])
    with pytest.raises(UserError, match="Evaluate it on a larger machine"):
        run(payload(rows, release=side(tiny_model, parameters=10**14)), listening_job)


def test_weights_that_are_no_numbers_are_refused(tmp_path, listening_job):
    from safetensors.torch import load_file, save_file

    broken = make_tiny_model(tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    save_file(
        {name: tensor.fill_(float("nan")) for name, tensor in tensors.items()}, broken / "model.safetensors", metadata={"format": "pt"}
    )
    with pytest.raises(UserError):
        run(payload(stored(tmp_path / "rows.parquet", [chat(0)]), release=side(broken)), listening_job)


def test_an_answer_ends_at_the_releases_own_stop_text():
    assert until("One. Two. Three.", ["Three", " Two"]) == "One."
    assert until("One. Two.", ["Four"]) == "One. Two."
    assert until("One.", []) == "One."


def test_a_large_set_is_measured_in_part_and_evenly(tmp_path):
    path = stored(tmp_path / "rows.parquet", [chat(number) for number in range(1000)])
    small = heldout.held_out(path, split="", learnt_from=[], parameters=1)
    large = heldout.held_out(path, split="", learnt_from=[], parameters=7_000_000_000)
    assert (len(small.rows), len(large.rows), large.of) == (heldout.MOST_ROWS, heldout.LEAST_ROWS, 1000)
    assert [row["messages"][1]["content"] for row in large.rows[:3]] == ["It is 0.", "It is 50.", "It is 100."]


def test_an_interval_holds_the_truth_about_as_often_as_it_says():
    """Pairs whose true change is 2 %: of 200 samples of rows about 95 % of the intervals hold it."""
    chance = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        theirs = chance.gamma(4, 10, 60)
        mine = theirs * chance.normal(1.02, 0.15, 60)
        low, high = interval(mine, theirs)
        held += low <= 2 <= high
    assert 180 <= held <= 199


def test_a_few_rows_tell_nothing():
    assert interval(np.ones(evaluating.LEAST_ROWS - 1), np.ones(evaluating.LEAST_ROWS - 1)) == (None, None)
    few = Measured(np.array([3.0, np.nan]), np.array([2.0, np.nan]), [])
    told = compared(few, Measured(np.array([2.0, 1.0]), np.array([2.0, 1.0]), []), characters=np.array([9.0, 9.0]))
    assert (told["change"], told["low"], told["cut"]) == (50, None, 1)


@pytest.mark.parametrize("theirs", [[0.0] * 9, [0.0] * 8 + [1.0]], ids=["always", "mostly"])
def test_beside_one_that_is_certain_of_its_short_answers_nobody_can_tell(theirs):
    ones = np.ones(9)
    told = compared(Measured(ones, ones, []), Measured(np.array(theirs), ones, []), characters=ones)
    assert (told["low"], told["high"], told["loss"]) == (None, None, 1)
    assert told["change"] == (None if sum(theirs) == 0 else 800)
    Figures.model_validate(told | {"of": 9, "learnt": 0, "unknown": [], "samples": []})  # so the order does not fail
    assert verdict(told, margin=2).kind == "unsure"
