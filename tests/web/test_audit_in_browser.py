"""Settings in a browser: a key is made, shown once and revoked; the audit log tells of it, and is narrowed down to one act."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.utils import timezone
from playwright.sync_api import Page, expect

from studio.workspaces.models import Client
from studio.workspaces.services import create_client, update_client
from tests.fixtures import World, make_key, make_member
from tests.visits import Visit
from tests.web.conftest import SLOW, Do

pytestmark = pytest.mark.browser


def test_a_key_is_made_and_the_log_tells_of_it(browse: Callable[[str, Do], None], world: World) -> None:
    globex = create_client(world.owner, name="Globex")
    other = make_member(world.workspace, role="member", email="max@example.com", clients=[globex])
    make_key(world.owner, name="ends soon", scopes=["read"], expires_at=timezone.now() + timedelta(days=5, hours=1))
    make_key(other, name="their nightly", scopes=["read", "train"], clients=[globex])
    update_client(other, globex, name="Globex Limited of the Northern Coast")
    gone = create_client(world.owner, name="Erased and gone")
    Client.objects.filter(pk=gone.pk).delete()

    def do(page: Page) -> None:
        seen = Visit(page, name="keys-and-audit")
        seen.look("keys", everywhere=True)
        page.get_by_label("Name").fill("for one client")
        page.get_by_text("Only some").click()
        page.get_by_label("Globex").check()
        page.get_by_label("It holds for").select_option("30")
        page.get_by_label("Start and stop runs and builds").check()
        page.get_by_role("button", name="Create key").click()
        expect(page.get_by_text("Copy the key now.")).to_be_visible(timeout=SLOW)
        seen.look("made", everywhere=True)
        page.get_by_role("button", name="Revoke their nightly").click()
        page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
        expect(page.get_by_text("Revoked their nightly.")).to_be_visible(timeout=SLOW)
        page.get_by_role("link", name="Audit log").click()
        expect(page.get_by_role("cell", name="key.revoke")).to_be_visible(timeout=SLOW)
        seen.look("log", everywhere=True)
        page.get_by_label("Act").fill("client.update")
        page.get_by_role("button", name="Show").click()
        expect(page.get_by_role("cell", name="client.create")).to_have_count(0, timeout=SLOW)
        page.get_by_role("link", name="Globex Limited of the Northern Coast").first.click()
        expect(page.get_by_text("Only the history of")).to_be_visible(timeout=SLOW)
        seen.look("history", everywhere=True)
        page.get_by_role("link", name="Show all").click()
        with page.expect_download() as download:
            page.get_by_role("link", name="CSV").click()
        assert "key.revoke" in download.value.path().read_text()
        assert not seen.mistakes, "\n".join(seen.mistakes)

    browse("/settings/", do)
