"""Somebody is invited by link, joins, is changed in place and removed; a person goes from one workspace to another."""

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from studio.workspaces.models import Member
from studio.workspaces.services import create_client, create_workspace
from tests.fixtures import World, make_invitation, make_member
from tests.visits import Visit
from tests.web.conftest import SLOW, Do

pytestmark = pytest.mark.browser


@pytest.fixture
def visit(browse: Callable[[str, Do], None], world: World) -> Callable[[str, Do], None]:
    """A workspace in which somebody is of every kind."""
    clients = [create_client(world.owner, name=name) for name in ("Globex", "Initech", "Umbrella and Daughters of the Northern Coast")]
    make_member(world.workspace, role="admin", email="adi@example.com")
    make_member(world.workspace, role="member", email="max@example.com", clients=clients[:2])
    make_member(world.workspace, role="guest", email="a.rather.long.name.of.somebody@umbrella-and-daughters.example", clients=clients[2:])
    make_invitation(world.owner, role="guest", clients=clients[:1], email="gus@globex.example")
    return browse


def test_somebody_is_invited_joins_and_is_changed_and_removed(visit: Any, world: World) -> None:
    def do(page: Page) -> None:
        seen = Visit(page, name="people")
        seen.look("list", everywhere=True)
        page.get_by_role("link", name="Invite").click()
        page.get_by_label("Guest").check()
        expect(page.get_by_text("Whose person is this?")).to_be_visible()
        expect(page.get_by_text("All, also new ones")).to_be_hidden()
        page.get_by_label("Owner").check()
        expect(page.get_by_label("Globex", exact=True)).to_be_hidden()
        page.get_by_label("Viewer").check()
        page.get_by_text("Only some").click()
        page.get_by_role("button", name="Invite").click()
        expect(page.get_by_text("Choose at least one client, or all.")).to_be_visible(timeout=SLOW)
        seen.mistakes.clear()  # the browser tells of the 422
        page.get_by_label("Globex", exact=True).check()
        seen.look("invite", everywhere=True)
        page.get_by_role("button", name="Invite").click()
        link = page.get_by_label("Invitation link").locator("code").inner_text(timeout=SLOW)
        seen.look("link", everywhere=True)

        other = page.context.browser.new_context().new_page()  # type: ignore[union-attr]
        other.set_default_timeout(SLOW)
        other.goto(link)
        Visit(other, name="invitation").look("new", everywhere=True)
        other.get_by_label("Your e-mail").fill("bo@example.com")
        other.get_by_label("A password").fill("a long enough sentence")
        other.get_by_role("button", name="Make my account and join").click()
        expect(other.get_by_text("You are in Acme.")).to_be_visible()
        other.goto(link)
        Visit(other, name="invitation-gone").look("gone")
        expect(other.get_by_role("heading", name="This link does not work any more")).to_be_visible()

        page.goto(f"{page.url.split('/settings')[0]}/settings/people/")
        page.get_by_role("link", name="Change bo@example.com").focus()
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="Remove from the workspace")).to_be_visible()
        seen.look("change", everywhere=True)
        page.get_by_label("Admin").check()
        page.get_by_role("button", name="Change", exact=True).click()
        expect(page.get_by_role("row", name="bo@example.com")).to_contain_text("Admin", timeout=SLOW)
        page.get_by_role("link", name="Change bo@example.com").click()
        page.get_by_role("button", name="Remove from the workspace").click()
        expect(page.get_by_role("dialog")).to_contain_text("their runs go on")
        seen.look("remove")
        page.get_by_role("dialog").get_by_role("button", name="Remove").click()
        expect(page.get_by_text("Removed bo@example.com.")).to_be_visible(timeout=SLOW)
        other.goto(f"{page.url.split('/settings')[0]}/")
        Visit(other, name="nowhere").look("nowhere", everywhere=True)
        expect(other.get_by_role("heading", name="You are in no workspace")).to_be_visible()
        assert not seen.mistakes

    visit("/settings/people/", do)
    assert not Member.objects.filter(workspace=world.workspace, user__email="bo@example.com").exists()


def test_the_roles_are_read_on_every_screen(visit: Any) -> None:
    def do(page: Page) -> None:
        seen = Visit(page, name="roles")
        expect(page.get_by_role("row", name="Start runs").first).to_be_visible()
        seen.look("roles", everywhere=True)
        assert not seen.mistakes

    visit("/settings/roles/", do)


def test_a_person_goes_to_another_workspace_by_keyboard(visit: Any, world: World) -> None:
    create_workspace(user=world.owner.user, name="The other workshop")

    def do(page: Page) -> None:
        seen = Visit(page, name="switching")
        head = page.get_by_role("button", name="Acme")
        head.focus()
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="The other workshop")).to_be_visible()
        seen.look("menu", everywhere=False, whole=False)
        page.keyboard.press("Tab")
        page.keyboard.press("ArrowDown")
        expect(page.get_by_role("button", name="The other workshop")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="The other workshop")).to_be_visible(timeout=SLOW)
        assert page.url.endswith("/")
        page.get_by_role("button", name="The other workshop").click()
        page.get_by_role("link", name="New workspace").click()
        seen.look("new", everywhere=True)
        page.get_by_label("Name").fill("A third one")
        page.get_by_role("button", name="Create workspace").click()
        expect(page.get_by_role("button", name="A third one")).to_be_visible(timeout=SLOW)
        assert not seen.mistakes

    visit(f"/runs/{world.run.pk}/", do)
