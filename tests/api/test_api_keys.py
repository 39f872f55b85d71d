"""Who the API answers: the holder of a key, as far as its scopes go, and nobody else."""

from datetime import timedelta

import pytest
from django.test import Client as Browser
from django.utils import timezone

from studio.workspaces.models import ApiKey
from tests.fixtures import Api, make_key, make_member


def test_a_key_tells_its_workspace_role_and_scopes(acme):
    answer = acme.api.get("me")
    assert answer.status_code == 200
    facts = answer.json()
    assert facts["workspace"] == {"id": str(acme.workspace.pk), "name": "Acme"}
    assert (facts["role"], facts["user"], facts["clients"]) == ("owner", "ana@example.com", None)
    assert "train" in facts["scopes"]


@pytest.mark.parametrize("secret", [None, "as_wrong", "", "as_" + "x" * 5000])
def test_without_a_valid_key_nothing_is_told(acme, secret):
    for path in ("me", "runs", f"runs/{acme.run.pk}", "openapi.json", "docs"):
        answer = Api(secret).get(path)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "unauthorized"


def test_a_revoked_key_and_one_past_its_day_stop_working(acme):
    assert acme.api.get("me").status_code == 200
    ApiKey.objects.update(revoked_at=timezone.now())
    assert acme.api.get("me").status_code == 401
    ApiKey.objects.update(revoked_at=None, expires_at=timezone.now() - timedelta(seconds=1))
    assert acme.api.get("me").status_code == 401


def test_a_person_who_left_takes_the_key_along(acme):
    acme.owner.user.is_active = False
    acme.owner.user.save()
    assert acme.api.get("me").status_code == 401


def test_a_session_is_no_key(acme):
    browser = Browser()
    browser.force_login(acme.owner.user)
    assert browser.get("/api/v1/me").status_code == 401
    assert browser.post("/api/v1/clients", {"name": "x"}, content_type="application/json").status_code == 401


def test_a_key_that_reads_does_not_write(acme):
    api = Api(make_key(acme.owner, scopes=["read"]))
    assert api.get(f"runs/{acme.run.pk}").status_code == 200
    for path, body in [("clients", {"name": "x"}), (f"runs/{acme.run.pk}/stop", {}), ("builds", {}), ("datasets", {})]:
        answer = api.post(path, body)
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "not_found"


def test_a_key_never_exceeds_its_member(acme):
    viewer = make_member(acme.workspace, role="viewer", email="vic@example.com")
    api = Api(make_key(viewer))
    assert api.get(f"runs/{acme.run.pk}").status_code == 200
    assert api.post(f"runs/{acme.run.pk}/stop").status_code == 404
    assert api.post("projects", {"client": str(acme.client.pk), "name": "x"}).status_code == 404


def test_a_key_narrowed_to_a_client_sees_only_that_client(acme):
    other = acme.api.post("clients", {"name": "Globex"}).json()
    narrow = Api(make_key(acme.owner, clients=[acme.client]))
    assert [client["id"] for client in narrow.get("clients").json()["items"]] == [str(acme.client.pk)]
    assert narrow.get(f"clients/{other['id']}").status_code == 404
    assert narrow.get("me").json()["clients"] == [str(acme.client.pk)]
    assert narrow.post("projects", {"client": other["id"], "name": "x"}).json()["error"]["code"] == "unknown_id"
    assert {line["client"] for line in narrow.get("audit").json()["items"]} <= {str(acme.client.pk)}


def test_an_unknown_address_and_a_wrong_method_answer_in_json(acme):
    answer = acme.api.get("nothing/here")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert acme.api.get("").json()["error"]["code"] == "not_found"
    answer = acme.api.delete(f"runs/{acme.run.pk}")
    assert (answer.status_code, answer.json()["error"]["code"], answer["Allow"]) == (405, "method_not_allowed", "GET, PATCH")
    assert acme.api.get("runs/not-an-id").status_code == 404
