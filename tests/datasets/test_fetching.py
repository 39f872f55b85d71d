"""A file of examples is fetched from a hub or a store: pinned, safe formats only, going on after a break, from public addresses only."""

import hashlib
import hmac
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from django.test import Client as Browser
from django.urls import reverse

from studio import outgoing
from studio.audit.models import AuditRecord
from studio.datasets import elsewhere, fetching
from studio.datasets.models import Connection, DatasetVersion, Upload
from studio.errors import UserError
from studio.training.job import Stopped
from studio.workspaces.secrets import sealed
from tests.datasets.conftest import QuietJob
from tests.fixtures import work_off

COMMIT = "a" * 40
KEY_ID, SECRET = "AKIASTUDIO", "not/a+real/secret"


def pairs(*numbers: int) -> bytes:
    return "".join(json.dumps({"question": f"What is {n} + 1?", "answer": str(n + 1)}) + "\n" for n in numbers).encode()


class Files:
    """An HTTP server with files that answers ranges, and breaks off as often as it is told to."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.breaks = 0
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server.server_address[1]}"

    def refusal(self, request: BaseHTTPRequestHandler) -> tuple[int, dict[str, str]] | None:
        return None

    def found(self, path: str) -> bytes | str | None:
        """The content; a string is an address to go to."""
        return self.files.get(unquote(urlsplit(path).path).lstrip("/"))

    def handler(self) -> type[BaseHTTPRequestHandler]:
        files = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                files.asked.append((self.command, self.path, dict(self.headers.items())))
                if refused := files.refusal(self):
                    return self.answer(refused[0], b"", refused[1])
                content = files.found(self.path)
                if content is None:
                    return self.answer(404, b"", {})
                if isinstance(content, str):
                    return self.answer(302, b"", {"Location": content})
                etag = f'"{hashlib.md5(content).hexdigest()}"'
                if self.headers.get("If-Match", etag) != etag:
                    return self.answer(412, b"", {})
                start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, 0])[1])
                headers = {"ETag": etag}
                if "Range" in self.headers:
                    headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
                self.answer(206 if "Range" in self.headers else 200, content[start:], headers)

            def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(content))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "HEAD":
                    return
                if files.breaks and status < 300 and len(content) > 1000:
                    files.breaks -= 1
                    self.wfile.write(content[: len(content) // 2])
                    self.wfile.flush()
                    self.close_connection = True
                    return self.connection.shutdown(2)
                self.wfile.write(content)

            def log_message(self, *_: object) -> None: ...

        return Handler


class Hub(Files):
    """Speaks the part of a hub's HTTP that a dataset needs."""

    code = ""
    token = ""

    def put(self, name: str, content: bytes) -> None:
        self.files[f"datasets/acme/support/resolve/{COMMIT}/{name}"] = content

    def refusal(self, request: BaseHTTPRequestHandler) -> tuple[int, dict[str, str]] | None:
        if self.code:
            return 403 if self.code == "GatedRepo" else 404, {"X-Error-Code": self.code}
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return 401, {"X-Error-Code": "RepoNotFound"}
        return None

    def found(self, path: str) -> bytes | str | None:
        if urlsplit(path).path.startswith("/api/datasets/acme/support/revision/"):
            prefix = f"datasets/acme/support/resolve/{COMMIT}/"
            siblings = [
                {"rfilename": name.removeprefix(prefix), "size": len(content), "lfs": {"sha256": hashlib.sha256(content).hexdigest()}}
                for name, content in self.files.items()
            ]
            return json.dumps(
                {"id": "acme/support", "sha": COMMIT, "siblings": siblings, "tags": ["license:cc-by-4.0", 7, "license:<b>"]}
            ).encode()
        return super().found(path)


class Store(Files):
    """Speaks S3's HTTP and looks whether an address was signed with the right secret."""

    def refusal(self, request: BaseHTTPRequestHandler) -> tuple[int, dict[str, str]] | None:
        parts = urlsplit(request.path)
        told = dict(parse_qsl(parts.query))
        signature = told.pop("X-Amz-Signature", "")
        day, region = told.get("X-Amz-Credential", "///").split("/")[1:3]
        query = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in sorted(told.items()))
        canonical = "\n".join([request.command, parts.path, query, f"host:{request.headers['Host']}", "", "host", "UNSIGNED-PAYLOAD"])
        scope = f"{day}/{region}/s3/aws4_request"
        text = "\n".join(["AWS4-HMAC-SHA256", told.get("X-Amz-Date", ""), scope, hashlib.sha256(canonical.encode()).hexdigest()])
        key = f"AWS4{SECRET}".encode()
        for part in (day, region, "s3", "aws4_request"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        right = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
        return None if hmac.compare_digest(right, signature) else (403, {})


@pytest.fixture
def hub(settings: Any) -> Iterator[Hub]:
    server = Hub()
    settings.HUB_URL = f"http://{server.host}"
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def store(settings: Any) -> Iterator[Store]:
    server = Store()
    settings.PRIVATE_HOSTS = [server.host]
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def bucket(acme, store) -> Connection:
    told = {"bucket": "clients", "region": "eu-central-1", "url": f"http://{store.host}", "key_id": KEY_ID}
    return Connection.objects.create(workspace=acme.workspace, kind="s3", name="Exports", settings=told, secret=sealed(SECRET))


@pytest.fixture
def ana(acme) -> Browser:
    browser = Browser()
    browser.force_login(acme.owner.user)
    return browser


def look(browser: Browser, acme: Any, **query: str) -> str:
    return browser.get(reverse("datasets:new"), {"project": acme.project.pk, "from": "hub", **query}).content.decode()


def fetch(browser: Browser, acme: Any, **chosen: str) -> Any:
    return browser.post(reverse("datasets:fetch"), {"project": acme.project.pk, **chosen})


# ── A hub ──


def test_only_files_of_rows_are_offered_and_the_revision_is_pinned(acme, ana, hub):
    for name in (
        "train.jsonl",
        "data/test.csv",
        "support.py",
        "weights.pkl",
        "model.safetensors",
        "README.md",
        "rows.pt",
        ".gitattributes",
    ):
        hub.put(name, pairs(1))
    text = look(ana, acme, repository="acme/support", revision="main")
    assert "train.jsonl" in text and "data/test.csv" in text and COMMIT in text
    assert not [name for name in ("support.py", "weights.pkl", "model.safetensors", "README.md", "rows.pt") if name in text]
    assert not Upload.objects.exists()


def test_a_file_of_a_hub_is_fetched_looked_at_and_imported(acme, ana, hub):
    content = pairs(*range(60_000))
    hub.put("train.jsonl", content)
    hub.breaks = 1
    answer = fetch(ana, acme, **{"from": "hub", "repository": "acme/support", "commit": COMMIT, "file": "train.jsonl"})
    upload = Upload.objects.get()
    assert answer.headers["Location"] == reverse("datasets:upload", args=[upload.pk])
    assert AuditRecord.objects.filter(verb="upload.create", object_id=str(upload.pk)).count() == 1
    assert "Waiting for a free worker" in ana.get(answer.headers["Location"]).content.decode()
    order = work_off(upload.order)
    assert (order.status, order.error) == ("succeeded", "")
    waiting = ana.get(answer.headers["Location"], headers={"HX-Request": "true"})
    assert waiting.headers["HX-Refresh"] == "true"  # then the page that waited shows the rows
    upload.refresh_from_db()
    assert (upload.path.read_bytes(), upload.sha256) == (content, hashlib.sha256(content).hexdigest())
    ranges = [headers["Range"] for method, path, headers in hub.asked if "/resolve/" in path]
    assert len(ranges) == 2 and ranges[0] == "bytes=0-" and ranges[1] != "bytes=0-"
    assert "What is 0 + 1?" in ana.get(answer.headers["Location"]).content.decode()
    ana.post(answer.headers["Location"])
    version = DatasetVersion.objects.get(dataset__name="train")
    assert {key: version.origin[key] for key in ("kind", "repository", "commit", "license")} == {
        "kind": "hub", "repository": "acme/support", "commit": COMMIT, "license": "cc-by-4.0",
    }  # fmt: skip
    work_off(version.order)
    version.refresh_from_db()
    assert version.facts["rows"] == 60_000


def test_the_parts_of_a_split_become_one_file(acme, hub):
    hub.put("data/train-00000-of-00002.jsonl", pairs(1, 2).rstrip(b"\n"))
    hub.put("data/train-00001-of-00002.jsonl", pairs(3))
    snapshot = elsewhere.look_at_hub("acme/support")
    assert [(offer.name, len(offer.files)) for offer in snapshot.offers] == [("data/train.jsonl", 2)]
    upload = elsewhere.fetch_from_hub(acme.owner, project=acme.project, snapshot=snapshot, name="data/train.jsonl")
    work_off(upload.order)
    upload.refresh_from_db()
    assert (upload.path.read_bytes(), upload.filename, upload.length) == (pairs(1, 2, 3), "train.jsonl", len(pairs(1, 2, 3)))


def test_parts_in_parquet_become_one_file(acme, hub, tmp_path):
    for number in range(2):
        pq.write_table(pa.table({"text": [f"row {number}"] * 3}), tmp_path / "part.parquet")
        hub.put(f"train-{number:05}-of-00002.parquet", (tmp_path / "part.parquet").read_bytes())
    snapshot = elsewhere.look_at_hub("acme/support")
    upload = elsewhere.fetch_from_hub(acme.owner, project=acme.project, snapshot=snapshot, name="train.parquet")
    work_off(upload.order)
    upload.refresh_from_db()
    assert pq.read_table(upload.path)["text"].to_pylist() == ["row 0"] * 3 + ["row 1"] * 3
    assert upload.is_complete


def test_a_private_dataset_takes_the_token_of_a_connection_and_shows_it_to_nobody(acme, ana, hub):
    hub.put("train.jsonl", pairs(1, 2))
    hub.token = "hf_verysecret"
    assert "it is private" in look(ana, acme, repository="acme/support")
    connection = Connection.objects.create(workspace=acme.workspace, kind="hub", name="Ours", secret=sealed("hf_verysecret"))
    assert "train.jsonl" in look(ana, acme, repository="acme/support", connection=str(connection.pk))
    chosen = {"from": "hub", "repository": "acme/support", "commit": COMMIT, "file": "train.jsonl", "connection": str(connection.pk)}
    fetch(ana, acme, **chosen)
    upload = Upload.objects.get()
    order = work_off(upload.order)
    assert order.status == "succeeded"
    written = b"".join(path.read_bytes() for path in order.folder.parent.rglob("*") if path.is_file())
    assert b"hf_verysecret" not in written
    assert "hf_verysecret" not in json.dumps(upload.origin)


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("GatedRepo", "acme/support is gated. Accept its terms on the hub"),
        ("RepoNotFound", "The hub has no dataset acme/support, or it is private."),
        ("RevisionNotFound", "acme/support has no such branch, tag or commit."),
    ],
)
def test_what_the_hub_refuses_is_put_into_words(acme, ana, hub, code, sentence):
    hub.code = code
    assert sentence in look(ana, acme, repository="acme/support")


@pytest.mark.parametrize("name", ["support", "acme/../../etc", "http://127.0.0.1/x", "acme/support?x=1", "-acme/support", "a" * 200 + "/b"])
def test_a_name_that_is_none_is_not_asked_for(acme, ana, hub, name):
    assert "Write it as owner/name" in look(ana, acme, repository=name)
    assert not hub.asked


def test_a_dataset_of_scripts_offers_nothing_and_says_why(acme, ana, hub):
    hub.put("support.py", b"import os")
    text = look(ana, acme, repository="acme/support")
    assert "holds no file of rows that is safe to read" in text and "loading script, which is never run" in text


def test_a_hub_that_is_away_says_so(acme, ana, settings):
    settings.HUB_URL = "http://127.0.0.1:9"
    assert "does not answer" in look(ana, acme, repository="acme/support")


def test_what_is_larger_than_an_upload_may_be_is_not_fetched(acme, ana, hub, settings):
    hub.put("train.jsonl", pairs(*range(100)))
    settings.MAX_UPLOAD = 1000
    answer = fetch(ana, acme, **{"from": "hub", "repository": "acme/support", "commit": COMMIT, "file": "train.jsonl"})
    assert (answer.status_code, "at most 1.0 kB are taken" in answer.content.decode()) == (422, True)
    assert not Upload.objects.exists()


def test_a_file_that_is_not_what_the_hub_announced_is_thrown_away(acme, hub, monkeypatch):
    hub.put("train.jsonl", pairs(1, 2))
    snapshot = elsewhere.look_at_hub("acme/support")
    upload = elsewhere.fetch_from_hub(acme.owner, project=acme.project, snapshot=snapshot, name="train.jsonl")
    hub.put("train.jsonl", pairs(3, 4))
    order = work_off(upload.order)
    assert "its SHA-256 differs" in order.error
    upload.refresh_from_db()
    assert not upload.is_complete


def test_discarding_ends_what_fetches(acme, ana, hub):
    hub.put("train.jsonl", pairs(1, 2))
    fetch(ana, acme, **{"from": "hub", "repository": "acme/support", "commit": COMMIT, "file": "train.jsonl"})
    upload = Upload.objects.get()
    order = upload.order
    assert ana.post(reverse("datasets:upload_discard", args=[upload.pk])).status_code == 302
    order.refresh_from_db()
    assert order.status == "stopped"
    assert not Upload.objects.exists() and not upload.path.exists()


def test_a_stop_is_heeded_while_it_fetches(hub, tmp_path):
    hub.put("train.jsonl", pairs(*range(2000)))
    job = QuietJob(tmp_path / "attempt")
    job.stop_asked = True
    url = f"http://{hub.host}/datasets/acme/support/resolve/{COMMIT}/train.jsonl"
    remote = {"url": url, "size": len(pairs(*range(2000)))}
    payload = {"name": "x", "place": "The hub", "files": [remote], "target": str(tmp_path / "x"), "private": [hub.host]}
    with pytest.raises(Stopped):
        fetching.run(payload, job)


# ── A store ──


def test_an_object_of_a_store_is_fetched(acme, ana, store, bucket):
    content = pairs(*range(500))
    store.files["clients/exports/support rows.jsonl"] = content
    store.breaks = 1
    answer = fetch(ana, acme, **{"from": "object", "connection": str(bucket.pk), "key": "s3://clients/exports/support rows.jsonl"})
    upload = Upload.objects.get()
    assert answer.headers["Location"] == reverse("datasets:upload", args=[upload.pk])
    assert (upload.filename, upload.length) == ("support rows.jsonl", len(content))
    order = work_off(upload.order)
    assert (order.status, order.error) == ("succeeded", "")
    upload.refresh_from_db()
    assert upload.path.read_bytes() == content
    told = b"".join(path.read_bytes() for path in order.folder.parent.rglob("*") if path.is_file())
    assert SECRET.encode() not in told


def test_an_object_that_changes_while_it_is_fetched_is_not_mixed(acme, store, bucket):
    store.files["clients/a.jsonl"] = pairs(*range(500))
    upload = elsewhere.fetch_object(acme.owner, project=acme.project, connection=bucket, key="a.jsonl")
    store.files["clients/a.jsonl"] = pairs(*range(500, 1000))
    assert "was changed while it was fetched" in work_off(upload.order).error


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("nothing.jsonl", "Exports has no nothing.jsonl (404)."),
        ("s3://others/a.jsonl", "This connection is of the bucket clients, not of others."),
        ("../others/a.jsonl", "Write the object&#x27;s name as it stands in the bucket"),
        ("model.pkl", "JSONL, JSON, CSV, Parquet, Arrow, Excel and text are read."),
        ("", "Write the object&#x27;s name"),
    ],
)
def test_an_object_that_cannot_be_fetched_says_why(acme, ana, store, bucket, key, sentence):
    answer = fetch(ana, acme, **{"from": "object", "connection": str(bucket.pk), "key": key})
    assert (answer.status_code, sentence in answer.content.decode()) == (422, True), answer.content.decode()
    assert not Upload.objects.exists()


def test_a_wrong_secret_is_told(acme, ana, store, bucket):
    store.files["clients/a.jsonl"] = pairs(1)
    Connection.objects.update(secret=sealed("another"))
    answer = fetch(ana, acme, **{"from": "object", "connection": str(bucket.pk), "key": "a.jsonl"})
    assert "Exports refuses the key (403)" in answer.content.decode()


def test_a_store_without_a_key_never_takes_the_machine_s_own(acme, ana, store, bucket, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIASERVER")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "theserversown")
    Connection.objects.update(secret="")
    answer = fetch(ana, acme, **{"from": "object", "connection": str(bucket.pk), "key": "a.jsonl"})
    assert "it has no key" in answer.content.decode()
    assert not store.asked


def test_another_workspace_s_store_is_none(acme, ana, rival, store, bucket):
    Connection.objects.update(workspace=rival.workspace)
    assert fetch(ana, acme, **{"from": "object", "connection": str(bucket.pk), "key": "a.jsonl"}).status_code == 404


def test_google_s_files_are_signed_for_with_its_keys(acme):
    told = {"bucket": "clients", "key_id": "GOOG1E"}
    connection = Connection.objects.create(workspace=acme.workspace, kind="gcs", name="Google", settings=told, secret=sealed("secret"))
    address = urlsplit(elsewhere.signed(connection, "GET", "a.jsonl"))
    assert (address.scheme, address.netloc, address.path) == ("https", "storage.googleapis.com", "/clients/a.jsonl")
    assert "X-Amz-Signature" in address.query
    Connection.objects.update(secret=sealed('{"type": "service_account", "private_key": "none"}'))
    connection.refresh_from_db()
    with pytest.raises(UserError, match="Google cannot be used"):
        elsewhere.signed(connection, "GET", "a.jsonl")


def test_a_script_has_files_fetched(acme, hub, store, bucket):
    hub.put("a.jsonl", pairs(1))
    hub.put("b.jsonl", pairs(2))
    wanted = {"project": str(acme.project.pk), "repository": "acme/support"}
    many = acme.api.post("uploads/fetch", wanted)
    assert (many.status_code, many.json()["error"]["fields"]) == (422, {"file": "Use one of: a.jsonl, b.jsonl."})
    made = acme.api.post("uploads/fetch", wanted | {"file": "b.jsonl"}).json()
    assert (made["status"], made["origin"]["commit"]) == ("arriving", COMMIT)
    work_off(Upload.objects.get(pk=made["id"]).order)
    assert acme.api.get(f"uploads/{made['id']}").json()["status"] == "complete"
    store.files["clients/c.jsonl"] = pairs(3)
    made = acme.api.post("uploads/fetch", {"project": str(acme.project.pk), "connection": str(bucket.pk), "key": "c.jsonl"}).json()
    work_off(Upload.objects.get(pk=made["id"]).order)
    assert acme.api.get(f"uploads/{made['id']}/preview").json()["rows"][0]["messages"][1]["content"] == "4"


@pytest.mark.parametrize("secret", [SECRET, "another"])
def test_a_store_is_tried_before_anything_is_fetched(ana, store, bucket, secret):
    Connection.objects.update(secret=sealed(secret))
    text = ana.post(reverse("connections:try", args=[bucket.pk]), follow=True).content.decode()
    assert ("It answers, and opens the bucket." if secret == SECRET else "It refuses the key (403).") in text
    assert AuditRecord.objects.filter(verb="connection.try").count() == 1


@pytest.mark.parametrize("token", ["hf_right", "hf_wrong"])
def test_a_token_of_the_hub_is_tried(acme, ana, hub, token):
    hub.token = "hf_right"
    hub.files["api/whoami-v2"] = b'{"name": "acme"}'
    connection = Connection.objects.create(workspace=acme.workspace, kind="hub", name="Ours", secret=sealed(token))
    text = ana.post(reverse("connections:try", args=[connection.pk]), follow=True).content.decode()
    assert ("It takes the token." if token == "hf_right" else "It refuses the token (401).") in text


# ── Addresses ──


def test_a_private_address_is_not_asked(acme, ana, store, bucket, settings):
    settings.PRIVATE_HOSTS = []
    answer = fetch(ana, acme, **{"from": "object", "connection": str(bucket.pk), "key": "a.jsonl"})
    assert "127.0.0.1 is not a public address." in answer.content.decode()
    assert not store.asked


def test_nobody_is_sent_on_to_a_private_address(store):
    inside = Files()
    inside.files["secret"] = b"the cloud's own"
    store.refusal = lambda request: None  # type: ignore[method-assign]
    store.found = lambda path: f"http://{inside.host}/secret"  # type: ignore[method-assign]
    with outgoing.client(private=[store.host]) as client, pytest.raises(UserError, match="is not a public address"):
        client.get(f"http://{store.host}/a.jsonl")
    assert not inside.asked
    inside.server.shutdown()
    inside.server.server_close()


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "10.0.0.1", "169.254.169.254", "[::1]", "[fd00::1]", "0.0.0.0", "[::ffff:127.0.0.1]"]
)
def test_addresses_inside_are_refused_whatever_they_are_called(host):
    with outgoing.client(private=[]) as client, pytest.raises(UserError, match="is not a public address"):
        client.get(f"https://{host}/")


def test_a_name_is_looked_up_once_and_asked_at_that_address(monkeypatch):
    import socket

    asked: list[httpx.Request] = []
    found = [
        [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 443))],
        [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 443))],
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found.pop(0))  # the name changes its mind
    door = outgoing.PublicOnly([])
    door.inner = httpx.MockTransport(lambda request: asked.append(request) or httpx.Response(200))  # type: ignore[assignment, func-returns-value]
    with httpx.Client(transport=door) as client:
        client.get("https://files.example/a.jsonl")
    assert (asked[0].url.host, asked[0].headers["Host"], asked[0].extensions["sni_hostname"]) == (
        "93.184.216.34", "files.example", "files.example",
    )  # fmt: skip


def test_the_page_without_a_store_says_who_can_connect_one(acme, ana):
    text = ana.get(reverse("datasets:new"), {"project": acme.project.pk, "from": "object"}).content.decode()
    assert "No store is connected" in text
