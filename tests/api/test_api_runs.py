"""A run through the API: what it would take, starting, following, stopping, cloning."""

import json

import pytest

from studio.runs.models import Run
from tests.fixtures import Api, make_base_model, make_key, make_order, work_off

SETTINGS = {"max_steps": 4, "seconds_per_step": 0.01}


def order_of(acme, **changes):
    body = {
        "project": str(acme.project.pk),
        "name": "First try",
        "plugin": "rehearsal",
        "config": SETTINGS,
        "base_model": str(acme.base.pk),
        "dataset_version": str(acme.version.pk),
    }
    return body | changes


def test_an_estimate_says_what_a_run_would_take_and_starts_nothing(acme, slot):
    body = {key: value for key, value in order_of(acme).items() if key not in ("project", "name")}
    answer = acme.api.post("estimates", body)
    assert answer.status_code == 200, answer.content
    facts = answer.json()
    assert facts["steps"] == 4
    assert 0 < facts["memory"]["low"] < facts["memory"]["high"]
    assert facts["seconds"]["low"] <= facts["seconds"]["high"]
    assert facts["issues"][0]["level"] == "note"
    assert Run.objects.count() == 1


def test_an_estimate_suggests_settings_for_the_case(acme, slot):
    body = {key: value for key, value in order_of(acme).items() if key not in ("project", "name")} | {"plugin": "peft_lora", "config": {}}
    found = acme.api.post("estimates", body).json()["suggestions"]
    assert found["learning_rate"]["value"] == 2e-4
    assert found["epochs"]["reason"].startswith("since")


def test_an_estimate_without_a_worker_says_so(acme):
    body = {key: value for key, value in order_of(acme).items() if key not in ("project", "name")}
    facts = acme.api.post("estimates", body).json()
    assert facts["memory"] is None
    assert "No worker" in facts["issues"][0]["message"]


def test_a_run_is_started_worked_off_and_read_to_its_artifact(acme, slot):
    answer = acme.api.post("runs", order_of(acme))
    assert answer.status_code == 201, answer.content
    started = answer.json()
    assert (started["status"], started["attempt"], started["step"], started["total_steps"]) == ("queued", 1, 0, 4)
    assert started["config"]["max_steps"] == 4
    assert started["config"]["learning_rate"] == 0.0002  # the whole config is stored, defaults included

    work_off(Run.objects.get(pk=started["id"]).order)

    run = acme.api.get(f"runs/{started['id']}").json()
    assert (run["status"], run["error"]) == ("succeeded", "")
    assert (run["step"], run["total_steps"]) == (4, 4)
    assert run["metrics"]["loss"] > 0
    assert run["usage"]["seconds"] >= 0
    assert set(run["usage"]) >= {"seconds", "peak_memory", "tokens", "tokens_per_second", "energy"}
    artifact = acme.api.get(f"artifacts/{run['artifact']}").json()
    assert (artifact["kind"], artifact["run"]) == ("rehearsal", run["id"])
    assert artifact["lineage"]["dataset_version"]["sha256"] == acme.version.sha256
    assert acme.api.get(f"artifacts?run={run['id']}").json()["items"] == [artifact]


def test_events_come_in_order_without_a_gap_page_by_page(acme, slot):
    run = acme.api.post("runs", order_of(acme)).json()
    work_off(Run.objects.get(pk=run["id"]).order)
    everything = acme.api.get(f"runs/{run['id']}/events").json()
    assert everything["next"] is None
    numbers = [event["seq"] for event in everything["items"]]
    assert numbers == list(range(1, len(numbers) + 1))
    assert everything["items"][-1]["type"] == "end"
    assert {"seq", "attempt", "at", "type"} <= set(everything["items"][0])

    page, seen = acme.api.get(f"runs/{run['id']}/events?limit=3").json(), []
    while True:
        seen += page["items"]
        if page["next"] is None:
            break
        page = acme.api.get(page["next"]).json()
    assert seen == everything["items"]
    assert acme.api.get(f"runs/{run['id']}/events?after={numbers[-1]}").json() == {"items": [], "next": None}


def test_a_run_that_fails_says_why(acme, slot):
    run = acme.api.post("runs", order_of(acme, config=SETTINGS | {"fail_at": 2})).json()
    work_off(Run.objects.get(pk=run["id"]).order)
    run = acme.api.get(f"runs/{run['id']}").json()
    assert (run["status"], run["artifact"]) == ("failed", None)
    assert "Step 2 failed" in run["error"]


def test_a_queued_run_is_stopped_at_once_and_an_ended_one_is_not(acme, slot):
    run = acme.api.post("runs", order_of(acme)).json()
    answer = acme.api.post(f"runs/{run['id']}/stop", {"discard": True})
    assert (answer.status_code, answer.json()["status"]) == (202, "stopped")
    again = acme.api.post(f"runs/{run['id']}/stop")
    assert (again.status_code, again.json()["error"]["message"]) == (400, "This has already ended.")
    assert acme.api.get("runs?status=stopped").json()["items"][0]["id"] == run["id"]


def test_a_stop_needs_no_body(acme, slot):
    run = acme.api.post("runs", order_of(acme)).json()
    answer = acme.api.browser.generic("POST", f"/api/v1/runs/{run['id']}/stop", headers=acme.api.headers)
    assert answer.status_code == 202, answer.content


def test_a_clone_differs_only_in_its_changes(acme, slot):
    run = acme.api.post("runs", order_of(acme, prompts=["Where is my order?"])).json()
    answer = acme.api.post(f"runs/{run['id']}/clone", {"changes": {"learning_rate": 0.001, "name": "Faster"}})
    assert answer.status_code == 201, answer.content
    copy = answer.json()
    assert copy["id"] != run["id"]
    assert (copy["name"], copy["config"], copy["prompts"]) == ("Faster", run["config"] | {"learning_rate": 0.001}, run["prompts"])
    assert acme.api.post(f"runs/{run['id']}/clone").json()["name"] == "First try (copy)"
    refused = acme.api.post(f"runs/{run['id']}/clone", {"changes": {"learning_rate": -1}}).json()["error"]
    assert (refused["code"], list(refused["fields"])) == ("invalid_config", ["learning_rate"])


def test_a_clone_may_train_in_another_way_at_a_rate_that_suits_it(acme, slot):
    run = acme.api.post("runs", order_of(acme, plugin="peft_lora", config={"learning_rate": 3e-4, "rank": 8, "epochs": 2})).json()
    copy = acme.api.post(f"runs/{run['id']}/clone", {"changes": {"plugin": "full_finetune"}}).json()
    assert (copy["plugin"], copy["config"]["learning_rate"], copy["config"]["epochs"]) == ("full_finetune", 3e-5, 2.0)
    assert copy["notices"][0].startswith("The learning rate 0.0003 became 0.00003: all weights need about a tenth")
    assert "Rank" in copy["notices"][1]
    exact = acme.api.post(f"runs/{run['id']}/clone", {"changes": {"plugin": "full_finetune", "learning_rate": 1e-5}}).json()
    assert exact["config"]["learning_rate"] == 1e-5
    refused = acme.api.post(f"runs/{run['id']}/clone", {"changes": {"plugin": "nothing"}}).json()["error"]
    assert list(refused["fields"]) == ["plugin"]


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"learning_rate": 0}, "learning_rate"),
        ({"learning_rate": -1}, "learning_rate"),
        ({"learning_rate": "0.1"}, "learning_rate"),
        ({"batch_size": 10**30}, "batch_size"),
        ({"epochs": True}, "epochs"),
        ({"learning_rat": 0.1}, "learning_rat"),
        ({"": 1}, ""),
    ],
)
def test_settings_that_cannot_be_used_are_refused_by_name(acme, slot, config, field):
    answer = acme.api.post("runs", order_of(acme, config=config))
    assert answer.status_code == 422, answer.content
    error = answer.json()["error"]
    assert error["code"] == "invalid_config"
    assert list(error["fields"]) == [field]
    assert error["fields"][field]
    assert Run.objects.count() == 1


def test_what_a_run_needs_must_be_there_and_ready(acme, slot):
    def fields(**changes):
        answer = acme.api.post("runs", order_of(acme, **changes))
        assert answer.status_code == 422, answer.content
        return list(answer.json()["error"]["fields"])

    assert fields(plugin="magic") == ["plugin"]
    assert fields(base_model="not-an-id") == ["base_model"]
    assert fields(rank=16) == ["rank"]
    assert fields(prompts=["x"] * 9) == ["prompts"]
    coming = make_base_model(acme.owner, name="Coming")
    coming.facts = None
    coming.order = make_order(acme.owner, kind="base_model", client=None, status="running")
    coming.save()
    assert fields(base_model=str(coming.pk)) == ["base_model"]
    elsewhere = acme.api.post("projects", {"client": str(acme.client.pk), "name": "Elsewhere"}).json()
    assert fields(project=elsewhere["id"]) == ["dataset_version"]
    assert json.loads(acme.api.get("runs").content)["next"] is None


def test_a_run_is_paused_and_resumed(acme, slot):
    run = acme.api.post("runs", order_of(acme)).json()
    paused = acme.api.post(f"runs/{run['id']}/pause")
    assert (paused.status_code, paused.json()["status"], paused.json()["artifact"]) == (202, "paused", None)
    assert acme.api.get("runs?status=paused").json()["items"][0]["id"] == run["id"]
    resumed = acme.api.post(f"runs/{run['id']}/resume")
    assert (resumed.status_code, resumed.json()["status"], resumed.json()["attempt"]) == (202, "queued", 2)
    done = work_off(Run.objects.get(pk=run["id"]).order)
    assert done.status == "succeeded"
    events = acme.api.get(f"runs/{run['id']}/events").json()["items"]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert [event["status"] for event in events if event["type"] == "end"] == ["paused", "succeeded"]


def test_an_ended_run_is_not_paused_and_a_running_one_not_resumed(acme, slot):
    for act in ("pause", "resume"):
        answer = acme.api.post(f"runs/{acme.run.pk}/{act}")
        assert (answer.status_code, answer.json()["error"]["message"]) == (400, "This has already ended.")
    run = acme.api.post("runs", order_of(acme)).json()
    answer = acme.api.post(f"runs/{run['id']}/resume")
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "This is not paused, so there is nothing to resume.")


def test_a_key_that_reads_can_neither_pause_nor_resume(acme, slot):
    reader = Api(make_key(acme.owner, scopes=["read"]))
    for act in ("pause", "resume"):
        assert reader.post(f"runs/{acme.run.pk}/{act}").status_code == 404
