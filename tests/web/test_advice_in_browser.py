"""LoRA, QLoRA or full, in the browser: what matters is chosen, the answer follows, and the proposed run's form opens filled in."""

import re
from collections.abc import Callable

import pytest
from django.utils import timezone
from playwright.sync_api import Page, expect

from studio.comparisons.models import Survey
from studio.datasets.models import DatasetVersion
from studio.orders.models import Slot
from studio.workspaces.models import Rate
from tests.comparisons.test_advice import FACTS, SURVEYED
from tests.fixtures import World, make_order
from tests.visits import Visit
from tests.web.conftest import Do

pytestmark = pytest.mark.browser


def test_somebody_asks_which_way_to_train_and_opens_the_form_of_that_run(browse: Callable[[str, Do], None], world: World) -> None:
    Rate.objects.create(workspace=world.workspace, kind="CPU", per_hour="1.20", since="2026-01-01")
    world.base.facts = world.base.facts | FACTS
    world.base.save(update_fields=["facts"])
    tokens = {"total": 3000, "supervised": 1200, "p50": 200, "p95": 400, "p99": 500, "longest": 600}
    DatasetVersion.objects.filter(pk=world.version.pk).update(tokens={str(world.base.pk): tokens})
    rates = {"lora": {"low": 1e-4, "high": 5e-3, "points": []}, "full": None}
    order = make_order(world.owner, kind="survey", client=world.client)
    told = {"dataset_version": world.version, "base_model": world.base, "order": order}
    Survey.objects.create(result=SURVEYED | {"rates": rates, "probe_rows": 24, "probe_loss": 2.0}, **told)
    small = Slot.objects.get().facts | {"name": "small", "memory": 4 << 30}
    Slot.objects.create(name="small", queue="train", facts=small, seen_at=timezone.now())

    def work(page: Page) -> None:
        visit = Visit(page, name="advice")
        expect(page.get_by_role("heading", name="LoRA at rank 16.")).to_be_visible()
        visit.look("task", everywhere=True)
        page.get_by_role("checkbox", name="test").uncheck()
        expect(page.get_by_role("heading", name="Memory on small")).to_be_visible()
        assert "worker=small" in page.url
        page.get_by_role("checkbox", name="test").check()
        expect(page.get_by_role("heading", name="Memory on test")).to_be_visible()
        page.locator("#id_goal").select_option("quality")
        expect(page.get_by_role("heading", name="Full fine-tuning.")).to_be_visible()
        page.locator("#id_clients").fill("40")
        expect(page.get_by_text("For 40 clients").first).to_be_visible()
        visit.look("quality")
        page.get_by_role("link", name="Start this run").click()
        expect(page.locator("[name=plugin]:checked")).to_have_value("full_finetune")
        expect(page.get_by_role("heading", name="LoRA, QLoRA or full?")).to_be_visible()
        page.get_by_label("Workers that count").focus()
        page.get_by_label("Workers that count").select_option("small")
        expect(page.get_by_role("link", name="See all of them side by side")).to_have_attribute("href", re.compile("worker=small"))
        expect(page.get_by_label("Workers that count")).to_be_focused()
        visit.look("form", everywhere=True)
        assert not visit.mistakes, "\n".join(visit.mistakes)

    browse(f"/advice/?project={world.project.pk}", work)
