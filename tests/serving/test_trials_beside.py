"""Two trials of one prompt set beside each other: what was asked otherwise, and where the answers differ."""

from datetime import timedelta
from importlib import import_module
from typing import Any

import pytest
from django.apps import apps
from django.db import connection
from django.test import Client as Browser
from django.test.utils import CaptureQueriesContext

from studio.orders.models import Order
from studio.serving import trials
from studio.serving.models import PromptSet, Trial
from studio.serving.trial_beside import Beside, pairs_of
from studio.workspaces.services import create_client
from tests.fixtures import World, make_member, make_trial


@pytest.fixture
def browser(acme: World) -> Browser:
    return signed_in(acme.owner)


def signed_in(member: Any) -> Browser:
    browser = Browser()
    browser.force_login(member.user)
    return browser


@pytest.fixture
def earlier(acme: World) -> Trial:
    trial = make_trial(acme)
    Trial.objects.filter(pk=trial.pk).update(created_at=trial.created_at - timedelta(days=3))
    trial.refresh_from_db()
    return trial


@pytest.fixture
def later(acme: World, earlier: Trial) -> Trial:
    """Its adapter has learnt another answer to the last question, and is asked warmer."""
    trial = make_trial(acme)
    trial.answers[1][1]["turns"][0]["text"] = "Adapter says because of it all"
    trial.asked_with["temperature"] = 0.7
    trial.save()
    return trial


def column(target: str, title: str = "", **more: str) -> dict[str, str]:
    return {"target": target, "title": title or target, "note": "", "method": "lora"} | more


def address(one: Trial, other: Trial) -> str:
    return f"/trials/{one.pk}/beside/?trial={other.pk}"


def test_both_stand_beside_each_other_prompt_by_prompt_the_earlier_first(browser, earlier, later):
    page = browser.get(address(later, earlier)).content.decode()
    assert page.index("Adapter says Why?") < page.index("Adapter says because of it all")
    assert "1 of 6 answers differs." in page and "1 of 3" in page and "0 of 3" in page
    assert "The same models, with other settings." in page and "Temperature" in page and "Longest answer" not in page
    assert page.count("The same answer") == 5
    assert 'aria-pressed="true"' in page and page.count("data-answer ") == 7  # what both said stands there once
    other_way = browser.get(address(earlier, later)).content.decode()
    assert other_way.index("Adapter says Why?") < other_way.index("Adapter says because of it all")


def test_only_prompts_where_answers_differ_are_shown_where_somebody_wants_that(browser, earlier, later):
    page = browser.get(f"{address(earlier, later)}&differing=1").content.decode()
    assert "Adapter says Why?" in page and "Adapter says Where?" not in page
    later.answers = earlier.answers
    later.save()
    page = browser.get(f"{address(earlier, later)}&differing=1").content.decode()
    assert "No answer differs" in page and "All 6 answers that both have are the same." in page


def test_the_same_model_stands_beside_itself_and_the_rest_in_its_order():
    old = [column("base:1"), column("deployment:1", release="a"), column("adapter:1"), column("release:9")]
    new = [column("adapter:2"), column("deployment:1", release="b"), column("base:1")]
    found = pairs_of(old, new)
    assert [pair.places for pair in found] == [(0, 2), (1, 1), (2, 0), (3, None)]
    assert [pair.is_same for pair in found] == [True, False, False, False]
    assert [pair.places for pair in pairs_of(new, old)] == [(0, 2), (1, 1), (2, 0), (None, 3)]
    assert pairs_of([column("deployment:1", release="a")], [column("release:a")])[0].is_same  # one and the same model


def test_a_model_that_one_of_them_did_not_ask_is_said_so(browser, earlier, later):
    later.columns, later.answers = later.columns[:1], [row[:1] for row in later.answers]
    later.save()
    page = browser.get(address(earlier, later)).content.decode()
    assert "Not asked then" in page and "Other models" not in page
    assert "All 3 answers that both have are the same." in page


def test_a_set_that_was_changed_between_them_is_compared_where_it_is_the_same(browser, earlier, later):
    later.prompts = [{"turns": ["New?"], "category": ""}, later.prompts[1], later.prompts[0]]
    later.answers = [[{"turns": []}, {"turns": []}], later.answers[1], later.answers[0]]
    later.save()
    both = Beside.of(later, earlier)
    assert (both.earlier, both.prompts, both.alone) == (earlier, [(0, 2), (1, 1)], (0, 1))
    page = browser.get(address(earlier, later)).content.decode()
    assert "The set was changed between them: 1 in the later one alone." in page and "1, then 3" in page
    later.prompts = [{"turns": ["New?"], "category": ""}]
    later.answers = later.answers[:1]
    later.save()
    page = browser.get(address(earlier, later)).content.decode()
    assert "No prompt is in both" in page and "Nothing was answered in both yet." in page


def test_what_failed_once_differs_from_what_was_answered(earlier, later):
    later.answers[0][0]["turns"] = [later.answers[0][0]["turns"][0] | {"text": "", "error": "It does not fit."}]
    later.save()
    base, adapter = Beside.of(earlier, later).counted
    assert (base.compared, base.differing) == (2, 1)  # its second question was never asked
    assert (adapter.compared, adapter.differing) == (3, 1)


def test_one_that_is_still_being_asked_is_compared_as_far_as_it_is(browser, acme, earlier):
    running = make_trial(acme, status=Order.Status.RUNNING)
    page = browser.get(address(earlier, running)).content.decode()
    assert "One of them is still being asked." in page and "Nothing was answered in both yet." in page


def test_the_page_of_a_trial_leads_to_the_others_of_its_set_the_newest_first(browser, acme, earlier, later):
    assert f"/trials/{earlier.pk}/beside/" in browser.get(f"/trials/{earlier.pk}/").content.decode()
    newest = make_trial(acme)
    page = browser.get(f"/trials/{earlier.pk}/beside/").content.decode()
    assert page.index(str(newest.pk)) < page.index(str(later.pk))
    assert address(earlier, earlier) not in page
    Trial.objects.exclude(pk=earlier.pk).update(prompt_set=None)
    assert "Compare with another" not in browser.get(f"/trials/{earlier.pk}/").content.decode()
    assert "It was asked once" in browser.get(f"/trials/{earlier.pk}/beside/").content.decode()


def test_trials_of_another_set_or_of_none_are_not_compared(browser, acme, earlier, later):
    for wrong in (earlier, Trial(pk="00000000-0000-4000-8000-000000000000")):
        assert browser.get(address(earlier, wrong)).status_code == 404
    assert browser.get(f"/trials/{earlier.pk}/beside/?trial=x%00").status_code == 404
    Trial.objects.filter(pk=later.pk).update(prompt_set="00000000-0000-4000-8000-000000000001")
    assert browser.get(address(earlier, later)).status_code == 404
    Trial.objects.update(prompt_set=None)  # nobody knows what they asked
    assert browser.get(address(earlier, later)).status_code == 404


def test_nobody_sees_one_clients_answers_beside_anothers(browser, acme, earlier, later):
    other = create_client(acme.owner, name="Globex")
    Trial.objects.filter(pk=later.pk).update(client=other)
    assert browser.get(address(earlier, later)).status_code == 404
    assert browser.get(address(later, earlier)).status_code == 404
    Trial.objects.filter(pk=later.pk).update(client=None)  # base models alone
    assert browser.get(address(earlier, later)).status_code == 200
    assert browser.get(address(later, earlier)).status_code == 200
    narrow = signed_in(make_member(acme.workspace, role="member", email="max@example.com", clients=[other]))
    assert narrow.get(address(later, earlier)).status_code == 404
    assert str(earlier.pk) not in narrow.get(f"/trials/{later.pk}/beside/").content.decode()


def test_a_set_and_what_is_asked_once_more_are_of_one_set(acme, earlier):
    columns, settings = trials.columns_again(acme.owner, [earlier.columns[0]["target"]]), trials.asked_of({})
    anew = trials.begin(acme.owner, prompts=acme.prompt_set, columns=columns, asked_with=settings)
    again = trials.begin(acme.owner, prompts=earlier, columns=columns, asked_with=settings)
    assert anew.prompt_set == again.prompt_set == earlier.prompt_set == acme.prompt_set.pk


def test_trials_from_before_know_their_set_by_its_prompts(acme, earlier, later):
    odd = make_trial(acme)
    Trial.objects.filter(pk=odd.pk).update(prompts=[{"turns": ["Of a set that is gone?"], "category": ""}])
    Trial.objects.update(prompt_set=None)
    import_module("studio.serving.migrations.0011_sets_of_the_trials_so_far").known_by_their_prompts(apps, None)
    known = dict(Trial.objects.values_list("pk", "prompt_set"))
    assert known[earlier.pk] == known[later.pk] == PromptSet.objects.get().pk
    assert known[odd.pk] not in (None, known[earlier.pk])


def test_what_a_model_writes_is_text_and_nothing_else(browser, earlier, later):
    later.answers[0][0]["turns"][0]["text"] = "<img src=x onerror=alert(1)>"
    later.save()
    page = browser.get(address(earlier, later)).content.decode()
    assert "<img src=x" not in page and "&lt;img src=x" in page


def test_however_many_prompts_there_are_it_asks_the_database_as_often(browser, earlier, later):
    def queries() -> int:
        with CaptureQueriesContext(connection) as asked:
            assert browser.get(address(earlier, later)).status_code == 200
        return len(asked)

    before = queries()
    for trial in (earlier, later):
        trial.prompts, trial.answers = trial.prompts * 9, trial.answers * 9
        trial.save()
    assert queries() == before


def test_the_api_tells_the_same(acme, earlier, later):
    told = acme.api.get(f"trials/{later.pk}/beside?trial={earlier.pk}").json()
    assert (told["earlier"]["id"], told["later"]["id"]) == (str(earlier.pk), str(later.pk))
    assert told["changed"] == [{"name": "temperature", "earlier": 0.0, "later": 0.7}]
    assert [(pair["compared"], pair["differing"]) for pair in told["pairs"]] == [(3, 0), (3, 1)]
    assert told["pairs"][1]["later"]["target"] == later.columns[1]["target"]
    assert (told["only_earlier"], told["only_later"]) == (0, 0)
    why = told["table"][1]
    assert (why["turns"], why["earlier_number"], why["later_number"]) == (["Why?"], 2, 2)
    assert why["answers"][1]["later"][0]["text"] == "Adapter says because of it all"


def test_the_api_refuses_what_cannot_stand_beside_it(acme, earlier, later):
    path = f"trials/{earlier.pk}/beside"
    assert acme.api.get(path).json()["error"]["fields"] == {"trial": "Name another trial of the same prompt set."}
    for wrong in (earlier.pk, "00000000-0000-4000-8000-000000000000"):
        refused = acme.api.get(f"{path}?trial={wrong}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "unknown_id")
    assert acme.api.get(f"{path}?trial=x").status_code == 422
