"""Everything of a client is taken home as one zip: whole, hashed, and with nothing of anybody else in it."""

import hashlib
import io
import itertools
import json
import zipfile

import orjson
import pytest
from asgiref.sync import async_to_sync
from django.test import Client as Browser
from django.utils import timezone

from studio.audit.models import AuditRecord
from studio.clients.holdings import HOLDINGS
from studio.datasets.models import Draft
from studio.orders import storedays
from studio.orders.models import Event
from studio.releases.models import Approval, Download
from studio.rowfile import read
from studio.serving.models import DeploymentState
from tests.fixtures import Api, make_key, make_member
from tests.workspaces.conftest import GLOBEX, RIVAL, name_everything, world_of_another_client


@pytest.fixture
def globex(acme):
    found = world_of_another_client(acme)
    name_everything(found, GLOBEX)
    fill(found, GLOBEX)
    return found


def fill(world, word):
    """One of everything that a client can have, beyond what a world has."""
    owner, order = world.owner, world.run.order
    Event.objects.create(order=order, seq=1, attempt=1, at=timezone.now(), type="note", body={"text": f"{word} says"})
    order.last_seq = 1
    order.save()
    order.folder.mkdir(parents=True, exist_ok=True)
    order.log_file.write_text(f"{word} logs\n")
    assert world.upload and world.synthesis and world.deployment and world.kept
    type(world.kept).objects.filter(project=world.project).update(correction=word, words=word.lower())
    Draft.objects.create(version=world.version, created_by=owner.user, changes={"added": [{"text": f"{word} added"}]})
    Approval.objects.create(release=world.release, user=owner.user, email=owner.user.email, role="owner", approves=True, comment=word)
    Download.objects.create(delivery=world.delivery, ip="10.0.0.1", user=owner.user, agent=word)
    DeploymentState.objects.create(deployment=world.deployment, number=1, change="promote", release=world.release, why=word)


def unzipped(response):
    content = response.getvalue() if not response.streaming else everything(response)
    archive = zipfile.ZipFile(io.BytesIO(content))
    assert archive.testzip() is None
    folders = {name.partition("/")[0] for name in archive.namelist()}
    assert len(folders) == 1
    return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def everything(response):
    async def pieces():
        return b"".join([piece async for piece in response.streaming_content])

    return async_to_sync(pieces)()


def jsonl(content):
    return [orjson.loads(line) for line in content.splitlines()]


def test_the_archive_holds_every_row_and_file_and_every_hash_is_right(acme, globex):
    fill(acme, "acme")
    files = unzipped(acme.api.get(f"clients/{acme.client.pk}/export"))
    manifest = json.loads(files.pop("manifest.json"))
    assert set(manifest["files"]) == set(files)
    assert {name: hashlib.sha256(content).hexdigest() for name, content in files.items()} == {
        name: told["sha256"] for name, told in manifest["files"].items()
    }
    folder = f"datasets/replies-{acme.version.dataset_id.hex[:8]}/v1"
    for split in ("train", "validation"):
        assert jsonl(files[f"{folder}/{split}.jsonl"]) == list(read(acme.version.rows_path, split=split))
    artifact = next(name for name in files if name.startswith("artifacts/") and name.endswith("adapter_model.safetensors"))
    assert files[artifact] == (acme.artifact.folder / "adapter_model.safetensors").read_bytes()
    sums = files[f"{artifact.rpartition('/')[0]}/SHA256SUMS"].decode()
    assert f"{hashlib.sha256(files[artifact]).hexdigest()}  adapter_model.safetensors" in sums
    run = next(name.rpartition("/")[0] for name in files if name.endswith("run.yaml"))
    assert jsonl(files[f"{run}/events.jsonl"])[0]["text"] == "acme says"
    assert files[f"{run}/log-attempt-1.txt"] == b"acme logs\n"
    assert "README.txt" in files
    assert [name for name in manifest["missing"] if "replies.jsonl" not in name] == []


def test_the_archive_has_a_line_for_every_row_of_every_kind(acme, globex):
    fill(acme, "acme")
    files = unzipped(acme.api.get(f"clients/{acme.client.pk}/export"))
    for holding in HOLDINGS:
        if holding.name != "events":
            told = {str(line["id"]) for line in jsonl(files[f"records/{holding.name}.jsonl"])}
            assert told == {str(pk) for pk in holding.rows(acme.client).values_list("pk", flat=True)}, holding.name
    lineage = json.loads(files["lineage.json"])
    edges = {tuple(edge) for edge in lineage["edges"]}
    chain = [acme.version.pk, acme.run.pk, acme.artifact.pk, acme.release.pk]
    assert edges >= {(str(begin), str(end)) for begin, end in itertools.pairwise(chain)}
    assert [line["verb"] for line in jsonl(files["audit.jsonl"])][-1] == "client.export"


def test_the_price_of_what_is_stored_is_told_to_the_last_decimal(acme):
    acme.workspace.storage_price = "0.0777"
    acme.workspace.save()
    storedays.write_down()
    files = unzipped(acme.api.get(f"clients/{acme.client.pk}/export"))
    assert [line["price"] for line in jsonl(files["records/stored_days.jsonl"])] == ["0.0777"]


def test_nothing_of_another_client_or_workspace_and_nothing_that_opens_something_is_in_it(acme, rival, globex):
    fill(acme, "acme")
    name_everything(rival, RIVAL)
    files = unzipped(acme.api.get(f"clients/{acme.client.pk}/export"))
    whole = b"\n".join(f"{name}\n".encode() + content for name, content in files.items())
    for word in (GLOBEX, GLOBEX.lower(), RIVAL, RIVAL.lower()):
        assert word.encode() not in whole
    foreign = [
        str(pk) for world in (globex, rival) for holding in HOLDINGS for pk in holding.rows(world.client).values_list("pk", flat=True)
    ]
    assert not [pk for pk in foreign if len(pk) > 30 and pk.encode() in whole]
    assert acme.delivery.sha256.encode() not in whole
    assert acme.owner.keys.get().sha256.encode() not in whole


def test_that_it_was_taken_is_on_record_whether_by_a_page_or_by_a_key(acme):
    browser = Browser()
    browser.force_login(acme.owner.user)
    page = browser.get(f"/clients/{acme.client.pk}/export/")
    assert page.status_code == 200
    assert "Dataset versions" in page.content.decode()
    assert not AuditRecord.objects.filter(verb="client.export").exists()
    answer = browser.post(f"/clients/{acme.client.pk}/export/")
    assert answer["Content-Disposition"] == 'attachment; filename="in-house-export.zip"'
    assert unzipped(answer)
    assert unzipped(acme.api.get(f"clients/{acme.client.pk}/export"))
    assert [record.key for record in AuditRecord.objects.filter(verb="client.export")] == ["test", ""]


def test_whoever_may_not_export_is_told_that_there_is_no_such_client(acme):
    for role in ("member", "viewer", "guest"):
        browser = Browser()
        browser.force_login(make_member(acme.workspace, role=role, email=f"{role}@example.com", clients=[acme.client]).user)
        assert browser.post(f"/clients/{acme.client.pk}/export/").status_code == 404
    admin = make_member(acme.workspace, role="admin", email="kim@example.com")
    assert Api(make_key(admin, scopes=["read"])).get(f"clients/{acme.client.pk}/export").status_code == 404


def test_a_file_that_is_gone_is_named_and_stops_nothing(acme):
    (acme.artifact.folder / "adapter_config.json").unlink()
    files = unzipped(acme.api.get(f"clients/{acme.client.pk}/export"))
    missing = json.loads(files["manifest.json"])["missing"]
    assert [name for name in missing if name.endswith("adapter_config.json")]
