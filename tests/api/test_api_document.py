"""The API describes itself: an OpenAPI document for programs, and a page for people."""

from django.test import Client as Browser

from studio.workspaces.policy import ROUTES
from tests.fixtures import Api


def test_the_document_lists_every_call(acme):
    document = acme.api.get("openapi.json").json()
    assert document["info"]["title"] == "Adapter Studio"
    calls = {(path, method) for path, entry in document["paths"].items() for method in entry}
    assert ("/api/v1/runs/{pk}/events", "get") in calls
    assert ("/api/v1/datasets/{pk}/versions", "post") in calls
    described = [
        name for name in ROUTES if name.startswith("api:") and name not in ("api:api-root", "api:openapi-json", "api:openapi-view")
    ]
    assert len(document["paths"]) == len(described)
    operations = [operation for entry in document["paths"].values() for operation in entry.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(names) == len(set(names))


def test_the_document_says_how_to_sign_in_and_what_comes_back(acme):
    document = acme.api.get("openapi.json").json()
    assert document["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    assert document["security"] == [{"key": []}]
    assert {"RunOut", "RunIn", "VersionOut", "EstimateOut"} <= set(document["components"]["schemas"])
    assert document["components"]["schemas"]["RunIn"]["additionalProperties"] is False


def test_a_member_reads_it_in_a_browser(acme):
    browser = Browser()
    assert browser.get("/api/v1/docs").status_code == 401
    browser.force_login(acme.owner.user)
    page = browser.get("/api/v1/docs")
    assert page.status_code == 200
    assert b"/api/v1/openapi.json" in page.content
    assert "script-src 'self'" in page["Content-Security-Policy"]
    assert browser.get("/api/v1/openapi.json").json() == acme.api.get("openapi.json").json()
    assert browser.get("/api/v1/runs").status_code == 401  # the page describes; only a key acts


def test_a_stranger_is_not_told_what_there_is(db):
    assert Api(None).call("OPTIONS", "runs").status_code == 401
