"""The verdict and the report of a comparison, on a desk, on a phone and in the dark."""

from collections.abc import Callable
from decimal import Decimal

import numpy as np
import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from playwright.sync_api import Page, expect

from studio.comparisons import verdict
from studio.comparisons.models import Comparison
from studio.workspaces.logos import set_logo
from studio.workspaces.models import Rate
from tests.clients.test_logos import png
from tests.comparisons.house import BASE, make_measured
from tests.comparisons.training import trained
from tests.fixtures import World, make_comparison
from tests.visits import Visit
from tests.web.conftest import Do

pytestmark = pytest.mark.browser


@pytest.fixture
def found(world: World) -> Comparison:
    """LoRA keeps nearly all, forgets a third as much, and takes a third of the time."""
    comparison = make_comparison(world, seeds=(1, 2, 3))
    trained(comparison, apart=0.03)
    Rate.objects.create(workspace=world.workspace, kind="NVIDIA L4", per_hour=Decimal("2.40"), since="2020-01-01")
    set_logo(world.owner, world.client, SimpleUploadedFile("logo.png", png(240, 80)))
    chance = np.random.default_rng(3)
    row = chance.normal(0, 2, 120)

    def losses(mean: float) -> list[float]:
        return (mean + row + chance.normal(0, 0.02) + chance.normal(0, 0.2, 120)).clip(0.1).tolist()

    keys = [(arm, seed) for arm in (0, 1) for seed in (1, 2, 3)]
    held_out = {BASE: losses(24.0)} | {key: losses(16.1 if key[0] == 0 else 16.0) for key in keys}
    probe = {BASE: losses(18.0)} | {key: losses(18.4 if key[0] == 0 else 19.2) for key in keys}
    make_measured(comparison, held_out=held_out, probe=probe)
    verdict.renew(comparison)
    return comparison


def test_a_verdict_is_read_and_its_report_is_saved(browse: Callable[[str, Do], None], found: Comparison) -> None:
    def work(page: Page) -> None:
        visit = Visit(page, name="verdict")
        expect(page.get_by_text("of the gain of Full")).to_be_visible()
        visit.look("verdict", everywhere=True)
        page.goto(page.url + "report/")
        expect(page.get_by_role("heading", name="The answer")).to_be_visible()
        visit.look("report", everywhere=True)
        with page.expect_download() as pdf:
            page.get_by_role("link", name="PDF").click()
        pdf.value.save_as(visit.folder / "report.pdf")
        with page.expect_download() as saved:
            page.get_by_role("link", name="Save this page").click()
        saved.value.save_as(visit.folder / "report.html")
        assert visit.mistakes == []
        page.goto(f"file://{visit.folder / 'report.html'}")
        expect(page.get_by_role("heading", name="The answer")).to_be_visible()
        assert visit.mistakes == []

    browse(f"/comparisons/{found.pk}/", work)
