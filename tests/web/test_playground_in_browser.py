"""The playground in the browser: columns are chosen, asked, compared, voted on without names, and shared.

What answers is a process that speaks the engine's wire and says the same words each time, so that the page is what is looked at.
"""

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from playwright.sync_api import Page, expect

from studio.releases.models import Release
from studio.serving.models import Talk, Vote
from studio.workspaces.services import create_client
from tests.fixtures import World, make_deployment, make_release
from tests.visits import Visit
from tests.web.conftest import Do

pytestmark = pytest.mark.browser
PLAIN = "I am not sure which parcel you mean. Parcels are usually found in your account."
TRAINED = "I am sorry to hear that. Parcels are usually found in your account, or call us."


class Wire:
    """The engine's end of the wire: `refuses` are adapters that cannot be loaded, `waits` are answers that never end."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.refuses = self.waits = False
        self.left = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        question = json.loads(body)
        self.asked.append(question)
        await send({"type": "http.response.start", "status": 200, "headers": []})

        async def say(line: dict[str, Any]) -> None:
            await send({"type": "http.response.body", "body": json.dumps(line).encode() + b"\n", "more_body": True})

        gone = asyncio.create_task(receive())
        await self.answer(question, say, gone)
        self.left += gone.done()
        gone.cancel()
        await send({"type": "http.response.body", "body": b""})

    async def answer(self, question: dict[str, Any], say: Callable[[dict[str, Any]], Any], gone: "asyncio.Task[Any]") -> None:
        adapter = question["subject"]["adapter"]
        await say({"state": "loading the model"})
        if adapter and self.refuses:
            await say({"error": {"code": "no_memory", "message": "There is no room for this model. Try again later.", "fields": {}}})
            return
        for word in re.findall(r"\S+\s*", TRAINED if adapter else PLAIN):
            await say({"chunk": {"choices": [{"delta": {"content": word}, "finish_reason": None}]}})
            await asyncio.sleep(0.01)
        while adapter and self.waits and not gone.done():
            await say({"chunk": {"choices": [{"delta": {"content": "and "}, "finish_reason": None}]}})
            await asyncio.sleep(0.1)
        took = {"prompt_tokens": 9, "cached_tokens": 0, "completion_tokens": 16, "seconds": 0.4, "first": 0.21, "waited": 0.0}
        await say({"done": took})


@pytest.fixture
def wire(settings: Any, tmp_path: Path) -> Iterator[Wire]:
    settings.ENGINE_SOCKET = str(tmp_path / "e.sock")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(settings.ENGINE_SOCKET)
    app = Wire()
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield app
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def release(world: World) -> Release:
    made = make_release(world.owner, world.artifact, stage="approved")
    made.asked_with = {"system": "You answer for a parcel service.", "temperature": 0.4}
    made.save()
    return made


def ask(page: Page, question: str = "Where is my parcel?") -> None:
    page.get_by_label("Your question").fill(question)
    page.get_by_role("button", name="Send").click()


def answered(page: Page, count: int) -> None:
    expect(page.locator(".bubble-figures", has_text="tokens/s")).to_have_count(count)


def test_columns_are_chosen_by_keyboard_and_asked_together(
    browse: Callable[[str, Do], None], world: World, wire: Wire, release: Release
) -> None:
    deployment = make_deployment(world.project, release)
    create_client(world.owner, name="Globex")

    def compare(page: Page) -> None:
        visit = Visit(page, name="playground")
        columns, offered = page.locator("[data-answers]"), page.locator("#picker").get_by_role("option")
        expect(columns).to_have_count(2)
        expect(page.get_by_role("button", name="Send")).to_be_enabled()
        visit.look("before", everywhere=True)
        page.get_by_role("button", name="Add a column").click()
        expect(offered).to_have_count(3)
        visit.look("picker", everywhere=True, whole=False)
        page.keyboard.type("v1.0.0")
        expect(offered).to_have_count(2)  # the deployment is found by what answers there
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        expect(columns).to_have_count(3)
        expect(columns.nth(2)).to_contain_text("Answers with its own system prompt and temperature.")
        page.get_by_role("button", name="Add a column").click()
        page.keyboard.type("in-house/support")
        expect(offered).to_have_count(0)  # two parts, neither is the whole name
        page.keyboard.press("Escape")
        assert f"column=release:{release.pk}" in page.url

        ask(page)
        answered(page, 3)
        page.get_by_role("button", name="Mark differences").click()
        expect(columns.nth(1).locator("mark")).to_have_text(["sorry to hear that", ", or call us"])
        expect(columns.nth(0).locator("mark")).to_have_count(0)
        visit.look("answers", everywhere=True)
        page.get_by_role("button", name="Mark differences").click()
        expect(page.locator("mark")).to_have_count(0)

        columns.nth(0).get_by_role("button", name="Move to the right").click()
        expect(columns.nth(0)).to_have_attribute("data-target", f"adapter:{world.artifact.pk}")
        columns.nth(2).get_by_role("button", name="Remove this column").click()
        expect(columns).to_have_count(2)
        page.reload()
        expect(columns.nth(1)).to_have_attribute("data-target", f"base:{world.base.pk}")

        page.goto(f"{page.url.partition('?')[0]}?column=deployment:{deployment.pk}&column=base:{world.base.pk}")
        page.get_by_role("button", name="Use it by API").click()
        expect(page.get_by_role("dialog")).to_contain_text("/v1/chat/completions")
        visit.look("api", whole=False)
        assert not visit.mistakes, visit.mistakes

    browse("/playground/", compare)


def test_settings_are_kept_sent_and_told_to_the_column_that_has_its_own(
    browse: Callable[[str, Do], None], world: World, wire: Wire, release: Release
) -> None:
    def set_them(page: Page) -> None:
        visit = Visit(page, name="playground-settings")
        page.locator("summary", has_text="System prompt and settings").click()
        page.get_by_label("Temperature", exact=True).fill("0.9")
        page.get_by_label("Seed", exact=True).fill("7")
        expect(page.get_by_text("Answers with your temperature instead of its own. Its system prompt stays.")).to_be_visible()
        visit.look("set", everywhere=True)
        page.reload()
        expect(page.get_by_text("You set the temperature and seed")).to_be_visible()
        ask(page)
        answered(page, 2)
        page.locator("summary", has_text="System prompt and settings").click()
        page.get_by_label("Temperature", exact=True).fill("3")
        ask(page, "And now?")
        expect(page.locator(".bubble.user")).to_have_count(2)  # it was not sent
        page.get_by_role("button", name="Forget these settings").click()
        expect(page.get_by_text("Each column answers with its own")).to_be_visible()
        assert not visit.mistakes, visit.mistakes

    browse(f"/playground/?column=base:{world.base.pk}&column=release:{release.pk}", set_them)
    bodies = [asked["body"] for asked in wire.asked]
    assert [(body["temperature"], body["seed"]) for body in bodies] == [(0.9, 7)] * 2
    assert any(body["messages"][0]["content"] == "You answer for a parcel service." for body in bodies)


def test_one_column_that_fails_or_is_stopped_does_not_stop_the_others(browse: Callable[[str, Do], None], world: World, wire: Wire) -> None:
    def go_on(page: Page) -> None:
        visit = Visit(page, name="playground-failures")
        columns = page.locator("[data-answers]")
        expect(columns).to_have_count(2)
        wire.refuses = True
        ask(page)
        expect(columns.nth(1)).to_contain_text("There is no room for this model.")
        answered(page, 1)
        visit.look("failed")
        wire.refuses, wire.waits = False, True
        ask(page, "And the other one?")
        expect(columns.nth(1)).to_contain_text("call us.and and")
        answered(page, 2)
        columns.nth(1).get_by_role("button", name="Stop this one").click()
        expect(columns.nth(1)).to_contain_text("Stopped.")
        expect(page.get_by_role("button", name="Send")).to_be_visible()
        assert not visit.mistakes, visit.mistakes

    browse("/playground/", go_on)
    deadline = time.monotonic() + 10
    while not wire.left and time.monotonic() < deadline:
        time.sleep(0.05)
    assert wire.left  # the engine heard that nobody listens any more


def test_who_starts_over_while_an_answer_comes_has_an_empty_conversation(
    browse: Callable[[str, Do], None], world: World, wire: Wire
) -> None:
    def start_over(page: Page) -> None:
        wire.waits = True
        ask(page)
        expect(page.locator("[data-answers]").nth(1)).to_contain_text("call us.and and")
        page.get_by_role("button", name="Start over").click()
        expect(page.get_by_role("button", name="Send")).to_be_visible()
        expect(page.locator(".bubble")).to_have_count(0)
        wire.waits = False
        ask(page, "And how are you?")
        answered(page, 2)

    browse("/playground/", start_over)
    for asked in wire.asked[-2:]:
        assert asked["body"]["messages"] == [{"role": "user", "content": "And how are you?"}]


def test_a_blind_round_waits_for_a_second_column_and_for_every_answer(browse: Callable[[str, Do], None], world: World, wire: Wire) -> None:
    def go_blind(page: Page) -> None:
        visit = Visit(page, name="playground-blind-unanswered")
        blind, over = page.get_by_role("button", name="Blind"), page.get_by_role("button", name="Begin another round")
        expect(page.get_by_role("button", name="Send")).to_be_enabled()
        expect(blind).to_be_disabled()
        page.get_by_role("button", name="Add a column").click()
        page.locator("#picker").get_by_role("option").first.click()
        expect(blind).to_be_enabled()
        page.locator("[data-answers]").nth(1).get_by_role("button", name="Remove this column").click()
        expect(blind).to_be_disabled()
        page.goto(f"{page.url.partition('?')[0]}?column=base:{world.base.pk}&column=adapter:{world.artifact.pk}&blind=1")
        expect(over).to_be_hidden()
        wire.refuses = True
        ask(page)
        expect(page.get_by_text("This one cannot answer now. Ask again, or begin another round.")).to_be_visible()
        expect(over).to_be_visible()
        expect(page.get_by_role("group", name="Which answer is best?")).to_be_hidden()
        visit.look("failed", everywhere=True)
        wire.refuses = False
        ask(page, "And now?")
        expect(page.get_by_role("group", name="Which answer is best?")).to_be_visible()
        expect(over).to_be_hidden()
        wire.waits = True
        ask(page, "And once more?")
        page.get_by_role("button", name="Stop all").click()
        over.click()
        expect(page.locator(".bubble")).to_have_count(0)
        expect(page.get_by_role("heading", name="Answer 1")).to_be_visible()
        assert not visit.mistakes, visit.mistakes

    browse(f"/playground/?column=base:{world.base.pk}", go_blind)


def test_a_blind_round_tells_the_names_once_somebody_has_voted(
    browse: Callable[[str, Do], None], world: World, wire: Wire, release: Release
) -> None:
    def vote(page: Page) -> None:
        visit = Visit(page, name="playground-blind")
        page.get_by_role("button", name="Blind").click()
        expect(page.get_by_role("heading", name="Answer 1")).to_be_visible()
        assert release.name not in page.content()
        ask(page)
        answered(page, 2)
        expect(page.get_by_role("group", name="Which answer is best?")).to_be_focused()
        visit.look("asked", everywhere=True)
        page.keyboard.press("2")
        expect(page.get_by_role("heading", name=release.name)).to_be_visible()
        expect(page.get_by_text("Your choice").filter(visible=True)).to_have_count(1)
        visit.look("told", everywhere=True)
        page.get_by_role("button", name="Begin another round").click()
        expect(page.get_by_role("heading", name="Answer 1")).to_be_visible()
        page.get_by_role("link", name="Votes").click()
        expect(page.get_by_role("row", name=release.name)).to_be_visible()
        visit.look("votes", everywhere=True)
        assert not visit.mistakes, visit.mistakes

    browse(f"/playground/?column=base:{world.base.pk}&column=release:{release.pk}", vote)
    made = Vote.objects.get()
    assert (made.blind, made.best, made.prompt) == (True, 1, "Where is my parcel?")
    says = {"base": PLAIN, "release": TRAINED}
    assert made.answers == [says[column["target"].partition(":")[0]] for column in made.columns]


def test_a_conversation_is_shared_by_link_and_goes_on(browse: Callable[[str, Do], None], world: World, wire: Wire) -> None:
    def share(page: Page) -> None:
        visit = Visit(page, name="playground-shared")
        expect(page.get_by_role("button", name="Share")).to_be_disabled()
        ask(page)
        answered(page, 2)
        ask(page, "And the second one?")
        answered(page, 4)
        page.get_by_role("button", name="Share").click()
        expect(page.get_by_role("heading", name="Where is my parcel?")).to_be_visible()
        visit.look("talk", everywhere=True)
        page.get_by_role("link", name="Go on from it").click()
        expect(page.locator(".bubble.assistant")).to_have_count(4)
        ask(page, "Thank you.")
        answered(page, 6)
        visit.look("on", everywhere=True)
        page.get_by_role("link", name="Shared conversations").click()
        visit.look("list", everywhere=True)
        page.get_by_role("link", name="Where is my parcel?").click()
        page.get_by_role("button", name="Delete").first.click()
        page.get_by_role("dialog").get_by_role("button", name="Delete").click()
        expect(page.get_by_text("Nothing is shared yet")).to_be_visible()
        assert not visit.mistakes, visit.mistakes

    browse("/playground/", share)
    assert not Talk.objects.exists()
    assert len(wire.asked[-1]["body"]["messages"]) == 5  # what was shared goes before what is asked now
