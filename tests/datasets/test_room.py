"""What a file takes on the disk is counted once, however many versions and uploads keep it, and whichever of them goes first."""

from pathlib import Path

import pytest
from django.conf import settings

from studio.datasets import uploading
from studio.datasets.models import DatasetVersion, Upload
from studio.datasets.services import Upload as Wanted
from studio.datasets.services import create_dataset
from studio.errors import UserError
from studio.orders.models import Order
from studio.orders.quotas import stored_in_all
from studio.workspaces.models import Client
from tests.fixtures import make_upload

CONTENT = b'{"text": "one"}\n{"text": "two"}\n'


def taken(acme) -> int:
    return stored_in_all([acme.client.pk])[acme.client.pk]


def read(acme, upload: Upload, name: str) -> DatasetVersion:
    wanted = Wanted(filename=upload.filename, chunks=(), size=upload.length)
    return uploading.import_upload(
        acme.owner, upload, dataset=create_dataset(acme.owner, project=acme.project, name=name), name="", wanted=wanted
    )


def delete(acme, version: DatasetVersion, run_on_commit) -> None:
    Order.objects.filter(pk=version.order_id).update(status=Order.Status.FAILED)
    with run_on_commit(execute=True):
        assert acme.api.delete(f"datasets/{version.dataset_id}").status_code == 204


@pytest.fixture
def first(acme) -> DatasetVersion:
    return read(acme, make_upload(acme.owner, acme.project, content=CONTENT), "First")


def test_a_file_that_is_read_again_takes_no_room_before_and_after_it_is_a_version(acme, first):
    before = taken(acme)
    upload = uploading.again(acme.owner, first)
    assert taken(acme) == before
    read(acme, upload, "Second")
    assert taken(acme) == before


def test_the_same_bytes_sent_anew_take_room(acme, first):
    before = taken(acme)
    make_upload(acme.owner, acme.project, content=CONTENT)
    assert taken(acme) == before + len(CONTENT)


def test_of_a_file_that_several_keep_the_last_one_still_counts_it(acme, first, django_capture_on_commit_callbacks):
    second = read(acme, uploading.again(acme.owner, first), "Second")
    third = read(acme, uploading.again(acme.owner, second), "Third")
    before = taken(acme)
    for version in (first, second):
        delete(acme, version, django_capture_on_commit_callbacks)
        assert taken(acme) == before
    assert Path(settings.DATA_DIR, "uploads", third.upload).read_bytes() == CONTENT
    delete(acme, third, django_capture_on_commit_callbacks)
    assert taken(acme) == before - len(CONTENT)


def test_what_does_not_count_the_file_leaves_nothing_behind(acme, first, django_capture_on_commit_callbacks):
    before = taken(acme)
    delete(acme, read(acme, uploading.again(acme.owner, first), "Second"), django_capture_on_commit_callbacks)
    assert taken(acme) == before


def test_an_upload_keeps_counting_a_file_whose_version_is_gone(acme, first, django_capture_on_commit_callbacks):
    before = taken(acme)
    upload = uploading.again(acme.owner, first)
    delete(acme, first, django_capture_on_commit_callbacks)
    assert taken(acme) == before
    read(acme, upload, "Second")
    assert taken(acme) == before


def test_a_file_that_fills_the_client_to_the_last_byte_is_read(acme):
    Client.objects.filter(pk=acme.client.pk).update(storage_limit=taken(acme) + len(CONTENT))
    acme.client.refresh_from_db()
    upload = make_upload(acme.owner, acme.project, content=CONTENT)
    read(acme, upload, "First")
    assert taken(acme) == Client.objects.get(pk=acme.client.pk).storage_limit
    with pytest.raises(UserError, match="needed, or ask"):
        uploading.begin(acme.owner, project=acme.project, filename="more", length=1)


def test_a_file_that_is_refused_is_still_there(acme):
    upload = make_upload(acme.owner, acme.project, content=CONTENT)
    Client.objects.filter(pk=acme.client.pk).update(storage_limit=1)
    with pytest.raises(UserError, match="needed, or ask"):
        read(acme, upload, "First")
    assert Upload.objects.filter(pk=upload.pk).exists()
    assert upload.path.read_bytes() == CONTENT
