"""A new comparison in the browser: what differs is chosen, what it takes follows, errors stand beside their fields, and Start makes it."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from studio.comparisons.figures import Verdict
from studio.comparisons.models import Comparison
from tests.fixtures import World, make_comparison
from tests.visits import Visit
from tests.web.conftest import Do

pytestmark = pytest.mark.browser


def test_somebody_compares_ranks_and_finds_the_comparison_in_the_list(browse: Callable[[str, Do], None], world: World) -> None:
    done = make_comparison(world)
    sentence = "LoRA keeps 98.7 % ± 0.6 of full fine-tuning's gain at 31 % of the time."
    done.verdict = Verdict(differs="method", sentence=sentence).model_dump(mode="json")
    done.save()
    make_comparison(world, state="failed")

    def work(page: Page) -> None:
        visit = Visit(page, name="comparisons-new")
        visit.look("list", everywhere=True)
        page.get_by_role("link", name="New comparison").click()
        expect(page.get_by_role("heading", name="6 runs")).to_be_visible()
        visit.look("new", everywhere=True)
        page.locator("#id_differs_sweep").check()
        expect(page.locator("#id_search_learning_rate_values")).to_be_visible()
        expect(page.locator("#id_search_rank_values")).to_be_hidden()
        page.locator("#id_search_rank").check()
        page.locator("#id_search_rank_values").fill("16 to 4")
        expect(page.locator("[data-field=search_rank] [data-error]")).to_contain_text("low end must be below")
        page.locator("#id_search_rank_values").fill("4 to 16")
        expect(page.locator("[data-field=search_rank] [data-error]")).to_be_hidden()
        page.get_by_text("Further settings").click()
        page.locator("#id_search_scheduler").check()
        visit.look("sweep", everywhere=True)
        page.locator("#id_way").select_option("full")
        expect(page.locator("#id_search_rank")).to_have_count(0)
        expect(page.locator("#id_search_scheduler")).to_be_checked()
        page.locator("#id_way").select_option("lora")
        expect(page.locator("#id_search_rank")).to_be_visible()
        page.locator("#id_differs_rank").check()
        ranks = page.locator("#id_ranks")
        expect(ranks).to_be_visible()
        expect(page.get_by_role("heading", name="9 runs")).to_be_visible()
        ranks.fill("4, 1000")
        expect(page.locator("[data-field=ranks] [data-error]")).to_be_visible()
        expect(page.get_by_role("button", name="Start")).to_be_disabled()
        visit.look("refused")
        ranks.fill("4, 8")
        expect(page.get_by_role("row", name="Rank 4")).to_be_visible()
        expect(page.get_by_role("button", name="Start")).to_be_enabled()
        visit.look("ranks")
        page.get_by_role("button", name="Start").click()
        page.wait_for_url("**/comparisons/*-*/")
        assert not visit.mistakes, "\n".join(visit.mistakes)

    browse("/comparisons/", work)
    made = Comparison.objects.latest("created_at")
    assert [arm.name for arm in made.arms.all()] == ["Rank 4", "Rank 8"]
