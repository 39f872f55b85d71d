"""One's own account in the browser: an app and a passkey are added, and a passkey signs in; with Chromium's own virtual authenticator."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from allauth.mfa.models import Authenticator
from playwright.sync_api import Page, expect

from studio.audit.models import AuditRecord
from tests.fixtures import World
from tests.visits import Visit
from tests.web.conftest import Do, Server
from tests.workspaces.test_second_factor import code_of

pytestmark = pytest.mark.browser
PASSWORD = "a long enough sentence"


@pytest.fixture
def ana(world: World) -> World:
    world.owner.user.set_password(PASSWORD)
    world.owner.user.save()
    return world


def with_authenticator(page: Page) -> None:
    """A device with a finger on it, that keeps passkeys."""
    tools = page.context.new_cdp_session(page)
    tools.send("WebAuthn.enable")
    options = {"protocol": "ctap2", "transport": "internal", "hasResidentKey": True, "hasUserVerification": True, "isUserVerified": True}
    tools.send("WebAuthn.addVirtualAuthenticator", {"options": options | {"automaticPresenceSimulation": True}})


def confirm(page: Page) -> None:
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Go on").click()


def sign_in(page: Page, server: Server) -> None:
    """By name: no browser keeps a passkey for a number."""
    page.goto(f"{server.address.replace('127.0.0.1', 'localhost')}/login/")
    page.get_by_label("E-mail").fill("ana@example.com")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in", exact=True).click()


def test_a_passkey_is_added_named_and_signs_in(browse: Callable[[str, Do], None], server: Server, ana: World) -> None:
    visit: list[Visit] = []

    def go(page: Page) -> None:
        with_authenticator(page)
        visit.append(Visit(page, name="passkeys"))
        sign_in(page, server)
        page.get_by_role("button", name="ana@example.com").click()
        page.get_by_role("link", name="Your account").click()
        visit[0].look("account", everywhere=True)
        page.get_by_role("link", name="Add a passkey").click()
        visit[0].look("confirm", everywhere=True)
        confirm(page)
        visit[0].look("add", everywhere=True)
        page.get_by_label("Name").fill("Ana's laptop")
        page.get_by_role("button", name="Add a passkey").click()
        expect(page.get_by_role("heading", name="Recovery codes")).to_be_visible()
        visit[0].look("codes", everywhere=True)
        page.get_by_role("link", name="Back to your account").click()
        expect(page.get_by_text("Ana's laptop")).to_be_visible()
        page.get_by_role("link", name="Rename").click()
        page.get_by_label("Name").fill("Ana's desk")
        page.get_by_role("button", name="Rename").click()
        expect(page.get_by_text("Ana's desk")).to_be_visible()
        visit[0].look("with-passkey", everywhere=True)
        page.get_by_role("button", name="ana@example.com").click()
        page.get_by_role("button", name="Sign out", exact=True).last.click()
        expect(page.get_by_role("button", name="Sign in with a passkey")).to_be_visible()
        visit[0].look("sign-in", everywhere=True)
        page.get_by_role("button", name="Sign in with a passkey").click()
        expect(page.get_by_role("heading", name="Home").or_(page.get_by_role("link", name="Home")).first).to_be_visible()
        page.goto(page.url.split("/login")[0].rstrip("/") + "/account/")
        page.get_by_role("link", name="Remove", exact=True).click()
        page.get_by_role("button", name="Use a passkey").or_(page.get_by_label("Password")).first.wait_for()
        confirm(page)
        visit[0].look("remove", everywhere=True)
        page.get_by_role("button", name="Remove").click()
        expect(page.get_by_text("Ana's desk")).to_have_count(0)

    browse("/login/", go)
    assert visit[0].mistakes == []
    assert not Authenticator.objects.exists()
    verbs = [*AuditRecord.objects.order_by("pk").values_list("verb", flat=True)]
    told = [verb for verb in verbs if verb.split(".")[0] in ("user", "passkey")]
    assert told == ["user.sign_in", "passkey.add", "passkey.rename", "user.sign_out", "user.sign_in", "passkey.remove"]
    assert AuditRecord.objects.filter(verb="user.sign_in").first().change == {"by": [None, "passkey"]}  # type: ignore[union-attr]


def test_a_passkey_is_the_second_factor_of_a_password_too(browse: Callable[[str, Do], None], server: Server, ana: World) -> None:
    visit: list[Visit] = []

    def go(page: Page) -> None:
        with_authenticator(page)
        visit.append(Visit(page, name="second-factor"))
        sign_in(page, server)
        page.goto(f"{page.url.rstrip('/')}/account/passkeys/new/")
        confirm(page)
        page.get_by_role("button", name="Add a passkey").click()
        expect(page.get_by_role("heading", name="Recovery codes")).to_be_visible()
        page.context.clear_cookies()
        sign_in(page, server)
        expect(page.get_by_role("heading", name="One more step")).to_be_visible()
        visit[0].look("one-more-step", everywhere=True)
        page.get_by_role("button", name="Use a passkey").click()
        expect(page.get_by_role("link", name="Home").first).to_be_visible()

    browse("/login/", go)
    assert visit[0].mistakes == []


def test_an_app_is_added_by_its_picture(browse: Callable[[str, Do], None], server: Server, ana: World) -> None:
    visit: list[Visit] = []

    def go(page: Page) -> None:
        visit.append(Visit(page, name="authenticator"))
        sign_in(page, server)
        page.goto(f"{page.url.rstrip('/')}/account/authenticator/")
        confirm(page)
        picture: Any = page.get_by_role("img", name="QR code")
        expect(picture).to_be_visible()
        assert picture.evaluate("image => image.complete && image.naturalWidth > 0")
        visit[0].look("add", everywhere=True)
        secret = re.sub(r"\s", "", page.get_by_role("group", name="Key for the app").inner_text())
        page.get_by_label("Code", exact=True).fill(code_of(secret))
        page.get_by_role("button", name="Add the app").click()
        expect(page.get_by_role("heading", name="Recovery codes")).to_be_visible()
        page.get_by_role("link", name="Back to your account").click()
        visit[0].look("account", everywhere=True)
        page.get_by_role("link", name="Change password").click()
        visit[0].look("password", everywhere=True)

    browse("/login/", go)
    assert visit[0].mistakes == []
    assert Authenticator.objects.filter(type="totp").count() == 1
