"""Deployments as columns of a trial: each is asked as it was when the trial was made, and the table says so after the next promotion."""

import csv
import io
from typing import Any

import pytest
from django.http import Http404
from django.test import Client as Browser

from studio.audit.models import AuditRecord
from studio.releases.models import Release
from studio.serving import deploying, trial_table, trials
from studio.serving.columns import column_of, offered
from studio.serving.models import Deployment, Trial
from studio.workspaces.services import create_client
from tests.fixtures import World, make_deployment, make_member, make_release


@pytest.fixture
def browser(acme: World) -> Browser:
    browser = Browser()
    browser.force_login(acme.owner.user)
    return browser


@pytest.fixture
def slot(acme: World) -> Deployment:
    """Its first release is asked with a system prompt of its own."""
    slot, first = make_deployment(acme.project), approved(acme, 0)
    Release.objects.filter(pk=first.pk).update(asked_with={"system": "You are Acme.", "max_tokens": 40})
    deploying.promote(acme.owner, slot, release=first)
    slot.refresh_from_db()
    return slot


def approved(acme: World, minor: int) -> Release:
    return make_release(acme.owner, acme.artifact, version=(1, minor, 0), stage="approved")


def ask(browser: Browser, acme: World, *targets: str) -> Any:
    return browser.post("/trials/new/", {"set": acme.prompt_set.pk, "column": targets, "max_tokens": "64"})


def asked(browser: Browser, acme: World, *targets: str) -> Trial:
    response = ask(browser, acme, *targets)
    assert response.status_code == 302, response.content.decode()
    return Trial.objects.get()


def test_a_deployment_is_asked_as_the_release_that_it_had_also_after_a_promotion(acme, browser, slot):
    first, second = slot.release, approved(acme, 1)
    trial = asked(browser, acme, f"base:{acme.base.pk}", f"deployment:{slot.pk}")
    assert trial.columns[1] == {
        "target": f"deployment:{slot.pk}",
        "title": "in-house/support v1.0.0",
        "note": f"Deployment, with {first.name}",
        "method": "lora",
        "release": str(first.pk),
    }
    assert AuditRecord.objects.latest("at").change["columns"] == [None, "Tiny, in-house/support v1.0.0"]
    deploying.promote(acme.owner, slot, release=second)
    told = trials.payload(trial, trial.order).columns[1]
    assert (told.name, told.system, told.max_tokens) == ("in-house/support v1.0.0", "You are Acme.", 40)
    assert told.adapter == str(acme.artifact.folder)


def test_the_table_says_which_release_answered_and_what_answers_there_now(acme, browser, slot):
    trial = asked(browser, acme, f"deployment:{slot.pk}")
    trial.answers = [[{"turns": [said("Here.") for _ in prompt["turns"]]}] for prompt in trial.prompts]
    trial.save()
    page = browser.get(f"/trials/{trial.pk}/").content.decode()
    assert "in-house/support v1.0.0" in page and "answers there now" not in page
    assert f"column=release%3A{slot.release_id}&amp;prompt=Where%3F" in page  # the playground asks the same model
    deploying.promote(acme.owner, slot, release=approved(acme, 1))
    page = browser.get(f"/trials/{trial.pk}/").content.decode()
    assert "in-house/support v1.0.0" in page and "v1.1.0 answers there now" in page
    heads = next(csv.reader(io.StringIO(b"".join(trial_table.as_csv(trial)).decode())))
    assert heads[4] == "in-house/support v1.0.0"


def said(text: str) -> dict[str, Any]:
    return {"text": text, "tokens": 2, "seconds": 0.5, "first": 0.1, "error": ""}


def test_asked_again_a_deployment_answers_with_what_it_has_by_then(acme, browser, slot):
    trial = asked(browser, acme, f"deployment:{slot.pk}")
    deploying.promote(acme.owner, slot, release=approved(acme, 1))
    form = browser.get(f"/trials/new/?trial={trial.pk}")
    assert form.context["places"][0] == f"deployment:{slot.pk}"
    assert "in-house/support · v1.1.0" in form.content.decode()
    browser.post("/trials/new/", {"trial": trial.pk, "column": [f"deployment:{slot.pk}"], "max_tokens": "64"})
    again = Trial.objects.exclude(pk=trial.pk).get()
    assert again.columns[0]["title"] == "in-house/support v1.1.0"
    assert again.prompt_set == trial.prompt_set == acme.prompt_set.pk


def test_a_release_that_is_gone_by_its_turn_has_no_folder(acme, browser, slot):
    trial = asked(browser, acme, f"deployment:{slot.pk}")
    trial.columns[0]["release"] = "00000000-0000-4000-8000-000000000000"
    assert trials.payload(trial, trial.order).columns[0].base == ""


def test_a_deployment_at_which_nothing_answers_is_neither_offered_nor_asked(acme, browser, slot):
    empty = make_deployment(acme.project, slug="empty")
    groups = dict(offered(acme.owner, acme.client, action="prompts.edit"))
    assert [column.title for column in groups["Deployments"]] == ["in-house/support"]
    response = ask(browser, acme, f"deployment:{empty.pk}")
    assert response.status_code == 422
    assert "Nothing answers at in-house/empty. Promote a release to it first" in response.content.decode()
    body = {"prompt_set": str(acme.prompt_set.pk), "columns": [f"deployment:{empty.pk}"]}
    refused = acme.api.post("trials", body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "invalid")
    assert "Nothing answers at in-house/empty" in refused.json()["error"]["fields"]["columns"]
    assert not Trial.objects.exists()


def test_an_archived_deployment_is_left_out_where_a_trial_is_asked_again(acme, browser, slot):
    trial = asked(browser, acme, f"deployment:{slot.pk}", f"base:{acme.base.pk}")
    Deployment.objects.filter(pk=slot.pk).update(archived_at=trial.created_at)
    form = browser.get(f"/trials/new/?trial={trial.pk}")
    assert form.context["places"] == [f"base:{acme.base.pk}", "", "", ""]


def test_who_sees_another_client_asks_none_of_this_ones_deployments(acme, browser, slot):
    other = create_client(acme.owner, name="Globex")
    narrow = make_member(acme.workspace, role="member", email="max@example.com", clients=[other])
    with pytest.raises(Http404):
        column_of(narrow, f"deployment:{slot.pk}", action="prompts.edit")
    assert column_of(acme.owner, f"deployment:{slot.pk}", action="prompts.edit").client == acme.client
    for pk in ("x", "", "00000000-0000-4000-8000-000000000000"):
        assert ask(browser, acme, f"deployment:{pk}").status_code == 404


def test_the_api_takes_a_deployment_and_says_which_release_answers(acme, slot):
    body = {"prompt_set": str(acme.prompt_set.pk), "columns": [f"base:{acme.base.pk}", f"deployment:{slot.pk}"]}
    made = acme.api.post("trials", body)
    assert made.status_code == 202
    base, deployment = made.json()["columns"]
    assert (base["release"], deployment["release"], deployment["target"]) == (None, str(slot.release_id), f"deployment:{slot.pk}")
    assert acme.api.get(f"trials/{made.json()['id']}").json()["summary"][1]["release"] == str(slot.release_id)
