"""API keys, from the settings page: shown once, kept as a hash, stopped at once."""

import re
from datetime import timedelta

import pytest
from django.test import Client as Browser
from django.utils import timezone

from studio.api.models import IdempotentAnswer
from studio.audit.models import AuditRecord
from studio.workspaces import keys
from studio.workspaces.models import ApiKey, Client
from studio.workspaces.policy import SCOPE_ACTIONS
from studio.workspaces.services import create_client
from tests.fixtures import Api, make_key, make_member, make_owner


@pytest.fixture
def ana(db):
    return make_owner()


@pytest.fixture
def window(ana):
    opened = Browser()
    opened.force_login(ana.user)
    return opened


def make(window, **fields):
    return window.post("/settings/keys/", {"name": "nightly", "scopes": ["read"]} | fields)


def secret_in(answer):
    return re.search(r"as_[\w-]{43}", answer.content.decode()).group()


def test_a_new_key_is_shown_once_and_works(window):
    answer = make(window, scopes=["read", "train"])
    secret = secret_in(answer)
    assert answer["Cache-Control"] == "no-store, private"
    assert Api(secret).get("me").json()["scopes"] == ["read", "train"]
    page = window.get("/settings/").content.decode()
    assert secret not in page
    assert secret[:8] in page
    key = ApiKey.objects.get()
    assert secret not in repr(vars(key))
    assert key.used_at is not None
    audit = repr([vars(record) for record in AuditRecord.objects.all()])
    assert "key.create" in audit
    assert secret not in audit


def test_a_revoked_key_stops_at_once(window):
    secret = secret_in(make(window))
    assert Api(secret).get("me").status_code == 200
    key = ApiKey.objects.get()
    assert window.post(f"/settings/keys/{key.pk}/revoke/")["Location"] == "/settings/"
    refused = Api(secret).get("me")
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "unauthorized")
    assert "nightly" not in window.get("/settings/").content.decode().split("<main")[1].replace("Revoked nightly", "").split("New key")[0]


def test_a_key_stops_with_its_account_and_with_its_membership(ana):
    for end in (lambda member: member.delete(), lambda member: type(member.user).objects.filter(pk=member.user_id).update(is_active=False)):
        member = make_member(ana.workspace, role="member", email=f"max{id(end)}@example.com")
        secret = make_key(member)
        assert Api(secret).get("me").status_code == 200
        end(member)
        assert Api(secret).get("me").status_code == 401


def test_a_key_can_do_no_more_than_its_member_now_may(ana):
    member = make_member(ana.workspace, role="admin", email="max@example.com")
    api = Api(make_key(member, scopes=["admin"]))
    assert api.post("clients", {"name": "Globex"}).status_code == 201
    member.role = "viewer"
    member.save()
    assert api.post("clients", {"name": "Initech"}).status_code == 404
    assert api.get("clients").status_code == 200


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"name": " "}, "Give it a name."),
        ({"name": "x" * 81}, "At most 80 characters."),
        ({"scopes": []}, "Choose from read, write, train, deploy, inference, admin."),
        ({"scopes": ["read", "everything"]}, "You cannot give everything."),
        ({"days": "31"}, "Choose 30, 90, 365 days, or no end."),
        ({"days": "soon"}, "Choose 30, 90, 365 days, or no end."),
    ],
)
def test_a_key_that_cannot_be_made_says_why(window, fields, sentence):
    answer = make(window, **fields)
    assert answer.status_code == 422
    assert sentence in answer.content.decode()
    assert not ApiKey.objects.exists()


def open_for(member):
    opened = Browser()
    opened.force_login(member.user)
    return opened


@pytest.mark.parametrize("role", ["member", "viewer", "guest"])
def test_one_cannot_revoke_or_see_a_key_of_somebody_else(ana, role):
    secret = make_key(ana)
    browser = open_for(make_member(ana.workspace, role=role, email="max@example.com"))
    assert browser.post(f"/settings/keys/{ana.keys.get().pk}/revoke/").status_code == 404
    assert ana.keys.get().prefix not in browser.get("/settings/").content.decode()
    assert Api(secret).get("me").status_code == 200


@pytest.mark.parametrize("role", ["owner", "admin"])
def test_owners_and_admins_see_and_revoke_keys_of_others(ana, role):
    other = make_member(ana.workspace, role="member", email="max@example.com")
    secret = make_key(other, name="nightly", scopes=["train"])
    browser = open_for(make_member(ana.workspace, role=role, email="eve@example.com"))
    table = browser.get("/settings/").content.decode().split("Keys of others", 1)[1]
    assert all(word in table for word in ("nightly", "max@example.com", "train", "Never"))
    assert browser.post(f"/settings/keys/{other.keys.get().pk}/revoke/").status_code == 302
    assert Api(secret).get("me").status_code == 401
    assert AuditRecord.objects.get(verb="key.revoke").change == {"of": "max@example.com"}
    assert "Keys of others" not in browser.get("/settings/").content.decode()


def test_many_keys_come_a_page_at_a_time_ones_own_and_those_of_others(ana, window):
    other = make_member(ana.workspace, role="member", email="max@example.com")
    for number in range(60):
        make_key(ana, name=f"mine {number}")
        make_key(other, name=f"other {number}")
    first = window.get("/settings/").content.decode()
    assert first.count(">mine ") == first.count(">other ") == 50
    assert 'href="?own=2"' in first and 'href="?page=2#others"' in first
    second = window.get("/settings/?own=2").content.decode()
    assert second.count(">mine ") == 10 and second.count(">other ") == 50


def test_an_admin_of_one_client_sees_no_key_of_who_sees_more(ana):
    client, other = ana.workspace.clients.get(), create_client(ana, name="Globex")
    near = make_member(ana.workspace, role="member", email="near@example.com", clients=[client])
    far = make_member(ana.workspace, role="member", email="far@example.com", clients=[client, other])
    for member in (ana, near, far):
        make_key(member)
    browser = open_for(make_member(ana.workspace, role="admin", email="max@example.com", clients=[client]))
    page = browser.get("/settings/").content.decode()
    assert "near@example.com" in page and "far@example.com" not in page and "ana@example.com" not in page
    statuses = [browser.post(f"/settings/keys/{member.keys.get().pk}/revoke/").status_code for member in (near, far, ana)]
    assert statuses == [302, 404, 404]


def test_a_key_of_another_workspace_is_none(ana, window):
    zoe = make_owner("zoe@example.org", "Rival")
    make_key(zoe, name="Foreign")
    assert "Foreign" not in window.get("/settings/").content.decode()
    assert window.post(f"/settings/keys/{zoe.keys.get().pk}/revoke/").status_code == 404


def test_revoking_twice_is_one_change(ana, window):
    make_key(ana)
    for _ in range(2):
        assert window.post(f"/settings/keys/{ana.keys.get().pk}/revoke/").status_code == 302
    assert AuditRecord.objects.filter(verb="key.revoke").count() == 1


def test_a_key_ends_after_ninety_days_unless_somebody_says_otherwise(window):
    make(window)
    ends = {str(days): make(window, name=f"for {days}", days=days) for days in ("30", "365", "")}
    found = {key.name: key.expires_at for key in ApiKey.objects.all()}
    assert len(ends) == 3 and found.pop("for") is None
    left = {name: (moment - timezone.now()).days + 1 for name, moment in found.items()}
    assert left == {"nightly": 90, "for 30": 30, "for 365": 365}


@pytest.mark.parametrize(
    ("left", "words"),
    [
        (timedelta(days=5, hours=1), "Expires in 5 days"),
        (timedelta(days=1, hours=1), "Expires in 1 day"),
        (timedelta(hours=3), "Expires within a day"),
        (timedelta(seconds=-1), "Expired"),
    ],
)
def test_a_key_that_ends_soon_says_so(ana, window, left, words):
    secret = make_key(ana, expires_at=timezone.now() + left)
    assert f"{words}</span>" in window.get("/settings/").content.decode()
    assert Api(secret).get("me").status_code == (200 if left > timedelta(0) else 401)


def test_a_key_with_much_time_left_warns_of_nothing(ana, window):
    make_key(ana, expires_at=timezone.now() + timedelta(days=60))
    assert "Expires in" not in window.get("/settings/").content.decode()


def test_a_key_for_some_clients_reaches_only_those(ana, window):
    globex, initech = create_client(ana, name="Globex"), create_client(ana, name="Initech")
    secret = secret_in(make(window, sees="some", clients=[globex.pk]))
    assert [client["name"] for client in Api(secret).get("clients").json()["items"]] == ["Globex"]
    assert Api(secret).get(f"clients/{initech.pk}").status_code == 404
    assert AuditRecord.objects.get(verb="key.create").change["clients"] == [None, ["Globex"]]
    Client.objects.filter(pk=globex.pk).delete()
    assert Api(secret).get("clients").json()["items"] == []


def test_a_key_for_some_clients_names_them(ana, window):
    create_client(ana, name="Globex")
    answer = make(window, sees="some")
    assert answer.status_code == 422
    assert "Choose at least one." in answer.content.decode()
    assert not ApiKey.objects.exists()


@pytest.mark.parametrize("typed", ["seven", "00000000-0000-4000-8000-000000000000"])
def test_a_client_that_is_none_is_none(window, typed):
    assert make(window, sees="some", clients=[typed]).status_code == 404
    assert not ApiKey.objects.exists()


def test_a_client_of_others_cannot_be_given(ana):
    zoe = make_owner("zoe@example.org", "Rival")
    globex = create_client(ana, name="Globex")
    browser = open_for(make_member(ana.workspace, role="member", email="max@example.com", clients=[globex]))
    for foreign in (zoe.workspace.clients.get(), ana.workspace.clients.get(name="In-house")):
        assert make(browser, sees="some", clients=[foreign.pk]).status_code == 404
    assert make(browser, sees="some", clients=[globex.pk]).status_code == 200


def test_only_scopes_are_offered_of_which_the_role_gives_something(ana, monkeypatch):
    member = make_member(ana.workspace, role="member", email="max@example.com")
    monkeypatch.setitem(SCOPE_ACTIONS, "admin", {"workspace.edit"})
    assert keys.offered_scopes(member) == ["read", "write", "train", "deploy", "inference"]
    browser = open_for(member)
    assert 'value="admin"' not in browser.get("/settings/").content.decode()
    answer = make(browser, scopes=["read", "admin"])
    assert answer.status_code == 422
    assert "You cannot give admin." in answer.content.decode()


def test_what_was_typed_stays_where_a_key_is_refused(ana, window):
    globex = create_client(ana, name="Globex")
    page = make(window, name="x" * 81, scopes=["train"], days="30", sees="some", clients=[globex.pk]).content.decode()
    assert f'value="{"x" * 81}"' in page
    assert 'value="train" id="id_scope_train" checked' in page and 'id="id_scope_read" checked' not in page
    assert '<option value="30" selected>' in page
    assert f'id="id_client_{globex.pk}" checked' in page


# ── A key dies with its maker's access ──


def remove(member):
    member.delete()


def make_a_guest(member):
    type(member).objects.filter(pk=member.pk).update(role="guest")


def close_the_account(member):
    type(member.user).objects.filter(pk=member.user_id).update(is_active=False)


def assign_to_another_client(member):
    member.clients.set([member.workspace.clients.get(name="In-house")])


def take_every_client_away(member):
    member.clients.clear()
    type(member).objects.filter(pk=member.pk).update(narrowed=True)


@pytest.mark.parametrize(
    ("lose", "status"),
    [(remove, 401), (close_the_account, 401), (make_a_guest, 404), (assign_to_another_client, 404), (take_every_client_away, 404)],
)
@pytest.mark.parametrize("narrow", [False, True])
def test_a_key_dies_with_the_access_of_whoever_made_it(ana, lose, status, narrow):
    globex = create_client(ana, name="Globex")
    member = make_member(ana.workspace, role="member", email="max@example.com", clients=[globex])
    api = Api(make_key(member, clients=[globex] if narrow else None))
    assert api.get(f"clients/{globex.pk}").status_code == 200
    lose(member)
    assert api.get(f"clients/{globex.pk}").status_code == status


# ── Keys that make keys ──


def test_a_script_makes_a_key_sees_it_and_revokes_it(ana):
    api = Api(make_key(ana, name="first"))
    made = api.post("keys", {"name": "nightly", "scopes": ["train", "read"]})
    assert made.status_code == 201
    told = made.json()
    secret = told.pop("secret")
    assert Api(secret).get("me").json()["scopes"] == told["scopes"] == ["read", "train"]
    assert (told["user"], told["clients"], told["prefix"]) == ("ana@example.com", None, secret[:8])
    listed = api.get("keys").json()["items"]
    assert [key["name"] for key in listed] == ["nightly", "first"]
    assert "secret" not in listed[0]
    assert api.delete(f"keys/{told['id']}").status_code == 204
    assert Api(secret).get("me").status_code == 401
    assert [key["name"] for key in api.get("keys").json()["items"]] == ["first"]


def test_a_repeat_does_not_tell_the_secret_again_and_it_is_kept_nowhere(ana):
    api = Api(make_key(ana))
    body = {"name": "nightly", "scopes": ["read"]}
    first, again = (api.post("keys", body, Idempotency_Key="one") for _ in range(2))
    assert first.json() | {"secret": None} == again.json()
    assert ApiKey.objects.filter(name="nightly").count() == 1
    kept = IdempotentAnswer.objects.get().body
    assert first.json()["secret"] not in kept


@pytest.mark.parametrize("scopes", [["read"], ["read", "write", "train", "deploy", "inference"]])
def test_a_key_without_the_scope_for_it_makes_none(ana, scopes):
    api = Api(make_key(ana, scopes=scopes))
    assert api.post("keys", {"name": "more", "scopes": ["read"]}).status_code == 404
    assert api.delete(f"keys/{ana.keys.get().pk}").status_code == 404


def test_a_key_gives_no_scope_that_it_does_not_have(ana, monkeypatch):
    monkeypatch.setitem(SCOPE_ACTIONS, "admin", {"key.create", "key.view", "client.view"})
    api = Api(make_key(ana, scopes=["admin", "inference"]))
    refused = api.post("keys", {"name": "more", "scopes": ["inference", "train"]})
    assert refused.status_code == 422
    assert refused.json()["error"]["fields"] == {"scopes": "You cannot give train. Choose from inference, admin."}
    assert api.post("keys", {"name": "less", "scopes": ["inference"]}).status_code == 201


def test_a_key_gives_no_client_that_it_does_not_reach(ana):
    globex, initech, umbrella = (create_client(ana, name=name) for name in ("Globex", "Initech", "Umbrella"))
    api = Api(make_key(ana, clients=[globex, initech]))
    refused = api.post("keys", {"name": "more", "scopes": ["read"], "clients": [str(umbrella.pk)]}).json()["error"]
    assert (refused["code"], list(refused["fields"])) == ("unknown_id", ["clients"])
    assert api.post("keys", {"name": "one", "scopes": ["read"], "clients": [str(globex.pk)]}).json()["clients"] == [str(globex.pk)]
    same = api.post("keys", {"name": "same", "scopes": ["read"]}).json()["clients"]
    assert set(same) == {str(globex.pk), str(initech.pk)}
    assert api.post("keys", {"name": "none", "scopes": ["read"], "clients": []}).json()["error"]["fields"] == {
        "clients": "Choose at least one."
    }


def test_a_narrowed_key_is_told_of_no_wider_one(ana):
    globex, initech = create_client(ana, name="Globex"), create_client(ana, name="Initech")
    make_key(ana, name="everything")
    make_key(ana, name="both", clients=[globex, initech])
    api = Api(make_key(ana, name="one", clients=[globex]))
    assert [key["name"] for key in api.get("keys").json()["items"]] == ["one"]
    assert api.delete(f"keys/{ana.keys.get(name='both').pk}").status_code == 404


def test_of_a_colleague_s_key_only_the_clients_are_told_that_one_sees(ana):
    globex, initech = create_client(ana, name="Globex"), create_client(ana, name="Initech")
    max_ = make_member(ana.workspace, role="member", email="max@example.com", clients=[globex])
    make_key(max_, name="both", clients=[globex, initech])
    make_key(max_, name="other", clients=[initech])
    make_key(max_, name="all of theirs")
    admin = make_member(ana.workspace, role="admin", email="adi@example.com", clients=[globex])
    told = {key["name"]: key["clients"] for key in Api(make_key(admin)).get("keys").json()["items"]}
    assert told == {"both": [str(globex.pk)], "other": [], "all of theirs": None, "test": None}
    everything = {key["name"]: key["clients"] for key in Api(make_key(ana)).get("keys").json()["items"]}
    assert set(everything["both"]) == {str(globex.pk), str(initech.pk)}


def test_a_key_gives_no_later_end_than_its_own(ana):
    ends = timezone.now() + timedelta(days=40)
    api = Api(make_key(ana, expires_at=ends))
    for days in (365, None):
        refused = api.post("keys", {"name": "later", "scopes": ["read"], "days": days}).json()["error"]
        assert refused["fields"] == {"days": f"That one ends on {ends:%d %B %Y}. Choose fewer days."}
    assert api.post("keys", {"name": "sooner", "scopes": ["read"], "days": 30}).status_code == 201
    assert api.post("keys", {"name": "as long", "scopes": ["read"]}).status_code == 201
    assert ApiKey.objects.get(name="as long").expires_at == ends
    assert ApiKey.objects.get(name="sooner").expires_at < ends


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic {secret}", "{secret}", "Bearer {secret}x", "Bearer as_{secret}"])
def test_a_header_that_is_none_opens_nothing(ana, header):
    secret = make_key(ana)
    api = Api(None)
    api.headers = {"Authorization": header.format(secret=secret)}
    assert api.get("me").status_code == 401


def test_a_session_opens_no_part_of_the_api_but_its_description(window):
    assert window.get("/api/v1/docs").status_code == 200
    assert window.get("/api/v1/openapi.json").status_code == 200
    assert window.get("/api/v1/me").status_code == 401
    assert window.post("/api/v1/clients", {"name": "Globex"}, content_type="application/json").status_code == 401


def test_a_key_opens_no_page(ana):
    answer = Browser().get("/runs/", headers={"Authorization": f"Bearer {make_key(ana)}"})
    assert answer["Location"] == "/login/?next=/runs/"
