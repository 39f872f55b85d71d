"""A row's tokens in the browser: each tells its id by pointer and by keyboard, the cut moves, and keys leaf through the rows."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from studio.datasets.models import TokenView
from studio.datasets.tokenviews import ask
from tests.fixtures import World, work_off
from tests.small_tokenizer import give_tokenizer
from tests.visits import Visit
from tests.web.conftest import Do

pytestmark = [pytest.mark.browser, pytest.mark.torch]


@pytest.fixture
def visit(browse: Callable[[str, Do], None], world: World) -> Callable[[Do], None]:
    """Opens the tokens of the third row."""
    give_tokenizer(world.base)
    ask(world.owner, world.version, world.base, index=0)
    assert work_off(TokenView.objects.get().order).status == "succeeded"
    return partial(browse, f"/datasets/versions/{world.version.pk}/tokens/?row=3")


def test_a_row_is_looked_at_by_pointer_keyboard_and_slider(visit: Any) -> None:
    def look(page: Page) -> None:
        seen = Visit(page, name="tokens")
        tokens, tip = page.locator("[data-tokens] > span"), page.locator("#token-tip")
        tokens.first.hover()
        expect(tip).to_have_text(re.compile(r"“<\|im_start\|>”id 0 · token 1 of \d+ · only read"))
        page.locator("[data-tokens]").focus()
        page.keyboard.press("End")
        page.keyboard.press("ArrowLeft")
        expect(tip).to_contain_text("“<|im_end|>”")
        expect(tip).to_contain_text("learnt")
        expect(page.locator(".tok-here")).to_have_count(1)
        page.keyboard.press("Escape")
        expect(tip).to_be_hidden()
        seen.look("row", everywhere=True)

        total = tokens.count()
        page.locator("[data-token-slider]").fill("16")
        expect(page.locator("[data-tokens] > .tok-cut")).to_have_count(total - 16)
        expect(page.locator("[data-cut]")).to_have_text(str(total - 16))
        kept = page.locator("[data-tokens] > .tok-trained:not(.tok-cut)").count()
        expect(page.locator("[data-learnt]")).to_have_text(str(kept))
        seen.look("cut")
        assert "length=16" in page.url
        page.get_by_label("Max length", exact=True).fill("600")
        expect(page.locator("[data-tokens] > .tok-cut")).to_have_count(0)
        assert seen.mistakes == []

    visit(look)


def test_rows_are_leafed_through_by_keys_and_by_number(visit: Any) -> None:
    def leaf(page: Page) -> None:
        for key, row in [("j", 4), ("ArrowRight", 5), ("k", 4), ("ArrowLeft", 3)]:
            page.keyboard.press(key)
            expect(page.get_by_role("heading", name=f"Row {row}", exact=True)).to_be_visible()
            page.wait_for_load_state()  # what listens to keys comes with the page's scripts
        page.locator("#id_row").fill("12")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="Row 12", exact=True)).to_be_visible()
        expect(page.get_by_role("button", name="Row after")).to_be_disabled()

    visit(leaf)
