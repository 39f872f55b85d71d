"""Files to take home: whole, in ranges, as a zip; and never one that was not verified."""

import hashlib
import io
import shutil
import subprocess
import zipfile

import pytest
from asgiref.sync import async_to_sync
from django.test import AsyncClient

from studio.artifacts import downloads
from studio.artifacts.models import Build
from tests.fixtures import make_artifact, make_build, make_order

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


def test_several_types_are_asked_for_in_one_order(acme):
    asked = {"artifact": str(acme.artifact.pk), "quantizations": ["q8_0", "q6_k", "q4_k_m"], "importance": True}
    answer = acme.api.post("builds", asked)
    assert answer.status_code == 201, answer.content
    builds = answer.json()["builds"]
    assert [(build["quantization"], build["importance"]) for build in builds] == [("q8_0", False), ("q6_k", True), ("q4_k_m", True)]
    assert builds[0]["id"] == str(acme.build.pk)
    assert builds[1]["order"] == builds[2]["order"]
    assert acme.api.post("builds", asked).json()["builds"] == builds


def test_a_base_model_is_built_as_it_is(acme):
    build = acme.api.post("builds", {"base_model": str(acme.base.pk), "quantization": "f16"}).json()
    assert (build["source"], build["base_model"], build["project"]) == (None, str(acme.base.pk), str(acme.project.pk))
    named = {"base_model": str(acme.base.pk), "project": str(acme.project.pk), "quantization": "f16"}
    assert acme.api.post("builds", named).json()["id"] == build["id"]
    assert [row["id"] for row in acme.api.get(f"builds?base_model={acme.base.pk}").json()["items"]] == [build["id"]]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"artifact": None}, "artifact"),
        ({"base_model": "BASE"}, "artifact"),
        ({"quantization": None}, "quantization"),
        ({"quantizations": ["f16"]}, "quantization"),
        ({"quantization": None, "quantizations": []}, "quantizations"),
        ({"quantization": None, "quantizations": ["f16"] * 21}, "quantizations"),
        ({"project": "PROJECT"}, "project"),
        ({"kind": "exe"}, "kind"),
        ({"kind": "merged", "quantization": "q4_k_m"}, "quantization"),
        ({"importance": True}, "importance"),
        ({"importance": "perhaps"}, "importance"),
        ({"threads": 9}, "threads"),
    ],
)
def test_a_build_that_is_not_clear_is_refused_beside_its_field(acme, change, field):
    ids = {"BASE": str(acme.base.pk), "PROJECT": str(acme.project.pk)}
    body = {"artifact": str(acme.artifact.pk), "quantization": "q8_0"} | change
    body = {name: ids.get(value, value) if isinstance(value, str) else value for name, value in body.items() if value is not None}
    answer = acme.api.post("builds", body)
    assert answer.status_code in (400, 422), answer.content
    assert field in answer.json()["error"]["fields"]
    assert Build.objects.count() == 1


def test_builds_are_listed_by_what_they_are(acme):
    adapter = make_build(acme.owner, acme.artifact, kind="gguf_adapter", quantization="f16")
    everything = acme.api.get("builds").json()["items"]
    assert [build["id"] for build in everything] == [str(adapter.pk), str(acme.build.pk)]
    for query, found in (("kind=gguf_adapter", 1), (f"artifact={acme.artifact.pk}", 2), (f"project={acme.project.pk}&kind=merged", 0)):
        assert len(acme.api.get(f"builds?{query}").json()["items"]) == found


def test_a_build_is_stopped_tried_again_and_deleted(acme):
    build = acme.api.post("builds", {"artifact": str(acme.artifact.pk), "quantization": "q6_k"}).json()
    path = f"builds/{build['id']}"
    assert acme.api.delete(path).status_code == 400
    assert acme.api.post(f"{path}/stop").json()["status"] == "stopped"
    assert acme.api.post(f"{path}/retry").json()["status"] == "queued"
    assert acme.api.post(f"{path}/stop").json()["status"] == "stopped"
    assert acme.api.delete(path).status_code == 204
    assert acme.api.get(path).status_code == 404
    assert acme.api.delete(f"builds/{acme.build.pk}").json()["error"]["message"].startswith("This build has passed")


def test_the_ladder_names_the_file_to_take(acme):
    make_build(acme.owner, acme.artifact, quantization="f16", content=b"GGUF" * 9, perplexity=7.0, perplexity_reference=7.0)
    steps = acme.api.get(f"artifacts/{acme.artifact.pk}/ladder").json()["rungs"]
    assert [(step["quantization"], step["size"], step["recommended"]) for step in steps] == [("f16", 36, False), ("q8_0", 4, True)]
    assert (steps[1]["build"], steps[1]["artifact"]) == (str(acme.build.pk), str(acme.build.artifact.pk))
    assert steps[1]["reason"].startswith("The smallest file whose answers are hard to tell")
    assert steps[1]["devices"][0] == "a phone with 6 GB"
    assert "wins" not in steps[0]
    assert acme.api.get(f"base-models/{acme.base.pk}/ladder").json() == {"rungs": []}


def test_what_can_be_built_is_told_with_its_size(acme):
    types = acme.api.get(f"artifacts/{acme.artifact.pk}/build-types").json()["types"]
    by = {(entry["kind"], entry["quantization"]): entry for entry in types}
    assert by["gguf", "f16"]["size"] > by["gguf", "q8_0"]["size"] > by["gguf", "q4_k_m"]["size"] > 0
    assert [entry["quantization"] for entry in types if entry["recommended"]] == ["q8_0", "f16", "f32"]
    assert (by["merged", "f32"]["size"], by["gguf_adapter", "f16"]["size"]) == (400_000, None)
    assert (by["gguf", "q4_k_m"]["importance"], by["gguf", "q8_0"]["importance"]) == (True, False)
    assert {entry["kind"] for entry in acme.api.get(f"base-models/{acme.base.pk}/build-types").json()["types"]} == {"gguf"}
    assert acme.api.get(f"artifacts/{acme.build.artifact.pk}/build-types").status_code == 400


def test_a_bundle_is_the_file_with_all_that_lies_beside_it(acme, tmp_path):
    response, body = fetch(acme, f"{acme.build.artifact.pk}/bundle", Range="bytes=0-1")
    assert (response.status_code, response["Accept-Ranges"]) == (200, "none")
    assert response["Content-Disposition"] == 'attachment; filename="in-house-first-project-try-q8-0.zip"'
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path)
    folder = tmp_path / "in-house-first-project-try-q8-0"
    file = "in-house-first-project-try-q8_0.gguf"
    assert sorted(path.name for path in folder.iterdir()) == ["Modelfile", "README.md", "SHA256SUMS", file]
    assert (folder / file).read_bytes() == b"GGUF"
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    assert fetch(acme, f"{acme.build.artifact.pk}/bundle")[1] == body
    assert fetch(acme, f"{acme.build.artifact.pk}/bundle", method="head")[1] == b""


def test_sums_hold_for_names_with_signs_of_their_own(acme, tmp_path):
    order = make_order(acme.owner, kind="train", client=acme.client)
    files = {"a\\b": b"1", "c\nd": b"2", "e f": b"3"}
    odd = make_artifact(order, acme.project, files, kind="rehearsal")
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "SHA256SUMS").write_text(downloads.sums(odd))
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(("kind", "name"), [("gguf_adapter", "f16"), ("merged", "bf16")])
def test_adapters_and_merged_weights_need_a_proof_too(acme, kind, name):
    odd = make_build(acme.owner, acme.artifact, kind=kind, quantization=name, passed=False).artifact
    for path in ("download", "bundle", "files/README.md"):
        assert acme.api.get(f"artifacts/{odd.pk}/{path}").json()["error"]["code"] == "not_verified"
    proved = make_build(acme.owner, acme.artifact, kind=kind, quantization=name).artifact
    response, _ = fetch(acme, f"{proved.pk}/download")
    assert response.status_code == 200
    assert response["Content-Disposition"].endswith('.gguf"' if kind == "gguf_adapter" else '.zip"')


def test_a_mistake_of_the_studio_answers_in_json_and_tells_nothing(acme):
    shutil.rmtree(acme.artifact.folder)
    acme.api.browser.raise_request_exception = False
    answer = acme.api.get(f"artifacts/{acme.artifact.pk}/{FILE}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "bug")
    assert str(acme.artifact.folder) not in answer.content.decode()
