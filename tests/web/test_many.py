"""Pages stay quick with many things on them: the number of queries does not grow with the number of rows."""

import time
from typing import Any

import pytest
from django.db import connection
from django.test import Client as Browser
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from studio.datasets.models import DatasetVersion
from studio.orders.models import Event, Order
from studio.runs.pages_of_a_run import POINTS, shown_events
from studio.serving.models import PromptSet, Talk, Vote
from studio.workspaces.services import create_client, create_project
from tests.fixtures import (
    World,
    make_artifact,
    make_base_model,
    make_build,
    make_call,
    make_comparison,
    make_delivery,
    make_deployment,
    make_invitation,
    make_member,
    make_order,
    make_release,
    make_run,
    make_trial,
    make_version,
)

CALLS = ("runs", "artifacts", "datasets", "base-models", "clients", "projects", "releases", "deployments", "deliveries", "audit", "usage")
CALLS += ("comparisons", "retrainings", "answers", "traffic", "metrics", "prompt-sets", "trials", "talks", "votes", "votes/standings")


def addresses(world: World) -> list[str]:
    lists = ["/", "/projects/", "/clients/", "/runs/", "/artifacts/", "/base-models/", "/playground/", "/settings/", "/settings/audit/"]
    lists += [
        "/answers/",
        "/releases/",
        "/retraining/",
        "/comparisons/",
        "/deployments/",
        "/deliveries/",
        "/usage/",
        "/traffic/",
        "/settings/people/",
        "/search/?q=t",
        "/adapters/new/",
    ]
    lists += ["/prompts/", "/trials/", f"/trials/new/?client={world.client.pk}", f"/prompts/new/?client={world.client.pk}"]
    one = [
        f"/projects/{world.project.pk}/",
        f"/artifacts/{world.artifact.pk}/",
        f"/builds/{world.build.pk}/",
        f"/extractions/{world.extraction.pk}/",
        f"/retraining/{world.retraining.pk}/",
        f"/retraining/new/?base={world.newer.pk}",
        f"/artifacts/{world.artifact.pk}/extract/",
        f"/builds/of/{world.artifact.pk}/ladder/",
        f"/builds/base/{world.base.pk}/",
        f"/runs/{world.run.pk}/",
        f"/runs/new/?project={world.project.pk}",
        f"/comparisons/{world.comparison.pk}/",
        f"/comparisons/{world.comparison.pk}/curves/",
        f"/comparisons/new/?project={world.project.pk}",
        f"/clients/{world.client.pk}/",
        f"/releases/{world.release.pk}/",
        f"/deployments/{world.deployment.pk}/",
        f"/trials/{world.trial.pk}/",
        f"/trials/{world.trial.pk}/beside/",
        f"/playground/choices/?client={world.client.pk}",
        "/playground/talks/",
        "/playground/votes/",
        f"/playground/?talk={world.talk.pk}",
    ]
    return [*lists, *one, *(f"/api/v1/{name}" for name in (*CALLS, f"datasets/{world.version.dataset_id}/versions"))]


def queries(world: World, browser: Browser, address: str) -> int:
    with CaptureQueriesContext(connection) as asked:
        answer = world.api.get(address) if address.startswith("/api/") else browser.get(address)
    assert answer.status_code == 200, address
    return len(asked)


def one_more_of_each(world: World, number: int) -> None:
    base = make_base_model(world.owner, name=f"Base {number}")
    version = make_version(world.owner, world.project, name=f"Letters {number}")
    order = make_order(world.owner, kind="dataset", client=world.client)
    files = {"filename": "x", "upload": "none", "upload_sha256": "1", "facts": version.facts, "order": order}
    DatasetVersion.objects.create(dataset=world.version.dataset, number=number + 2, **files)
    run = make_run(world.owner, world.project, base, version, status=Order.Status.FAILED if number % 2 else Order.Status.SUCCEEDED)
    lineage = {"run": {"id": str(run.pk)}}
    artifact = make_artifact(run.order, world.project, {"x": b"1"}, base_model=base, dataset_version=version, lineage=lineage)
    make_build(world.owner, artifact)
    make_build(world.owner, world.artifact)
    create_project(world.owner, client=create_client(world.owner, name=f"Client {number}"), name="Task")
    release = make_release(world.owner, artifact, version=(1, number + 1, 0), stage="approved")
    make_call(make_deployment(world.project, release, slug=f"slot-{number}"))
    make_delivery(world.owner, release, artifact.builds.get())
    assert world.retraining.releases.filter(before=release).update(run=run)
    PromptSet.objects.create(workspace=world.workspace, client=world.client, name=f"Set {number}", prompts=world.prompt_set.prompts)
    make_trial(world)
    for first, model in ((world.talk, Talk), (world.vote, Vote)):
        model.objects.create(**{field.attname: getattr(first, field.attname) for field in model._meta.fields if field.attname != "id"})
    make_comparison(world)
    make_invitation(world.owner)
    make_member(world.workspace, role="member", email=f"member-{number}@example.com", clients=[world.client])


def test_no_page_asks_once_for_each_row(acme: World, slot: Any):
    browser = Browser()
    browser.force_login(acme.owner.user)
    one_more_of_each(acme, 0)
    one_more_of_each(acme, 1)
    before = {address: queries(acme, browser, address) for address in addresses(acme)}
    for number in range(2, 6):
        one_more_of_each(acme, number)
    grown = {address: (few, many) for address, few in before.items() if (many := queries(acme, browser, address)) > few}
    assert not grown


@pytest.fixture
def long_run(acme: World) -> World:
    """A run of 50,000 steps that lost its worker once."""
    now, order = timezone.now(), acme.run.order
    numbers = {"loss": 1.2345, "learning_rate": 2e-4, "grad_norm": 1.0, "tokens_per_second": 500.0, "memory": 1 << 30}

    def reported(seq: int) -> Event:
        body = {"step": seq, "total": 50_000, **numbers} | ({"validation_loss": 1.5} if seq % 1000 == 0 else {})
        return Event(order=order, seq=seq, attempt=1 + (seq > 30_500), at=now, type="metric", body=body)

    Event.objects.bulk_create([reported(seq) for seq in range(1, 50_001)], batch_size=5000)
    return acme


def test_the_page_of_a_long_run_is_made_of_few_of_its_events(long_run: World):
    started = time.monotonic()
    shown = shown_events(long_run.run.order, upto=50_000)
    assert time.monotonic() - started < 5
    seqs = [event["seq"] for event in shown]
    assert len(seqs) < 2 * POINTS
    assert seqs == sorted(set(seqs))
    assert {1, 30_501, 50_000} <= {*seqs}  # where each attempt began, and the last
    assert all(seq in seqs for seq in range(1000, 50_001, 1000))  # every validation
