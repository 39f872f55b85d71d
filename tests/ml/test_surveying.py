"""A base model looks at rows before it learns them: how surprising they are, and which learning rates it takes."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from studio.comparisons import advising
from studio.errors import UserError
from studio.ml import surveying
from studio.ml.gguf import budget
from studio.ml.modelfacts import read_model_facts
from studio.ml.tokens import encode_row, load_tokenizer
from studio.training.advisor import Surveyed
from studio.training.job import Stopped
from tests.fixtures import work_off
from tests.jobs import ListeningJob
from tests.ml.test_evaluating import chat, stored

ROWS = [chat(number) for number in range(20)]


@pytest.fixture(autouse=True)
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(budget.LEDGER, str(tmp_path / "ledger"))


def payload(base: Path, rows: Path, **changes: Any) -> dict[str, Any]:
    model = read_model_facts(base).model_dump(mode="json")
    return {"rows": str(rows), "train": len(ROWS), "base": str(base), "model": model} | changes


def test_a_survey_measures_the_loss_of_each_token_that_would_be_learnt(tiny_model, tmp_path, listening_job):
    rows = stored(tmp_path / "rows.parquet", ROWS)
    found = surveying.run(payload(tiny_model, rows), listening_job)
    judged = Surveyed.model_validate(found)
    encoded = [encode_row(load_tokenizer(tiny_model), row, max_length=384) for row in ROWS]
    assert (judged.rows, judged.tokens) == (20, sum(sum(each.supervised[1:]) for each in encoded))
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    sums = 0.0
    for each in encoded:
        with torch.no_grad():
            logits = model(torch.tensor([each.ids])).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, torch.tensor(each.ids[1:]), reduction="none")
        sums += float(losses[torch.tensor(each.supervised[1:], dtype=torch.bool)].sum())
    assert judged.loss == pytest.approx(sums / judged.tokens, rel=2e-3)
    assert judged.surprising > 0.9  # a random model is surprised by all: it thinks of 500 tokens alike
    assert judged.loss == pytest.approx(math.log(500), rel=0.1)


def test_the_range_test_finds_rates_for_an_adapter_and_for_all_weights(tiny_model, tmp_path, listening_job):
    rows = stored(tmp_path / "rows.parquet", ROWS)
    judged = Surveyed.model_validate(surveying.run(payload(tiny_model, rows), listening_job))
    assert set(judged.rates) == {"lora", "full"}
    full = judged.rates["full"]
    assert full is not None
    assert full.low <= full.high
    assert full.points[0][0] == pytest.approx(1e-6)
    assert full.points[0][1] == pytest.approx(1, abs=0.02)
    assert min(loss for _, loss in full.points) < 0.9
    assert listening_job.phases.count("training") == 2
    assert max(done for done, _ in listening_job.steps) <= 24


def test_general_rows_that_the_studio_brings_along_are_measured_beside_them(tiny_model, tmp_path, listening_job):
    rows = stored(tmp_path / "rows.parquet", ROWS)
    judged = Surveyed.model_validate(surveying.run(payload(tiny_model, rows), listening_job))
    assert judged.probe_rows == 24
    assert judged.probe_loss == pytest.approx(math.log(500), rel=0.1)  # a random model knows as little of them


def test_only_rows_of_the_training_split_are_read(tiny_model, tmp_path, listening_job):
    rows = stored(tmp_path / "rows.parquet", ROWS, splits=["validation"] * 15 + ["train"] * 5)
    assert surveying.run(payload(tiny_model, rows, train=5), listening_job)["rows"] == 5


def test_a_model_too_large_for_all_weights_is_surveyed_without_and_says_so(tiny_model, tmp_path, listening_job, monkeypatch):
    monkeypatch.setenv(budget.LIMIT, "701000000")
    found = surveying.run(payload(tiny_model, stored(tmp_path / "rows.parquet", ROWS)), listening_job)
    assert set(found["rates"]) == {"lora"}
    assert "more memory than is set aside" in listening_job.notes[-1]


def test_time_that_is_over_leaves_rows_and_rates_out_and_says_so(tiny_model, tmp_path, listening_job, monkeypatch):
    monkeypatch.setattr(surveying, "MEASURED_SECONDS", 0.0)
    monkeypatch.setattr(surveying, "PROBE_SECONDS", 0.0)
    monkeypatch.setattr(surveying, "TEST_SECONDS", 0.0)
    found = surveying.run(payload(tiny_model, stored(tmp_path / "rows.parquet", ROWS)), listening_job)
    assert found["rows"] == 1
    assert any("1 of 20 rows were read" in note for note in listening_job.notes)
    assert "There was no time for the higher learning rates." in listening_job.notes
    assert found["rates"] == {"lora": None, "full": None}


def test_a_stop_ends_it_and_leaves_nothing(tiny_model, tmp_path):
    rows = stored(tmp_path / "rows.parquet", ROWS)
    for looks in (3, 40):  # while it reads rows, and while it tries rates
        job = ListeningJob(tmp_path / str(looks), stop_after=looks)
        with pytest.raises(Stopped):
            surveying.run(payload(tiny_model, rows), job)
        assert not list(job.out.iterdir())


def test_rows_without_anything_to_learn_are_refused(tiny_model, tmp_path, listening_job):
    asked = [{"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes.", "weight": 0}]}]
    with pytest.raises(UserError, match="No training row has anything to learn"):
        surveying.run(payload(tiny_model, stored(tmp_path / "rows.parquet", asked), train=1), listening_job)


def test_a_model_with_broken_weights_is_named(tmp_path, tiny_model_maker, listening_job):
    folder = tiny_model_maker(tmp_path / "broken")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("inf"))
    model.save_pretrained(folder)
    with pytest.raises(UserError):
        surveying.run(payload(folder, stored(tmp_path / "rows.parquet", ROWS)), listening_job)


def test_the_whole_way_from_the_button_to_the_advice(acme, tiny_model):
    shutil.copytree(tiny_model, acme.base.folder)
    acme.base.facts = read_model_facts(tiny_model, "Tiny").model_dump(mode="json")
    acme.base.save(update_fields=["facts"])
    survey = advising.begin_survey(acme.owner, base=acme.base, version=acme.version)
    order = work_off(survey.order)
    assert (order.status, order.error) == ("succeeded", "")
    survey.refresh_from_db()
    assert survey.result["rows"] == 10
    found = advising.advice_for(base=acme.base, version=acme.version, goal="task", clients=1)
    assert found.survey == survey
    assert not any("Nobody has looked yet" in sentence for sentence in found.advice.unknown)
