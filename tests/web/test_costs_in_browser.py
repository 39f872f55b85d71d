"""Costs, rates, limits and the page of a client in the browser: at a desk, on a phone, in the light and in the dark."""

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal

import pytest
from django.utils import timezone
from playwright.sync_api import Page, expect

from studio.datasets.models import DatasetVersion
from studio.orders.models import Order, StoredDay, Usage
from studio.releases.models import Release
from studio.serving.models import Deployment, DeploymentState
from studio.workspaces.models import Client, Rate
from studio.workspaces.months import Month
from studio.workspaces.services import archive_client, create_client, create_project
from tests.fixtures import World, make_deployment, make_member, make_order, make_release
from tests.visits import Visit
from tests.web.conftest import SLOW, Do

pytestmark = pytest.mark.browser
GPUS = {"NVIDIA H100 80GB HBM3": "3.20", "NVIDIA L4": "0.90", "CPU": "0.12"}


@pytest.fixture
def busy(world: World) -> World:
    """Clients with work of this month, a rate for each kind of worker, and something that runs."""
    workspace = world.workspace
    workspace.storage_price = Decimal("0.08")
    workspace.save()
    for kind, per_hour in GPUS.items():
        Rate.objects.create(workspace=workspace, kind=kind, per_hour=per_hour, since="2026-01-01")
    begins = Month.now(workspace).begins
    names = ("Acme Insurance", "Globex", "Initech", "Umbrella Customer Care International")
    for place, name in enumerate(names, start=1):
        client = create_client(world.owner, name=name)
        create_project(world.owner, client=client, name="Support replies")
        for number, kind in enumerate(GPUS):
            order = make_order(world.owner, kind="train", client=client)
            Usage.objects.create(
                workspace=workspace,
                client=client,
                order=order,
                attempt=1,
                kind="train",
                title=f"Run {number}",
                worker_kind=kind,
                gpus=0 if kind == "CPU" else 1,
                started_at=begins - timedelta(minutes=10),
                ended_at=begins + timedelta(hours=40 / place / (number + 1)),
            )
        StoredDay.objects.create(workspace=workspace, client=client, day=begins.date(), size=place * 90 * 10**9, price="0.08")
    archive_client(world.owner, create_client(world.owner, name="Former"))
    return world


def lively(world: World) -> None:
    """The first client has releases, deployments, people, and most of what it may."""
    first = make_release(world.owner, world.artifact, stage=Release.Stage.RETIRED)
    second = make_release(world.owner, world.artifact, version=(1, 1, 0), stage=Release.Stage.APPROVED)
    third = make_release(world.owner, world.artifact, version=(1, 2, 0), stage=Release.Stage.CANDIDATE)
    Release.objects.filter(pk=first.pk).update(retired_at=timezone.now() - timedelta(days=3))
    Release.objects.filter(pk=second.pk).update(approved_at=timezone.now() - timedelta(days=2))
    support = make_deployment(world.project, second)
    Deployment.objects.filter(pk=support.pk).update(canary=third, canary_percent=10)
    DeploymentState.objects.create(deployment=support, number=1, change="promote", release=second, user=world.owner.user)
    make_deployment(world.project, slug="drafts")
    make_member(world.workspace, role="guest", email="gus@client.example", clients=[world.client])
    Client.objects.filter(pk=world.client.pk).update(storage_limit=500 * 10**6, gpu_hours_limit=20, run_limit=3)
    DatasetVersion.objects.filter(pk=world.version.pk).update(size=450 * 10**6)
    begins = Month.now(world.workspace).begins
    facts = {"worker_kind": "NVIDIA L4", "gpus": 1, "started_at": begins, "ended_at": begins + timedelta(hours=20)}
    order = make_order(world.owner, kind="train", client=world.client, status=Order.Status.SUCCEEDED)
    Usage.objects.create(workspace=world.workspace, client=world.client, order=order, attempt=1, kind="train", title="Nightly", **facts)


def test_somebody_reads_the_costs_of_a_month_and_goes_back_to_the_one_before(browse: Callable[[str, Do], None], busy: World) -> None:
    def read(page: Page) -> None:
        seen = Visit(page, name="costs")
        expect(page.get_by_role("img", name="CPU")).to_have_count(4)
        expect(page.get_by_role("region", name="Costs by client").get_by_role("row")).to_have_count(7)
        seen.look("month", everywhere=True)
        page.get_by_role("link", name=Month.now(busy.workspace).previous.words).click()
        expect(page.get_by_role("heading", level=1)).to_have_text(Month.now(busy.workspace).previous.words, timeout=SLOW)
        with page.expect_download() as download:
            page.get_by_role("link", name="CSV", exact=True).click()
        assert download.value.suggested_filename == f"costs-{Month.now(busy.workspace).previous}.csv"
        assert seen.mistakes == []

    browse("/usage/", read)


def test_an_owner_sets_a_rate_and_is_told_what_is_wrong_with_one(browse: Callable[[str, Do], None], busy: World) -> None:
    def change(page: Page) -> None:
        seen = Visit(page, name="rates")
        seen.look("rates", everywhere=True)
        page.get_by_label("Worker, or Tokens", exact=True).fill("NVIDIA B200")
        page.get_by_label("An hour, or a million tokens", exact=True).fill("a lot")
        page.get_by_role("button", name="Save").nth(1).click()
        expect(page.get_by_text("such as 2.40")).to_be_visible(timeout=SLOW)
        seen.look("refused")
        page.get_by_label("An hour, or a million tokens", exact=True).fill("4.10")
        page.get_by_role("button", name="Save").nth(1).click()
        expect(page.get_by_role("rowheader", name="NVIDIA B200")).to_be_visible(timeout=SLOW)
        page.get_by_role("button", name="Remove the rate of NVIDIA B200").click()
        seen.look("remove", whole=False)
        page.get_by_role("button", name="Remove", exact=True).click()
        expect(page.get_by_role("rowheader", name="NVIDIA B200")).to_have_count(0, timeout=SLOW)
        assert [mistake for mistake in seen.mistakes if "422" not in mistake] == []

    browse("/settings/usage/", change)


def test_the_page_of_a_client_tells_what_runs_where_and_what_it_may_take(browse: Callable[[str, Do], None], busy: World) -> None:
    lively(busy)

    def read(page: Page) -> None:
        seen = Visit(page, name="client")
        expect(page.get_by_role("link", name="in-house/support")).to_be_visible()
        seen.look("client", everywhere=True)
        page.get_by_label("GPU hours a month").fill("none")
        page.get_by_role("button", name="Save", exact=True).click()
        expect(page.locator("#id_gpu_hours_limit_error")).to_be_visible(timeout=SLOW)
        page.get_by_label("GPU hours a month").fill("50")
        page.get_by_role("button", name="Save", exact=True).click()
        expect(page.get_by_text("Saved.")).to_be_visible(timeout=SLOW)
        assert [mistake for mistake in seen.mistakes if "422" not in mistake] == []

    browse(f"/clients/{busy.client.pk}/", read)


def test_clients_are_found_and_archived_ones_stand_behind_a_link(browse: Callable[[str, Do], None], busy: World) -> None:
    def find(page: Page) -> None:
        seen = Visit(page, name="clients")
        seen.look("list", everywhere=True)
        page.get_by_label("Find a client").fill("glob")
        page.get_by_role("button", name="Find").click()
        expect(page.get_by_role("region", name="Clients").get_by_role("row")).to_have_count(2, timeout=SLOW)
        page.goto(page.url.split("?")[0])
        page.get_by_role("link", name="Archived (1)").click()
        expect(page.get_by_role("link", name="Former")).to_be_visible(timeout=SLOW)
        seen.look("archived")
        page.goto(f"{page.url.split('/clients')[0]}/clients/{globex.pk}/")
        seen.look("new-client", everywhere=True)
        page.goto(page.url.split("/clients")[0])
        seen.look("home", everywhere=True)
        page.goto(f"{page.url.rstrip('/')}/runs/new/?project={busy.project.pk}")
        seen.look("new-run")
        assert seen.mistakes == []

    lively(busy)
    globex = Client.objects.get(name="Globex")
    browse("/clients/", find)
