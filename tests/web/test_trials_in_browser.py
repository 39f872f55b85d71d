"""Prompt sets and trials in the browser: a set is made of a file, a whole set is asked, and the table is read on a desk and on a phone."""

import json
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from studio.orders.models import Order
from studio.serving.columns import shown
from studio.serving.models import PromptSet, Trial
from studio.serving.trial_answers import so_far
from studio.workspaces.services import create_client
from tests.fixtures import World, make_release, make_trial
from tests.visits import Visit
from tests.web.conftest import Do

pytestmark = pytest.mark.browser
TURNS = ["Compose an engaging travel blog post about a recent trip to Hawaii.", "Rewrite it. Start every sentence with the letter A."]
LONG = "The island greets you with warm air and the smell of plumeria. " * 14
WORDS = ("writing", "roleplay", "reasoning", "math")


def questions() -> bytes:
    return b"".join(
        json.dumps({"question_id": 81 + number, "category": WORDS[number % 4], "turns": TURNS}).encode() + b"\n" for number in range(24)
    )


@pytest.fixture
def answered(world: World) -> Trial:
    """A trial of 24 prompts, asked of a base, an adapter and a release; one answer failed."""
    prompts = [{"turns": TURNS if n % 3 == 0 else [f"Question {n}: what is the capital?"], "category": WORDS[n % 4]} for n in range(24)]
    PromptSet.objects.create(workspace=world.workspace, client=world.client, name="MT-Bench", prompts=prompts, user=world.owner.user)
    make_release(world.owner, world.artifact, stage="approved")
    trial = make_trial(world)
    third = shown(world.release).kept
    said = {"tokens": 210, "seconds": 6.1, "first": 0.31, "error": ""}
    trial.columns = [*trial.columns, third]
    trial.answers = [
        [
            {"turns": [said | {"text": text, "seconds": seconds} for _ in prompt["turns"]]}
            for text, seconds in ((LONG, 6.1), ("Aloha. Aloha again.", 4.2), (LONG[:300], 2.2))
        ]
        for prompt in prompts
    ]
    trial.answers[1][1]["turns"][0] = said | {"text": "", "error": "The conversation has 5000 tokens, and 4096 fit. Shorten it."}
    trial.save()
    return trial


def test_a_set_is_made_of_a_file_edited_and_asked_as_a_whole(browse: Callable[[str, Do], None], world: World) -> None:
    def work(page: Page) -> None:
        visit = Visit(page, name="prompt-sets")
        page.goto(f"{page.url.rstrip('/')}/prompts/")
        visit.look("empty")
        page.get_by_role("link", name="New prompt set").first.click()
        page.get_by_label("For").select_option(label="In-house")
        expect(page.get_by_label("Or held-out rows")).to_be_visible()
        page.get_by_label("Name").fill("MT-Bench")
        visit.look("new", everywhere=True)
        page.get_by_label("Or a file").set_input_files({"name": "question.jsonl", "mimeType": "application/jsonl", "buffer": questions()})
        page.get_by_role("button", name="Create prompt set").click()
        expect(page.get_by_text("24 prompts, 48 questions")).to_be_visible()
        visit.look("set", everywhere=True)
        page.get_by_role("link", name="Edit prompt 2", exact=True).click()
        page.get_by_label("Then ask").fill("And once more, as a limerick.")
        visit.look("editing")
        page.get_by_role("button", name="Save").click()
        expect(page.get_by_text("24 prompts, 49 questions")).to_be_visible()
        page.get_by_role("link", name="Ask the whole set").click()
        page.get_by_label("Column 1").select_option(label="Tiny")
        page.get_by_label("Column 2").select_option(label=f"Try · {world.project.name}")
        visit.look("ask", everywhere=True)
        page.get_by_role("button", name="Ask the whole set").click()
        expect(page.get_by_text("Waiting for a free worker")).to_be_visible()
        visit.look("waiting")
        assert not visit.mistakes, "\n".join(visit.mistakes)

    browse("/", work)
    assert Trial.objects.get().columns[1]["method"] == "lora"


def test_what_is_refused_stands_beside_what_was_typed(browse: Callable[[str, Do], None], world: World) -> None:
    def work(page: Page) -> None:
        visit = Visit(page, name="prompt-sets-refused")
        page.get_by_label("Name").fill("Broken")
        page.get_by_label("Prompts", exact=True).fill('{"turns": ["One?"]}\n{"turns": []}\n{"turns": ["Three?"')
        with page.expect_response(lambda response: response.request.method == "POST"):
            page.get_by_role("button", name="Create prompt set").click()
        expect(page.get_by_text("Line 2: A question is empty.")).to_be_visible()
        visit.look("refused")

    browse("/prompts/new/", work)
    assert not PromptSet.objects.exists()


def test_what_is_typed_stays_while_the_set_and_the_client_are_chosen(browse: Callable[[str, Do], None], world: World) -> None:
    prompts = [{"turns": ["Hi?"], "category": ""}]
    for name, client in (("Everybody's", None), ("Ours", world.client)):
        PromptSet.objects.create(workspace=world.workspace, client=client, name=name, prompts=prompts)
    create_client(world.owner, name="Globex")

    def work(page: Page) -> None:
        visit = Visit(page, name="trials-new")
        page.get_by_label("Models of").select_option(label="In-house")
        page.get_by_label("Column 2").select_option(label=f"Try · {world.project.name}")  # offered once the client is chosen
        page.get_by_label("Column 1").select_option(label="Tiny")
        page.get_by_label("System prompt").fill("Be kind.")
        page.get_by_label("Temperature").fill("0.7")
        page.locator("summary", has_text="Advanced").click()
        page.get_by_label("Seed").fill("9")
        with page.expect_response(lambda response: "set=" in response.url) as found:
            page.get_by_label("Prompt set").select_option(label="Ours (In-house)")
        assert "csrf" not in found.value.url
        expect(page.get_by_label("Models of")).to_have_count(0)
        expect(page.get_by_text("Its prompts are asked of its own models and of base models.")).to_be_visible()
        expect(page.get_by_label("Column 2")).to_have_value(f"adapter:{world.artifact.pk}")
        page.get_by_label("Prompt set").select_option(label="Everybody's")
        expect(page.get_by_label("Models of")).to_have_value(str(world.client.pk))
        page.get_by_label("Models of").select_option(label="Globex")
        expect(page.get_by_label("Column 2")).to_have_value("")
        expect(page.get_by_label("Column 1")).to_have_value(f"base:{world.base.pk}")
        visit.look("chosen", everywhere=True)
        page.get_by_role("button", name="Ask the whole set").click()
        expect(page.get_by_text("Waiting for a free worker")).to_be_visible()
        assert not visit.mistakes, "\n".join(visit.mistakes)

    browse("/trials/new/", work)
    asked = Trial.objects.get().asked_with
    assert (asked["system"], asked["temperature"], asked["seed"]) == ("Be kind.", 0.7, 9)


def test_the_table_is_read_filtered_and_taken_home(browse: Callable[[str, Do], None], answered: Trial) -> None:
    def work(page: Page) -> None:
        visit = Visit(page, name="trials")
        expect(page.get_by_role("heading", name="MT-Bench")).to_be_visible()
        visit.look("table", everywhere=True)
        more = page.locator(".trial-more").first
        more.locator("summary").click()
        expect(more.locator(".trial-answer")).to_be_visible()
        page.get_by_label("Category").select_option("math")
        page.get_by_role("button", name="Show", exact=True).click()
        expect(page.locator(".trial-table tbody")).to_have_count(6)
        visit.look("math")
        with page.expect_download() as found:
            page.get_by_role("link", name="CSV").click()
        assert found.value.suggested_filename == "mt-bench.csv"
        page.get_by_role("navigation", name="Breadcrumb").get_by_role("link", name="Trials").click()
        visit.look("list", everywhere=True)
        assert not visit.mistakes, "\n".join(visit.mistakes)

    browse(f"/trials/{answered.pk}/", work)


def test_a_running_trial_says_how_far_it_is_and_is_stopped(browse: Callable[[str, Do], None], world: World) -> None:
    trial = make_trial(world, status=Order.Status.RUNNING)
    Order.objects.filter(pk=trial.order_id).update(done=2, total=6, unit="questions", phase_text="Asking Tiny (1 of 2)", ended_at=None)

    def work(page: Page) -> None:
        visit = Visit(page, name="trials-running")
        expect(page.get_by_text("2 of 6 questions")).to_be_visible()
        visit.look("running", everywhere=True)
        with ThreadPoolExecutor(1) as worker:  # beside the browser's event loop the database is not asked
            worker.submit(Order.objects.filter(pk=trial.order_id).update, done=5).result()
        expect(page.get_by_text("5 of 6 questions")).to_be_visible()
        page.get_by_role("button", name="Stop").click()
        expect(page.get_by_role("button", name="Stop")).to_have_count(0)
        assert not visit.mistakes, "\n".join(visit.mistakes)

    browse(f"/trials/{trial.pk}/", work)
    trial.order.refresh_from_db()
    assert trial.order.stop_requested_at is not None


def test_answers_come_into_the_table_and_leave_its_reader_alone(browse: Callable[[str, Do], None], world: World) -> None:
    trial = make_trial(world, status=Order.Status.RUNNING)
    Order.objects.filter(pk=trial.order_id).update(done=2, total=6, unit="questions", phase_text="Asking Tiny (1 of 2)", ended_at=None)
    trial.order.checkpoints.mkdir(parents=True)
    file = trial.order.checkpoints / "answers.jsonl"
    said = {"tokens": 210, "seconds": 6.1, "first": 0.31, "error": ""}
    first, second, third = (
        json.dumps({"column": column, "prompt": prompt, "turns": [said | {"text": text} for text in texts]}) + "\n"
        for column, prompt, texts in (
            (0, 0, [LONG, "And a second."]),
            (0, 1, ["Because of the weather."]),
            (1, 0, [LONG, "Later than that."]),
        )
    )
    file.write_text(first)

    def work(page: Page) -> None:
        visit = Visit(page, name="trials-filling")
        more = page.locator("#said-1-1-1 details")
        more.locator("summary").click()
        page.get_by_label("Words", exact=True).fill("half a w")
        page.evaluate("scrollTo(0, 240)")
        with file.open("a") as more_of_it:
            more_of_it.write(second + third)
        expect(page.get_by_text("Because of the weather.")).to_be_visible()
        expect(page.get_by_text("Later than that.")).to_be_visible()
        assert page.evaluate("scrollY") == 240
        expect(more.locator(".trial-answer")).to_be_visible()  # it is still open
        expect(page.get_by_label("Words", exact=True)).to_have_value("half a w")
        expect(page.get_by_text("Not answered yet")).to_have_count(1)
        visit.look("filling", everywhere=True)
        page.reload()
        expect(page.get_by_text("Later than that.")).to_be_visible()

        def end() -> None:
            trial.answers = so_far(trial)
            trial.save(update_fields=["answers"])
            Order.objects.filter(pk=trial.order_id).update(status=Order.Status.STOPPED)

        with ThreadPoolExecutor(1) as worker:
            worker.submit(end).result()
        expect(page.get_by_text("It was stopped, so some questions have no answer.")).to_be_visible()
        expect(page.get_by_text("Not asked", exact=True)).to_have_count(1)
        assert not visit.mistakes, "\n".join(visit.mistakes)

    browse(f"/trials/{trial.pk}/", work)


def test_two_trials_of_a_set_stand_beside_each_other(browse: Callable[[str, Do], None], world: World, answered: Trial) -> None:
    Trial.objects.filter(pk=answered.pk).update(created_at=answered.created_at - timedelta(days=3))
    order = make_trial(world).order
    later = Trial.objects.get(pk=answered.pk)
    Trial.objects.filter(order=order).delete()
    later.pk, later.order, later.created_at = uuid.uuid4(), order, answered.created_at
    later.asked_with |= {"temperature": 0.7, "system": "You answer customers of a shoe shop, briefly and kindly."}
    later.columns[2] = later.columns[2] | {"target": "release:1", "title": "in-house-support-tiny-v1.1.0"}
    later.answers[0][1]["turns"][0]["text"] = "Aloha. Hello again."
    later.answers[0][2]["turns"][0]["text"] = "The island greets you with cold air."
    later.save(force_insert=True)

    def work(page: Page) -> None:
        visit = Visit(page, name="trials-beside")
        page.get_by_role("link", name="Compare with another").click()
        visit.look("others", everywhere=True)
        page.locator("tbody .row-a").click()
        expect(page.get_by_role("heading", name="MT-Bench, asked twice")).to_be_visible()
        expect(page.locator("mark", has_text="Hello")).to_be_visible()
        visit.look("beside", everywhere=True)
        page.get_by_role("button", name="Mark differences").click()
        expect(page.locator("mark")).to_have_count(0)
        page.get_by_role("link", name="Only where answers differ (1)").click()
        expect(page.locator(".trial-twice tbody")).to_have_count(1)
        expect(page.locator("mark", has_text="cold")).to_be_visible()
        visit.look("differing")
        assert not visit.mistakes, "\n".join(visit.mistakes)

    browse(f"/trials/{answered.pk}/", work)


def test_a_trial_is_deleted_only_after_a_question(browse: Callable[[str, Do], None], answered: Trial) -> None:
    def work(page: Page) -> None:
        page.get_by_role("button", name="Delete this trial").click()
        dialog: Any = page.get_by_role("dialog")
        expect(dialog).to_contain_text("gone for everybody")
        dialog.get_by_role("button", name="Delete").click()
        expect(page.get_by_text("Nothing was asked yet")).to_be_visible()

    browse(f"/trials/{answered.pk}/", work)
    assert not Trial.objects.exists()
