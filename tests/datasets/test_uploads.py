"""A file arrives in pieces, goes on after a break, and is known again."""

import base64
import hashlib
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.test import Client as Browser
from django.urls import reverse
from django.utils import timezone

from studio.audit.models import AuditRecord
from studio.datasets import uploading
from studio.datasets.models import DatasetVersion, Upload
from tests.fixtures import Api, World, make_key, make_member, make_upload, work_off

ROWS = b'{"prompt": "Where is it?", "completion": "On its way."}\n' * 40
PIECE = "application/offset+octet-stream"


class Sender:
    """Speaks tus as a client does, in a browser's session or with a key."""

    def __init__(self, world: World, *, key: str = ""):
        self.browser = Browser(raise_request_exception=False)
        self.headers: dict[str, str] = {"Tus-Resumable": "1.0.0"}
        self.address = f"{reverse('uploads:create')}?project={world.project.pk}"
        self.told = {"filename": "support.jsonl"}
        if key:
            self.headers["Authorization"] = f"Bearer {key}"
            self.address = "/api/v1/uploads"
            self.told["project"] = str(world.project.pk)
        else:
            self.browser.force_login(world.owner.user)

    def begin(self, length: int | str = len(ROWS), **told: str) -> Any:
        pairs = ",".join(f"{name} {base64.b64encode(value.encode()).decode()}" for name, value in (self.told | told).items())
        headers = self.headers | {"Upload-Length": str(length), "Upload-Metadata": pairs}
        return self.browser.post(self.address, data=b"", content_type="text/plain", headers=headers)

    def send(self, place: str, content: bytes, *, offset: int, content_type: str = PIECE, **headers: str) -> Any:
        sent = self.headers | {"Upload-Offset": str(offset)} | {name.replace("_", "-"): value for name, value in headers.items()}
        return self.browser.patch(place, content, content_type=content_type, headers=sent)

    def ask(self, place: str) -> Any:
        return self.browser.head(place, headers=self.headers)

    def end(self, place: str) -> Any:
        return self.browser.delete(place, headers=self.headers)


@pytest.fixture(params=["session", "key"])
def sender(request, acme) -> Sender:
    return Sender(acme, key=make_key(acme.owner) if request.param == "key" else "")


def test_a_file_arrives_in_pieces_and_goes_on_after_a_break(sender):
    begun = sender.begin()
    assert (begun.status_code, begun.headers["Tus-Resumable"], begun.headers["Upload-Offset"]) == (201, "1.0.0", "0")
    place = begun.headers["Location"]
    assert sender.send(place, ROWS[:700], offset=0).status_code == 204
    asked = sender.ask(place)
    assert (asked.status_code, asked.headers["Upload-Offset"], asked.headers["Upload-Length"]) == (200, "700", str(len(ROWS)))
    assert "Upload-Expires" in asked.headers
    last = sender.send(place, ROWS[700:], offset=700)
    assert (last.status_code, last.headers["Upload-Offset"]) == (204, str(len(ROWS)))
    upload = Upload.objects.get()
    assert (upload.path.read_bytes(), upload.sha256, upload.filename) == (ROWS, hashlib.sha256(ROWS).hexdigest(), "support.jsonl")


def test_beginning_and_ending_is_on_record_and_a_piece_is_not(sender):
    place = sender.begin().headers["Location"]
    path = Upload.objects.get().path
    sender.send(place, ROWS[:10], offset=0)
    sender.ask(place)
    assert path.is_file()
    assert sender.end(place).status_code == 204
    verbs = list(AuditRecord.objects.filter(object_kind="upload").order_by("pk").values_list("verb", flat=True))
    assert verbs == ["upload.create", "upload.delete"]
    assert not Upload.objects.exists()
    assert sender.ask(place).status_code == 404


def test_a_piece_that_does_not_follow_is_refused_and_changes_nothing(sender):
    place = sender.begin().headers["Location"]
    sender.send(place, ROWS[:100], offset=0)
    wrong = sender.send(place, ROWS[:100], offset=0)
    assert (wrong.status_code, "100 bytes are here" in wrong.content.decode()) == (409, True)
    assert sender.send(place, ROWS, offset=100).status_code == 413
    assert sender.send(place, b"x", offset=100, content_type="text/plain").status_code == 415
    assert sender.send(place, b"x", offset=100, Tus_Resumable="0.2.2").status_code == 412
    assert sender.ask(place).headers["Upload-Offset"] == "100"


@pytest.mark.parametrize("number", ["", "-1", "seven", "٣", "1" * 30])
def test_a_length_or_an_offset_that_is_no_number_is_refused(sender, number):
    assert sender.begin(number).status_code == 400
    place = sender.begin().headers["Location"]
    assert sender.browser.patch(place, b"x", content_type=PIECE, headers=sender.headers | {"Upload-Offset": number}).status_code == 400


def test_a_damaged_piece_is_thrown_away(sender):
    place = sender.begin().headers["Location"]
    good = base64.b64encode(hashlib.sha256(ROWS[:50]).digest()).decode()
    assert sender.send(place, b"damaged", offset=0, Upload_Checksum=f"sha256 {good}").status_code == 460
    assert sender.ask(place).headers["Upload-Offset"] == "0"
    assert sender.send(place, ROWS[:50], offset=0, Upload_Checksum=f"sha256 {good}").status_code == 204
    assert sender.send(place, b"x", offset=50, Upload_Checksum="crc32 AAAA").status_code == 400
    assert sender.send(place, b"x", offset=50, Upload_Checksum="sha256 !").status_code == 400


def test_two_pieces_at_once_are_not_mixed(sender):
    place = sender.begin().headers["Location"]
    with uploading.locked(Upload.objects.get()):
        busy = sender.send(place, ROWS, offset=0)
    assert (busy.status_code, "just being written" in busy.content.decode()) == (423, True)
    assert sender.send(place, ROWS, offset=0).status_code == 204


def test_a_file_that_is_not_the_announced_one_is_thrown_away(sender):
    place = sender.begin(sha256=hashlib.sha256(b"another").hexdigest()).headers["Location"]
    path = Upload.objects.get().path
    refused = sender.send(place, ROWS, offset=0)
    assert (refused.status_code, "SHA-256 differs" in refused.content.decode()) == (460, True)
    assert not path.exists()
    assert not Upload.objects.exists()
    assert sender.begin(sha256="zz").status_code == 400


def test_a_file_cut_off_right_before_its_hash_is_completed_when_somebody_asks(sender):
    place = sender.begin().headers["Location"]
    upload = Upload.objects.get()
    upload.path.write_bytes(ROWS)  # as after a power cut: the bytes are there, the row does not know
    assert sender.ask(place).headers["Upload-Offset"] == str(len(ROWS))
    upload.refresh_from_db()
    assert upload.sha256 == hashlib.sha256(ROWS).hexdigest()


def test_what_there_is_no_room_for_is_refused_before_it_is_sent(sender, settings):
    settings.MAX_UPLOAD = 1000
    large = sender.begin(4100)
    assert (large.status_code, "The file has 4.1 kB; at most 1.0 kB are taken." in large.content.decode()) == (413, True)
    settings.MAX_UPLOAD = 1 << 60
    full = sender.begin(1 << 55)
    assert full.status_code == 413
    assert "Needs 36029 TB, " in full.content.decode() and " left." in full.content.decode()
    assert sender.begin(0).status_code == 400
    assert not Upload.objects.exists()


def test_what_others_have_announced_counts_as_taken(sender, acme, settings):
    settings.MAX_UPLOAD = 1 << 60
    free = shutil.disk_usage(settings.DATA_DIR).free - uploading.SPARE
    assert sender.begin(free * 2 // 3).status_code == 201
    assert sender.begin(free * 2 // 3).status_code == 413


@pytest.mark.parametrize("name", ["../../etc/passwd", "C:\\x\\..\\rows.jsonl", "a" * 300, "CON", "\u202egnp.jsonl", "🙂.jsonl", "", "a\0b"])
def test_a_name_is_a_label_and_never_a_path(sender, name, settings):
    assert sender.begin(filename=name).status_code == 201
    upload = Upload.objects.get()
    assert upload.path.parent == Path(settings.DATA_DIR, "uploads")
    assert 0 < len(upload.filename) <= 255
    assert not set("/\\\0\u202e") & set(upload.filename)


def test_what_nobody_goes_on_with_is_removed_after_a_week(sender):
    sender.begin()
    old = Upload.objects.get()
    Upload.objects.filter(pk=old.pk).update(touched_at=timezone.now() - timedelta(days=8))
    sender.begin()
    assert not old.path.exists()
    assert Upload.objects.exclude(pk=old.pk).count() == Upload.objects.count() == 1


def test_the_studio_s_rounds_remove_it_as_well(acme):
    upload = make_upload(acme.owner, acme.project, content=ROWS)
    Upload.objects.update(touched_at=timezone.now() - timedelta(days=8))
    call_command("reconcile")
    assert not upload.path.exists() and not Upload.objects.exists()


def test_another_workspace_meets_no_upload_of_mine(sender, rival):
    place = sender.begin().headers["Location"]
    for other in (Sender(rival), Sender(rival, key=make_key(rival.owner))):
        own = place.replace("/uploads/", "/api/v1/uploads/") if "Authorization" in other.headers and "/api/" not in place else place
        answers = {other.ask(own).status_code, other.send(own, ROWS, offset=0).status_code, other.end(own).status_code}
        assert answers <= {401, 404}
    assert Upload.objects.get().offset == 0


def test_a_viewer_begins_no_upload(acme):
    viewer = make_member(acme.workspace, role="viewer", email="vera@example.com")
    sender = Sender(acme, key=make_key(viewer))
    assert sender.begin().status_code == 404
    assert not Upload.objects.exists()


def test_the_browser_must_show_its_token(acme):
    sender = Sender(acme)
    sender.browser.handler.enforce_csrf_checks = True
    assert sender.begin().status_code == 403


def test_a_script_without_a_client_for_tus_uses_json(acme):
    body = {"project": str(acme.project.pk), "filename": "a.jsonl", "length": len(ROWS), "sha256": hashlib.sha256(ROWS).hexdigest()}
    made = acme.api.post("uploads", body)
    assert (made.status_code, made.json()["status"]) == (201, "arriving")
    sender = Sender(acme, key=make_key(acme.owner))
    sender.send(made.headers["Location"], ROWS, offset=0)
    found = acme.api.get(f"uploads/{made.json()['id']}").json()
    assert (found["status"], found["offset"], found["sha256"]) == ("complete", len(ROWS), body["sha256"])
    assert [item["id"] for item in acme.api.get("uploads").json()["items"]] == [found["id"]]
    assert acme.api.post("uploads", body | {"length": 1 << 61}).status_code == 422


def test_the_server_says_what_it_can(acme):
    answer = Sender(acme).browser.options(reverse("uploads:create"))
    assert (answer.status_code, answer.headers["Tus-Version"]) == (204, "1.0.0")
    assert set(answer.headers["Tus-Extension"].split(",")) == {"creation", "termination", "checksum", "expiration"}
    assert Api(None).get("uploads").status_code == 401


def test_an_upload_becomes_a_version_through_the_api(acme):
    upload = make_upload(acme.owner, acme.project, content=ROWS, filename="a.csv")
    path = f"datasets/{acme.version.dataset_id}/versions"
    preview = acme.api.get(f"uploads/{upload.pk}/preview").json()
    assert (preview["shape"], preview["file_format"], len(preview["rows"])) == ("chat", "JSONL", 20)
    body = {"upload": str(upload.pk), "reading": {"refused": "stop"}, "rules": {"near_duplicates": True}, "seed": 7}
    made = acme.api.post(path, body)
    assert made.status_code == 202, made.content
    version = DatasetVersion.objects.get(pk=made.json()["id"])
    assert (version.filename, version.reading, version.rules, version.seed) == (
        "a.csv", {"refused": "stop"}, {"near_duplicates": True}, 7,
    )  # fmt: skip
    assert acme.api.post(path, body).status_code == 422  # the version has taken it over
    assert not Upload.objects.exists()
    work_off(version.order)
    assert acme.api.get(f"dataset-versions/{version.pk}").json()["status"] == "ready"


def test_an_upload_is_named_in_a_form_as_well(acme):
    upload = make_upload(acme.owner, acme.project, content=ROWS)
    address = f"/api/v1/datasets/{acme.version.dataset_id}/versions"
    form = {"upload": str(upload.pk), "reading": '{"encoding": "cp1252"}'}
    made = acme.api.browser.post(address, form, headers=acme.api.headers)
    assert made.status_code == 202, made.content
    assert DatasetVersion.objects.get(pk=made.json()["id"]).reading == {"encoding": "cp1252"}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "file"),
        ({"upload": "seven"}, "upload"),
        ({"reading": {"encoding": "latin-9"}}, "reading.encoding"),
        ({"reading": {"eval": "1"}}, "reading.eval"),
        ({"rules": {"near_duplicates": "yes"}}, "rules.near_duplicates"),
        ({"rules": {"stratify": "x" * 300}}, "rules.stratify"),
        ({"seed": -1}, "seed"),
        ({"shape": "chat"}, "shape"),
    ],
)
def test_what_cannot_be_asked_of_an_upload_is_refused_beside_its_field(acme, body, field):
    upload = make_upload(acme.owner, acme.project, content=ROWS)
    named = {"upload": str(upload.pk)} if body and "upload" not in body else {}
    answer = acme.api.post(f"datasets/{acme.version.dataset_id}/versions", named | body)
    assert (answer.status_code, list(answer.json()["error"]["fields"])) == (422, [field]), answer.content
    assert Upload.objects.filter(pk=upload.pk).exists()


def test_an_upload_that_has_not_arrived_is_no_version(acme):
    upload = make_upload(acme.owner, acme.project, content=ROWS[:10], length=len(ROWS))
    answer = acme.api.post(f"datasets/{acme.version.dataset_id}/versions", {"upload": str(upload.pk)})
    assert (answer.status_code, "has not arrived completely" in answer.json()["error"]["message"]) == (400, True)
    assert acme.api.get(f"uploads/{upload.pk}/preview").status_code == 400
