"""Trials: a whole prompt set is asked of several models, and the table of their answers is kept, read, taken home and deleted."""

import csv
import io
import json
from typing import Any

import pytest
from django.http import Http404
from django.test import Client as Browser

from studio.audit.models import AuditRecord
from studio.clients.erasing import erase, finish
from studio.errors import UserError
from studio.orders.models import Order
from studio.serving import trial_table, trials
from studio.serving.columns import column_of, offered
from studio.serving.models import PromptSet, Trial
from studio.workspaces.services import create_client, create_project
from tests.fixtures import World, make_artifact, make_member, make_order, make_release, make_trial


@pytest.fixture
def browser(acme: World) -> Browser:
    browser = Browser()
    browser.force_login(acme.owner.user)
    return browser


def asked(browser: Browser, **form: Any) -> Any:
    return browser.post("/trials/new/", form)


def targets(acme: World) -> list[str]:
    return [f"base:{acme.base.pk}", f"adapter:{acme.artifact.pk}"]


def test_a_set_is_asked_of_a_base_model_and_an_adapter(acme, browser):
    response = asked(
        browser, set=acme.prompt_set.pk, column=[*targets(acme), "", ""], max_tokens="64", temperature="0.5", system="Be kind."
    )
    assert response.status_code == 302
    trial = Trial.objects.get()
    assert (trial.client, trial.order.client, trial.order.kind) == (acme.client, acme.client, "trial")
    assert [column["method"] for column in trial.columns] == ["base", "lora"]
    assert trial.asked_with == {"system": "Be kind.", "temperature": 0.5, "top_p": None, "max_tokens": 64, "seed": 0}
    assert AuditRecord.objects.latest("at").verb == "trial.create"
    page = browser.get(response["Location"]).content.decode()
    assert "Waiting for a free worker" in page
    assert 'hx-trigger="every 2s"' in page


def test_a_release_answers_with_its_own_system_prompt_and_settings(acme, browser):
    release = make_release(acme.owner, acme.artifact)
    release.asked_with = {"system": "You are Acme.", "temperature": 0.9, "max_tokens": 9000, "stop": ["END"]}
    release.save()
    asked(browser, set=acme.prompt_set.pk, column=[f"release:{release.pk}", f"base:{acme.base.pk}"], max_tokens="100", system="Mine.")
    trial = Trial.objects.get()
    told = trials.payload(trial, trial.order)
    own, base = told.columns
    assert (own.system, own.temperature, own.max_tokens, own.stop) == ("You are Acme.", 0.9, 100, ["END"])
    assert (own.base, own.adapter) == (str(acme.base.folder), str(acme.artifact.folder))
    assert (base.system, base.temperature, base.adapter) == ("Mine.", 0.0, "")
    assert told.prompts == [["Where?", "And when?"], ["Why?"]]
    assert told.state == trial.order.checkpoints


def test_a_gguf_build_is_asked_by_its_file(acme):
    column = column_of(acme.owner, f"build:{acme.build.pk}", action="prompts.edit")
    model = trials.model_of(column.kept, trials.asked_of({}).model_dump())
    assert model.base.endswith("-q8_0.gguf")
    assert model.base.startswith(str(acme.build.artifact.folder))


def test_what_is_gone_when_its_turn_comes_has_no_folder(acme):
    trial = acme.trial
    trial.columns[0]["target"] = "base:00000000-0000-4000-8000-000000000000"
    assert trials.payload(trial, trial.order).columns[0].base == ""


@pytest.mark.parametrize(
    ("change", "field", "sentence"),
    [
        ({"column": []}, "columns", "Choose at least one model."),
        ({"column": "twice"}, "columns", "Choose each model once."),
        ({"max_tokens": "0"}, "max_tokens", "Must be a whole number from 1 to 2,048."),
        ({"max_tokens": "many"}, "max_tokens", "Must be a whole number"),
        ({"temperature": "nan"}, "temperature", "Must be a number from 0 to 2."),
        ({"temperature": "1e999"}, "temperature", "Must be a number from 0 to 2."),
        ({"seed": "-1"}, "seed", "Must be a whole number"),
        ({"top_p": "2"}, "top_p", "Must be a number above 0"),
        ({"set": ""}, "set", "Choose a prompt set."),
    ],
)
def test_what_cannot_be_asked_is_said_beside_its_field(acme, browser, change, field, sentence):
    form = {"set": acme.prompt_set.pk, "column": targets(acme), "max_tokens": "64"} | change
    if form["column"] == "twice":
        form["column"] = [targets(acme)[0]] * 2
    response = asked(browser, **form)
    assert response.status_code == 422
    assert sentence in response.content.decode()
    assert not Trial.objects.exists()


def test_more_answers_than_are_kept_are_refused(acme, browser):
    prompts = [{"turns": ["Why?"] * 8, "category": ""}] * 200
    large = PromptSet.objects.create(workspace=acme.workspace, name="Large", prompts=prompts)
    response = asked(browser, set=large.pk, column=targets(acme), max_tokens="2048")
    assert response.status_code == 422
    assert "2,000,000 are kept" in response.content.decode()


def of_another(acme: World) -> Any:
    """An adapter of another client of the same workspace."""
    client = create_client(acme.owner, name="Globex")
    project = create_project(acme.owner, client=client, name="Other")
    order = make_order(acme.owner, kind="train", client=client)
    return make_artifact(order, project, {"x": b"1"}, base_model=acme.base)


def test_nobodys_questions_are_asked_of_another_clients_models(acme, browser):
    other = of_another(acme)
    response = asked(browser, set=acme.prompt_set.pk, column=[f"adapter:{other.pk}"])
    assert response.status_code == 422
    assert "Choose models of In-house." in response.content.decode()
    shared = PromptSet.objects.create(workspace=acme.workspace, name="Shared", prompts=[{"turns": ["Hi?"], "category": ""}])
    response = asked(browser, set=shared.pk, column=[f"adapter:{other.pk}", f"adapter:{acme.artifact.pk}"])
    assert "Choose models of one client." in response.content.decode()
    assert asked(browser, set=shared.pk, column=[f"adapter:{other.pk}"]).status_code == 302
    assert Trial.objects.get().client.name == "Globex"


def test_columns_stay_chosen_while_the_set_and_the_client_are(acme, browser):
    other = of_another(acme)
    shared = PromptSet.objects.create(workspace=acme.workspace, name="Shared", prompts=[{"turns": ["Hi?"], "category": ""}])

    def form(**changed: Any) -> Any:
        return browser.get(
            "/trials/new/", {"set": shared.pk, "client": acme.client.pk, "column": [*targets(acme), "", ""]} | changed
        ).context

    assert form()["places"] == [*targets(acme), "", ""]
    assert form(set=acme.prompt_set.pk)["places"] == [*targets(acme), "", ""]
    elsewhere = form(client=other.project.client.pk)  # nobody's models are asked beside another's
    assert (elsewhere["client"], elsewhere["places"]) == (other.project.client, [targets(acme)[0], "", "", ""])
    alone = form(client="")
    assert (alone["client"], alone["places"]) == (None, [targets(acme)[0], "", "", ""])
    again = form(set="", trial=acme.trial.pk, column=["", targets(acme)[1], "", ""])
    assert again["places"] == [targets(acme)[1], "", "", ""]


def test_a_client_without_a_prompt_set_is_still_a_choice(acme, browser):
    assert acme.prompt_set
    other = create_client(acme.owner, name="Globex")
    page = browser.get("/trials/new/", {"client": other.pk}).content.decode()
    assert "There is none for Globex yet." in page and 'id="trial-who"' in page
    PromptSet.objects.all().delete()
    assert "No prompt set yet" in browser.get("/trials/new/", {"client": other.pk}).content.decode()


def test_who_sees_another_client_finds_neither_its_models_nor_its_trials(acme):
    other = of_another(acme)
    assert acme.trial
    member = make_member(acme.workspace, role="member", email="max@example.com", clients=[acme.client])
    with pytest.raises(Http404):
        column_of(member, f"adapter:{other.pk}", action="prompts.edit")
    narrow = make_member(acme.workspace, role="member", email="mia@example.com", clients=[other.project.client])
    assert not Trial.objects.for_action(narrow, "prompts.view").exists()
    assert [title for title, _ in offered(narrow, other.project.client, action="prompts.edit")] == ["Adapters", "Base models"]


@pytest.mark.parametrize("target", ["", "base", "base:", "base:x", "dataset:00000000-0000-4000-8000-000000000000", "adapter:\0"])
def test_a_target_that_names_nothing_is_not_found(acme, target):
    with pytest.raises(Http404):
        column_of(acme.owner, target, action="prompts.edit")


def test_an_adapter_is_no_full_model(acme):
    with pytest.raises(Http404):
        column_of(acme.owner, f"model:{acme.artifact.pk}", action="prompts.edit")


def said(column: int, prompt: int, *texts: str, error: str = "") -> dict[str, Any]:
    turns = [{"text": text, "tokens": len(text.split()), "seconds": 0.5, "first": 0.1, "error": error} for text in texts]
    return {"column": column, "prompt": prompt, "turns": turns}


def left(tmp_path, *lines: dict[str, Any]) -> Any:
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_answers_come_into_the_table_where_they_belong(acme, tmp_path):
    trial = make_trial(acme, status=Order.Status.RUNNING)
    folder = left(tmp_path, said(1, 0, "one two three four", "five"), said(0, 0, "one two", "x"), said(0, 1, "", error="Too long."))
    trials.take_in(trial, folder)
    first, second = trial.answers
    assert [turn["text"] for turn in first[1]["turns"]] == ["one two three four", "five"]
    assert second[0]["turns"][0]["error"] == "Too long."
    assert second[1]["turns"] == []
    base, adapter = trial_table.summaries(trial, trial.answers)
    assert (base.answered, base.failed, base.missing) == (2, 1, 0)
    assert (adapter.answered, adapter.missing, adapter.speed, adapter.first) == (2, 1, 5.0, 0.1)
    assert (base.compared, adapter.compared) == ("", "67\u00a0% longer")
    row = trial_table.row_of(trial, trial.answers, 0)
    assert [cell.compared for _, cell in row.turns[0][1]] == ["", "100\u00a0% longer"]


@pytest.mark.parametrize(
    "line",
    [
        {"column": -1, "prompt": 0, "turns": []},
        {"column": 0, "prompt": 0, "turns": [{"text": "x"}]},
        {"column": 0, "prompt": 0, "turns": [{"text": "x", "tokens": 1, "seconds": -1, "first": 0, "error": ""}]},
        {"column": 0, "prompt": 0, "turns": [{"text": "x" * 60_000, "tokens": 1, "seconds": 1, "first": 0, "error": ""}]},
    ],
)
def test_a_worker_is_not_believed_what_cannot_be(acme, tmp_path, line):
    trial = make_trial(acme, status=Order.Status.RUNNING)
    with pytest.raises(ValueError):
        trials.take_in(trial, left(tmp_path, line))


def test_more_than_was_asked_is_left_out(acme, tmp_path):
    trial = make_trial(acme, status=Order.Status.RUNNING)
    trials.take_in(
        trial, left(tmp_path, said(0, 1, "a\x00b\x07", "not asked"), said(7, 0, "no such column"), said(0, 99, "no such prompt"))
    )
    assert trial.answers[1][0]["turns"][0]["text"] == "ab"
    assert len(trial.answers[1][0]["turns"]) == 1


def test_the_page_shows_every_answer_beside_its_question(acme, browser):
    page = browser.get(f"/trials/{acme.trial.pk}/").content.decode()
    for text in ("Base says Where?", "Adapter says And when?", "24.0", "as long", "parcels"):
        assert text in page
    link = f"/playground/?column=base%3A{acme.base.pk}&amp;column=adapter%3A{acme.artifact.pk}&amp;prompt=Where%3F"
    assert link in page


def test_the_table_is_filtered_by_category_and_searched(acme, browser):
    address = f"/trials/{acme.trial.pk}/"
    parcels = browser.get(f"{address}?category=parcels").content.decode()
    assert "Base says Where?" in parcels
    assert "Base says Why?" not in parcels
    found = browser.get(f"{address}?q=ADAPTER why").content.decode()
    assert "Adapter says Why?" in found
    assert "Adapter says Where?" not in found
    assert "No prompt like that" in browser.get(f"{address}?q=elephant").content.decode()


def test_what_a_model_writes_is_text_and_nothing_else(acme, browser):
    trial = acme.trial
    trial.answers[0][0]["turns"][0]["text"] = "<script>alert(1)</script>" + "x" * 600
    trial.save()
    page = browser.get(f"/trials/{trial.pk}/").content.decode()
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_the_table_goes_home_as_csv_and_as_json_lines(acme, browser):
    trial = acme.trial
    trial.answers[0][0]["turns"][0]["text"] = "=1+1"
    trial.save()
    address = f"/trials/{trial.pk}/download/"
    rows = list(csv.reader(io.StringIO(b"".join(browser.get(address)).decode())))
    assert rows[0][:5] == ["number", "category", "turn", "question", "Tiny"]
    assert [row[:4] for row in rows[1:]] == [["1", "parcels", "1", "Where?"], ["1", "parcels", "2", "And when?"], ["2", "", "1", "Why?"]]
    assert rows[1][4:8] == ["'=1+1", "12", "0.5", "0.1"]
    lines = [json.loads(line) for line in b"".join(browser.get(f"{address}?format=jsonl")).splitlines()]
    assert lines[1]["answers"][1]["turns"][0]["text"] == "Adapter says Why?"
    assert browser.get(f"{address}?format=exe").status_code == 404


def test_a_trial_is_asked_again_with_the_same_columns(acme, browser):
    form = browser.get(f"/trials/new/?trial={acme.trial.pk}").content.decode()
    assert form.count("selected>") >= 2
    assert asked(browser, trial=acme.trial.pk, column=targets(acme)).status_code == 302
    assert Trial.objects.count() == 2


def test_a_trial_is_stopped_and_deleted_with_its_order_and_files(acme, browser, django_capture_on_commit_callbacks):
    trial = make_trial(acme, status=Order.Status.QUEUED)
    folder = trial.order.folder
    folder.mkdir(parents=True)
    refused = browser.post(f"/trials/{trial.pk}/delete/")
    assert refused.status_code >= 400
    browser.post(f"/trials/{trial.pk}/stop/")
    trial.order.refresh_from_db()
    assert trial.order.status == "stopped"
    assert "It was stopped before the first answer was whole." in browser.get(f"/trials/{trial.pk}/").content.decode()
    with django_capture_on_commit_callbacks(execute=True):
        browser.post(f"/trials/{trial.pk}/delete/")
    assert not Trial.objects.exists()
    assert not Order.objects.filter(kind="trial").exists()
    assert not folder.parent.exists()


def test_a_trial_that_failed_says_why(acme, browser):
    trial = make_trial(acme, status=Order.Status.FAILED)
    Order.objects.filter(pk=trial.order_id).update(error="The disk is full.")
    page = browser.get(f"/trials/{trial.pk}/").content.decode()
    assert "The disk is full." in page
    assert "Ask again" in page


def test_the_list_is_newest_first_and_by_client(acme, browser):
    first, second = make_trial(acme), make_trial(acme, status=Order.Status.RUNNING)
    page = browser.get(f"/trials/?client={acme.client.pk}").content.decode()
    assert page.index(str(second.pk)) < page.index(str(first.pk))
    assert 'hx-trigger="every 3s"' in page


def test_a_clients_page_mentions_what_is_being_asked(acme, browser):
    address = f"/clients/{acme.client.pk}/"
    assert acme.trial
    assert "Being asked" not in browser.get(address).content.decode()
    trial = make_trial(acme, status=Order.Status.RUNNING)
    Order.objects.filter(pk=trial.order_id).update(done=2, total=6)
    page = browser.get(address).content.decode()
    assert f"/trials/{trial.pk}/" in page
    assert "2 of 6 questions" in page


def test_the_api_asks_reads_stops_and_deletes(acme):
    body = {"prompt_set": str(acme.prompt_set.pk), "columns": targets(acme), "max_tokens": 32}
    made = acme.api.post("trials", body)
    assert made.status_code == 202
    trial = made.json()
    assert (trial["status"], trial["progress"]) == ("queued", 0.0)
    assert acme.api.post(f"trials/{trial['id']}/stop").json()["status"] == "stopped"
    assert acme.api.delete(f"trials/{trial['id']}").status_code == 204
    whole = acme.api.get(f"trials/{acme.trial.pk}").json()
    assert whole["table"][0]["answers"][1]["turns"][0]["text"] == "Adapter says Where?"
    assert whole["summary"][0] | {"answered": 3, "missing": 0, "tokens_per_second": 24.0, "first_token": 0.1} == whole["summary"][0]
    assert [item["id"] for item in acme.api.get(f"trials?client={acme.client.pk}").json()["items"]] == [str(acme.trial.pk)]


def test_the_api_refuses_a_target_that_is_nobodys(acme):
    body = {"prompt_set": str(acme.prompt_set.pk), "columns": ["base:00000000-0000-4000-8000-000000000000"]}
    refused = acme.api.post("trials", body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "unknown_id")


def test_a_set_of_an_archived_client_is_asked_no_more(acme, browser):
    assert acme.prompt_set
    other = create_client(acme.owner, name="Globex")
    kept = PromptSet.objects.create(workspace=acme.workspace, client=other, name="Old", prompts=[{"turns": ["Hi?"], "category": ""}])
    type(other).objects.filter(pk=other.pk).update(archived_at=acme.client.created_at)
    assert asked(browser, set=kept.pk, column=[f"base:{acme.base.pk}"]).status_code == 404


@pytest.mark.django_db(transaction=True)
def test_an_erased_client_leaves_no_set_no_trial_and_no_order(acme):
    other = create_client(acme.owner, name="Globex")
    trial = acme.trial
    Trial.objects.filter(pk=trial.pk).update(client=other)
    Order.objects.filter(pk=trial.order_id).update(client=other)
    PromptSet.objects.filter(pk=acme.prompt_set.pk).update(client=other)
    finish(erase(acme.owner, other, typed="Globex"))
    assert not Trial.objects.exists()
    assert not PromptSet.objects.exists()
    assert not Order.objects.filter(pk=trial.order_id).exists()


def test_a_set_of_one_question_is_said_so():
    with pytest.raises(UserError, match="Some settings cannot be used"):
        trials.asked_of({"system": "a\0b"})
