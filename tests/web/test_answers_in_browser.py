"""Kept answers in the browser: judged by keyboard, corrected, and added to a dataset; and a key that is made for one deployment."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from studio.datasets import drafting
from studio.serving import answers
from studio.serving.models import Deployment, Keeping, KeptAnswer
from studio.workspaces.models import ApiKey
from tests.fixtures import World, make_deployment, make_kept, make_release
from tests.visits import Visit
from tests.web.conftest import Do

pytestmark = pytest.mark.browser
ASKED = [
    ("Where is my parcel?", "It left our warehouse this morning and comes tomorrow between 9 and 12."),
    ("Can I send back shoes that I wore once?", "Yes.\n\nYou have thirty days. Put them into the box that they came in."),
    ("Do you ship to Norway, and what does it cost for three boxes of about four kilograms each?", "No."),
]


@pytest.fixture
def deployment(world: World) -> Deployment:
    return make_deployment(world.project, make_release(world.owner, world.artifact, stage="approved"))


@pytest.fixture
def kept(world: World, deployment: Deployment) -> list[KeptAnswer]:
    assert deployment.release
    Keeping.objects.create(project=world.project, days=30)
    return [make_kept(deployment, deployment.release, question=question, answer=answer) for question, answer in reversed(ASKED)]


def test_answers_are_judged_by_keyboard_and_the_good_ones_become_rows(
    browse: Callable[[str, Do], None], world: World, kept: list[KeptAnswer]
) -> None:
    def work(page: Page) -> None:
        seen = Visit(page, name="answers")
        page.get_by_label("Judged").select_option("open")
        page.get_by_label("Project", exact=True).select_option(str(world.project.pk))
        page.get_by_role("button", name="Show").click()
        expect(page.get_by_role("combobox", name="Release")).to_be_visible()
        seen.look("list", everywhere=True)
        page.get_by_role("link", name=ASKED[0][0]).click()
        seen.look("one", everywhere=True)
        page.keyboard.press("+")
        expect(page.get_by_role("button", name="Good")).to_have_attribute("aria-pressed", "true")
        page.keyboard.press("j")
        expect(page.get_by_text(ASKED[1][0])).to_be_visible()
        page.keyboard.press("-")
        expect(page.get_by_role("button", name="Bad")).to_have_attribute("aria-pressed", "true")
        page.keyboard.press("c")
        page.keyboard.type("Only where they are unworn.")
        page.get_by_role("button", name="Save correction").click()
        expect(page.locator(".kept-answer").get_by_text("Corrected")).to_be_visible()
        seen.look("judged", everywhere=True)
        page.get_by_role("link", name="Kept answers").click()
        page.get_by_label("Judged").select_option("")
        page.get_by_role("button", name="Show").click()
        page.get_by_role("button", name="Add to dataset").click()
        expect(page.get_by_text("Added 2 rows to your draft of Replies.")).to_be_visible()
        seen.look("added")
        page.get_by_role("link", name="Kept for 30 days").click()
        seen.look("setting", everywhere=True)
        page.get_by_role("button", name="Stop keeping").click()
        seen.look("stop", whole=False)
        page.get_by_role("button", name="Stop and delete").click()
        expect(page.get_by_text("No request and no answer")).to_be_visible()
        seen.look("off")
        assert seen.mistakes == []

    browse("/answers/", work)
    learnt = [row["messages"][-1]["content"] for row in drafting.changes_of(drafting.draft_of(world.owner, world.version)).added]
    assert sorted(learnt) == sorted([ASKED[0][1], "Only where they are unworn."])
    assert not KeptAnswer.objects.exists()


def test_a_key_is_made_for_one_deployment_and_its_limits_change(
    browse: Callable[[str, Do], None], world: World, deployment: Deployment, kept: list[KeptAnswer]
) -> None:
    answers.judge(world.owner, kept[0], thumb=1)
    make_deployment(world.project, slug="night-shift")

    def work(page: Page) -> None:
        seen = Visit(page, name="deployment-keys")
        seen.look("deployment", everywhere=True)
        page.get_by_role("link", name="New key for this deployment").click()
        expect(page.get_by_label(str(deployment), exact=True)).to_be_checked()
        expect(page.get_by_text("Upload datasets")).to_be_hidden()
        page.get_by_label("Name").fill("web shop")
        page.get_by_label("Requests a minute").fill("60")
        page.get_by_label("Answers at once").fill("none")
        seen.look("form", everywhere=True)
        page.get_by_role("button", name="Create key").click()
        expect(page.get_by_text("Must be from 1 to 1,000")).to_be_visible()
        seen.look("refused")
        page.get_by_label("Answers at once").fill("4")
        page.get_by_role("button", name="Create key").click()
        expect(page.get_by_text("Copy the key now.")).to_be_visible()
        expect(page.get_by_text("60 requests a minute, 4 at once")).to_be_visible()
        seen.look("made", everywhere=True)
        page.get_by_role("link", name="Limits of web shop").click()
        page.get_by_label("Tokens a minute").fill("20,000")
        seen.look("limits", everywhere=True)
        page.get_by_role("button", name="Save").click()
        expect(page.get_by_text("Changed the limits of web shop.")).to_be_visible()
        page.goto(page.url.split("/settings/")[0] + f"/projects/{world.project.pk}/")
        seen.look("project")
        assert [mistake for mistake in seen.mistakes if "422" not in mistake] == []

    browse(f"/deployments/{deployment.pk}/", work)
    key = ApiKey.objects.get(name="web shop")
    assert (key.by_deployment, key.requests_per_minute, key.tokens_per_minute, key.at_once) == (True, 60, 20_000, 4)
    assert list(key.deployments.all()) == [deployment]
