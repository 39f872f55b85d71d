"""A client's data in the browser: archived and restored, taken home as a zip, erased by its name, and a certificate that is left."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from studio.orders.models import Order
from studio.workspaces.models import Client
from tests.fixtures import World, make_run
from tests.visits import Visit
from tests.web.conftest import Do
from tests.workspaces.conftest import world_of_another_client

pytestmark = pytest.mark.browser


@pytest.fixture
def globex(world: World) -> World:
    found = world_of_another_client(world)
    Client.objects.filter(pk=found.client.pk).update(name="Globex")
    make_run(world.owner, found.project, world.base, found.version, status=Order.Status.QUEUED)
    return found


def test_a_client_is_archived_restored_exported_and_erased(browse: Callable[[str, Do], None], globex: World, tmp_path: Path) -> None:
    mistakes: list[str] = []
    address = f"/clients/{globex.client.pk}/"

    def live_through_it(page: Page) -> None:
        visit = Visit(page, name="life")
        page.get_by_role("link", name="Archive", exact=True).click()
        visit.look("archive", everywhere=True)
        page.get_by_label("Stop it now").check()
        page.get_by_role("button", name="Archive").click()
        expect(page.get_by_text("Archived Globex.")).to_be_visible()
        page.get_by_role("button", name="Restore").click()
        expect(page.get_by_text("Restored Globex.")).to_be_visible()

        page.get_by_role("link", name="Export everything").click()
        visit.look("export", everywhere=True)
        with page.expect_download() as download:
            page.get_by_role("button", name="Download").click()
        download.value.save_as(tmp_path / "export.zip")
        with zipfile.ZipFile(tmp_path / "export.zip") as archive:
            assert archive.testzip() is None
            assert any(name.endswith("manifest.json") for name in archive.namelist())
        page.go_back()

        page.get_by_role("link", name="Erase", exact=True).click()
        page.get_by_label("Why").fill("The contract ended.")
        page.get_by_label("Type Globex to confirm").fill("Globex")
        visit.look("erase", everywhere=True)
        page.get_by_role("button", name="Erase Globex").click()
        expect(page.get_by_role("heading", name="Certificate of erasure")).to_be_visible()
        expect(page.get_by_text("This is not finished yet")).to_have_count(0)
        visit.look("certificate", everywhere=True)
        page.get_by_role("link", name="Clients").first.click()
        expect(page.get_by_role("heading", name="Erased clients")).to_be_visible()
        mistakes.extend(visit.mistakes)

    browse(address, live_through_it)
    assert mistakes == []
    assert not Client.objects.filter(pk=globex.client.pk).exists()
