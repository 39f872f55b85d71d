"""A client is archived: it leaves the lists, nothing new can be made for it, everything can be read; and it comes back."""

import pytest
from django.test import Client as Browser
from django.utils import timezone

from studio.audit.models import AuditRecord
from studio.orders.models import Order
from studio.workspaces.models import Client
from studio.workspaces.services import create_client
from tests.fixtures import make_member, make_run
from tests.workspaces.conftest import GLOBEX, name_everything, world_of_another_client


@pytest.fixture
def globex(acme, slot):
    found = world_of_another_client(acme)
    name_everything(found, GLOBEX)
    return found


@pytest.fixture
def ana(acme):
    opened = Browser()
    opened.force_login(acme.owner.user)
    return opened


def archived(world):
    Client.objects.filter(pk=world.client.pk).update(archived_at=timezone.now())
    return world


def text(response):
    return response.content.decode()


def test_what_runs_is_stopped_where_that_was_asked_and_else_goes_on(acme, globex, ana):
    first, second = (make_run(acme.owner, globex.project, acme.base, globex.version, status=Order.Status.QUEUED) for _ in range(2))
    page = text(ana.get(f"/clients/{globex.client.pk}/archive/"))
    assert "2 orders of it run or wait" in page
    Order.objects.filter(pk=second.order_id).update(status=Order.Status.RUNNING)
    assert ana.post(f"/clients/{globex.client.pk}/archive/", {"running": "stop"}).status_code == 302
    first.order.refresh_from_db()
    second.order.refresh_from_db()
    assert first.order.status == Order.Status.STOPPED
    assert second.order.stop_requested_at
    record = AuditRecord.objects.get(verb="client.archive")
    assert record.change == {"stopped": [None, 2]}

    other = world_with_a_run(acme)
    ana.post(f"/clients/{other.project.client_id}/archive/", {"running": "finish"})
    other.order.refresh_from_db()
    assert (other.order.status, other.order.stop_requested_at) == (Order.Status.QUEUED, None)


def world_with_a_run(acme):
    client = create_client(acme.owner, name="Hooli")
    project = client.projects.create(name="Hooli project", slug="hooli")
    return make_run(acme.owner, project, acme.base, acme.version, status=Order.Status.QUEUED)


def test_what_still_runs_for_an_archived_client_can_be_stopped(acme, globex, ana):
    run = make_run(acme.owner, archived(globex).project, acme.base, globex.version, status=Order.Status.QUEUED)
    assert "Stop what runs" in text(ana.get(f"/clients/{globex.client.pk}/archive/"))
    ana.post(f"/clients/{globex.client.pk}/archive/", {"running": "stop"})
    run.order.refresh_from_db()
    assert run.order.status == Order.Status.STOPPED
    assert [record.verb for record in AuditRecord.objects.order_by("-id")[:1]] == ["client.stop"]


def test_the_lists_do_not_show_it_unless_it_is_asked_for(acme, globex, ana):
    pages = ("/", "/runs/", "/artifacts/", "/projects/", "/clients/", "/releases/", "/deployments/")
    assert globex.release and globex.deployment
    assert [page for page in pages if GLOBEX not in text(ana.get(page))] == []
    archived(globex)
    hidden = [page for page in pages if GLOBEX in without_menus(text(ana.get(page)))]
    assert hidden == []
    assert GLOBEX in text(ana.get(f"/runs/?client={globex.client.pk}"))
    assert text(ana.get(f"/runs/{globex.run.pk}/")).count(GLOBEX)


def without_menus(page):
    """A page without the choices of its filter, where an archived client can be asked for."""
    parts = page.split("<option")
    return parts[0] + "".join(part.partition("</option>")[2] for part in parts[1:])


def test_the_api_lists_it_only_where_it_is_asked_for(acme, globex):
    archived(globex)
    project = f"project={globex.project.pk}"
    for path, own in (
        ("projects", f"client={globex.client.pk}"),
        ("datasets", project),
        ("runs", project),
        ("artifacts", project),
        ("builds", project),
    ):
        assert str(globex.project.pk) not in text(acme.api.get(path)), path
        named = {line["id"] for line in acme.api.get(f"{path}?{own}").json()["items"]}
        assert named, path
        every = {line["id"] for line in acme.api.get(f"{path}?archived=true").json()["items"]}
        assert every > named, path


def test_nothing_new_can_be_made_for_it_and_everything_is_read(acme, globex):
    archived(globex)
    run = {
        "project": str(globex.project.pk),
        "plugin": "rehearsal",
        "base_model": str(acme.base.pk),
        "dataset_version": str(globex.version.pk),
    }
    for path, body in (
        ("projects", {"client": str(globex.client.pk), "name": "x"}),
        ("datasets", {"project": str(globex.project.pk), "name": "x"}),
        ("runs", run),
        ("builds", {"artifact": str(globex.artifact.pk), "quantization": "q8_0"}),
    ):
        assert acme.api.post(path, body).json()["error"]["code"] == "unknown_id", path
    assert acme.api.post(f"runs/{globex.run.pk}/stop").status_code == 404
    assert acme.api.get(f"runs/{globex.run.pk}").status_code == 200
    assert acme.api.get(f"artifacts/{globex.artifact.pk}/files/adapter_config.json").status_code == 200
    assert acme.api.get(f"clients/{globex.client.pk}/export").status_code == 200


def test_it_is_restored_by_a_page_and_by_the_api(acme, globex, ana):
    archived(globex)
    assert ana.post(f"/clients/{globex.client.pk}/restore/").status_code == 302
    assert GLOBEX in text(ana.get("/runs/"))
    assert acme.api.delete(f"clients/{globex.client.pk}").status_code == 204
    assert acme.api.post(f"clients/{globex.client.pk}/restore").json()["archived_at"] is None
    verbs = AuditRecord.objects.filter(client=globex.client.pk, object_kind="client").order_by("id").values_list("verb", flat=True)
    assert list(verbs) == ["client.create", "client.restore", "client.archive", "client.restore"]
    assert acme.api.post(f"clients/{globex.client.pk}/restore").status_code == 200
    assert AuditRecord.objects.filter(verb="client.restore").count() == 2


def test_the_last_client_in_use_cannot_be_archived(acme, ana):
    page = ana.post(f"/clients/{acme.client.pk}/archive/")
    assert page.status_code == 422
    assert "last client cannot be archived" in text(page)


def test_whoever_may_not_change_clients_is_told_that_there_is_none(acme, globex):
    for role in ("member", "viewer", "guest"):
        browser = Browser()
        browser.force_login(make_member(acme.workspace, role=role, email=f"{role}@example.com", clients=[globex.client]).user)
        assert browser.get(f"/clients/{globex.client.pk}/archive/").status_code == 404
        assert browser.post(f"/clients/{globex.client.pk}/archive/").status_code == 404
        assert browser.post(f"/clients/{globex.client.pk}/restore/").status_code == 404
