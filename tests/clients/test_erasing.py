"""A client is erased: nothing is left in any file or table but the certificate and audit records, and nobody else loses anything."""

import hashlib
import json
import os
import sqlite3
from datetime import timedelta
from functools import cached_property
from pathlib import Path

import pytest
from django.apps import apps
from django.conf import settings
from django.db import connection
from django.test import Client as Browser
from django.utils import timezone

from studio.audit.models import AuditRecord
from studio.clients import erasing
from studio.clients.disk import Disk
from studio.clients.holdings import HOLDINGS, KEPT
from studio.datasets import rows
from studio.datasets.models import DatasetVersion, Draft, RowMark
from studio.errors import UserError
from studio.orders import storedays
from studio.orders.models import Event, Order, StoredDay, Usage
from studio.serving.models import Call, CallDay, CallHour, CallTotal, ClientDay, ClientHour, Keeping, KeptAnswer
from studio.serving.words import INDEX, Found
from studio.workspaces.models import ApiKey, Client, Erasure, Tenant
from tests.clients.test_exporting import fill
from tests.fixtures import Api, make_call, make_deployment, make_invitation, make_kept, make_key, make_member, make_order, make_upload
from tests.workspaces.conftest import name_everything, world_of_another_client

WORD = "Sentinelword"
"""In every name of the client that is erased."""
ROW = "Rowsentinel"
"""In rows, prompts, answers and logs: what no audit record and no certificate may hold either."""
pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def doomed(acme, slot):
    """A second client with one of everything, each with a word that is easy to find."""
    world = world_of_another_client(acme)
    name_everything(world, WORD)
    Client.objects.filter(pk=world.client.pk).update(name=WORD, slug=WORD.lower())
    world.client.refresh_from_db()
    fill(world, ROW)
    for folder in ("cache/tokens", "trackers/tensorboard"):
        Path(settings.DATA_DIR, folder).mkdir(parents=True)
    serving = Path(settings.DATA_DIR, "cache", "serving", str(acme.workspace.pk))
    serving.mkdir(parents=True)
    (serving / f"0011-{world.artifact.sha256[:16]}.lora.gguf").write_text(ROW)
    tokens = Path(settings.DATA_DIR, "cache", "tokens", str(world.version.pk))
    tokens.mkdir()
    (tokens / "x.safetensors").write_text(ROW)
    tracked = Path(settings.DATA_DIR, "trackers", "tensorboard", f"{WORD} - {WORD} project", f"run {world.run.pk.hex[:8]}")
    tracked.mkdir(parents=True)
    (tracked / "events").write_text(ROW)
    world.run.order.checkpoints.mkdir(parents=True)
    (world.run.order.checkpoints / "state").write_text(ROW)
    (world.version.folder / "refusals.jsonl").write_text(json.dumps({"excerpt": ROW}))
    world.upload.path.write_text(ROW)
    linked(world)
    world.run.prompts = [ROW]
    world.run.save()
    RowMark.objects.create(dataset=world.version.dataset, row_hash=1, mark="star")
    Draft.objects.create(
        version=world.version, created_by=make_member(acme.workspace, role="member", email="x@y.org").user, changes={"added": [ROW]}
    )
    Draft.objects.filter(created_by__email="x@y.org").delete()  # what was deleted earlier lies in free pages
    Usage.objects.create(
        workspace=acme.workspace,
        client=world.client,
        project=world.project.pk,
        order=world.run.order,
        attempt=1,
        kind="train",
        title=f"{WORD} run",
        worker_kind="CPU",
        started_at=timezone.now(),
        ended_at=timezone.now(),
    )
    return world


def linked(world):
    """A later version whose unchanged rows stand in the file of the first, which it holds by a hard link."""
    order = make_order(world.owner, kind="revision", client=world.client)
    second = DatasetVersion.objects.create(
        dataset=world.version.dataset, number=2, filename="v1", parent=world.version, facts=world.version.facts, order=order
    )
    second.folder.mkdir(parents=True)
    rows.link_store(world.version.rows_path, second.folder)
    second.rows_path.write_text(ROW)


def everything_below(folder):
    return [path for path in Path(folder).rglob("*") if path.is_file()]


def files_with(word):
    return [path for path in everything_below(settings.DATA_DIR) if word.encode() in path.read_bytes() or word in str(path)]


def tables_with(word):
    """The tables of the database with a row in which the word stands, in any column."""
    found = []
    with connection.cursor() as cursor:
        for table in connection.introspection.table_names(cursor):
            cursor.execute(f"SELECT * FROM {connection.ops.quote_name(table)}")
            if any(word.lower() in repr(row).lower() for row in cursor.fetchall()):
                found.append(table)
    return set(found)


def database_bytes():
    name = connection.settings_dict["NAME"]
    return b"".join(Path(f"{name}{end}").read_bytes() for end in ("", "-wal") if Path(f"{name}{end}").exists())


def counts(client):
    return {holding.name: holding.rows(client).count() for holding in HOLDINGS}


def test_nothing_is_left_of_it_in_any_file_or_table_but_the_certificate_and_the_audit_records(acme, doomed):
    others, before = counts(acme.client), {path.stat().st_ino for path in everything_below(doomed.version.folder)}
    kept_files = everything_below(acme.version.folder) + everything_below(acme.artifact.folder)
    assert files_with(ROW)
    assert tables_with(ROW)
    erasure = erasing.erase(acme.owner, doomed.client, typed=WORD, reason="The contract ended.")
    assert erasure.finished_at
    assert files_with(ROW) == []
    assert files_with(WORD) == []
    assert tables_with(ROW) == set()
    assert tables_with(WORD) == {"audit_auditrecord", "workspaces_erasure"}
    assert not before & {path.stat().st_ino for path in everything_below(settings.DATA_DIR)}
    assert not Client.objects.filter(pk=doomed.client.pk).exists()
    assert counts(acme.client) == others
    assert all(path.is_file() for path in kept_files)
    if connection.vendor == "sqlite":
        assert ROW.encode() not in database_bytes()


def index_bytes():
    """What the index of kept answers' words holds, deleted or not."""
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute(f"SELECT block FROM {INDEX}_data")
        else:
            cursor.execute("CHECKPOINT")
            cursor.execute(f"SELECT pg_read_binary_file(pg_relation_filepath('{INDEX}'))")
        return b"".join(bytes(piece) for (piece,) in cursor.fetchall())


def test_no_word_of_a_kept_answer_is_left_in_their_index(acme, doomed):
    Keeping.objects.get_or_create(project=doomed.project, defaults={"days": 30})
    kept = make_kept(make_deployment(doomed.project, slug="kept"), doomed.release, question="Zanzibar?")
    stays = acme.kept
    assert b"anzibar" in index_bytes()
    assert erasing.erase(acme.owner, doomed.client, typed=WORD).finished_at
    assert not KeptAnswer.objects.filter(pk=kept.pk).exists()
    assert b"anzibar" not in index_bytes()
    assert b"omorrow" in index_bytes()
    assert KeptAnswer.objects.get(Found("tomor")) == stays
    if connection.vendor == "sqlite":
        assert b"anzibar" not in database_bytes()


def test_the_certificate_says_what_was_there_and_bears_its_own_hash(acme, doomed):
    digest, number = doomed.artifact.sha256, Event.objects.filter(order__client=doomed.client).count()
    versions = sum(
        path.stat().st_size
        for path in {
            path.stat().st_ino: path
            for path in everything_below(Path(settings.DATA_DIR, "datasets"))
            if path.is_relative_to(doomed.version.folder)
        }.values()
    )
    erasure = erasing.erase(acme.owner, doomed.client, typed=WORD, reason="The contract ended.")
    told = {line["name"]: line for line in erasure.certificate["erased"]}
    assert told["events"]["rows"] == number > 0
    assert digest in told["artifacts"]["sha256"]
    assert told["dataset_versions"]["rows"] == 2
    assert told["dataset_versions"]["bytes"] >= versions > 0
    assert told["projects"]["rows"] == 1
    assert erasure.certificate["client"] == {"id": str(doomed.client.pk), "name": WORD}
    assert (erasure.certificate["by"], erasure.certificate["reason"]) == (acme.owner.user.email, "The contract ended.")
    browser = Browser()
    browser.force_login(acme.owner.user)
    file = browser.get(f"/clients/certificates/{erasure.pk}/file/")
    assert hashlib.sha256(file.content).hexdigest() == erasure.sha256
    page = browser.get(f"/clients/certificates/{erasure.pk}/").content.decode()
    assert erasure.sha256 in page
    assert "Events of orders" in page
    record = AuditRecord.objects.get(verb="client.erase")
    assert record.object_id == str(erasure.client)
    assert record.change == {"certificate": [None, str(erasure.pk)]}


def test_usage_stays_for_invoices_without_a_name(acme, doomed):
    erasing.erase(acme.owner, doomed.client, typed=WORD)
    usage = Usage.objects.get()
    assert (usage.client_id, usage.project, usage.order_id, usage.title, usage.worker_kind) == (None, None, None, "", "CPU")


def test_what_it_stored_by_the_day_stays_for_invoices_without_a_name(acme, doomed):
    storedays.write_down()
    size = StoredDay.objects.get(client=doomed.client).size
    browser = Browser()
    browser.force_login(acme.owner.user)
    assert "Sizes by day" not in browser.get(f"/clients/{doomed.client.pk}/erase/").content.decode()
    erasure = erasing.erase(acme.owner, doomed.client, typed=WORD)
    day = StoredDay.objects.get(client=None)
    assert (day.workspace, day.size) == (acme.workspace, size)
    assert StoredDay.objects.filter(client=acme.client).count() == 1
    assert KEPT[StoredDay] in erasure.certificate["kept"]
    assert "stored_days" not in [line["name"] for line in erasure.certificate["erased"]]


def test_what_its_endpoint_was_asked_stays_for_invoices_without_a_name(acme, doomed):
    deployment = make_deployment(doomed.project, doomed.release, slug="asked")
    make_call(deployment, at=timezone.now() - timedelta(hours=2))
    make_call(deployment)
    erasure = erasing.erase(acme.owner, doomed.client, typed=WORD)
    hours = CallHour.objects.all()
    assert sum(hour.calls for hour in hours) == 2
    assert {(hour.workspace, hour.client, hour.deployment, hour.release) for hour in hours} == {(acme.workspace, None, None, None)}
    assert not any(model.objects.exists() for model in (Call, CallDay, ClientDay, ClientHour, CallTotal))
    assert KEPT[CallHour] in erasure.certificate["kept"]
    assert next(line["rows"] for line in erasure.certificate["erased"] if line["name"] == "calls") == 2


def test_nobody_sees_more_once_the_client_is_gone(acme, doomed):
    max_ = make_member(acme.workspace, role="member", email="max@example.com", clients=[doomed.client])
    both = make_member(acme.workspace, role="member", email="bo@example.com", clients=[doomed.client, acme.client])
    alone, wide = make_key(acme.owner, clients=[doomed.client]), make_key(acme.owner, clients=[doomed.client, acme.client])
    invitation = make_invitation(acme.owner)
    invitation.clients.set([doomed.client])
    erasing.erase(acme.owner, doomed.client, typed=WORD)
    max_.refresh_from_db()
    assert max_.narrowed
    assert max_.client_ids() == []
    assert list(Client.objects.for_action(max_, "client.view")) == []
    assert both.client_ids() == [acme.client.pk]
    assert Api(alone).get("clients").status_code == 401
    assert [client["id"] for client in Api(wide).get("clients").json()["items"]] == [str(acme.client.pk)]
    invitation.refresh_from_db()
    assert (invitation.is_open, invitation.narrowed) == (False, True)
    assert ApiKey.objects.filter(narrowed=True).count() == 2


@pytest.mark.parametrize("step", ["drop_in_pieces", "Gathered", "remove_files", "scrub", "seal"])
def test_what_was_killed_in_the_middle_is_finished_by_the_sweep(acme, doomed, monkeypatch, step):
    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(erasing, step, killed)
        with pytest.raises(Killed):
            erasing.erase(acme.owner, doomed.client, typed=WORD)
    erasure = Erasure.objects.get()
    assert erasure.finished_at is None
    gone = doomed.api.get(f"runs/{doomed.run.pk}").status_code
    assert gone == (200 if step in ("drop_in_pieces", "Gathered") else 404)
    assert erasing.finish_all() == [f"Erasing {doomed.client.pk}: finished"]
    assert (files_with(ROW), tables_with(ROW)) == ([], set())
    erasure.refresh_from_db()
    assert {line["name"]: line["rows"] for line in erasure.certificate["erased"]}["events"] > 0
    assert erasing.sha256_of(erasure.certificate) == erasure.sha256
    assert AuditRecord.objects.filter(verb="client.erase").count() == 1
    assert erasing.finish_all() == []


def test_the_disk_is_looked_through_while_others_may_write(acme, doomed, monkeypatch):
    inside = []

    def watched(name):
        def look(self):
            inside.append(connection.in_atomic_block)
            return vars(Disk)[name].func(self)

        return cached_property(look)

    class Watched(Disk):
        artifacts, tracked, named = watched("artifacts"), watched("tracked"), watched("named")

    monkeypatch.setattr(erasing, "Disk", Watched)
    assert erasing.erase(acme.owner, doomed.client, typed=WORD).finished_at
    assert len(inside) == 5
    assert not any(inside)


def test_the_database_is_rewritten_once_no_worker_is_at_it(acme, doomed):
    Order.objects.filter(pk=acme.run.order_id).update(status=Order.Status.RUNNING)
    erasure = erasing.erase(acme.owner, doomed.client, typed=WORD)
    assert (files_with(ROW), tables_with(ROW)) == ([], set())
    if connection.vendor == "sqlite":
        assert erasure.finished_at is None
        assert erasing.finish_all() == [f"Erasing {doomed.client.pk}: not finished yet"]
        Order.objects.filter(pk=acme.run.order_id).update(status=Order.Status.SUCCEEDED)
        assert erasing.finish_all() == [f"Erasing {doomed.client.pk}: finished"]
        assert ROW.encode() not in database_bytes()


def test_of_two_who_finish_at_once_one_takes_the_rows_and_none_fails(acme, doomed, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(erasing, "finish", lambda erasure: None)
        erasing.erase(acme.owner, doomed.client, typed=WORD)
    faster = [Erasure.objects.get()]

    class Overtaken(erasing.Gathered):
        def add(self, client):
            super().add(client)
            if faster:
                erasing.finish(faster.pop())

    monkeypatch.setattr(erasing, "Gathered", Overtaken)
    slower = Erasure.objects.get()
    erasing.finish(slower)
    assert faster == []
    assert slower.finished_at
    assert files_with(ROW) == []


def test_a_row_that_comes_while_the_disk_is_looked_through_goes_with_its_files(acme, doomed, monkeypatch):
    late = []

    class Slow(erasing.Gathered):
        def add(self, client):
            super().add(client)
            if not late:
                late.append(make_upload(acme.owner, doomed.project, content=ROW.encode()))

    monkeypatch.setattr(erasing, "Gathered", Slow)
    assert erasing.erase(acme.owner, doomed.client, typed=WORD).finished_at
    assert not late[0].path.exists()
    assert tables_with(ROW) == set()


def test_an_error_of_the_disk_ends_neither_the_sweep_nor_the_page(acme, doomed, monkeypatch, caplog):
    def broken(path):
        raise OSError("The disk is read-only")

    other = Erasure.objects.create(
        workspace=acme.workspace, client=acme.client.pk, client_name="x", paths=[], certificate={"by": "ana@example.com", "erased": []}
    )
    Erasure.objects.filter(pk=other.pk).update(erased_at=timezone.now() - timedelta(days=1))  # its turn comes last
    browser = Browser()
    browser.force_login(acme.owner.user)
    with monkeypatch.context() as patch:
        patch.setattr(erasing, "remove_folder", broken)
        assert browser.post(f"/clients/{doomed.client.pk}/erase/", {"name": WORD}).status_code == 302
        said = [f"Erasing {doomed.client.pk}: cut short by an error", f"Erasing {acme.client.pk}: finished"]
        assert erasing.finish_all() == said
    assert "The disk is read-only" in caplog.text
    assert erasing.finish_all() == [f"Erasing {doomed.client.pk}: finished"]
    assert files_with(ROW) == []


def written(*parts):
    path = Path(settings.DATA_DIR, "trackers", *parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("numbers")
    return path


def tracked(world):
    """What trackers keep of a run: `(what bears an id, what lies in the folder of all projects of the same names)`."""
    run, project = world.run.pk.hex, world.project.pk.hex[:8]
    own = [
        written("tensorboard", f"Client - Project {project}", f"Try {run[:8]}", "events"),
        written("wandb", "wandb", f"offline-run-20261126_180000-{run}", f"run-{run}.wandb"),
        written("trackio", f"Client-Project{project}.db"),
        written("trackio", f"Client-Project{project}.db-wal"),
        written("trackio", "media", f"Client-Project{project}", "x.png"),
        written("mlflow", project, "meta.yaml"),
        written("mlflow", project, run, "metrics", "loss"),
    ]
    shared = [
        written("tensorboard", "Client - Project", f"Try {run[:8]}", "events"),
        written("mlflow", "77", run[:12], "metrics", "loss"),
    ]
    for folder in (own[-1].parent.parent, shared[-1].parent.parent):
        (folder / "tags").mkdir()
        (folder / "tags" / "adapter_studio_run").write_text(run)
    return own, shared


def test_what_trackers_keep_of_it_goes_and_what_they_keep_of_projects_of_the_same_name_stays(acme, rival, doomed):
    name = written("mlflow", "77", "meta.yaml")
    more = [written("tensorboard", f"{WORD} - {WORD} project 2", "Try", "events"), written("trackio", "Client-Project.db")]
    of_it, of_others = tracked(doomed), [*tracked(acme), *tracked(rival)]
    erasure = erasing.erase(acme.owner, doomed.client, typed=WORD)
    assert erasing.TRACKED in erasure.certificate["kept"]
    assert [path for paths in of_it for path in paths if path.exists()] == []
    assert not Path(settings.DATA_DIR, "trackers", "mlflow", doomed.project.pk.hex[:8]).exists()
    assert not Path(settings.DATA_DIR, "trackers", "tensorboard", f"{WORD} - {WORD} project").exists()
    assert [path for paths in of_others for path in paths if not path.exists()] == []
    assert all(path.exists() for path in (name, *more))


def test_a_folder_that_projects_of_one_name_share_goes_with_the_last_of_them(acme, doomed):
    written("mlflow", "77", "meta.yaml")
    tracked(doomed)
    erasing.erase(acme.owner, doomed.client, typed=WORD)
    assert not Path(settings.DATA_DIR, "trackers", "mlflow", "77").exists()
    assert not Path(settings.DATA_DIR, "trackers", "tensorboard", "Client - Project").exists()


def test_asking_again_finishes_what_was_cut_short_and_it_cannot_be_restored_meanwhile(acme, doomed, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(erasing, "finish", lambda erasure: None)
        answer = acme.api.post(f"clients/{doomed.client.pk}/erase", {"name": WORD})
    assert (answer.status_code, answer.json()["finished_at"]) == (202, None)
    assert acme.api.post(f"clients/{doomed.client.pk}/restore").status_code == 400
    assert acme.api.post("projects", {"client": str(doomed.client.pk), "name": "x"}).status_code == 422
    done = acme.api.post(f"clients/{doomed.client.pk}/erase", {"name": WORD}).json()
    assert done["finished_at"]
    assert acme.api.get("erasures").json()["items"] == [acme.api.get(f"erasures/{done['id']}").json()] == [done]


def test_a_repeat_with_the_same_key_is_answered_the_same_and_nothing_kept_names_the_client(acme, doomed):
    acme.api.post("projects", {"client": str(doomed.client.pk), "name": f"{ROW} x"}, Idempotency_Key="one")
    sent = {"path": f"clients/{doomed.client.pk}/erase", "body": {"name": WORD}, "Idempotency_Key": "two"}
    first, second = acme.api.post(**sent), acme.api.post(**sent)
    assert first.status_code == second.status_code == 202
    assert first.json() == second.json()
    assert acme.api.get(f"erasures/{first.json()['id']}").json()["finished_at"]
    assert tables_with(ROW) == {"audit_auditrecord"}  # the name of a project, which an audit record may hold


def test_what_runs_must_be_stopped_first(acme, doomed):
    Order.objects.filter(pk=doomed.run.order_id).update(status=Order.Status.RUNNING)
    with pytest.raises(UserError, match="1 order runs or waits"):
        erasing.erase(acme.owner, doomed.client, typed=WORD)
    assert Client.objects.filter(pk=doomed.client.pk, archived_at=None).exists()
    assert not Erasure.objects.exists()


def test_the_name_must_be_typed(acme, doomed):
    browser = Browser()
    browser.force_login(acme.owner.user)
    page = browser.post(f"/clients/{doomed.client.pk}/erase/", {"name": WORD.lower()})
    assert page.status_code == 422
    assert "as it stands here" in page.content.decode()
    assert acme.api.post(f"clients/{doomed.client.pk}/erase", {"name": ""}).json()["error"]["fields"]["name"]
    assert not Erasure.objects.exists()
    assert browser.post(f"/clients/{doomed.client.pk}/erase/", {"name": WORD}).status_code == 302
    assert browser.get(f"/clients/{doomed.client.pk}/").status_code == 404


def test_the_last_client_of_a_workspace_stays(acme):
    with pytest.raises(UserError, match="only client"):
        erasing.erase(acme.owner, acme.client, typed=acme.client.name)


def test_only_owners_erase_and_read_certificates(acme, doomed):
    erasure = erasing.erase(acme.owner, doomed.client, typed=WORD)
    for role in ("admin", "member", "viewer"):
        browser = Browser()
        browser.force_login(make_member(acme.workspace, role=role, email=f"{role}@example.com").user)
        assert browser.post(f"/clients/{acme.client.pk}/erase/", {"name": acme.client.name}).status_code == 404
        assert browser.get(f"/clients/certificates/{erasure.pk}/").status_code == 404
    bound = Api(make_key(acme.owner, clients=[acme.client]))
    assert bound.get(f"erasures/{erasure.pk}").status_code == 404
    assert bound.get("erasures").json()["items"] == []


def test_what_belongs_to_the_workspace_and_to_others_is_not_touched(acme, rival, doomed):
    make_deployment(rival.project)
    before = counts(rival.client)
    folder = Path(settings.DATA_DIR, "base_models", str(acme.base.pk))
    folder.mkdir(parents=True)
    os.link(doomed.artifact.folder / "adapter_config.json", folder / "config.json")
    erasing.erase(acme.owner, doomed.client, typed=WORD)
    assert counts(rival.client) == before
    assert (folder / "config.json").is_file()
    assert acme.api.get(f"runs/{acme.run.pk}").status_code == 200


def test_every_model_that_leads_to_a_client_is_exported_and_erased_or_is_known_to_stay():
    known = {Client, *(holding.model for holding in HOLDINGS), *KEPT}
    leading = set()
    for model in apps.get_models():
        related = {field.related_model for field in (*model._meta.fields, *model._meta.many_to_many) if field.related_model}
        if related & {Client, *(holding.model for holding in HOLDINGS)}:
            leading.add(model)
        if issubclass(model, Tenant) and model.CLIENT:
            leading.add(model)
    assert {model.__name__ for model in leading - known} == set()
    assert {model.__name__ for model in known - leading} == set()


def test_a_database_file_is_rewritten_without_what_was_deleted(tmp_path):
    """What the erasure goes by: SQLite leaves the bytes of deleted rows in its file until it is told otherwise."""
    name = tmp_path / "some.sqlite3"
    database = sqlite3.connect(name, isolation_level=None)
    database.execute("PRAGMA secure_delete=OFF")
    database.execute("CREATE TABLE t (x TEXT)")
    database.executemany("INSERT INTO t VALUES (?)", [(ROW * 100,)] * 50)
    database.execute("DELETE FROM t")
    assert ROW.encode() in name.read_bytes()
    database.execute("VACUUM")
    assert ROW.encode() not in name.read_bytes()
    database.close()
