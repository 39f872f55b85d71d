"""A script releases, moves, measures and approves, and learns what is still missing."""

from studio.audit.models import AuditRecord
from studio.releases.models import Release
from tests.fixtures import Api, make_key, make_member
from tests.releases.conftest import held_out, measured, trained


def test_a_script_releases_an_adapter(acme):
    body = {"project": str(acme.project.pk), "artifact": str(acme.artifact.pk), "task": "support", "notes": "The first."}
    made = acme.api.post("releases", body | {"asked_with": {"system": "Be kind.", "temperature": 0.2}})
    assert made.status_code == 201
    told = made.json()
    assert (told["name"], told["version"], told["stage"], told["bump"]) == ("in-house-support-tiny-v1.0.0", "v1.0.0", "draft", "major")
    assert told["asked_with"] == {"system": "Be kind.", "temperature": 0.2}
    assert (told["conditions"], told["approvals"], told["evaluation"]) == ([], [], None)
    again = acme.api.post("releases", body | {"artifact": str(trained(acme).pk)}).json()
    assert (again["version"], again["previous"], again["asked_with"]) == ("v1.1.0", told["id"], told["asked_with"])
    listed = acme.api.get(f"releases?project={acme.project.pk}&stage=draft").json()["items"]
    assert [release["version"] for release in listed] == ["v1.1.0", "v1.0.0"]
    assert acme.api.get("releases?name=in-house-support-tiny-v1.0.0").json()["items"][0]["id"] == told["id"]


def test_a_bump_is_the_rules_or_a_higher_one(acme):
    body = {"project": str(acme.project.pk), "artifact": str(acme.artifact.pk)}
    acme.api.post("releases", body)
    refused = acme.api.post("releases", body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "nothing_changed")
    refused = acme.api.post("releases", body | {"artifact": str(trained(acme).pk), "bump": "patch"}).json()["error"]
    assert list(refused["fields"]) == ["bump"]
    refused = acme.api.post("releases", body | {"asked_with": {"temperature": 9}}).json()["error"]
    assert refused["fields"] == {"temperature": "Must be a number from 0 to 2."}


def test_a_gate_is_read_and_changed_and_met(acme):
    address = f"projects/{acme.project.pk}/gate"
    assert acme.api.get(address).json()["approvals"] == 0
    rows = held_out(acme).dataset
    wanted = {"evaluated": True, "approvals": 1, "roles": ["admin"], "held_out": str(rows.pk), "margin": 3}
    assert acme.api.patch(address, wanted).json() == wanted | {"guest_sign_off": False}
    assert acme.api.patch(address, {"held_out": None}).json()["held_out"] is None
    assert acme.api.patch(address, {"margin": 1000}).json()["error"]["fields"] == {"margin": "Must be from 0 to 100 per cent."}
    release = acme.api.post("releases", {"project": str(acme.project.pk), "artifact": str(acme.artifact.pk)}).json()["id"]
    assert acme.api.post(f"releases/{release}/stage", {"to": "candidate"}).json()["stage"] == "candidate"
    refused = acme.api.post(f"releases/{release}/stage", {"to": "approved"}).json()["error"]
    assert (refused["code"], "It has not been evaluated yet." in refused["message"]) == ("gate_not_met", True)
    evaluation = acme.api.post(f"releases/{release}/evaluate")
    assert (evaluation.status_code, evaluation.json()["status"], evaluation.json()["dataset_version"]) == (
        202,
        "queued",
        str(acme.version.pk),
    )
    assert acme.api.post(f"releases/{release}/evaluate/stop").json()["evaluation"]["status"] == "stopped"
    measured(acme, Release.objects.get(pk=release))
    admin = Api(make_key(make_member(acme.workspace, role="admin", email="max@example.com"), scopes=["read", "deploy"]))
    assert acme.api.post(f"releases/{release}/approve").json()["error"]["fields"] == {"approves": "Must be true or false."}
    told = admin.post(f"releases/{release}/approve", {"approves": True, "comment": "Good."}).json()
    assert [(approval["email"], approval["role"], approval["counts"]) for approval in told["approvals"]] == [
        ("max@example.com", "admin", True)
    ]
    assert all(condition["met"] for condition in told["conditions"])
    assert acme.api.post(f"releases/{release}/stage", {"to": "approved", "comment": "Go."}).json()["stage"] == "approved"
    assert acme.api.post(f"releases/{release}/share").json()["shared_at"] is not None
    assert acme.api.patch(f"releases/{release}", {"notes": "Live."}).json()["notes"] == "Live."
    assert AuditRecord.objects.filter(object_id=release).values_list("verb", flat=True).count() == 8


def test_a_key_that_may_only_read_changes_nothing(acme):
    release = acme.release.pk
    reader = Api(make_key(acme.owner, scopes=["read"]))
    assert reader.get(f"releases/{release}").status_code == 200
    for path in ("stage", "approve", "evaluate", "evaluate/stop", "share"):
        assert reader.post(f"releases/{release}/{path}").status_code == 404
    assert reader.post("releases", {}).status_code == 404
    assert reader.patch(f"projects/{acme.project.pk}/gate", {"approvals": 1}).status_code == 404
