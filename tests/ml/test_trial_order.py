"""The whole path once: a prompt set is asked, a worker process has a base and an adapter answer, and the table stands in its row."""

import shutil
import time
from typing import Any

import pytest

from studio.orders.models import Order, Usage
from studio.serving import trial_table, trials
from studio.serving.columns import shown
from studio.serving.models import PromptSet
from studio.storage import commit_folder
from tests.fixtures import World, make_artifact, make_order, work_off
from tests.ml.adapters import make_adapter
from tests.orders.conftest import work_while


@pytest.fixture
def house(acme: World, tiny_model: Any, tmp_path: Any) -> World:
    """Its base is a real one, and so is its adapter."""
    shutil.copytree(tiny_model, tmp_path / "base")
    acme.base.sha256 = commit_folder(tmp_path / "base", acme.base.folder)["sha256"]
    acme.base.save()
    folder = make_adapter(acme.base.folder, tmp_path / "adapter", seed=3, lora_alpha=400)
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    acme.artifact = make_artifact(make_order(acme.owner, kind="train", client=acme.client), acme.project, files, base_model=acme.base)
    return acme


def begun(house: World, prompts: PromptSet, **settings: Any) -> Any:
    columns = [shown(house.base), shown(house.artifact)]
    return trials.begin(house.owner, prompts=prompts, columns=columns, asked_with=trials.asked_of(settings))


def test_a_worker_asks_every_question_and_the_table_is_kept(house):
    trial = begun(house, house.prompt_set, max_tokens=8)
    order = work_off(trial.order)
    assert (order.status, order.error) == ("succeeded", ""), order.log_file.read_text()[-2000:]
    assert (order.done, order.total, order.unit) == (6, 6, "questions")
    trial.refresh_from_db()
    base, adapter = trial_table.summaries(trial, trial.answers)
    assert (base.answered, adapter.answered, base.failed, adapter.failed) == (3, 3, 0, 0)
    assert trial.answers[0][0]["turns"] != trial.answers[0][1]["turns"]
    assert Usage.objects.get(order=order).kind == "trial"


def test_another_attempt_goes_on_where_the_lost_one_was(house):
    trial = begun(house, house.prompt_set, max_tokens=8)
    order = trial.order
    order.checkpoints.mkdir(parents=True)
    kept = '{"column": 0, "prompt": 1, "turns": [{"text": "From before.", "tokens": 2, "seconds": 1.0, "first": 0.1, "error": ""}]}\n'
    (order.checkpoints / "answers.jsonl").write_text(kept)
    assert work_off(order).status == "succeeded"
    trial.refresh_from_db()
    assert trial.answers[1][0]["turns"][0]["text"] == "From before."
    assert trial.answers[0][0]["turns"][0]["text"] != "From before."


@pytest.mark.django_db(transaction=True)
def test_a_stop_is_heard_within_ten_seconds_and_keeps_the_table(house):
    many = PromptSet.objects.create(workspace=house.workspace, name="Many", prompts=[{"turns": ["Hello!"], "category": ""}] * 200)
    trial = begun(house, many, max_tokens=400)
    asked_at: list[float] = []

    def stop() -> None:
        while not Order.objects.filter(pk=trial.order_id, done__gte=2).exists():
            time.sleep(0.1)
        asked_at.append(time.monotonic())
        trials.stop(house.owner, trial)

    order = work_while(trial.order, stop, until=2)
    took = time.monotonic() - asked_at[0]
    order.refresh_from_db()
    trial.refresh_from_db()
    assert order.status == "stopped"
    assert took < 10
    base, _ = trial_table.summaries(trial, trial.answers)
    assert base.answered >= 2
    assert base.missing > 0
