"""Builds in the browser: the form shows the types of the chosen kind, the ladder fits a phone, a build is watched and deleted."""

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from studio.artifacts.models import Build
from tests.fixtures import World
from tests.visits import PHONE, Visit
from tests.web.conftest import SLOW, Do
from tests.web.test_builds import coming, proved

pytestmark = pytest.mark.browser


@pytest.fixture
def visit(browse: Callable[[str, Do], None], world: World) -> Callable[[str, Do], None]:
    """Opens a page of a source with a ladder."""
    proved(world, "f16", size=271_000_000, mean_kl=1.1e-5, perplexity=8.41, top1=0.995)
    plain = {"mean_kl": 0.16, "perplexity": 9.31, "size": 105_000_000}
    proved(world, "q4_k_m", size=105_000_000, mean_kl=0.112, perplexity=9.02, importance=True, plain=plain)
    proved(world, "q2_k", size=88_000_000, mean_kl=1.9, passed=False, reasons=["The answers differ by 1.9 nats per token."])
    Build.objects.filter(pk=world.build.pk).delete()
    proved(world, "q8_0", size=145_000_000)
    return browse


def test_the_form_shows_the_types_of_the_kind_that_is_chosen(visit: Any, world: World) -> None:
    def choose(page: Page) -> None:
        seen = Visit(page, name="build-form")
        expect(page.get_by_role("checkbox", name="q6_k")).to_be_visible()
        expect(page.get_by_role("checkbox", name="q3_k_m")).to_be_hidden()
        page.get_by_text("Less common types").click()
        expect(page.get_by_role("checkbox", name="q3_k_m")).to_be_visible()
        seen.look("types", everywhere=True)
        page.get_by_role("radio", name="Weights for further work").check()
        expect(page.get_by_role("checkbox", name="q6_k")).to_be_hidden()
        expect(page.get_by_role("radio", name="bf16")).to_be_visible()
        seen.look("weights", everywhere=True)
        page.get_by_role("radio", name="One file that runs").check()
        page.get_by_role("checkbox", name="Round with care").check()
        page.get_by_role("checkbox", name="q8_0").check()
        page.get_by_role("button", name="Build", exact=True).click()
        expect(page.locator(".field-error:visible")).to_contain_text("changes none of these types", timeout=SLOW)
        expect(page.get_by_role("checkbox", name="Round with care")).to_be_checked()
        assert [mistake for mistake in seen.mistakes if "422" not in mistake] == []

    visit(f"/artifacts/{world.artifact.pk}/", choose)


def test_a_ladder_is_read_on_a_phone_and_at_a_desk(visit: Any, world: World) -> None:
    def read(page: Page) -> None:
        seen = Visit(page, name="ladder")
        expect(page.get_by_role("heading", name="Take q8_0: 145 MB")).to_be_visible()
        expect(page.get_by_role("img", name="q8_0: 145 MB, difference 0.011")).to_be_visible()
        expect(page.get_by_role("region", name="Files by size").get_by_role("row")).to_have_count(4)
        seen.look("ladder", everywhere=True)
        page.set_viewport_size(PHONE)
        chart = page.locator(".ladder-plot")
        chart.scroll_into_view_if_needed()
        for spot in page.locator(".rung").all():
            dot = spot.locator(".rung-dot").bounding_box()
            assert dot and 0 <= dot["x"] <= PHONE["width"] - dot["width"]
        assert seen.mistakes == []

    coming(world, "q3_k_m", status="queued")
    visit(f"/builds/of/{world.artifact.pk}/ladder/", read)


def test_a_build_tells_its_proof_and_how_to_run_it(visit: Any, world: World) -> None:
    def read(page: Page) -> None:
        seen = Visit(page, name="build")
        expect(page.get_by_role("heading", name="What careful rounding bought")).to_be_visible()
        expect(page.get_by_role("tabpanel", name="Ollama")).to_contain_text("ollama create")
        seen.look("passed", everywhere=True)
        page.get_by_role("tab", name="LM Studio").click()
        expect(page.get_by_role("tabpanel", name="LM Studio")).to_contain_text("lms import")
        expect(page.get_by_role("tabpanel", name="Ollama")).to_be_hidden()
        assert seen.mistakes == []

    build = Build.objects.get(quantization="q4_k_m")
    visit(f"/builds/{build.pk}/", read)


def test_a_build_that_did_not_pass_is_deleted_from_its_page(visit: Any, world: World) -> None:
    def delete(page: Page) -> None:
        seen = Visit(page, name="build-failed")
        expect(page.get_by_role("alert")).to_contain_text("The answers differ by 1.9 nats per token.")
        expect(page.get_by_role("link", name="Download")).to_have_count(0)
        seen.look("failed", everywhere=True)
        page.get_by_role("button", name="Delete").click()
        page.get_by_role("dialog").get_by_role("button", name="Delete").click()
        expect(page.get_by_role("heading", name="Take q8_0")).to_be_visible(timeout=SLOW)
        expect(page.get_by_text("Not on the ladder")).to_have_count(0)
        assert seen.mistakes == []

    build = Build.objects.get(quantization="q2_k")
    visit(f"/builds/{build.pk}/", delete)


def test_a_build_that_waits_can_be_cancelled(visit: Any, world: World) -> None:
    build = coming(world, "q6_k", status="queued")

    def watch(page: Page) -> None:
        seen = Visit(page, name="build-live")
        expect(page.get_by_text("Waiting for a free worker")).to_be_visible()
        seen.look("waiting", everywhere=True)
        page.get_by_role("button", name="Cancel").click()
        expect(page.get_by_text("The build was cancelled.")).to_be_visible(timeout=SLOW)
        expect(page.get_by_role("button", name="Build again")).to_be_visible()
        assert seen.mistakes == []

    visit(f"/builds/{build.pk}/", watch)
