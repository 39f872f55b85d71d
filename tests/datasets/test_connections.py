"""An admin connects the workspace to places outside, tries them, and removes them again."""

import pytest
from django.test import Client as Browser
from django.urls import reverse

from studio.audit.models import AuditRecord
from studio.datasets.models import Connection
from studio.workspaces.secrets import opened
from tests.datasets.test_synthesis import Talking, talking  # noqa: F401
from tests.fixtures import make_member

ADDRESS = "http://127.0.0.1:8123/v1"


@pytest.fixture
def ana(acme, settings) -> Browser:
    settings.PRIVATE_HOSTS = ["127.0.0.1"]
    browser = Browser()
    browser.force_login(acme.owner.user)
    return browser


def add(browser, **typed):
    return browser.post(reverse("connections:list"), {"kind": "openai", "name": "Big", "url": ADDRESS, "secret": "sk-mine"} | typed)


def test_a_connection_is_kept_and_its_key_is_never_shown(ana):
    assert add(ana, model="large").status_code == 302
    kept = Connection.objects.get()
    assert (kept.name, kept.settings, opened(kept.secret)) == ("Big", {"url": ADDRESS, "model": "large"}, "sk-mine")
    page = ana.get(reverse("connections:list")).content.decode()
    assert "Big" in page and "sk-mine" not in page and kept.secret not in page
    told = AuditRecord.objects.get(verb="connection.create")
    assert "sk-mine" not in str(told.change)


@pytest.mark.parametrize(
    ("typed", "field"),
    [
        ({"name": " "}, "name"),
        ({"url": ""}, "url"),
        ({"url": "http://10.0.0.1/v1"}, "url"),
        ({"url": "nonsense"}, "url"),
        ({"kind": "s3"}, "bucket"),
        ({"kind": "hub", "secret": ""}, "secret"),
        ({"kind": "elsewhere"}, "kind"),
        ({"secret": "x" * 20_001}, "secret"),
    ],
)
def test_what_cannot_be_connected_to_is_said_beside_the_field(ana, typed, field):
    answer = add(ana, **typed)
    assert answer.status_code == 422 and field in answer.context["error"].fields
    assert not Connection.objects.exists()


def test_a_name_is_given_once(ana):
    add(ana)
    assert "Another connection has this name" in add(ana).content.decode()


def test_it_is_tried_and_says_what_is_wrong(ana, talking, settings):  # noqa: F811
    server: Talking = talking(lambda _: "Hello")
    settings.PRIVATE_HOSTS = [server.address]
    add(ana, url=f"http://{server.address}/v1")
    kept = Connection.objects.get()
    page = ana.post(reverse("connections:try", args=[kept.pk]), follow=True).content.decode()
    assert "It answers with 501" in page  # this one knows conversations alone
    server.server_close()
    server.shutdown()
    assert "It does not answer" in ana.post(reverse("connections:try", args=[kept.pk]), follow=True).content.decode()


def test_it_is_removed(ana):
    add(ana)
    kept = Connection.objects.get()
    ana.post(reverse("connections:remove", args=[kept.pk]))
    assert not Connection.objects.exists()
    assert AuditRecord.objects.filter(verb="connection.delete").count() == 1


def test_a_member_has_no_part_in_it(acme, ana):
    browser = Browser()
    browser.force_login(make_member(acme.owner.workspace, role="member", email="bob@example.com").user)
    assert browser.get(reverse("connections:list")).status_code == 404
    assert add(browser).status_code == 404
