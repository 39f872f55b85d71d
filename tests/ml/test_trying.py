"""A whole prompt set is asked of several models: each answers as itself, a stop is heard, what was answered is not asked again."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from studio.ml import trying
from studio.training.job import Stopped
from tests.jobs import ListeningJob
from tests.ml.adapters import make_adapter

PROMPTS = [["What is the capital of France?", "And of Spain?"], ["Give three tips."], ["Hello!"], ["Write a reply."], ["Who are you?"]]


@pytest.fixture(scope="module")
def models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A sealed base with an adapter on it, and a cache that the tests share."""
    from studio.storage import commit_folder

    root = tmp_path_factory.mktemp("trying")
    shutil.copytree(tiny_model, root / "draft")
    commit_folder(root / "draft", root / "base")
    make_adapter(root / "base", root / "adapter-draft", seed=3, lora_alpha=400)
    commit_folder(root / "adapter-draft", root / "adapter")
    return {"base": root / "base", "adapter": root / "adapter", "cache": root / "cache"}


def payload(models: dict[str, Path], state: Path, *, columns: list[dict[str, Any]] | None = None, **changes: Any) -> dict[str, Any]:
    base = {"name": "Tiny", "base": str(models["base"]), "max_tokens": 12}
    columns = columns or [base, base | {"name": "Tiny with adapter", "adapter": str(models["adapter"])}]
    return {"prompts": PROMPTS, "columns": columns, "cache": str(models["cache"]), "state": str(state), **changes}


def answers(folder: Path) -> dict[tuple[int, int], list[dict[str, Any]]]:
    told = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    return {(line["column"], line["prompt"]): line["turns"] for line in told}


def test_every_question_is_asked_of_every_model(models, tmp_path):
    job = ListeningJob(tmp_path / "attempt")
    facts = trying.run(payload(models, tmp_path / "state"), job)
    assert facts == {"answered": 12, "of": 12}
    found = answers(job.out)
    assert set(found) == {(column, prompt) for column in (0, 1) for prompt in range(5)}
    assert [len(found[0, prompt]) for prompt in range(5)] == [2, 1, 1, 1, 1]
    for turns in found.values():
        for turn in turns:
            assert (turn["error"], turn["tokens"] > 0, turn["seconds"] > 0, turn["first"] > 0) == ("", True, True, True)
    assert [turns[0]["text"] for (column, _), turns in sorted(found.items()) if column == 0] != [
        turns[0]["text"] for (column, _), turns in sorted(found.items()) if column == 1
    ]
    assert "Asking Tiny (1 of 2)" in job.texts
    assert "Asking Tiny with adapter (2 of 2)" in job.texts
    assert job.steps[-1] == (12, 12)


def test_several_conversations_at_once_say_what_each_says_alone(models, tmp_path):
    together, alone = ListeningJob(tmp_path / "together"), []
    trying.run(payload(models, tmp_path / "state"), together)
    for number, turns in enumerate(PROMPTS):
        job = ListeningJob(tmp_path / f"alone-{number}")
        trying.run(payload(models, tmp_path / f"state-{number}", prompts=[turns]), job)
        alone.append(answers(job.out))
    found = answers(together.out)
    for (column, prompt), turns in found.items():
        assert [turn["text"] for turn in turns] == [turn["text"] for turn in alone[prompt][column, 0]]


def test_what_was_answered_before_a_worker_was_lost_is_not_asked_again(models, tmp_path):
    state = tmp_path / "state"
    state.mkdir()
    kept = {"column": 0, "prompt": 1, "turns": [{"text": "From before.", "tokens": 3, "seconds": 1.0, "first": 0.1, "error": ""}]}
    (state / "answers.jsonl").write_text(json.dumps(kept) + "\n" + '{"column": 0, "prompt": 2, "tur')
    job = ListeningJob(tmp_path / "attempt")
    trying.run(payload(models, state), job)
    found = answers(job.out)
    assert found[0, 1][0]["text"] == "From before."
    assert len(found) == 10
    assert job.steps[0][0] >= 1


def test_a_model_that_is_gone_costs_its_own_column_alone(models, tmp_path):
    gone = {"name": "Gone", "base": str(tmp_path / "nowhere"), "max_tokens": 4}
    column = {"name": "Tiny", "base": str(models["base"]), "max_tokens": 4}
    job = ListeningJob(tmp_path / "attempt")
    trying.run(payload(models, tmp_path / "state", columns=[gone, column]), job)
    found = answers(job.out)
    assert {turns[0]["error"] for (number, _), turns in found.items() if number == 0} == {trying.GONE}
    assert {turns[0]["error"] for (number, _), turns in found.items() if number == 1} == {""}
    assert job.notes == [f"Gone: {trying.GONE}"]


def test_a_conversation_that_does_not_fit_ends_with_its_reason(models, tmp_path):
    long = ["word " * 3000, "And now?"]
    job = ListeningJob(tmp_path / "attempt")
    trying.run(payload(models, tmp_path / "state", prompts=[long, ["Hello!"]]), job)
    (turn,) = answers(job.out)[0, 0]
    assert "Shorten it" in turn["error"]
    assert answers(job.out)[0, 1][0]["error"] == ""


def test_a_stop_is_heard_within_ten_seconds_and_keeps_what_was_answered(models, tmp_path):
    columns = [{"name": "Tiny", "base": str(models["base"]), "max_tokens": 400}]
    job = ListeningJob(tmp_path / "attempt", stop_after=3)
    began = time.monotonic()
    trying.run(payload(models, tmp_path / "state", columns=columns, prompts=PROMPTS * 40), job)
    assert time.monotonic() - began < 10
    done = answers(job.out) if (job.out / "answers.jsonl").exists() else {}
    assert len(done) < 200


def test_a_pause_leaves_its_answers_to_the_next_attempt(models, tmp_path):
    class Pausing(ListeningJob):
        def pausing(self) -> bool:
            return self.stopping()

    job = Pausing(tmp_path / "attempt", stop_after=4)
    with pytest.raises(Stopped):
        trying.run(payload(models, tmp_path / "state", prompts=PROMPTS * 40), job)
    assert not (job.out / "answers.jsonl").exists()
    assert (tmp_path / "state" / "answers.jsonl").is_file()


def test_the_context_is_as_large_as_the_longest_conversation_needs(models, tmp_path):
    order = trying.TrialPayload.model_validate(payload(models, tmp_path))
    assert trying.context_for(order, order.columns[0]) == trying.SMALLEST_CONTEXT
    order.prompts.append(["x" * 4000, "y" * 4000])
    assert trying.context_for(order, order.columns[0]) == 4608
    order.prompts.append(["x" * 40_000])
    assert trying.context_for(order, order.columns[0]) == trying.LARGEST_CONTEXT
