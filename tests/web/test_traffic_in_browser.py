"""Traffic in the browser: a person sees how much is asked, how quickly it is answered, and at once whether the canary is worse."""

import random
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.utils import timezone
from playwright.sync_api import Page, expect

from studio.serving import deploying, rollup
from studio.serving.models import Deployment
from tests.fixtures import World, make_call, make_deployment, make_release
from tests.visits import Visit
from tests.web.conftest import Do

pytestmark = pytest.mark.browser


@pytest.fixture
def busy(world: World) -> Deployment:
    """A day's requests, of which the canary fails more often and is slower."""
    one, two = (make_release(world.owner, world.artifact, version=(1, minor, 0), stage="approved") for minor in range(2))
    made = make_deployment(world.project)
    deploying.promote(world.owner, made, release=one)
    deploying.try_canary(world.owner, made, release=two, percent=20)
    made.refresh_from_db()
    chance = random.Random(7)
    for number in range(400):
        canary = number % 5 == 0
        failed = chance.random() < (0.2 if canary else 0.02)
        took = chance.lognormvariate(1.4 if canary else 0.6, 0.5)
        make_call(
            made,
            at=timezone.now() - timedelta(hours=24 * chance.random() ** 2),
            release=two if canary else one,
            canary=canary,
            prompt_tokens=chance.randrange(40, 1200),
            completion_tokens=chance.randrange(10, 300),
            seconds=took,
            first=None if failed else took / 5,
            **({"status": 503, "error": "no_memory"} if failed else {"status": 499 if number % 97 == 0 else 200}),
        )
    rollup.roll_up()
    return made


def test_a_person_sees_at_once_that_the_canary_is_worse(browse: Callable[[str, Do], None], world: World, busy: Deployment) -> None:
    quiet = make_deployment(world.project, busy.release, slug="quiet")

    def look(page: Page) -> None:
        seen = Visit(page, name="traffic")
        expect(page.get_by_text("The canary does worse")).to_be_visible()
        seen.look("deployment", everywhere=True)
        page.get_by_label("Time", exact=True).get_by_role("link", name="Week").click()
        expect(page.get_by_role("link", name="Week")).to_have_attribute("aria-current", "true")
        seen.look("week")
        page.get_by_role("link", name="All traffic").click()
        expect(page.get_by_role("heading", name="Traffic", exact=True)).to_be_visible()
        seen.look("all", everywhere=True)
        home = page.url.split("/traffic/")[0]
        page.goto(f"{home}/deployments/{quiet.pk}/")
        expect(page.get_by_text("No requests yet.")).to_be_visible()
        seen.look("quiet")
        page.goto(f"{home}/clients/{world.client.pk}/")
        seen.look("client", everywhere=True)
        page.goto(f"{home}/usage/")
        seen.look("costs", everywhere=True)
        page.goto(f"{home}/")
        seen.look("home")
        assert seen.mistakes == []

    browse(f"/deployments/{busy.pk}/", look)
