"""Retraining in the browser: from a base model's page to the releases, the start, and the matrix of before and after."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from playwright.sync_api import Page, expect

from studio.basemodels.models import BaseModel
from studio.comparisons.models import Retrained, Retraining
from studio.orders.models import Order
from studio.releases.models import Evaluation, Gate, Release
from studio.serving import deploying
from studio.workspaces.services import create_client, create_project
from tests.fixtures import World, make_artifact, make_deployment, make_order, make_release, make_run, make_version
from tests.releases.conftest import FIGURES
from tests.visits import DESK, Visit
from tests.web.conftest import Do

pytestmark = pytest.mark.browser
CHANGES = {
    "Globex": ("Support replies", -6.2, -8.0, -4.4),
    "Initech": ("Ticket titles", 0.2, -1.1, 1.4),
    "Umbrella Logistics": ("Damage reports", 7.9, 5.5, 10.2),
    "Wayne": ("Parcel search", 1.0, -7.0, 9.0),
}
"""By client: the task, and how much its loss changed, in per cent with an interval."""


def release_of(world: World, client: str, task: str) -> Release:
    """In use."""
    project = create_project(world.owner, client=create_client(world.owner, name=client), name=task)
    version = make_version(world.owner, project, name=task)
    run = make_run(world.owner, project, world.base, version)
    artifact = make_artifact(run.order, project, {"x": client.encode()}, base_model=world.base, dataset_version=version)
    release = make_release(world.owner, artifact, stage="approved")
    deploying.promote(world.owner, make_deployment(project, slug="main"), release=release)
    return release


@pytest.fixture
def releases(world: World) -> list[Release]:
    return [release_of(world, client, task) for client, (task, *_) in CHANGES.items()]


@pytest.fixture
def newer(world: World) -> BaseModel:
    return world.newer


@pytest.fixture
def retraining(world: World, releases: list[Release], newer: BaseModel) -> Retraining:
    """Trained and measured, but for one that failed, one that trains and one that could not begin."""
    made: Retraining = Retraining.objects.create(
        workspace=world.workspace, base_model=newer, name="Spring: everything to Newer", created_by=world.owner.user
    )
    for before, (_, change, low, high) in zip(releases, CHANGES.values(), strict=True):
        run = make_run(world.owner, before.project, newer, before.artifact.dataset_version)
        artifact = make_artifact(run.order, before.project, {"x": b"1"}, base_model=newer, dataset_version=run.dataset_version)
        after = make_release(world.owner, artifact, version=(2, 0, 0), stage="candidate")
        Gate.objects.create(project=before.project, evaluated=True)
        figures = FIGURES | {"loss": 1.31 * (1 + change / 100), "before": 1.31, "change": change, "low": low, "high": high}
        order = make_order(world.owner, kind="evaluation", client=before.project.client)
        told = {"dataset_version": before.artifact.dataset_version, "order": order, "result": figures}
        Evaluation.objects.create(release=after, against=before, **told)
        Retrained.objects.create(retraining=made, before=before, run=run, after=after)
    approve(Retrained.objects.get(before=releases[0]))
    trains, failed, refused = (release_of(world, name, "Replies") for name in ("Acme", "Hooli", "Vandelay"))
    run = make_run(world.owner, trains.project, newer, trains.artifact.dataset_version, status=Order.Status.RUNNING)
    Order.objects.filter(pk=run.order_id).update(done=420, total=1200, unit="steps")
    Retrained.objects.create(retraining=made, before=trains, run=run)
    run = make_run(world.owner, failed.project, newer, failed.artifact.dataset_version, status=Order.Status.FAILED)
    Order.objects.filter(pk=run.order_id).update(error="The worker ran out of memory at step 12. Choose a smaller batch.")
    Retrained.objects.create(retraining=made, before=failed, run=run)
    why = "Replies is held out by now, so no run may train on it."
    Retrained.objects.create(retraining=made, before=refused, problem=why)
    return made


def approve(row: Retrained) -> None:
    Release.objects.filter(pk=row.after_id).update(stage="approved")


def stays_where_it_was(page: Page, retraining: Retraining) -> None:
    """What has changed is drawn again while somebody reads: the focus and the scrolled table and page stay."""
    page.set_viewport_size({"width": 820, "height": 500})
    again = page.get_by_role("button", name=re.compile("Train again.*hooli"))
    again.focus()
    again.scroll_into_view_if_needed()
    page.locator("#matrix-table").evaluate("table => { table.scrollLeft = 40; }")
    before = page.evaluate(WHERE)
    trains = retraining.releases.filter(run__order__status=Order.Status.RUNNING).values("run__order")
    with ThreadPoolExecutor(1) as worker:  # beside the browser's event loop the database is not asked
        worker.submit(Order.objects.filter(pk__in=trains).update, done=900).result()
    expect(page.locator("#matrix-table progress")).to_have_attribute("value", "0.7500")
    assert page.evaluate(WHERE) == before
    expect(again).to_be_focused()
    page.set_viewport_size(DESK)


WHERE = "() => [scrollX, scrollY, document.getElementById('matrix-table').scrollLeft]"


def test_releases_are_chosen_started_and_compared_in_one_matrix(
    browse: Callable[[str, Do], None], world: World, retraining: Retraining, newer: BaseModel
) -> None:
    mistakes: list[str] = []

    def go(page: Page) -> None:
        visit = Visit(page, name="retraining")
        page.get_by_role("link", name="Retrain releases with it").click()
        expect(page.get_by_role("heading", name="Which releases")).to_be_visible()
        runs = page.locator("#total dd").first
        expect(runs).to_have_text("6 for 6 clients")  # one of the seven is being trained already
        page.get_by_role("button", name="Select none", exact=True).click()
        expect(runs).to_have_text("0")
        page.get_by_role("button", name="Select all", exact=True).click()
        expect(runs).to_have_text("6 for 6 clients")
        page.get_by_role("checkbox", name="globex-support-replies-tiny-v1.0.0").uncheck()
        expect(runs).to_have_text("5 for 5 clients")
        page.get_by_role("radio", name="Take what suits the new base").check()
        expect(page.get_by_role("checkbox", name="globex-support-replies-tiny-v1.0.0")).not_to_be_checked()
        expect(runs).to_have_text("5 for 5 clients")
        visit.look("new", everywhere=True)  # after all that htmx swaps: what axe leaves in a page, its policy refuses to be put in again
        page.get_by_role("button", name="Start").click()
        expect(page.get_by_text("0 of 5 are trained.")).to_be_visible()
        page.get_by_role("button", name="Stop the rest").click()
        visit.look("stop", whole=False)
        page.get_by_role("dialog").get_by_role("button", name="Stop", exact=True).click()
        expect(page.get_by_text("The rest was stopped.")).to_be_visible()
        page.goto(page.url.split("/retraining/")[0] + f"/retraining/{retraining.pk}/")
        expect(page.get_by_text("4 of 7 are trained: 1 better, 1 not worse, 1 worse, 1 that cannot be told.")).to_be_visible()
        visit.look("matrix", everywhere=True)
        stays_where_it_was(page, retraining)
        page.get_by_role("link", name="Worse first").click()
        expect(page.locator("tbody tr").first).to_contain_text("Umbrella Logistics")
        page.get_by_role("button", name="Promote 1 approved").click()
        visit.look("promote", whole=False)
        page.get_by_role("dialog").get_by_role("button", name="Promote").click()
        expect(page.get_by_text("globex/main answers with the new release now.")).to_be_visible()
        page.get_by_role("link", name="Retraining", exact=True).first.click()
        visit.look("list", everywhere=True)
        mistakes.extend(visit.mistakes)

    browse(f"/base-models/{newer.pk}/", go)
    assert not mistakes, "\n".join(mistakes)
    assert Release.objects.get(deployments__slug="main", project__client__name="Globex").major == 2
