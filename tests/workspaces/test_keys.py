"""API keys, from the settings page: shown once, kept as a hash, stopped at once."""

import re

import pytest
from django.test import Client as Browser

from studio.audit.models import AuditRecord
from studio.workspaces.models import ApiKey
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
        ({"scopes": []}, "Choose what the key may do."),
        ({"scopes": ["everything"]}, "Choose what the key may do."),
    ],
)
def test_a_key_that_cannot_be_made_says_why(window, fields, sentence):
    answer = make(window, **fields)
    assert answer.status_code == 422
    assert sentence in answer.content.decode()
    assert not ApiKey.objects.exists()


def test_one_cannot_revoke_or_see_a_key_of_somebody_else(window, ana):
    other = make_member(ana.workspace, role="admin", email="max@example.com")
    secret = make_key(other)
    assert window.post(f"/settings/keys/{other.keys.get().pk}/revoke/").status_code == 404
    assert other.keys.get().prefix not in window.get("/settings/").content.decode()
    assert Api(secret).get("me").status_code == 200


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
