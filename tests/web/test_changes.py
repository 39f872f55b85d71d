"""What a person changes through the pages is done whole or not at all, and is on record."""

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client as Browser

from studio.audit.models import AuditRecord
from studio.datasets.models import Dataset, DatasetVersion
from studio.orders.models import Order
from studio.runs.models import Run
from studio.workspaces.models import Client, Project
from tests.fixtures import make_build, make_failed_build

ROWS = b'{"prompt": "Hi?", "completion": "Hello."}\n' * 4


@pytest.fixture
def ana(acme, slot):
    opened = Browser()
    opened.force_login(acme.owner.user)
    return opened


def rows():
    return SimpleUploadedFile("replies.jsonl", ROWS)


def live_again(order):
    Order.objects.filter(pk=order.pk).update(status=Order.Status.RUNNING, ended_at=None)


CHANGES = {
    "client.create": lambda acme: ("/clients/new/", {"name": "Globex"}),
    "project.create": lambda acme: ("/projects/new/", {"name": "Replies", "client": acme.client.pk}),
    "key.create": lambda acme: ("/settings/keys/", {"name": "nightly", "scopes": ["read"]}),
    "key.revoke": lambda acme: (f"/settings/keys/{acme.owner.keys.get().pk}/revoke/", {}),
    "base_model.create": lambda acme: ("/base-models/new/", {"source": "hub:acme/tiny"}),
    "base_model.stop": lambda acme: (f"/base-models/{acme.base.pk}/stop/", {}),
    "dataset.create": lambda acme: ("/datasets/new/", {"project": acme.project.pk, "name": "New", "file": rows()}),
    "dataset.add_version": lambda acme: (f"/datasets/{acme.version.dataset_id}/versions/new/", {"file": rows()}),
    "dataset.stop": lambda acme: (f"/datasets/versions/{acme.version.pk}/stop/", {}),
    "upload.delete": lambda acme: (f"/datasets/uploads/{acme.upload.pk}/discard/", {}),
    "run.create": lambda acme: ("/runs/new/", {"project": acme.project.pk, "plugin": "rehearsal", "name": "A run"}),
    "run.stop": lambda acme: (f"/runs/{acme.run.pk}/stop/", {"discard": "1"}),
    "deployment.create": lambda acme: ("/deployments/new/", {"project": acme.project.pk, "slug": "support"}),
    "deployment.archive": lambda acme: (f"/deployments/{acme.deployment.pk}/archive/", {}),
    "build.create": lambda acme: (f"/builds/of/{acme.artifact.pk}/", {"quantization": "f16"}),
    "build.stop": lambda acme: (f"/builds/{acme.build.pk}/stop/", {}),
    "build.retry": lambda acme: (f"/builds/{make_failed_build(acme.owner, acme.artifact).pk}/retry/", {}),
    "build.delete": lambda acme: (f"/builds/{make_failed_build(acme.owner, acme.artifact).pk}/delete/", {}),
}


@pytest.mark.parametrize("verb", CHANGES)
def test_every_change_is_on_record(acme, ana, verb):
    for thing in (acme.base, acme.version, acme.run, acme.build):
        live_again(thing.order)
    before = set(AuditRecord.objects.values_list("pk", flat=True))
    path, form = CHANGES[verb](acme)
    answer = ana.post(path, form)
    assert answer.status_code in (200, 302), answer.content.decode()[-3000:]
    records = AuditRecord.objects.exclude(pk__in=before).order_by("pk")
    expected = ["dataset.create", "dataset.add_version"] if verb == "dataset.create" else [verb]
    assert [record.verb for record in records] == expected
    assert {(record.user, record.workspace, record.ip) for record in records} == {(acme.owner.user, acme.workspace, "127.0.0.1")}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"validation_percent": "51"}, "Must be from 0 to 50 per cent."),
        ({"validation_percent": "many"}, "Must be from 0 to 50 per cent."),
        ({"file": ""}, "Choose a file."),
    ],
)
def test_an_upload_that_is_refused_leaves_no_dataset_behind(acme, ana, change, sentence):
    form = {"project": acme.project.pk, "name": "New", "file": rows()}
    answer = ana.post("/datasets/new/", form | change)
    assert answer.status_code == 422
    assert sentence in answer.content.decode()
    assert 'value="New"' in answer.content.decode()
    assert not Dataset.objects.filter(name="New").exists()
    assert ana.post("/datasets/new/", form | {"file": rows()}).status_code == 302
    assert DatasetVersion.objects.filter(dataset__name="New").count() == 1


def test_an_upload_onto_a_full_disk_leaves_no_dataset_behind(acme, ana, monkeypatch):
    monkeypatch.setattr("studio.datasets.services.SPARE", 1 << 60)
    answer = ana.post("/datasets/new/", {"project": acme.project.pk, "name": "New", "file": rows()})
    assert answer.status_code == 422
    assert "left on the server" in answer.content.decode()
    assert not Dataset.objects.filter(name="New").exists()


@pytest.mark.parametrize(
    ("field", "typed", "sentence"),
    [
        ("set_learning_rate", "0", "Must be above 0 and at most 0.1."),
        ("set_learning_rate", "-1", "Must be above 0 and at most 0.1."),
        ("set_max_steps", "many", "must be a whole number"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_beside_its_field_and_nothing_typed_is_lost(acme, ana, field, typed, sentence):
    form = {"project": acme.project.pk, "plugin": "rehearsal", "name": "My own name", field: typed}
    answer = ana.post("/runs/new/", form)
    text = answer.content.decode()
    assert answer.status_code == 422
    assert sentence in text
    assert "My own name" in text
    assert f'value="{typed}"' in text
    assert Run.objects.count() == 1


def test_a_name_without_a_letter_is_refused(acme, ana):
    for path, form in (("/clients/new/", {}), ("/projects/new/", {"client": acme.client.pk})):
        answer = ana.post(path, form | {"name": " \t "})
        assert answer.status_code == 422
        assert "Give it a name." in answer.content.decode()
    assert (Client.objects.count(), Project.objects.count()) == (1, 1)


def test_what_has_ended_cannot_be_stopped(acme, ana):
    for path in (f"/base-models/{acme.base.pk}/stop/", f"/builds/{acme.build.pk}/stop/", f"/datasets/versions/{acme.version.pk}/stop/"):
        answer = ana.post(path)
        assert answer.status_code == 400
        assert "This has already ended." in answer.content.decode()
    assert not AuditRecord.objects.filter(verb__endswith="stop").exists()


def test_only_a_build_that_failed_is_built_again_or_deleted(acme, ana):
    for step, sentence in (("retry", "has not failed"), ("delete", "has passed its verification")):
        answer = ana.post(f"/builds/{acme.build.pk}/{step}/")
        assert answer.status_code == 400
        assert sentence in answer.content.decode()
    assert acme.build.artifact.folder.exists()


def test_a_base_model_is_built_as_it_is(acme, ana):
    answer = ana.post(f"/builds/base/{acme.base.pk}/", {"quantization": ["f16", "q8_0"], "project": acme.project.pk})
    assert (answer.status_code, answer["Location"]) == (302, f"/builds/base/{acme.base.pk}/ladder/")
    assert AuditRecord.objects.filter(verb="build.create", client=acme.client).count() == 2


def test_a_name_is_text_and_never_markup(acme, ana):
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    of_base = make_build(acme.owner, acme.base, project=acme.project, quantization="f16", reasons=[evil])
    for thing in (acme.client, acme.project, acme.base, acme.version.dataset, acme.run, acme.artifact):
        thing.name = f"{evil}{type(thing).__name__}"[:80]
        thing.save()
    acme.run.order.error = acme.run.order.phase_text = evil
    acme.run.order.save()
    paths = ["/", "/runs/", "/projects/", "/clients/", "/artifacts/", "/base-models/", "/playground/", "/settings/audit/"]
    paths += [f"/runs/{acme.run.pk}/", f"/projects/{acme.project.pk}/", f"/artifacts/{acme.artifact.pk}/", f"/base-models/{acme.base.pk}/"]
    paths += [
        f"/builds/{acme.build.pk}/",
        f"/builds/{of_base.pk}/",
        f"/builds/of/{acme.artifact.pk}/ladder/",
        f"/builds/base/{acme.base.pk}/",
        f"/builds/base/{acme.base.pk}/ladder/",
        f"/datasets/versions/{acme.version.pk}/",
        f"/clients/{acme.client.pk}/",
        f"/runs/new/?project={acme.project.pk}",
    ]
    for path in paths:
        answer = ana.get(path)
        assert answer.status_code == 200, path
        assert "<script>alert" not in answer.content.decode(), path
        assert "<img src=x" not in answer.content.decode(), path
