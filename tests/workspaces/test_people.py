"""Who is in a workspace: seen, changed and removed, with effect at once.

Nobody gives more than they have themselves, and an owner always remains.
"""

import threading
from functools import partial

import pytest
from django.db import connection, connections
from django.test import Client as Browser
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils.html import escape

from studio.audit.models import AuditRecord
from studio.errors import UserError
from studio.runs.models import Run
from studio.workspaces import people
from studio.workspaces.models import Invitation, Member
from studio.workspaces.people import EVERYTHING, Sight
from studio.workspaces.policy import ROLE_ACTIONS, SCOPE_ACTIONS
from studio.workspaces.policy_words import WORDS, policy_lines
from studio.workspaces.services import create_client
from tests.fixtures import Api, make_invitation, make_key, make_member

PEOPLE = "/settings/people/"


def browser_of(member):
    browser = Browser()
    browser.force_login(member.user)
    return browser


@pytest.fixture
def ana(acme):
    return browser_of(acme.owner)


@pytest.fixture
def max_(acme):
    return make_member(acme.workspace, role="member", email="max@example.com")


@pytest.fixture
def globex(acme):
    return create_client(acme.owner, name="Globex")


def page(browser, query=""):
    return browser.get(f"{PEOPLE}{query}").content.decode()


def change(browser, person, **form):
    return browser.post(reverse("people:change", args=[person.pk]), {"role": person.role, "sees": "all"} | form)


def fresh(member):
    return Member.objects.get(pk=member.pk)


# ── Seeing ──


def test_everybody_is_shown_with_what_they_may_see(acme, ana, max_, globex):
    guest = make_member(acme.workspace, role="guest", email="gus@example.com", clients=[globex])
    shown = page(ana)
    for text in ("ana@example.com", "max@example.com", "gus@example.com", "Owner", "Guest", "Globex", "All clients"):
        assert text in shown
    assert f"?change={guest.pk}" in shown


def test_a_member_sees_the_people_and_has_nothing_to_change(acme, max_):
    shown = page(browser_of(max_))
    assert "ana@example.com" in shown
    assert "Invite somebody" not in shown
    assert "?change=" not in shown


def test_who_sees_one_client_finds_only_those_who_see_no_other(acme, globex, max_):
    admin = make_member(acme.workspace, role="admin", email="adi@example.com", clients=[acme.client])
    mine = make_member(acme.workspace, role="viewer", email="vic@example.com", clients=[acme.client])
    both = make_member(acme.workspace, role="viewer", email="bo@example.com", clients=[acme.client, globex])
    other = make_member(acme.workspace, role="guest", email="gus@example.com", clients=[globex])
    none = make_member(acme.workspace, role="guest", email="nil@example.com")
    browser = browser_of(admin)
    shown = page(browser)
    assert "adi@example.com" in shown
    assert "vic@example.com" in shown
    for stranger in (acme.owner, max_, both, other, none):
        assert stranger.user.email not in shown
        assert change(browser, stranger, role="viewer").status_code == 404
        assert browser.post(reverse("people:remove", args=[stranger.pk])).status_code == 404
    assert "Globex" not in page(browser, f"?change={mine.pk}")


def test_people_of_another_workspace_are_not_found(acme, rival, ana):
    for name in ("people:change", "people:remove"):
        foreign, missing = (ana.post(reverse(name, args=[pk])) for pk in (rival.owner.pk, 2**62))
        assert (foreign.status_code, missing.status_code) == (404, 404)
    assert ana.post(f"{PEOPLE}{'9' * 40}/remove/").status_code == 404
    assert Member.objects.filter(pk=rival.owner.pk).exists()


def test_many_people_are_paged_and_found_by_name_and_by_client(acme, ana, globex):
    for number in range(60):
        make_member(acme.workspace, role="viewer", email=f"p{number:02}@example.com", clients=[globex] if number == 7 else [])
    shown = page(ana)
    assert "1–50 of 61" in shown
    assert "p59@example.com" not in shown
    assert "p59@example.com" in page(ana, "?page=2")
    assert "p59@example.com" in page(ana, "?q=P59")
    assert "p07@example.com" in page(ana, "?q=globex")
    assert "p08@example.com" not in page(ana, "?q=globex")
    assert "Nobody found" in page(ana, "?q=%25%00x")


def test_the_list_asks_as_often_for_many_as_for_few(acme, ana, globex, django_assert_num_queries):
    make_member(acme.workspace, role="viewer", email="one@example.com", clients=[globex])
    with CaptureQueriesContext(connection) as few:
        page(ana)
    for number in range(30):
        make_member(acme.workspace, role="viewer", email=f"p{number}@example.com", clients=[globex, acme.client])
    with django_assert_num_queries(len(few)):
        page(ana)


# ── Changing ──


def test_a_role_is_changed_and_holds_from_the_next_request_on(acme, ana, max_):
    browser = browser_of(max_)
    assert browser.get("/runs/new/").status_code == 302  # to the form of the first project
    answer = change(ana, max_, role="viewer")
    assert (answer.status_code, answer["Location"]) == (302, PEOPLE)
    assert browser.get("/runs/new/").status_code == 404
    assert browser.get("/runs/").status_code == 200
    record = AuditRecord.objects.get(verb="member.change")
    assert record.change == {"role": ["member", "viewer"]}
    assert record.user == acme.owner.user


def test_clients_are_changed_and_hold_from_the_next_request_on(acme, ana, max_, globex):
    browser = browser_of(max_)
    assert browser.get(f"/runs/{acme.run.pk}/").status_code == 200
    assert change(ana, max_, sees="some", clients=[globex.pk]).status_code == 302
    assert browser.get(f"/runs/{acme.run.pk}/").status_code == 404
    assert AuditRecord.objects.get(verb="member.change").change == {"clients": ["all", "Globex"]}
    assert AuditRecord.objects.get(verb="member.change").client is None
    assert fresh(max_).narrowed
    globex.delete()
    assert browser.get(f"/runs/{acme.run.pk}/").status_code == 404  # the last one is gone, and that does not open all
    assert change(ana, max_, sees="all").status_code == 302
    assert browser.get(f"/runs/{acme.run.pk}/").status_code == 200


def test_who_is_bound_to_a_client_reads_no_change_that_names_another(acme, max_, globex):
    both, one = Sight(frozenset({acme.client.pk, globex.pk})), Sight(frozenset({acme.client.pk}))
    for sight in (both, one, both, EVERYTHING, one):
        people.change(acme.owner, max_, clients=sight)
    people.change(acme.owner, max_, role="viewer")
    admin = make_member(acme.workspace, role="admin", email="adi@example.com", clients=[acme.client])
    told = Api(make_key(admin)).get("audit?verb=member.change").json()["items"]
    assert [line["change"] for line in told] == [{"role": ["member", "viewer"]}]
    assert "Globex" not in browser_of(admin).get("/settings/audit/").content.decode()
    assert len(Api(make_key(acme.owner)).get("audit?verb=member.change").json()["items"]) == 6


def test_nothing_changed_is_no_record(acme, ana, max_):
    assert change(ana, max_).status_code == 302
    assert not AuditRecord.objects.filter(verb="member.change").exists()


def test_an_archived_client_is_kept_for_who_has_it_and_offered_to_nobody_else(acme, ana, max_, globex):
    people.change(acme.owner, max_, clients=Sight(frozenset({acme.client.pk, globex.pk})))
    globex.archived_at = globex.created_at
    globex.save()
    assert "Globex" in page(ana, f"?change={max_.pk}")
    assert change(ana, max_, role="viewer", sees="some", clients=[acme.client.pk, globex.pk]).status_code == 302
    assert fresh(max_).clients.count() == 2
    other = make_member(acme.workspace, role="viewer", email="vic@example.com")
    assert change(ana, other, sees="some", clients=[globex.pk]).status_code == 404


def test_a_client_of_another_workspace_is_assigned_to_nobody(acme, rival, ana, max_):
    for pk in (rival.client.pk, "12345678-1234-4234-8234-123456789012", "seven", ""):
        assert change(ana, max_, sees="some", clients=[acme.client.pk, pk]).status_code == 404
    assert fresh(max_).clients.count() == 0


@pytest.mark.parametrize(
    ("form", "sentence"),
    [
        ({"role": "king"}, "Choose from owner, admin, member, viewer, guest."),
        ({"role": "guest"}, "Choose the client whose person this is."),
        ({"sees": "some"}, "Choose at least one client, or all."),
    ],
)
def test_what_cannot_be_is_refused_beside_its_field(acme, ana, max_, form, sentence):
    answer = change(ana, max_, **form)
    assert answer.status_code == 422
    assert sentence in answer.content.decode()
    assert fresh(max_).role == "member"


def test_a_guest_belongs_to_a_client(acme, ana, max_, globex):
    assert change(ana, max_, role="guest", clients=[globex.pk]).status_code == 302
    assert (fresh(max_).role, fresh(max_).narrowed, list(fresh(max_).clients.all())) == ("guest", True, [globex])


def test_an_owner_sees_all(acme, ana, max_, globex):
    people.change(acme.owner, max_, clients=Sight(frozenset({globex.pk})))
    assert change(ana, max_, role="owner", sees="some", clients=[globex.pk]).status_code == 302
    assert people.seen_by(fresh(max_)) == EVERYTHING
    answer = Api(make_key(acme.owner)).patch(f"members/{max_.pk}", {"clients": [str(globex.pk)]})
    assert answer.json()["error"]["fields"] == {"clients": "An owner sees all clients. Choose all, or another role."}


# ── Who may change whom ──


def test_nobody_changes_or_removes_themselves(acme):
    admin = make_member(acme.workspace, role="admin", email="adi@example.com")
    browser = browser_of(admin)
    for role in ("owner", "member"):
        assert change(browser, admin, role=role).status_code == 422
    assert change(browser, admin, sees="some", clients=[acme.client.pk]).status_code == 422
    answer = browser.post(reverse("people:remove", args=[admin.pk]))
    assert (answer.status_code, "cannot remove yourself" in answer.content.decode()) == (400, True)
    assert fresh(admin).role == "admin"


def test_an_owner_steps_down_once_there_is_another(acme, ana, max_):
    answer = change(ana, acme.owner, role="admin")
    assert answer.status_code == 422
    assert "never without an owner" in answer.content.decode()
    assert change(ana, max_, role="owner").status_code == 302
    assert change(ana, acme.owner, role="member")["Location"] == "/"
    assert fresh(acme.owner).role == "member"


def test_an_owner_whose_account_is_closed_is_none(acme, ana, max_):
    people.change(acme.owner, max_, role="owner")
    max_.user.is_active = False
    max_.user.save()
    assert change(ana, acme.owner, role="member").status_code == 422


def test_admins_neither_touch_nor_make_owners(acme, max_):
    admin = make_member(acme.workspace, role="admin", email="adi@example.com")
    browser = browser_of(admin)
    assert f"?change={acme.owner.pk}" not in page(browser)
    assert 'value="owner"' not in page(browser, f"?change={max_.pk}")
    assert change(browser, acme.owner, role="viewer").status_code == 422
    assert browser.post(reverse("people:remove", args=[acme.owner.pk])).status_code == 400
    answer = change(browser, max_, role="owner")
    assert (answer.status_code, "Only an owner makes somebody an owner." in answer.content.decode()) == (422, True)
    assert change(browser, max_, role="admin").status_code == 302
    assert fresh(acme.owner).role == "owner"


def test_nobody_shows_more_clients_than_they_see(acme, globex):
    admin = make_member(acme.workspace, role="admin", email="adi@example.com", clients=[acme.client])
    vic = make_member(acme.workspace, role="viewer", email="vic@example.com", clients=[acme.client])
    browser = browser_of(admin)
    answer = change(browser, vic, sees="all")
    assert (answer.status_code, "Choose from the clients that you see." in answer.content.decode()) == (422, True)
    assert change(browser, vic, sees="some", clients=[globex.pk]).status_code == 404
    assert change(browser, vic, role="admin", sees="some", clients=[acme.client.pk]).status_code == 302


def test_members_viewers_guests_and_strangers_change_nobody(acme, rival, max_):
    vic = make_member(acme.workspace, role="viewer", email="vic@example.com")
    gus = make_member(acme.workspace, role="guest", email="gus@example.com", clients=[acme.client])
    for who in (max_, vic, gus, rival.owner):
        assert change(browser_of(who), vic, role="owner").status_code == 404
        assert browser_of(who).post(reverse("people:remove", args=[vic.pk])).status_code == 404
    assert fresh(vic).role == "viewer"


def test_who_was_just_made_less_changes_nobody_any_more(acme, max_):
    other = make_member(acme.workspace, role="owner", email="oda@example.com")
    Member.objects.filter(pk=acme.owner.pk).update(role="viewer")  # after the request was let in
    with pytest.raises(UserError, match="your own role has changed"):
        people.change(acme.owner, other, role="viewer")
    with pytest.raises(UserError, match="your own role has changed"):
        people.remove(acme.owner, max_)


def test_who_just_lost_a_client_changes_nobody_of_it_any_more(acme, globex):
    admin = make_member(acme.workspace, role="admin", email="adi@example.com", clients=[acme.client, globex])
    vic = make_member(acme.workspace, role="viewer", email="vic@example.com", clients=[globex])
    bo = make_member(acme.workspace, role="viewer", email="bo@example.com", clients=[acme.client])
    stale = Member.objects.select_related("user", "workspace").get(pk=admin.pk)
    stale.asks_once, stale.ip = True, "192.0.2.7"
    assert len(stale.client_ids()) == 2  # as the request asked when it was let in
    admin.clients.set([acme.client])
    with pytest.raises(UserError, match="do not see this person here any more"):
        people.change(stale, vic, role="member")
    with pytest.raises(UserError, match="do not see this person here any more"):
        people.remove(stale, vic)
    with pytest.raises(UserError, match="more clients than you see"):
        people.change(stale, bo, clients=Sight(frozenset({acme.client.pk, globex.pk})))
    people.change(stale, bo, role="member")
    assert AuditRecord.objects.get(verb="member.change").ip == "192.0.2.7"


# ── Removing ──


def test_who_is_removed_is_out_at_once_and_what_they_made_stays(acme, ana, max_):
    browser, api = browser_of(max_), Api(make_key(max_))
    Run.objects.filter(pk=acme.run.pk).update(name="Of Max")
    type(acme.run.order).objects.filter(pk=acme.run.order_id).update(created_by=max_.user, status="running")
    assert (browser.get("/runs/").status_code, api.get("me").status_code) == (200, 200)
    assert ana.post(reverse("people:remove", args=[max_.pk]))["Location"] == PEOPLE
    assert (browser.get("/runs/").status_code, api.get("me").status_code) == (404, 401)
    acme.run.order.refresh_from_db()
    assert (acme.run.order.status, acme.run.order.stop_requested_at) == ("running", None)
    assert "Of Max" in ana.get("/runs/").content.decode()
    record = AuditRecord.objects.get(verb="member.remove")
    assert record.change == {"role": ["member", None], "clients": ["all", None], "keys": [1, 0]}
    assert record.label == "max@example.com (member)"


def test_with_who_invited_go_their_open_invitations(acme, ana):
    admin = make_member(acme.workspace, role="admin", email="adi@example.com")
    mine, others = make_invitation(admin, role="viewer"), make_invitation(acme.owner)
    ana.post(reverse("people:remove", args=[admin.pk]))
    assert [Invitation.objects.get(pk=each.pk).is_open for each in (mine, others)] == [False, True]
    assert AuditRecord.objects.get(verb="member.remove").change["open invitations"] == [1, 0]


def test_with_less_to_give_goes_what_was_offered(acme, ana, globex):
    admin = make_member(acme.workspace, role="admin", email="adi@example.com")
    wide, narrow = make_invitation(admin), make_invitation(admin, clients=[globex])
    change(ana, admin, sees="some", clients=[globex.pk])
    assert [Invitation.objects.get(pk=each.pk).is_open for each in (wide, narrow)] == [False, True]
    change(ana, admin, role="member", sees="some", clients=[globex.pk])
    assert not Invitation.objects.get(pk=narrow.pk).is_open


# ── Never without an owner ──


def at_once(*acts):
    """Does these in threads that begin together; each outcome, or the UserError it ended with."""
    outcomes, start = [], threading.Barrier(len(acts))

    def act(do):
        start.wait()
        try:
            outcomes.append(do())
        except UserError as error:
            outcomes.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=act, args=[do]) for do in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "acts",
    [
        lambda ana, oda: [partial(people.change, ana, oda, role="viewer"), partial(people.change, oda, ana, role="viewer")],
        lambda ana, oda: [partial(people.remove, ana, oda), partial(people.remove, oda, ana)],
        lambda ana, oda: [partial(people.change, ana, ana, role="admin"), partial(people.change, oda, oda, role="admin")],
    ],
    ids=["demote each other", "remove each other", "both step down"],
)
def test_of_two_owners_at_once_one_is_left(queue, acme, acts):
    other = make_member(acme.workspace, role="owner", email="oda@example.com")
    for _ in range(20):
        outcomes = at_once(*acts(fresh(acme.owner), fresh(other)))
        owners = Member.objects.filter(workspace=acme.workspace, role="owner")
        assert owners.count() == 1
        assert sorted(type(each).__name__ for each in outcomes) == ["NoneType", "UserError"]
        for member in (acme.owner, other):
            again, _ = Member.objects.update_or_create(user=member.user, workspace=acme.workspace, defaults={"role": "owner"})
            member.pk = again.pk


# ── What the roles are ──


def test_every_action_has_its_words_once():
    known = set.union(*ROLE_ACTIONS.values())
    named = [action for actions in WORDS.values() for action in actions]
    assert sorted(named) == sorted(known)
    sentences = [words for actions in WORDS.values() for words in actions.values()]
    assert len(sentences) == len(set(sentences))


def test_the_page_of_roles_is_the_table(acme, ana):
    lines = {line.words: line for group in policy_lines().values() for line in group}
    for actions in WORDS.values():
        for action, words in actions.items():
            assert lines[words].roles == [action in ROLE_ACTIONS[role] for role in ROLE_ACTIONS]
            assert lines[words].scopes == [action in SCOPE_ACTIONS[scope] for scope in SCOPE_ACTIONS]
    shown = ana.get("/settings/roles/").content.decode()
    assert shown.count(">yes<") == sum(sum(line.roles) + sum(line.scopes) for line in lines.values())
    for words in lines:
        assert escape(words) in shown


def test_the_page_of_roles_follows_the_table(acme, ana, monkeypatch):
    before = ana.get("/settings/roles/").content.decode().count(">yes<")
    monkeypatch.setitem(ROLE_ACTIONS, "guest", ROLE_ACTIONS["guest"] | {"audit.view"})
    assert ana.get("/settings/roles/").content.decode().count(">yes<") == before + 1


def test_everybody_reads_the_roles_and_a_guest_gets_nothing_else_of_the_settings(acme):
    gus = browser_of(make_member(acme.workspace, role="guest", email="gus@example.com", clients=[acme.client]))
    shown = gus.get("/settings/roles/")
    assert shown.status_code == 200
    assert PEOPLE not in shown.content.decode()
    assert gus.get(PEOPLE).status_code == 404
