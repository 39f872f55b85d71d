"""The page of a run that is paused and resumed: what it offers when, and what its charts show."""

import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connections
from django.test import Client as Browser
from playwright.sync_api import Page, expect

from studio.orders import supervising
from studio.orders.models import Event, Order
from studio.orders.services import claim, resume
from studio.runs.models import Run
from studio.runs.services import create_run
from studio.training.registry import load_plugins
from tests.fixtures import World, make_member, work_off
from tests.visits import Visit
from tests.web.conftest import Do


@pytest.fixture
def ana(acme: World) -> Browser:
    browser = Browser()
    browser.force_login(acme.owner.user)
    return browser


@pytest.fixture
def run(acme: World, slot: Any) -> Run:
    config = {"max_steps": 40, "save_every": 5, "seconds_per_step": 0.0}
    return create_run(
        acme.owner, project=acme.project, name="Long", plugin_name="rehearsal", config=config, base=acme.base, version=acme.version
    )


def offers(browser: Browser, run: Run) -> list[str]:
    """The buttons of the run's head, by their words."""
    parts = [browser.get(f"/runs/{run.pk}/?part={part}", headers={"HX-Request": "true"}) for part in ("live", "outcome")]
    text = "".join(part.content.decode() for part in parts)
    text = re.sub(r"<dialog.*?</dialog>", "", text, flags=re.DOTALL)  # what asks once more
    found = re.findall(r"<(?:a|button)[^>]*class=\"button[^>]*>(?:<svg.*?</svg>)?\s*([A-Z][a-z ]+)", text, re.DOTALL)
    return [words.strip() for words in found]


def test_each_state_offers_what_can_be_done(acme, run, ana):
    assert offers(ana, run) == ["Pause", "Stop"]
    ana.post(f"/runs/{run.pk}/pause/")
    assert offers(ana, run) == ["Resume", "Discard"]
    assert b"Paused before it began" in ana.get(f"/runs/{run.pk}/").content
    answer = ana.post(f"/runs/{run.pk}/resume/", follow=True)
    assert b"It goes on as soon as a worker is free." in answer.content
    assert offers(ana, run) == ["Pause", "Stop"]
    run.refresh_from_db()
    claim(str(run.order.pk), attempt=2, worker="test")
    ana.post(f"/runs/{run.pk}/pause/")
    assert offers(ana, run) == []
    assert b"Its state is saved, then the worker is free for another run." in ana.get(f"/runs/{run.pk}/").content


def test_a_failed_run_offers_to_resume_where_a_state_was_saved(acme, run, ana):
    run.config |= {"fail_at": 12}
    run.save()
    work_off(run.order)
    assert offers(ana, run) == ["Resume", "Discard", "Run again", "Read the log"]
    assert b"What it learnt until step 10 is kept on the disk" in ana.get(f"/runs/{run.pk}/").content
    run.config |= {"fail_at": 1}
    again = create_run(
        acme.owner, project=acme.project, name="No", plugin_name="rehearsal", config=run.config, base=acme.base, version=acme.version
    )
    work_off(again.order)
    assert offers(ana, again) == ["Run again", "Read the log"]


def test_a_plugin_that_cannot_go_on_offers_no_pause(run, ana, monkeypatch):
    monkeypatch.setattr(type(load_plugins()["rehearsal"].plugin), "resumes", False)
    assert offers(ana, run) == ["Stop"]


def test_who_only_looks_sees_no_button_and_finds_no_address(acme, run):
    viewer = Browser()
    viewer.force_login(make_member(acme.workspace, role="viewer", email="vic@example.com").user)
    assert offers(viewer, run) == []
    assert [viewer.post(f"/runs/{run.pk}/{act}/").status_code for act in ("pause", "resume")] == [404, 404]


def test_a_thinned_out_page_keeps_where_an_attempt_began(acme, run, ana, monkeypatch):
    monkeypatch.setattr("studio.runs.pages_of_a_run.POINTS", 5)
    run.config |= {"fail_at": 12}
    run.save()
    work_off(run.order)
    Run.objects.filter(pk=run.pk).update(config=run.config | {"fail_at": 0})
    order = Order.objects.get(pk=run.order.pk)
    resume(order)
    work_off(order)
    assert order.status == "succeeded"
    first = Event.objects.filter(order=order, attempt=2, type="metric").first()
    text = ana.get(f"/runs/{run.pk}/").content.decode()
    assert f'"seq": {first.seq},' in text and first.body["step"] == 11


@pytest.mark.browser
def test_somebody_pauses_looks_away_and_resumes(browse: Callable[[str, Do], None], world: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(supervising, "HEARTBEAT", 0.1)
    config = {"max_steps": 60, "seconds_per_step": 0.2}
    run = create_run(
        world.owner, project=world.project, name="Long", plugin_name="rehearsal", config=config, base=world.base, version=world.version
    )
    browse(f"/runs/{run.pk}/", lambda page: pause_and_resume(page, run))


def pause_and_resume(page: Page, run: Run) -> None:
    visit = Visit(page, name="pausing")
    work = begin(run)
    said = page.locator("[data-run-sentence]")
    expect(said).to_contain_text(re.compile(r"Step ([5-9]|\d\d) of 60"), timeout=20_000)
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("heading", name=re.compile(r"Paused at step \d+"))).to_be_visible(timeout=20_000)
    work.join(20)
    expect(said).to_contain_text("Paused at step")
    visit.look("paused", everywhere=True)
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_text("It goes on as soon as a worker is free.")).to_be_visible()
    work = begin(run)
    expect(said).to_contain_text(re.compile(r"Step \d+ of 60"), timeout=20_000)
    visit.look("resumed")
    expect(said).to_contain_text("60 steps", timeout=40_000)
    work.join(20)
    expect(page.get_by_text(re.compile("Resumed from step"))).to_be_visible()
    assert visit.mistakes == []


def begin(run: Run) -> threading.Thread:
    """A worker that does the attempt which waits."""

    def act() -> None:
        try:
            work_off(Order.objects.get(pk=run.order_id))
        finally:
            connections.close_all()

    thread = threading.Thread(target=act)
    thread.start()
    return thread
