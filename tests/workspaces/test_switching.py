"""A person in several workspaces sees one at a time, goes from one to another, and makes a new one where they may."""

import re
import uuid

import pytest
from django.db import connection
from django.test import Client as Browser
from django.test.utils import CaptureQueriesContext

from studio.audit.models import AuditRecord
from studio.workspaces import people
from studio.workspaces.middleware import member_by_cookie
from studio.workspaces.models import Client, Member, User, Workspace
from studio.workspaces.services import create_workspace
from tests.fixtures import make_member


def browser_of(user):
    browser = Browser()
    browser.force_login(user)
    return browser


def joined(member, world, role="member"):
    return Member.objects.create(user=member.user, workspace=world.workspace, role=role)


def switch(browser, workspace):
    return browser.post("/workspaces/switch/", {"workspace": workspace})


def test_one_workspace_is_seen_at_a_time_and_the_other_by_switching(acme, rival):
    joined(acme.owner, rival)
    browser = browser_of(acme.owner.user)
    assert browser.get(f"/runs/{acme.run.pk}/").status_code == 200
    assert browser.get(f"/runs/{rival.run.pk}/").status_code == 404
    answer = switch(browser, rival.workspace.pk)
    assert (answer.status_code, answer["Location"]) == (302, "/")
    assert browser.get(f"/runs/{acme.run.pk}/").status_code == 404
    assert browser.get(f"/runs/{rival.run.pk}/").status_code == 200
    assert browser.get("/settings/audit/").status_code == 404  # no owner over there
    switch(browser, acme.workspace.pk)
    assert browser.get("/settings/audit/").status_code == 200


def test_another_session_stays_where_it_is(acme, rival):
    joined(acme.owner, rival)
    here, there = browser_of(acme.owner.user), browser_of(acme.owner.user)
    switch(there, rival.workspace.pk)
    assert here.get(f"/runs/{acme.run.pk}/").status_code == 200


@pytest.mark.parametrize("role", ["owner", "viewer", "guest"])
def test_nobody_switches_to_a_workspace_that_is_not_theirs(acme, rival, role):
    member = acme.owner if role == "owner" else make_member(acme.workspace, role=role, email="max@example.com", clients=[acme.client])
    browser = browser_of(member.user)
    foreign, missing, nothing = (switch(browser, pk) for pk in (rival.workspace.pk, uuid.uuid4(), "seven"))
    assert {foreign.status_code, missing.status_code, nothing.status_code} == {404}
    assert browser.session["workspace"] == str(acme.workspace.pk)
    assert switch(browser, acme.workspace.pk).status_code == 302


def test_nobody_switches_without_signing_in(acme):
    assert switch(Browser(), acme.workspace.pk)["Location"].startswith("/login/")


def test_who_is_removed_from_one_goes_on_in_another(acme, rival):
    there = joined(acme.owner, rival)
    browser = browser_of(acme.owner.user)
    switch(browser, rival.workspace.pk)
    there.delete()
    assert browser.get(f"/runs/{acme.run.pk}/").status_code == 200


def form_of(browser):
    """A form that was opened now: what it sends, and the token that it sends along."""
    token = re.search(r'name="csrf-token" content="(\w+)"', browser.get("/clients/new/").content.decode()).group(1)
    return {"name": "Initech", "csrfmiddlewaretoken": token}


def strict_browser_of(user):
    browser = Browser(enforce_csrf_checks=True)
    browser.force_login(user)
    return browser


def test_a_form_that_was_opened_in_one_workspace_does_nothing_in_another(acme, rival):
    joined(acme.owner, rival, role="owner")
    browser = strict_browser_of(acme.owner.user)
    form = form_of(browser)
    assert browser.post("/workspaces/switch/", form | {"workspace": rival.workspace.pk}).status_code == 302
    refused = browser.post("/clients/new/", form)
    assert (refused.status_code, "you went to another workspace" in refused.content.decode()) == (403, True)
    assert not Client.objects.filter(name="Initech").exists()
    assert browser.post("/clients/new/", form_of(browser)).status_code == 302
    assert Client.objects.get(name="Initech").workspace == rival.workspace


@pytest.mark.parametrize("chosen", [True, False])
def test_a_form_of_a_workspace_that_one_was_removed_from_does_nothing_in_another(acme, rival, chosen):
    """Also where nobody ever chose: the first is a choice."""
    there = joined(rival.owner, acme, role="owner")
    browser = strict_browser_of(rival.owner.user)
    if chosen:
        browser.post("/workspaces/switch/", form_of(browser) | {"workspace": acme.workspace.pk})
        gone, left = there, rival.workspace
    else:
        gone, left = rival.owner, acme.workspace
    form = form_of(browser)
    Member.objects.filter(pk=gone.pk).delete()
    refused = browser.post("/clients/new/", form)
    assert (refused.status_code, "You are not in that workspace any more" in refused.content.decode()) == (409, True)
    part = browser.post("/clients/new/", form, headers={"HX-Request": "true"})
    assert (part.status_code, "You are not in that workspace any more" in part.content.decode()) == (422, True)
    assert member_by_cookie(browser.cookies["session"].value) is None  # for sockets and uploads
    assert browser.get("/").status_code == 200  # in the other one
    assert browser.post("/clients/new/", form).status_code == 403
    assert not Client.objects.filter(name="Initech").exists()
    assert browser.post("/clients/new/", form_of(browser)).status_code == 302
    assert Client.objects.get(name="Initech").workspace == left


def test_who_was_removed_signs_out_and_switches_all_the_same(acme, rival):
    there = joined(acme.owner, rival)
    browser = browser_of(acme.owner.user)
    switch(browser, rival.workspace.pk)
    there.delete()
    assert switch(browser, acme.workspace.pk).status_code == 302
    assert browser.post("/logout/").status_code == 302


def test_the_menu_names_ones_own_workspaces_and_no_other(acme, rival):
    assert "Rival" not in browser_of(acme.owner.user).get("/").content.decode()
    joined(acme.owner, rival, role="viewer")
    shown = browser_of(acme.owner.user).get("/").content.decode()
    assert f'value="{rival.workspace.pk}"' in shown
    assert "New workspace" in shown


def test_who_is_in_one_and_may_make_none_has_no_menu(acme):
    browser = browser_of(make_member(acme.workspace, role="member", email="max@example.com").user)
    shown = browser.get("/").content.decode()
    assert 'popovertarget="workspace-menu"' not in shown
    assert "New workspace" not in shown


# ── In none ──


def test_who_is_in_no_workspace_is_told_so(acme):
    user = User.objects.create_user("eve@example.com", "a long enough sentence")
    browser = browser_of(user)
    answer = browser.get("/", follow=True)
    assert answer.redirect_chain == [("/workspaces/none/", 302)]
    text = answer.content.decode()
    for words in ("You are in no workspace", "eve@example.com", "Ask an owner or an admin", "whoever runs this studio", "Sign out"):
        assert words in text
    assert "New workspace" not in text
    assert browser.get("/login/", follow=True).redirect_chain[-1] == ("/workspaces/none/", 302)
    for path in ("/runs/", f"/runs/{acme.run.pk}/", "/settings/", "/settings/people/"):
        assert browser.get(path).status_code == 404


def test_who_was_removed_from_their_last_one_is_told_so(acme):
    member = make_member(acme.workspace, role="member", email="max@example.com")
    browser = browser_of(member.user)
    assert browser.get("/workspaces/none/")["Location"] == "/"
    member.delete()
    assert "You are in no workspace" in browser.get("/", follow=True).content.decode()


# ── A new one ──


def test_an_owner_makes_another_workspace_and_is_in_it(acme):
    browser = browser_of(acme.owner.user)
    assert browser.get("/workspaces/new/").status_code == 200
    assert browser.post("/workspaces/new/", {"name": "  Second   home "})["Location"] == "/"
    made = Workspace.objects.get(name="Second home")
    assert Member.objects.get(workspace=made).role == "owner"
    assert browser.session["workspace"] == str(made.pk)
    assert browser.get(f"/runs/{acme.run.pk}/").status_code == 404
    records = AuditRecord.objects.filter(workspace=made).order_by("pk")
    assert [(record.verb, record.ip) for record in records] == [
        (verb, "127.0.0.1") for verb in ("workspace.create", "client.create", "project.create")
    ]


def test_who_is_removed_makes_no_workspace(acme):
    guest = make_member(acme.workspace, role="guest", email="gus@example.com", clients=[acme.client])
    browser = browser_of(guest.user)
    people.remove(acme.owner, guest)
    assert browser.get("/workspaces/new/").status_code == 404
    assert browser.post("/workspaces/new/", {"name": "Mine"}).status_code == 404
    assert Workspace.objects.count() == 1


def test_who_is_in_none_makes_their_own_where_the_operator_opens_it(acme, settings):
    settings.OPEN_WORKSPACES = True
    user = User.objects.create_user("eve@example.com", "a long enough sentence")
    browser = browser_of(user)
    assert "New workspace" in browser.get("/", follow=True).content.decode()
    assert browser.get("/workspaces/new/").status_code == 200
    assert browser.post("/workspaces/new/", {"name": "Eve's"})["Location"] == "/"
    assert browser.get("/").status_code == 200


@pytest.mark.parametrize("role", ["admin", "member", "viewer", "guest"])
def test_who_owns_none_and_is_in_one_makes_none(acme, role):
    browser = browser_of(make_member(acme.workspace, role=role, email="max@example.com", clients=[acme.client]).user)
    assert browser.get("/workspaces/new/").status_code == 404
    assert browser.post("/workspaces/new/", {"name": "Mine"}).status_code == 404
    assert not Workspace.objects.filter(name="Mine").exists()


def test_who_owns_none_makes_one_where_the_operator_opens_it(acme, settings):
    settings.OPEN_WORKSPACES = True
    browser = browser_of(make_member(acme.workspace, role="viewer", email="max@example.com").user)
    assert "New workspace" in browser.get("/").content.decode()
    assert browser.post("/workspaces/new/", {"name": "Mine"})["Location"] == "/"


def test_a_guest_of_one_who_owns_another_makes_a_third(acme, rival):
    joined(rival.owner, acme, role="guest")
    assert browser_of(rival.owner.user).get("/workspaces/new/").status_code == 200


@pytest.mark.parametrize(("name", "sentence"), [("  ", "Give it a name."), ("x" * 81, "At most 80 characters.")])
def test_a_workspace_needs_a_name(acme, name, sentence):
    answer = browser_of(acme.owner.user).post("/workspaces/new/", {"name": name})
    assert (answer.status_code, sentence in answer.content.decode()) == (422, True)
    assert Workspace.objects.count() == 1


def test_many_workspaces_cost_as_many_questions_as_one(acme, django_assert_num_queries):
    browser = browser_of(acme.owner.user)
    with CaptureQueriesContext(connection) as one:
        browser.get("/settings/people/")
    for number in range(30):
        create_workspace(user=acme.owner.user, name=f"Workspace {number}")
    with django_assert_num_queries(len(one)):
        assert "Workspace 29" in browser.get("/settings/people/").content.decode()
