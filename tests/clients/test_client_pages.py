"""The list of clients and the page of one, for whom, in a number of queries that does not grow; and what needs somebody."""

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client as Browser
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from studio.clients import needs
from studio.orders.models import Order, StoredDay, Usage
from studio.releases.models import Approval, Gate, Release
from studio.serving.models import DeploymentState
from studio.workspaces.models import ApiKey, Client
from studio.workspaces.needs import needs_of
from studio.workspaces.services import archive_client, create_client, create_project
from tests.fixtures import World, make_artifact, make_deployment, make_key, make_member, make_order, make_release, make_run, make_version


@pytest.fixture
def ana(acme: World) -> Browser:
    return signed_in(acme.owner)


def signed_in(member: Any) -> Browser:
    browser = Browser()
    browser.force_login(member.user)
    return browser


def seen(browser: Browser, address: str) -> str:
    answer = browser.get(address)
    assert answer.status_code == 200
    return answer.content.decode()


def candidate(acme: World, *, approvals: int = 1, roles: list[str] | None = None, **columns: Any) -> Release:
    """A release of somebody else that waits for people."""
    Gate.objects.update_or_create(project=acme.project, defaults={"approvals": approvals, "roles": roles or []})
    maker = make_member(acme.workspace, role="member", email="maker@example.com")
    release = make_release(maker, acme.artifact, stage=Release.Stage.CANDIDATE)
    Release.objects.filter(pk=release.pk).update(**columns)
    return release


def test_the_list_tells_what_is_live_what_it_cost_and_what_was_done_last(acme, ana):
    make_deployment(acme.project, make_release(acme.owner, acme.artifact))
    page = seen(ana, "/clients/")
    assert "in-house/support" in page and "v1.0.0" in page and "This month" in page
    assert "This month" not in seen(signed_in(make_member(acme.workspace, role="viewer", email="vic@example.com")), "/clients/")


def test_clients_are_sorted_found_by_name_and_shown_page_by_page(acme, ana):
    for number in range(55):
        create_client(acme.owner, name=f"Client {number:02}")
    first, second = seen(ana, "/clients/"), seen(ana, "/clients/?page=2")
    assert first.index("Client 00") < first.index("Client 01") < first.index("Client 24")
    assert "Client 26" not in first and "Client 26" in second
    found = seen(ana, "/clients/?q=client+5")
    assert "Client 53" in found and "Client 49" not in found.split("<main")[1]
    assert "No client like that" in seen(ana, "/clients/?q=nobody")


def test_archived_clients_stand_behind_a_link_that_counts_them(acme, ana):
    archive_client(acme.owner, create_client(acme.owner, name="Former"))
    page = seen(ana, "/clients/").split("<main")[1]
    assert "Archived (1)" in page and "Former" not in page
    assert "Former" in seen(ana, "/clients/?archived=1")


def test_the_page_tells_what_runs_where_since_when_and_by_whom(acme, ana):
    first, second = (make_release(acme.owner, acme.artifact, version=(1, number, 0)) for number in (0, 1))
    deployment = make_deployment(acme.project, first)
    type(deployment).objects.filter(pk=deployment.pk).update(canary=second, canary_percent=10)
    for number, user in enumerate((acme.owner.user, make_member(acme.workspace, role="member", email="max@example.com").user), start=1):
        DeploymentState.objects.create(deployment=deployment, number=number, change="promote", release=first, user=user)
    page = seen(ana, f"/clients/{acme.client.pk}/")
    assert "in-house/support" in page and "10 % to v1.1.0" in page and "by max@example.com" in page
    assert f"/deployments/{deployment.pk}/" in page and f"/releases/{second.pk}/" in page


def test_people_of_the_client_are_told_to_whoever_may_know(acme, ana):
    make_member(acme.workspace, role="guest", email="gus@client.example", clients=[acme.client])
    page = seen(ana, f"/clients/{acme.client.pk}/")
    assert "gus@client.example" in page and "1 more sees it" in page
    viewer = signed_in(make_member(acme.workspace, role="viewer", email="vic@example.com"))
    assert "gus@client.example" not in seen(viewer, f"/clients/{acme.client.pk}/")


def test_who_sees_some_clients_is_offered_no_new_one(acme, ana):
    assert "New client" in seen(ana, "/clients/")
    browser = signed_in(make_member(acme.workspace, role="admin", email="adi@example.com", clients=[acme.client]))
    assert "New client" not in seen(browser, "/clients/")
    answer = browser.post("/clients/new/", {"name": "Globex"})
    assert (answer.status_code, "you cannot make another one" in answer.content.decode()) == (422, True)
    assert Client.objects.count() == 1


def test_an_empty_client_says_what_each_part_is_for(acme, ana):
    client = create_client(acme.owner, name="Globex")
    page = seen(ana, f"/clients/{client.pk}/")
    for words in (
        "Nothing answers yet",
        "No release yet",
        "No project yet",
        "Nothing to learn from yet",
        "No run yet",
        "Nobody is assigned",
    ):
        assert words in page
    assert f"/projects/new/?client={client.pk}" in page


def more(acme: World, number: int) -> None:
    """One more of everything that these pages show."""
    client = create_client(acme.owner, name=f"Client {number}")
    project = create_project(acme.owner, client=acme.client, name=f"Task {number}")
    version = make_version(acme.owner, project)
    run = make_run(acme.owner, project, acme.base, version)
    artifact = make_artifact(run.order, project, {"x": b"1"}, base_model=acme.base, dataset_version=version)
    release = make_release(acme.owner, artifact, version=(1, number, 0), stage=Release.Stage.CANDIDATE)
    deployment = make_deployment(project, release, slug=f"slot-{number}")
    DeploymentState.objects.create(deployment=deployment, number=1, change="promote", release=release, user=acme.owner.user)
    make_member(acme.workspace, role="guest", email=f"guest{number}@example.com", clients=[acme.client])
    Client.objects.update(storage_limit=10, gpu_hours_limit=1, run_limit=2)
    begin = timezone.now() - timedelta(minutes=number + 1)
    for whose in (acme.client, client):
        order = make_order(acme.owner, kind="train", client=whose)
        facts = {"worker_kind": f"GPU {number}", "gpus": 1, "started_at": begin, "ended_at": timezone.now()}
        Usage.objects.create(workspace=acme.workspace, client=whose, order=order, attempt=1, kind="train", title="x", **facts)
        day = timezone.now().date() - timedelta(days=number + 1)
        StoredDay.objects.create(workspace=acme.workspace, client=whose, day=day, size=10, price="1")
    active = make_run(acme.owner, project, acme.base, version, status=Order.Status.RUNNING)
    Order.objects.filter(pk=active.order_id).update(queue="train")


def test_no_page_asks_more_for_more(acme, ana, slot):
    pages = ("/", "/clients/", f"/clients/{acme.client.pk}/", "/usage/", "/usage/invoice.csv", "/settings/usage/", "/api/v1/usage")
    more(acme, 0)

    def asked() -> dict[str, int]:
        found = {}
        for page in pages:
            with CaptureQueriesContext(connection) as queries:
                answer = acme.api.get(page) if page.startswith("/api/") else ana.get(page)
            assert answer.status_code == 200, page
            found[page] = len(queries)
        return found

    asked()
    before = asked()
    for number in (1, 2, 3):
        more(acme, number)
    after = asked()
    sparks = 3  # home draws the losses of each run that is at work
    assert after == before | {"/": before["/"] + sparks}


def test_a_release_that_waits_for_somebody_stands_on_their_home_page(acme, ana):
    release = candidate(acme)
    assert "It waits for your approval." in seen(ana, "/")
    Approval.objects.create(release=release, user=acme.owner.user, email="ana@example.com", role="owner", approves=False)
    assert "It waits for your approval." not in seen(ana, "/")


@pytest.mark.parametrize("why", ["draft", "other role", "enough", "no gate"])
def test_a_release_that_waits_for_nobody_does_not(acme, ana, why):
    release = candidate(acme, roles=["admin"] if why == "other role" else None)
    if why == "draft":
        Release.objects.filter(pk=release.pk).update(stage=Release.Stage.DRAFT)
    if why == "enough":
        other = make_member(acme.workspace, role="admin", email="bob@example.com")
        Approval.objects.create(release=release, user=other.user, email="bob@example.com", role="admin", approves=True)
    if why == "no gate":
        Gate.objects.all().delete()
    assert "It waits for your approval." not in seen(ana, "/")


def test_whoever_made_a_release_is_not_asked_about_it(acme):
    release = candidate(acme)
    assert "It waits for your approval." not in seen(signed_in(acme.workspace.members.get(user=release.created_by)), "/")


def test_a_key_that_ends_within_a_week_is_told_to_whose_it_is(acme, ana):
    make_key(acme.owner, name="nightly", expires_at=timezone.now() + timedelta(days=3))
    make_key(acme.owner, name="yearly", expires_at=timezone.now() + timedelta(days=300))
    page = seen(ana, "/")
    assert "API key nightly" in page and "yearly" not in page
    ApiKey.objects.update(revoked_at=timezone.now())
    assert "API key nightly" not in seen(ana, "/")
    other = make_member(acme.workspace, role="admin", email="bob@example.com")
    ApiKey.objects.update(revoked_at=None)
    assert "API key nightly" not in seen(signed_in(other), "/")


def test_a_disk_that_is_nearly_full_is_told_first_to_those_who_see_to_the_settings(acme, monkeypatch):
    """What counts as full is set so that this machine's disk is."""
    monkeypatch.setattr(needs, "NEARLY_FULL", 0.0)
    monkeypatch.setattr(needs, "LITTLE", 1 << 60)
    make_key(acme.owner, name="nightly", expires_at=timezone.now() + timedelta(days=3))
    assert [need.title for need in needs_of(acme.owner)] == ["The server's disk is nearly full", "API key nightly"]
    assert needs_of(make_member(acme.workspace, role="member", email="max@example.com")) == []
