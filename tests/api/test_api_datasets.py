"""A file becomes a dataset version through the API: uploaded, read by a real worker process, shown row by row."""

import hashlib
import json

import pytest

from studio.datasets.models import Dataset, DatasetVersion
from tests.fixtures import Api, work_off

GOOD = [{"instruction": f"What is {n} plus {n}?", "output": f"{n} plus {n} is {2 * n}."} for n in range(20)]


def jsonl(rows):
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def upload(acme, content, **fields):
    dataset = acme.api.post("datasets", {"project": str(acme.project.pk), "name": f"Sums {Dataset.objects.count()}"})
    assert dataset.status_code == 201, dataset.content
    return acme.api.upload(f"datasets/{dataset.json()['id']}/versions", content, **fields)


def imported(acme, content, **fields):
    answer = upload(acme, content, **fields)
    assert answer.status_code == 202, answer.content
    work_off(DatasetVersion.objects.get(pk=answer.json()["id"]).order)
    return acme.api.get(f"dataset-versions/{answer.json()['id']}").json()


def test_a_file_is_uploaded_and_read(acme):
    content = jsonl(GOOD)
    answer = upload(acme, content, name="sums.jsonl", validation_percent="10", seed="3")
    assert answer.status_code == 202
    coming = answer.json()
    assert (coming["status"], coming["rows"], coming["filename"], coming["number"]) == ("importing", None, "sums.jsonl", 1)
    assert coming["file_sha256"] == hashlib.sha256(content).hexdigest()
    assert acme.api.get(f"dataset-versions/{coming['id']}/rows").json() == {"items": [], "next": None}

    work_off(DatasetVersion.objects.get(pk=coming["id"]).order)

    version = acme.api.get(f"dataset-versions/{coming['id']}").json()
    assert (version["status"], version["shape"], version["rows"], version["refused"]) == ("ready", "chat", 20, 0)
    assert version["split"]["train"] + version["split"]["validation"] == 20
    assert len(version["sha256"]) == 64
    assert version["tokens"] is None  # they are counted by another order, once there is a base model
    assert acme.api.get(f"datasets/{version['dataset']}/versions").json()["items"] == [version]


def test_rows_are_read_page_by_page_and_by_split(acme):
    version = imported(acme, jsonl(GOOD), validation_percent="20")
    path = f"dataset-versions/{version['id']}/rows"
    page, seen = acme.api.get(f"{path}?limit=7").json(), []
    while True:
        seen += page["items"]
        if page["next"] is None:
            break
        page = acme.api.get(page["next"]).json()
    assert [row["index"] for row in seen] == list(range(20))
    assert seen[0]["row"]["messages"][-1] == {"role": "assistant", "content": "0 plus 0 is 0."}
    for split in ("train", "validation"):
        assert len(acme.api.get(f"{path}?split={split}").json()["items"]) == version["split"][split]
    assert list(acme.api.get(f"{path}?split=test").json()["error"]["fields"]) == ["split"]


def test_lines_that_cannot_be_rows_are_told_one_by_one(acme):
    bad = [{"instruction": "And this?"}, {"instruction": "", "output": "x"}]
    version = imported(acme, jsonl(GOOD) + b"{broken\n" + jsonl(bad))
    assert (version["status"], version["rows"], version["refused"]) == ("ready", 20, 3)
    assert {"level": "warning", "message": "3 rows were refused and left out."} in version["issues"]
    path = f"dataset-versions/{version['id']}/refusals"
    refusals = acme.api.get(path).json()["items"]
    assert [refusal["line"] for refusal in refusals] == [21, 22, 23]
    assert all(set(refusal) == {"line", "column", "reason", "excerpt"} for refusal in refusals)
    page = acme.api.get(f"{path}?limit=2").json()
    assert page["items"] == refusals[:2]
    assert acme.api.get(page["next"]).json() == {"items": refusals[2:], "next": None}


def test_columns_can_be_named(acme):
    rows = [{"a": f"Question {n}", "b": f"Answer {n}"} for n in range(12)]
    version = imported(acme, jsonl(rows), mapping='{"prompt": "a", "answer": "b"}')
    assert (version["status"], version["rows"], version["mapping"]) == ("ready", 12, {"prompt": "a", "answer": "b"})


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"{}\n", b'{"instruction": "no answer"}\n'])
def test_a_file_without_rows_is_refused_with_its_reason(acme, content):
    version = imported(acme, content)
    assert (version["status"], version["rows"]) == ("refused", None)
    assert version["issues"][0]["level"] == "error"
    assert version["issues"][0]["message"].endswith(".")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"validation_percent": "60"}, "validation_percent"),
        ({"validation_percent": "nan"}, "validation_percent"),
        ({"validation_percent": "x"}, "validation_percent"),
        ({"seed": "-1"}, "seed"),
        ({"seed": "1.5"}, "seed"),
        ({"mapping": "prompt"}, "mapping"),
        ({"mapping": '{"prompt": 3}'}, "mapping.prompt"),
        ({"shape": "chat"}, "shape"),
    ],
)
def test_what_cannot_be_asked_of_an_upload_is_refused_beside_its_field(acme, fields, field):
    answer = upload(acme, jsonl(GOOD), **fields)
    assert answer.status_code == 422, answer.content
    assert list(answer.json()["error"]["fields"]) == [field]


def test_an_upload_needs_one_file_that_is_not_too_large(acme, settings):
    path = f"/api/v1/datasets/{acme.version.dataset_id}/versions"
    missing = acme.api.browser.post(path, {"seed": "1"}, headers=acme.api.headers)
    assert (missing.status_code, missing.json()["error"]["fields"]) == (422, {"file": "This is needed."})
    no_form = acme.api.post(path, {"file": "rows"})
    assert no_form.status_code == 422
    settings.MAX_UPLOAD = 1000
    large = acme.api.upload(path.removeprefix("/api/v1/"), b"x" * 1001)
    assert list(large.json()["error"]["fields"]) == ["file"]


def test_the_same_file_again_is_the_same_version(acme):
    first = upload(acme, jsonl(GOOD)).json()
    path = f"datasets/{first['dataset']}/versions"
    assert acme.api.upload(path, jsonl(GOOD)).json()["id"] == first["id"]
    assert acme.api.upload(path, jsonl(GOOD), seed="5").json()["number"] == 2


def test_datasets_are_named_once_per_project(acme):
    made = acme.api.post("datasets", {"project": str(acme.project.pk), "name": "Letters"}).json()
    refused = acme.api.post("datasets", {"project": str(acme.project.pk), "name": "Letters"})
    assert (refused.status_code, list(refused.json()["error"]["fields"])) == (422, ["name"])
    assert acme.api.patch(f"datasets/{made['id']}", {"name": "Replies"}).status_code == 422
    assert acme.api.patch(f"datasets/{made['id']}", {"name": "Post"}).json()["name"] == "Post"
    assert [row["name"] for row in acme.api.get(f"datasets?project={acme.project.pk}").json()["items"]] == ["Post", "Replies"]


def test_no_key_no_upload(acme):
    path = f"datasets/{acme.version.dataset_id}/versions"
    assert Api(None).upload(path, jsonl(GOOD)).status_code == 401
    assert DatasetVersion.objects.count() == 1
