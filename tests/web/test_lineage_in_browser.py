"""Lineage in the browser: the picture is walked by keyboard, says the same in words, and answers where a row is."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from studio.serving import deploying
from tests.fixtures import World, make_artifact, make_build, make_delivery, make_deployment, make_release, make_run, make_version
from tests.visits import Visit
from tests.web.conftest import Do

pytestmark = pytest.mark.browser


@pytest.fixture
def shop(world: World) -> World:
    """Versions of versions, many runs, builds, two releases, one of them live and one tried, and deliveries."""
    second = make_version(world.owner, world.project, name="Replies, corrected by hand")
    second.parent = world.version
    second.save()
    for number in range(9):
        run = make_run(world.owner, world.project, world.base, second)
        run.name = f"Rank {2**number}"
        run.save()
        make_artifact(run.order, world.project, {"a": bytes([number])}, name=run.name, base_model=world.base, dataset_version=second)
    for quantization in ("q4_k_m", "q6_k", "f16"):
        make_build(world.owner, world.artifact, quantization=quantization)
    one, two = (make_release(world.owner, world.artifact, version=(1, minor, 0), stage="approved") for minor in range(2))
    deployment = make_deployment(world.project)
    deploying.promote(world.owner, deployment, release=one)
    deploying.try_canary(world.owner, deployment, release=two, percent=10)
    for name in ("Their shop", "Their agency"):
        make_delivery(world.owner, one, world.build, recipient=name)
    return world


def test_the_picture_is_walked_through(browse: Callable[[str, Do], None], shop: World) -> None:
    def walk(page: Page) -> None:
        seen = Visit(page, name="lineage")
        picture = page.get_by_role("region", name="Picture of the lineage")
        expect(picture.get_by_role("link", name="in-house/support")).to_be_visible()
        seen.look("version", everywhere=True)
        picture.get_by_role("link", name="v1.0.0 first-project").focus()
        page.keyboard.press("Enter")
        page.wait_for_url("**/releases/**")
        page.get_by_role("link", name="Lineage", exact=True).click()
        expect(page.get_by_role("heading", name="Lineage of in-house-first-project-tiny-v1.0.0")).to_be_visible()
        seen.look("release", everywhere=True)
        assert seen.mistakes == []

    browse(f"/lineage/versions/{shop.version.pk}/", walk)


def test_a_person_asks_where_a_row_is(browse: Callable[[str, Do], None], shop: World) -> None:
    def ask(page: Page) -> None:
        seen = Visit(page, name="row-lineage")
        page.get_by_role("textbox", name="Number").fill("99")
        page.get_by_role("button", name="Find").click()
        expect(page.get_by_text("This version has rows 1 to 12.")).to_be_visible()
        page.get_by_role("textbox", name="Number").fill("8")
        page.get_by_role("button", name="Find").click()
        expect(page.get_by_text("2 releases learnt from this row; both are live in in-house/support.")).to_be_visible()
        seen.look("row", everywhere=True)
        page.get_by_role("link", name="Open the row").click()
        page.get_by_role("link", name="Where is this row").click()
        expect(page.get_by_role("heading", name="Row 8 of Replies v1")).to_be_visible()
        assert seen.mistakes == []

    browse(f"/lineage/versions/{shop.version.pk}/", ask)
