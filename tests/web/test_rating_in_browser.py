"""Blind rating in the browser: by keyboard as a member, on a phone as a client's guest, and what the comparison's page makes of it."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from studio.comparisons.models import Comparison, Rating
from studio.comparisons.rating import Question, cast, sealed
from tests.comparisons.house import make_measured
from tests.fixtures import World, make_comparison, make_member
from tests.visits import PHONE, Visit
from tests.web.conftest import Do, cookie

pytestmark = pytest.mark.browser
ASKED = [f"Where is my parcel number {number}, and when does it come?" for number in range(12)]
LONG = "\n\n".join(f"{step}. Open your account, choose the order, and read what the carrier says about it." for step in range(1, 40))


def measured(world: World, *, long: bool = False) -> Comparison:
    made = make_comparison(world)
    answers = {
        (0, 1): [f"I am sorry to hear that. Parcel {number} left us\nthis morning." for number in range(12)],
        (1, 1): [LONG if long else f"It is on its way: <b>parcel {number}</b>." for number in range(12)],
    }
    prompts = [{"prompt": text, "shown": text, "expected": "It left today. You have a link to follow it."} for text in ASKED]
    make_measured(made, answers=answers, prompts=prompts)
    return made


def test_answers_are_rated_by_keyboard_without_a_page_load(browse: Callable[[str, Do], None], world: World) -> None:
    comparison = measured(world)

    def go(page: Page) -> None:
        seen = Visit(page, name="rating")
        page.goto(page.url.rstrip("/") + f"/comparisons/{comparison.pk}/rate/")
        page.evaluate("window.here = true")
        seen.look("first", everywhere=True)
        for key, done in (("1", 1), ("ArrowRight", 2), ("0", 3), ("ArrowLeft", 4)):
            page.keyboard.press(key)
            expect(page.get_by_text(f"{done} rated")).to_be_visible()
        page.keyboard.press("u")
        expect(page.get_by_text("3 rated")).to_be_visible()
        page.keyboard.press("2")
        expect(page.get_by_text("4 rated")).to_be_visible()
        for done in range(5, 12):
            page.get_by_role("button", name="A is better").click()
            expect(page.get_by_text(f"{done} rated")).to_be_visible()
        page.keyboard.press("2")
        expect(page.get_by_text("You have rated them all")).to_be_visible()
        seen.look("done")
        assert page.evaluate("window.here")
        assert seen.mistakes == []

    browse("/", go)
    said = list(Rating.objects.order_by("created_at").values_list("better", flat=True))
    assert said == ["left", "right", "equal", "right", *["left"] * 7, "right"]


def test_a_guest_rates_on_a_phone_and_the_comparison_shows_what_it_comes_to(browse: Callable[[str, Do], None], world: World) -> None:
    comparison = measured(world, long=True)
    gus = make_member(world.workspace, role="guest", email="gus@example.com", clients=[world.client])
    name, value = cookie(gus).split("=")
    for place in range(10):
        token = sealed(world.owner, comparison, Question(place, 0, 1, 1, 1))
        cast(world.owner, comparison, token=token, better="equal" if place == 4 else "left" if place % 4 else "right")

    def go(page: Page) -> None:
        seen = Visit(page, name="rating-guest")
        address = page.url.rstrip("/")
        page.goto(f"{address}/comparisons/{comparison.pk}/")
        page.locator("#ratings").scroll_into_view_if_needed()
        page.get_by_text("By pair").click()
        seen.look("comparison", everywhere=True)
        page.context.clear_cookies()
        page.context.add_cookies([{"name": name, "value": value, "url": address}])
        page.goto(address)
        seen.look("home", everywhere=True)
        page.set_viewport_size(PHONE)
        page.get_by_role("link", name="Rate answers").click()
        expect(page.get_by_role("heading", name="Which answer is better?")).to_be_visible()
        seen.look("guest", everywhere=True)
        seen.look("guest-screen", whole=False)
        page.set_viewport_size(PHONE)
        size = page.get_by_role("button", name="B is better").bounding_box()
        assert size and size["height"] >= 44
        page.get_by_role("button", name="B is better").click()
        expect(page.get_by_text("11 rated, 1 by you")).to_be_visible()
        assert seen.mistakes == []

    browse("/", go)
    assert Rating.objects.filter(by_guest=True, user=gus.user, better="right").count() == 1
