"""The form of a new run, filled in as another run was; and what stands in the way of a start."""

import pytest
from django.test import Client as Browser
from django.urls import reverse

from studio.runs.models import Run
from studio.runs.services import create_run
from tests.fixtures import World, make_member


def signed_in(user) -> Browser:
    browser = Browser()
    browser.force_login(user)
    return browser


@pytest.fixture
def ana(acme) -> Browser:
    return signed_in(acme.owner.user)


def make_run(world: World, **changed) -> Run:
    choice = {"name": "Replies", "config": {"max_steps": 7, "fail_at": 3}, "prompts": ["Where is it?", "Is it late?"]} | changed
    return create_run(world.owner, project=world.project, plugin_name="rehearsal", base=world.base, version=world.version, **choice)


def opened(browser: Browser, run: Run):
    return browser.get(reverse("runs:new"), {"from": run.pk})


def test_the_form_opens_as_the_run_was(slot, acme, ana):
    page = opened(ana, make_run(acme))
    form = page.context["form"]
    assert (form.plugin_name, form.version, form.model, form.name) == ("rehearsal", acme.version, acme.base, "Replies (copy)")
    assert form.prompts == "Where is it?\nIs it late?"
    assert {drawn.field.name: drawn.value for drawn in page.context["changed"]} == {"max_steps": "7", "fail_at": "3"}


def test_a_name_and_prompts_that_the_studio_gave_are_given_anew(slot, acme, ana):
    form = opened(ana, make_run(acme, name="", prompts=None)).context["form"]
    assert (form.name, form.prompts) == ("", "")


def test_a_run_of_another_workspace_is_not_there(slot, acme, rival):
    assert opened(signed_in(acme.owner.user), rival.run).status_code == 404


def test_who_may_not_start_runs_cannot_open_the_form_and_sees_no_button(slot, acme):
    browser = signed_in(make_member(acme.workspace, role="viewer", email="bob@example.com").user)
    assert opened(browser, acme.run).status_code == 404
    assert "Run again" not in browser.get(reverse("runs:detail", args=[acme.run.pk])).content.decode()


def test_an_ended_run_offers_to_run_again_and_one_in_the_queue_does_not(slot, acme, ana):
    address = f"{reverse('runs:new')}?from="
    assert f"{address}{acme.run.pk}" in ana.get(reverse("runs:detail", args=[acme.run.pk])).content.decode()
    queued = make_run(acme)
    assert f"{address}{queued.pk}" not in ana.get(reverse("runs:detail", args=[queued.pk])).content.decode()


def test_what_is_wrong_is_told_with_the_name_of_its_field(slot, acme, ana):
    sent = {"project": acme.project.pk, "plugin": "rehearsal", "set_learning_rate": "-1", "set_batch_size": "0"}
    page = ana.post(reverse("runs:estimate"), sent).content.decode()
    assert 'Learning rate: <span data-error-for="learning_rate">' in page
    assert 'Batch size: <span data-error-for="batch_size">' in page


def test_without_a_worker_the_form_says_so_and_the_run_waits(acme, ana):
    page = ana.get(reverse("runs:new"), {"project": acme.project.pk, "plugin": "rehearsal"}).content.decode()
    assert "No worker is running" in page
    waiting = make_run(acme)
    assert "No worker is running that trains." in ana.get(reverse("runs:detail", args=[waiting.pk])).content.decode()
