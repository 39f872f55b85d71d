"""A script does what the rows' page does: filters, changes, marks, compares and restores."""

import pytest

from studio.audit.models import AuditRecord
from studio.datasets.models import DatasetVersion
from tests.datasets.made import upload
from tests.datasets.test_rows_page import SECRET, chat
from tests.fixtures import Api, make_key, make_member, work_off


@pytest.fixture
def version(acme):
    lines = [chat(f"Question {number}?", f"Answer {number}.") for number in range(1, 31)]
    lines[2] = chat("What is the key?", f"It is {SECRET}.")
    return upload(acme, lines, name="Questions")


def path(version, rest):
    return f"dataset-versions/{version.pk}/{rest}"


def indices(answer):
    return [item["index"] for item in answer.json()["items"]]


def test_rows_are_filtered_and_paged(acme, version):
    get = acme.api.get
    assert indices(get(path(version, "rows?finding=secret"))) == [2]
    assert indices(get(path(version, "rows?q=question+17"))) == [16]
    first = get(path(version, "rows?limit=20"))
    assert indices(first) == list(range(20))
    last = get(first.json()["next"])
    assert (indices(last), last.json()["next"]) == (list(range(20, 30)), None)
    assert get(path(version, "rows?finding=nothing")).status_code == 422
    assert acme.api.post(path(version, "marks"), {"rows": [4, 5], "mark": "look"}).json() == {"rows": 2}
    assert indices(get(path(version, "rows?mark=look"))) == [4, 5]
    acme.api.post(path(version, "marks"), {"rows": [4], "mark": "look", "on": False})
    assert indices(get(path(version, "rows?mark=look&q=answer"))) == [5]


def test_a_revision_is_made_compared_and_taken_back(acme, version):
    before = AuditRecord.objects.count()
    body = {
        "note": "Cleaner",
        "edited": {"3": chat("Better?", "Yes.")},
        "dropped": [0],
        "added": [chat("New?", "Yes.")],
        "rules": [{"finding": "secret", "do": "fix"}],
    }
    answer = acme.api.post(path(version, "revisions"), body)
    assert answer.status_code == 202
    assert AuditRecord.objects.count() == before + 1
    told = answer.json()
    assert (told["number"], told["status"], told["parent"], told["note"]) == (2, "importing", str(version.pk), "Cleaner")
    made = DatasetVersion.objects.get(pk=told["id"])
    work_off(made.order)
    told = acme.api.get(f"dataset-versions/{made.pk}").json()
    assert (told["status"], told["rows"], told["changes"]) == ("ready", 30, {"added": 1, "changed": 2, "dropped": 1})
    changed = acme.api.get(path(made, "changes?limit=1")).json()
    assert changed["items"][0]["was"] == 2
    assert SECRET in str(changed["items"][0]["before"])
    assert SECRET not in str(changed["items"][0]["row"])
    assert acme.api.get(changed["next"]).json()["items"][0]["row"] == chat("Better?", "Yes.")
    dropped = acme.api.get(path(made, "changes?kind=dropped")).json()["items"]
    assert dropped == [{"before": chat("Question 1?", "Answer 1."), "was": 0}]
    assert indices(acme.api.get(path(made, "changes?kind=added"))) == [29]
    assert indices(acme.api.get(path(made, "rows?change=changed"))) == [1, 2]
    answer = acme.api.post(path(version, "restore"), {"note": "Back"})
    assert answer.status_code == 202
    back = DatasetVersion.objects.get(pk=answer.json()["id"])
    work_off(back.order)
    assert acme.api.get(f"dataset-versions/{back.pk}").json()["sha256"] == version.sha256


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"edited": {"3": chat("Why?", " ")}}, {"edited.3": "The assistant message is empty, there is nothing to learn."}),
        ({"added": [{"text": "x"}]}, {"added.0": "Text does not belong to a row of this dataset. Use messages."}),
        ({"dropped": [30]}, {"dropped": "There is no row 30. The last one is 29."}),
        ({"rules": [{"finding": "duplicate", "do": "fix"}]}, {"do": "Use drop."}),
        ({}, {}),
    ],
)
def test_what_cannot_be_changed_is_refused_with_its_field(acme, version, body, fields):
    answer = acme.api.post(path(version, "revisions"), body)
    assert answer.status_code in (400, 422)
    assert answer.json()["error"]["fields"] == fields
    assert version.dataset.versions.count() == 1


def test_a_viewer_reads_what_changed_and_changes_nothing(acme, version):
    viewer = Api(make_key(make_member(acme.workspace, role="viewer", email="vic@example.com")))
    assert viewer.get(path(version, "changes")).json() == {"items": [], "next": None}
    for rest, body in (("revisions", {"dropped": [1]}), ("restore", {}), ("marks", {"rows": [1]})):
        assert viewer.post(path(version, rest), body).status_code == 404
