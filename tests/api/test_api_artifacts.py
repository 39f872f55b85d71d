"""Files to take home: whole, in ranges, as a zip; and never one that was not verified."""

import hashlib
import io
import shutil
import zipfile

import pytest
from asgiref.sync import async_to_sync
from django.test import AsyncClient

from tests.fixtures import make_build

CONTENT = bytes(range(256)) * 16
FILE = "files/adapter_model.safetensors"


def fetch(world, path, *, method="get", **headers):
    """(response, body) through the asynchronous handler, as uvicorn calls it."""

    async def call():
        client = AsyncClient()
        sent = world.api.headers | {name.replace("_", "-"): value for name, value in headers.items()}
        response = await getattr(client, method)(f"/api/v1/artifacts/{path}", headers=sent)
        if not response.streaming:
            return response, response.content
        return response, b"".join([piece async for piece in response.streaming_content])

    return async_to_sync(call)()


def test_an_artifact_says_what_it_is_made_of(acme):
    artifact = acme.api.get(f"artifacts/{acme.artifact.pk}").json()
    assert (artifact["kind"], artifact["run"], artifact["parents"]) == ("adapter", str(acme.run.pk), [])
    assert {file["name"]: file["size"] for file in artifact["files"]} == {
        "adapter_config.json": 9,
        "adapter_model.safetensors": len(CONTENT),
    }
    assert artifact["files"][1]["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    gguf = acme.api.get(f"artifacts/{acme.build.artifact.pk}").json()
    assert (gguf["kind"], gguf["run"], gguf["parents"]) == ("gguf", str(acme.run.pk), [str(acme.artifact.pk)])
    assert [row["id"] for row in acme.api.get("artifacts?kind=gguf").json()["items"]] == [gguf["id"]]


def test_a_file_comes_whole_and_no_browser_opens_it_in_place(acme):
    response, body = fetch(acme, f"{acme.artifact.pk}/{FILE}")
    assert (response.status_code, body) == (200, CONTENT)
    assert response["Content-Length"] == str(len(CONTENT))
    assert response["Content-Disposition"] == 'attachment; filename="adapter_model.safetensors"'
    assert response["Content-Security-Policy"] == "sandbox; default-src 'none'"
    assert response["X-Content-Type-Options"] == "nosniff"
    assert response["Accept-Ranges"] == "bytes"
    assert response["ETag"] == f'"{hashlib.sha256(CONTENT).hexdigest()}"'


@pytest.mark.parametrize(
    ("wanted", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-199", 100, 200),
        ("bytes=4000-", 4000, 4096),
        ("bytes=4000-999999", 4000, 4096),
        ("bytes=-10", 4086, 4096),
        ("bytes=0-9999999", 0, 4096),
        ("bytes=-99999", 0, 4096),
    ],
)
def test_a_broken_download_goes_on_where_it_stopped(acme, wanted, start, end):
    response, body = fetch(acme, f"{acme.artifact.pk}/{FILE}", Range=wanted)
    assert body == CONTENT[start:end]
    assert response["Content-Length"] == str(end - start)
    if end - start < len(CONTENT):
        assert (response.status_code, response["Content-Range"]) == (206, f"bytes {start}-{end - 1}/4096")


@pytest.mark.parametrize("wanted", ["bytes=4096-", "bytes=9999-10000", "bytes=-0"])
def test_a_range_beyond_the_end_is_refused(acme, wanted):
    response, body = fetch(acme, f"{acme.artifact.pk}/{FILE}", Range=wanted)
    assert (response.status_code, response["Content-Range"], body) == (416, "bytes */4096", b"")


@pytest.mark.parametrize("wanted", ["bytes=5-2", "bytes=-", "bytes=0-1,5-6", "lines=0-3", "bytes=a-b", "bytes=" + "9" * 5000 + "-"])
def test_a_range_that_makes_no_sense_is_ignored(acme, wanted):
    response, body = fetch(acme, f"{acme.artifact.pk}/{FILE}", Range=wanted)
    assert (response.status_code, body) == (200, CONTENT)


def test_a_download_goes_on_only_if_the_file_is_the_same(acme):
    path = f"{acme.artifact.pk}/{FILE}"
    first, _ = fetch(acme, path)
    response, body = fetch(acme, path, Range="bytes=10-19", If_Range=first["ETag"])
    assert (response.status_code, body) == (206, CONTENT[10:20])
    response, body = fetch(acme, path, Range="bytes=10-19", If_Range=first["Last-Modified"])
    assert response.status_code == 206
    response, body = fetch(acme, path, Range="bytes=10-19", If_Range='"another"')
    assert (response.status_code, body) == (200, CONTENT)
    response, body = fetch(acme, path, If_None_Match=first["ETag"])
    assert (response.status_code, body) == (304, b"")
    assert fetch(acme, path, If_Match='"another"')[0].status_code == 412


def test_a_head_tells_the_size_without_the_file(acme):
    response, body = fetch(acme, f"{acme.artifact.pk}/{FILE}", method="head")
    assert (response.status_code, response["Content-Length"], body) == (200, "4096", b"")


def test_an_adapter_comes_as_one_zip(acme):
    response, body = fetch(acme, f"{acme.artifact.pk}/download")
    assert response["Content-Disposition"] == 'attachment; filename="in-house-first-project-try.zip"'
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        assert archive.testzip() is None
        folder = "in-house-first-project-try"
        assert archive.namelist() == [f"{folder}/{name}" for name in ("adapter_config.json", "adapter_model.safetensors", "SHA256SUMS")]
        assert archive.read(f"{folder}/adapter_model.safetensors") == CONTENT
    assert fetch(acme, f"{acme.artifact.pk}/download")[1] == body


def test_a_verified_gguf_comes_as_its_one_file(acme):
    response, body = fetch(acme, f"{acme.build.artifact.pk}/download", Range="bytes=1-2")
    assert (response.status_code, body) == (206, b"GU")
    assert response["Content-Disposition"] == 'attachment; filename="in-house-first-project-try-q8_0.gguf"'


def test_a_gguf_that_was_not_verified_stays_here(acme):
    build = make_build(acme.owner, acme.artifact, quantization="f16", passed=False)
    for path in ("download", "bundle", "files/README.md", "files/in-house-first-project-try-f16.gguf"):
        answer = acme.api.get(f"artifacts/{build.artifact.pk}/{path}")
        assert answer.status_code == 409
        assert answer.json()["error"]["code"] == "not_verified"
        assert answer.json()["error"]["message"].startswith("This file has not passed its verification")


@pytest.mark.parametrize(
    "name", ["manifest.json", "../../../secret_key", "%2e%2e/secret_key", "adapter_config.json/", "/etc/passwd", "nothing"]
)
def test_only_sealed_files_are_given_out(acme, name):
    assert acme.api.get(f"artifacts/{acme.artifact.pk}/files/{name}").status_code == 404


def test_a_build_is_asked_for_once_and_followed(acme):
    answer = acme.api.post("builds", {"artifact": str(acme.artifact.pk), "quantization": "q4_k_m"})
    assert answer.status_code == 201, answer.content
    build = acme.api.get(f"builds/{answer.json()['id']}").json()
    assert (build["status"], build["progress"], build["artifact"], build["verification"]) == ("queued", 0.0, None, None)
    assert build["source"] == str(acme.artifact.pk)
    assert acme.api.post("builds", {"artifact": str(acme.artifact.pk), "quantization": "q4_k_m"}).json()["id"] == build["id"]
    done = acme.api.get(f"builds/{acme.build.pk}").json()
    assert (done["status"], done["progress"], done["artifact"]) == ("succeeded", 1.0, str(acme.build.artifact.pk))
    assert done["verification"]["mean_kl"] == 0.001


def test_only_what_can_be_built_is_built(acme):
    refused = acme.api.post("builds", {"artifact": str(acme.artifact.pk), "quantization": "q9"}).json()["error"]
    assert list(refused["fields"]) == ["quantization"]
    gguf = acme.api.post("builds", {"artifact": str(acme.build.artifact.pk), "quantization": "q8_0"})
    assert (gguf.status_code, "built from an adapter" in gguf.json()["error"]["message"]) == (400, True)


def test_a_mistake_of_the_studio_answers_in_json_and_tells_nothing(acme):
    shutil.rmtree(acme.artifact.folder)
    acme.api.browser.raise_request_exception = False
    answer = acme.api.get(f"artifacts/{acme.artifact.pk}/{FILE}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "bug")
    assert str(acme.artifact.folder) not in answer.content.decode()
