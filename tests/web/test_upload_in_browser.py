"""A file is dropped in a browser: it goes on after a break and a reload, and is looked at before it is imported."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from studio.datasets.models import DatasetVersion, Upload
from tests.fixtures import World
from tests.visits import Visit
from tests.web.conftest import SLOW, Do

TICKETS = "ticket_text,agent_reply,team\n" + "".join(f"Where is order {n}?,On its way: {n}.,north\n" for n in range(30))


pytestmark = pytest.mark.browser


@pytest.fixture
def visit(browse: Callable[[str, Do], None], world: World) -> Callable[[Do], None]:
    """Opens the page for a new dataset."""
    return partial(browse, f"/datasets/new/?project={world.project.pk}")


def chats(path: Path, size: int) -> Path:
    with path.open("w") as file:
        number = 0
        while file.tell() < size:
            number += 1
            file.write(json.dumps({"question": f"What is {number}? {'x' * 900}", "answer": str(number)}) + "\n")
    return path


def test_one_file_dropped_is_looked_at_and_imported(visit: Any, tmp_path: Path) -> None:
    path = tmp_path / "tickets.csv"
    path.write_text(TICKETS)

    def drop(page: Page) -> None:
        seen = Visit(page, name="upload")
        seen.look("new-dataset", everywhere=True)
        page.get_by_label("Drop a file here").set_input_files(path)
        expect(page.get_by_role("heading", name="tickets.csv")).to_be_visible(timeout=SLOW)
        expect(page.get_by_text("Need messages, or prompt + completion, or text.")).to_be_visible()
        seen.look("columns", everywhere=True)
        page.get_by_label("ticket_text", exact=True).select_option("the question")
        page.get_by_label("agent_reply", exact=True).select_option("the answer to learn")
        expect(page.get_by_role("article").first).to_contain_text("On its way: 0.", timeout=SLOW)
        seen.look("preview", everywhere=True)
        page.get_by_role("button", name="Import").click()
        expect(page.get_by_role("heading", name="tickets v1")).to_be_visible(timeout=SLOW)
        assert not seen.mistakes, "\n".join(seen.mistakes)

    visit(drop)
    version = DatasetVersion.objects.get(dataset__name="tickets")
    assert version.mapping == {"prompt": "ticket_text", "completion": "agent_reply"}


def test_a_file_goes_on_after_a_reload(visit: Any, tmp_path: Path) -> None:
    path = chats(tmp_path / "support.jsonl", 10 << 20)
    sent: list[int] = []

    def one_piece_only(route: Route) -> None:
        if route.request.method == "PATCH" and route.request.headers["upload-offset"] != "0":
            route.abort()
        else:
            route.continue_()

    def break_off(page: Page) -> None:
        page.route("**/uploads/*/", one_piece_only)
        page.get_by_label("Drop a file here").set_input_files(path)
        expect(page.get_by_text("The connection is away.")).to_be_visible(timeout=SLOW)
        page.reload()
        expect(page.get_by_text("79 % is here. Choose the same file again to go on.")).to_be_visible()
        page.unroute("**/uploads/*/")
        page.on("request", lambda request: sent.append(int(request.headers["upload-offset"])) if request.method == "PATCH" else None)
        page.get_by_label("Drop a file here").set_input_files(path)
        expect(page.get_by_role("heading", name="support.jsonl")).to_be_visible(timeout=SLOW)
        expect(page.get_by_role("article").first).to_contain_text("What is 1?")

    visit(break_off)
    assert sent[0] == 8 << 20
    assert Upload.objects.get().path.read_bytes() == path.read_bytes()


def test_what_there_is_no_room_for_is_said_before_it_is_sent(visit: Any, tmp_path: Path, settings: Any) -> None:
    settings.MAX_UPLOAD = 1000
    path = chats(tmp_path / "support.jsonl", 4000)

    def drop(page: Page) -> None:
        page.get_by_label("Drop a file here").set_input_files(path)
        expect(page.get_by_role("alert")).to_contain_text("at most 1.0 kB are taken.")

    visit(drop)
    assert not Upload.objects.exists()


def test_an_upload_is_paused_and_thrown_away(visit: Any, tmp_path: Path) -> None:
    path = chats(tmp_path / "support.jsonl", 20 << 20)

    def change_ones_mind(page: Page) -> None:
        page.route("**/uploads/*/", lambda route: route.abort() if route.request.method == "PATCH" else route.continue_())
        page.get_by_label("Drop a file here").set_input_files(path)
        with page.expect_request(lambda request: request.method == "PATCH"):
            pass
        page.get_by_role("button", name="Pause").click()
        expect(page.get_by_role("button", name="Go on")).to_be_visible()
        with page.expect_response(lambda response: response.request.method == "DELETE"):
            page.get_by_role("button", name="Cancel").click()
        expect(page.get_by_label("Drop a file here")).to_be_enabled()
        expect(page.get_by_text("Drop a file here")).to_be_visible()

    visit(change_ones_mind)
    assert not Upload.objects.exists()
