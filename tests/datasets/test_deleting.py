"""A dataset that nothing was made of is deleted with all its files; one that is used stays, and says by what."""

import uuid
from pathlib import Path

import pytest
from django.conf import settings
from django.test import Client as Browser

from studio.audit.models import AuditRecord
from studio.comparisons.models import Comparison, Survey
from studio.datasets.models import Dataset, DatasetVersion, Measurement
from studio.orders.models import Order
from studio.releases.models import Gate
from tests.fixtures import make_member, make_order, make_synthesis, make_version


@pytest.fixture
def spare(acme):
    """A version of a dataset that nothing was made of, with the file as it was uploaded."""
    version = make_version(acme.owner, acme.project, name="Spare")
    version.upload = uuid.uuid4().hex
    version.save()
    folder = Path(settings.DATA_DIR, "uploads")
    folder.mkdir(exist_ok=True)
    (folder / version.upload).write_text("rows")
    make_synthesis(acme.owner, version)
    version.order.folder.mkdir(parents=True)
    return version


def test_it_goes_with_its_versions_its_orders_and_its_files(acme, spare, django_capture_on_commit_callbacks):
    with django_capture_on_commit_callbacks(execute=True):
        assert acme.api.delete(f"datasets/{spare.dataset_id}").status_code == 204
    assert not Dataset.objects.filter(pk=spare.dataset_id).exists()
    assert not DatasetVersion.objects.filter(pk=spare.pk).exists()
    assert not Order.objects.filter(pk=spare.order_id).exists()
    assert not [
        path for path in (spare.folder, spare.order.folder.parent, Path(settings.DATA_DIR, "uploads", spare.upload)) if path.exists()
    ]
    record = AuditRecord.objects.get(verb="dataset.delete")
    assert (record.label, record.change) == ("Spare", {"versions": [1, 0]})
    assert acme.version.rows_path.is_file()


def test_a_page_asks_for_its_name_and_deletes_it(acme, spare):
    browser = Browser()
    browser.force_login(acme.owner.user)
    assert 'data-confirm-word="Spare"' in browser.get(f"/datasets/versions/{spare.pk}/").content.decode()
    assert browser.post(f"/datasets/{spare.dataset_id}/delete/").url == f"/projects/{acme.project.pk}/"
    assert not Dataset.objects.filter(pk=spare.dataset_id).exists()


def test_what_a_run_and_an_artifact_learnt_from_stays(acme):
    error = acme.api.delete(f"datasets/{acme.version.dataset_id}").json()["error"]
    assert error["code"] == "in_use"
    assert "run Try" in error["message"]
    assert "artifact Try" in error["message"]
    assert Dataset.objects.filter(pk=acme.version.dataset_id).exists()


def test_what_a_mix_was_made_of_and_what_a_gate_measures_on_stays(acme, spare):
    Gate.objects.create(project=acme.project, held_out=spare.dataset)
    assert "gate" in acme.api.delete(f"datasets/{spare.dataset_id}").json()["error"]["message"].lower()
    Gate.objects.all().delete()
    mix = make_version(acme.owner, acme.project, name="Mix")
    mix.origin = {"kind": "mix", "parts": [{"version": str(spare.pk), "times": 1}]}
    mix.save()
    assert "Mix v1, which was made of its rows" in acme.api.delete(f"datasets/{spare.dataset_id}").json()["error"]["message"]


def test_what_is_still_being_read_stays(acme, spare):
    Order.objects.filter(pk=spare.order_id).update(status=Order.Status.RUNNING)
    assert "still being done" in acme.api.delete(f"datasets/{spare.dataset_id}").json()["error"]["message"]


def test_a_survey_goes_with_it_but_not_while_it_looks(acme, spare, django_capture_on_commit_callbacks):
    order = make_order(acme.owner, kind="survey", client=acme.client, status=Order.Status.RUNNING)
    Survey.objects.create(dataset_version=spare, base_model=acme.base, order=order)
    order.folder.mkdir(parents=True)
    assert "still being done" in acme.api.delete(f"datasets/{spare.dataset_id}").json()["error"]["message"]
    Order.objects.filter(pk=order.pk).update(status=Order.Status.SUCCEEDED)
    with django_capture_on_commit_callbacks(execute=True):
        assert acme.api.delete(f"datasets/{spare.dataset_id}").status_code == 204
    assert not Order.objects.filter(pk=order.pk).exists()
    assert not order.folder.parent.exists()


def test_what_a_comparison_measures_forgetting_on_stays(acme, spare):
    Comparison.objects.filter(pk=acme.comparison.pk).update(probe=spare)
    error = acme.api.delete(f"datasets/{spare.dataset_id}").json()["error"]
    assert (error["code"], "comparison LoRA or full" in error["message"]) == ("in_use", True)
    assert DatasetVersion.objects.filter(pk=spare.pk).exists()


def test_a_measurement_that_runs_is_stopped_and_then_the_dataset_goes(acme, spare):
    order = make_order(acme.owner, kind="tokens", client=acme.client, status=Order.Status.RUNNING)
    Measurement.objects.create(version=spare, base=acme.base, order=order)
    assert "Try again in a moment" in acme.api.delete(f"datasets/{spare.dataset_id}").json()["error"]["message"]
    order.refresh_from_db()
    assert order.stop_requested_at and order.discard
    Order.objects.filter(pk=order.pk).update(status=Order.Status.STOPPED)
    assert acme.api.delete(f"datasets/{spare.dataset_id}").status_code == 204


def test_what_is_used_has_no_measurement_stopped(acme):
    order = make_order(acme.owner, kind="tokens", client=acme.client, status=Order.Status.RUNNING)
    Measurement.objects.create(version=acme.version, base=acme.base, order=order)
    assert acme.api.delete(f"datasets/{acme.version.dataset_id}").json()["error"]["code"] == "in_use"
    order.refresh_from_db()
    assert order.stop_requested_at is None


def test_a_viewer_is_told_that_there_is_none(acme, spare):
    browser = Browser()
    browser.force_login(make_member(acme.workspace, role="viewer", email="vic@example.com").user)
    assert browser.post(f"/datasets/{spare.dataset_id}/delete/").status_code == 404
    assert "delete-dataset" not in browser.get(f"/datasets/versions/{spare.pk}/").content.decode()


def test_nothing_else_of_its_client_goes_with_it(acme, spare):
    other = make_order(acme.owner, kind="dataset", client=acme.client)
    before = DatasetVersion.objects.count()
    acme.api.delete(f"datasets/{spare.dataset_id}")
    assert DatasetVersion.objects.count() == before - 1
    assert Order.objects.filter(pk=other.pk).exists()
