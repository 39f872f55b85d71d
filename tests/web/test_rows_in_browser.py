"""Rows are gone through by keyboard: opened, dropped, marked and edited, and the focus stays where one was."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from studio.datasets.models import DatasetVersion, Draft, RowMark
from tests.fixtures import World, work_off
from tests.visits import Visit
from tests.web.conftest import SLOW, Do

pytestmark = pytest.mark.browser


@pytest.fixture
def visit(browse: Callable[[str, Do], None], world: World) -> Callable[[Do], None]:
    """Opens the rows of the world's version."""
    return partial(browse, f"/datasets/versions/{world.version.pk}/rows/")


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def test_rows_are_gone_through_by_keyboard_and_saved(visit: Any, world: World) -> None:
    def keys(page: Page) -> None:
        seen = Visit(page, name="rows")
        here = page.locator("tr[data-here]")
        press(page, "j", "j", "x")
        expect(page.locator("#row-2")).to_contain_text("dropped", timeout=SLOW)
        expect(here).to_have_id("row-2")
        expect(page.locator(":focus")).to_contain_text("Question 1?")
        press(page, "j", "m")
        expect(page.locator("#row-3")).to_contain_text("good example", timeout=SLOW)
        seen.look("table", everywhere=True)
        page.locator("#row-3 [data-row-open]").focus()
        press(page, "j", "Enter")
        expect(page.locator("#row h2")).to_have_text("Row 4", timeout=SLOW)
        seen.look("row")
        press(page, "j")
        expect(page.locator("#row h2")).to_have_text("Row 5", timeout=SLOW)
        press(page, "Escape")
        expect(page.locator("#row")).to_be_hidden()
        expect(here).to_have_id("row-5")
        press(page, "e")
        expect(page.get_by_role("heading", name="Edit row 5")).to_be_visible(timeout=SLOW)
        seen.look("edit", everywhere=True)
        page.get_by_label("Message 2", exact=True).fill("")
        page.get_by_role("button", name="Keep in my draft").click()
        expect(page.locator(".field-error")).to_contain_text("The assistant message is empty, there is nothing to learn.", timeout=SLOW)
        page.get_by_label("Message 2", exact=True).fill("A better answer.")
        page.get_by_role("button", name="Keep in my draft").click()
        expect(page.locator("#row-5")).to_contain_text("A better answer.", timeout=SLOW)
        expect(here).to_have_id("row-5")
        press(page, "/")
        page.keyboard.type("question 7")
        press(page, "Enter")
        expect(page.locator("tr[data-row]")).to_have_count(1, timeout=SLOW)
        page.get_by_label("Choose row 8").check()
        page.get_by_role("button", name="Drop", exact=True).click()
        expect(page.locator(".draft-bar")).to_contain_text("1 changed, 2 dropped", timeout=SLOW)
        page.get_by_role("button", name="Save as a new version").click()
        page.get_by_label("Note").fill("By keyboard")
        page.get_by_role("dialog").get_by_role("button", name="Save", exact=True).click()
        expect(page.get_by_text("Edited from")).to_be_visible(timeout=SLOW)
        expected = [wrong for wrong in seen.mistakes if "422" not in wrong]
        assert not expected, "\n".join(expected)

    visit(keys)
    made = DatasetVersion.objects.get(parent=world.version)
    work_off(made.order)
    made.refresh_from_db()
    assert (made.note, made.facts["changes"]) == ("By keyboard", {"added": 0, "changed": 1, "dropped": 2})
    assert RowMark.objects.get().mark == "star"
    assert not Draft.objects.exists()


def test_discarding_asks_first(visit: Any, world: World) -> None:
    def discard(page: Page) -> None:
        press(page, "j", "x")
        expect(page.locator(".draft-bar")).to_contain_text("1 dropped", timeout=SLOW)
        page.get_by_role("button", name="Discard").click()
        expect(page.get_by_role("dialog")).to_contain_text("all of it is lost")
        page.get_by_role("dialog").get_by_role("button", name="Discard").click()
        expect(page.locator(".draft-bar")).to_have_count(0, timeout=SLOW)

    visit(discard)
    assert not Draft.objects.exists()
