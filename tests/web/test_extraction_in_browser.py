"""An adapter is extracted in the browser: ranks are chosen, the wait is shown, and what each keeps is read on a desk and on a phone."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from studio.comparisons.models import Extraction
from tests.comparisons.test_extracting import ended, found
from tests.fixtures import World, make_full_model
from tests.visits import Visit
from tests.web.conftest import Do

pytestmark = pytest.mark.browser
REST = [{"part": "words", "share": 0.31, "kept": False}, {"part": "norms", "share": 0.00042, "kept": False}]


@pytest.fixture
def extracted(world: World, tmp_path: Path) -> Extraction:
    facts = found(kept=((0.874, 0.842, 0.905), (0.986, 0.981, 0.992), (1.0, 0.999, 1.001)), rest=REST, linear=0.69)
    done: Extraction = ended(world, make_full_model(world), tmp_path, facts)
    return done


def test_ranks_are_chosen_and_what_each_adapter_keeps_is_read(browse: Callable[[str, Do], None], extracted: Extraction) -> None:
    def work(page: Page) -> None:
        visit = Visit(page, name="extraction")
        root = page.url.rstrip("/")
        page.goto(f"{root}/extractions/{extracted.pk}/")
        expect(page.get_by_role("heading", name="Take rank 16")).to_be_visible()
        page.get_by_text("By kind of layer").click()
        visit.look("result", everywhere=True)
        page.get_by_role("link", name="Open the adapter").click()
        visit.look("adapter")
        page.get_by_role("link", name="Whole", exact=True).click()
        page.get_by_role("link", name="Extract an adapter").click()
        page.get_by_label("Other ranks").fill("none")
        page.get_by_role("button", name="Extract").click()
        expect(page.get_by_text("Type whole numbers above 0")).to_be_visible()
        visit.mistakes = [mistake for mistake in visit.mistakes if not mistake.startswith("422") and "422" not in mistake]
        visit.look("form", everywhere=True)
        page.get_by_label("Other ranks").fill("24")
        page.get_by_role("button", name="Extract").click()
        expect(page.get_by_text("Waiting for a free worker")).to_be_visible()
        visit.look("waiting")
        page.get_by_role("button", name="Cancel").click()
        expect(page.get_by_text("nothing of it was kept")).to_be_visible()
        visit.look("stopped")
        page.get_by_role("button", name="Delete").first.click()
        visit.look("delete", whole=False)
        page.get_by_role("dialog").get_by_role("button", name="Delete").click()
        expect(page.get_by_text("Taken out before")).to_be_visible()
        assert not visit.mistakes, "\n".join(visit.mistakes)

    browse("/", work)
