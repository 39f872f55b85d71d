"""Answers of a trial while it is asked: those that are whole stand in its table, and nothing that a worker writes is believed."""

import json
import os
from typing import Any

import pytest
from django.db import connection
from django.test import Client as Browser
from django.test.utils import CaptureQueriesContext

from studio.orders.models import Order
from studio.serving.models import Trial
from studio.serving.trial_answers import FILE, so_far
from tests.fixtures import World, make_trial


@pytest.fixture
def browser(acme: World) -> Browser:
    browser = Browser()
    browser.force_login(acme.owner.user)
    return browser


@pytest.fixture
def running(acme: World) -> Trial:
    trial = make_trial(acme, status=Order.Status.RUNNING)
    Order.objects.filter(pk=trial.order_id).update(ended_at=None)
    trial.order.checkpoints.mkdir(parents=True)
    return trial


def line(column: int, prompt: int, *texts: str, error: str = "", **changed: Any) -> bytes:
    turns = [{"text": text, "tokens": 3, "seconds": 0.5, "first": 0.1, "error": error} | changed for text in texts]
    return json.dumps({"column": column, "prompt": prompt, "turns": turns}).encode() + b"\n"


def write(trial: Trial, *lines: bytes) -> None:
    (trial.order.checkpoints / FILE).write_bytes(b"".join(lines))


def texts(trial: Trial) -> list[list[list[str]]]:
    return [[[turn["text"] for turn in place["turns"]] for place in row] for row in so_far(trial)]


NOTHING = [[[], []], [[], []]]


def test_what_has_been_answered_stands_in_the_table_before_the_end(acme, browser, running):
    page = browser.get(f"/trials/{running.pk}/").content.decode()
    assert "Answers stand here as they come" in page and "<table" not in page
    write(running, line(0, 0, "First whole one.", "And its second."))
    page = browser.get(f"/trials/{running.pk}/").content.decode()
    assert "First whole one." in page and "And its second." in page
    assert page.count("Not answered yet") == 4
    assert page.count("hx-morph-skip") == 2  # what stands there is left as its reader has it
    assert 'hx-swap="outerMorph"' in page and "1 to come" in page and "3 to come" in page
    whole = acme.api.get(f"trials/{running.pk}").json()
    assert (whole["status"], whole["summary"][0]["answered"], whole["summary"][0]["missing"]) == ("running", 2, 1)
    assert whole["table"][0]["answers"][0]["turns"][1]["text"] == "And its second."
    assert b"First whole one." in b"".join(browser.get(f"/trials/{running.pk}/download/"))


def test_an_answer_that_failed_ended_its_conversation(acme, browser, running):
    write(running, line(0, 0, "", error="It does not fit."))
    page = browser.get(f"/trials/{running.pk}/").content.decode()
    assert "It does not fit." in page
    assert page.count("Not asked<") == 1  # its second question never will be
    assert page.count("Not answered yet") == 4


def test_words_are_looked_for_in_what_was_answered_so_far(browser, running):
    write(running, line(0, 0, "Parcels and elephants.", "x"), line(0, 1, "Nothing of the kind."))
    page = browser.get(f"/trials/{running.pk}/?q=elephants").content.decode()
    assert "Parcels and elephants." in page and "Nothing of the kind." not in page


def test_however_much_was_answered_it_asks_the_database_as_often(browser, running):
    def queries() -> int:
        with CaptureQueriesContext(connection) as asked:
            assert browser.get(f"/trials/{running.pk}/", headers={"HX-Request": "true"}).status_code == 200
        return len(asked)

    before = queries()
    write(running, *(line(column, prompt, "One.", "Two.") for column in (0, 1) for prompt in (0, 1)))
    assert queries() == before


def test_what_no_worker_can_say_is_passed_over(running):
    write(
        running,
        b"no json\n",
        b"[]\n",
        line(-1, 0, "negative"),
        line(0, 0, "too long" * 10_000),
        line(0, 0, "never", seconds=-1),
        line(7, 0, "no such column"),
        line(0, 99, "no such prompt"),
        line(1, 1, "a\x00b", "not asked"),
        line(1, 0, "cut off")[:-20],
    )
    assert texts(running) == [[[], []], [[], ["ab"]]]


def test_a_line_that_is_not_whole_yet_waits_for_its_end(running):
    write(running, line(0, 1, "Whole."), line(1, 1, "Half.")[:-1])
    assert texts(running) == [[[], []], [["Whole."], []]]
    write(running, line(0, 1, "Whole."), line(1, 1, "Half."))
    assert texts(running) == [[[], []], [["Whole."], ["Half."]]]


def test_neither_a_link_nor_a_pipe_nor_a_folder_is_read(running, tmp_path):
    path = running.order.checkpoints / FILE
    (tmp_path / "elsewhere").write_bytes(line(0, 1, "Somebody else's."))
    path.symlink_to(tmp_path / "elsewhere")
    assert texts(running) == NOTHING
    path.unlink()
    os.mkfifo(path)
    assert texts(running) == NOTHING
    path.unlink()
    path.mkdir()
    assert texts(running) == NOTHING
    path.rmdir()
    (tmp_path / FILE).write_bytes(line(0, 1, "Somebody else's."))
    path.parent.rmdir()
    path.parent.symlink_to(tmp_path)
    assert texts(running) == NOTHING


def test_a_file_larger_than_any_answers_is_not_read(running):
    write(running, line(0, 1, "Whole."))
    with (running.order.checkpoints / FILE).open("r+b") as file:
        file.truncate((64 << 20) + 1)  # it takes no room on the disk
    assert texts(running) == NOTHING


def test_what_is_kept_at_the_end_is_what_is_shown(browser, running):
    write(running, line(0, 0, "From the folder of states.", "x"))
    running.answers = [[{"turns": [json.loads(line(0, 0, "Kept."))["turns"][0]]} for _ in running.columns] for _ in running.prompts]
    running.save()
    page = browser.get(f"/trials/{running.pk}/").content.decode()
    assert "Kept." in page and "From the folder of states." not in page


def test_a_trial_that_broke_off_shows_what_it_had_and_why_it_ended(acme, browser, running):
    write(running, line(0, 0, "Before the disk was full.", "x"))
    Order.objects.filter(pk=running.order_id).update(status=Order.Status.FAILED, error="The disk is full.")
    page = browser.get(f"/trials/{running.pk}/").content.decode()
    assert "It broke off, so some questions have no answer." in page
    assert "The disk is full." in page and "Before the disk was full." in page
    assert "Not answered yet" not in page and "hx-morph-skip" not in page
    assert acme.api.get(f"trials/{running.pk}").json()["summary"][0]["answered"] == 2


def test_a_refresh_that_finds_it_ended_asks_for_the_whole_page(browser, running):
    Order.objects.filter(pk=running.order_id).update(status=Order.Status.SUCCEEDED)
    answer = browser.get(f"/trials/{running.pk}/", headers={"HX-Request": "true"})
    assert answer.headers["HX-Refresh"] == "true"
