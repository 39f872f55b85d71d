"""A build that failed is tried again or deleted with its file; what passed stays."""

from datetime import timedelta
from pathlib import Path

import pytest
from django.conf import settings
from django.utils import timezone

from studio.artifacts import kinds
from studio.artifacts.models import Artifact, Build
from studio.artifacts.services import delete_build, request_builds, retry_build, stop_build
from studio.audit.models import AuditRecord
from studio.errors import UserError
from studio.orders.kinds import KINDS
from studio.orders.models import Event, Order
from studio.storage import commit_folder
from tests.fixtures import make_build, make_failed_build


def artifacts_folder():
    return Path(settings.DATA_DIR, "artifacts")


def sealed(order, builds):
    """What a worker leaves: one folder for each type."""
    folder = KINDS["build"].target(order)
    temp = Path(settings.DATA_DIR, "temp", str(order.pk))
    for build in builds:
        (temp / build.quantization).mkdir(parents=True)
        (temp / build.quantization / "a.gguf").write_bytes(build.quantization.encode())
    manifest = commit_folder(temp, folder)
    told = {build.quantization: {"verification": {"passed": build.quantization != "f16", "reasons": []}} for build in builds}
    return {"folder": str(folder), "builds": told, **manifest}


def test_each_type_of_an_order_becomes_an_artifact_of_its_own(acme):
    builds = request_builds(acme.owner, source=acme.artifact, quantizations=["q4_k_m", "f16"])
    KINDS["build"].succeeded(builds[0].order, sealed(builds[0].order, builds))
    for build in Build.objects.filter(order=builds[0].order):
        assert build.passed == (build.quantization == "q4_k_m")
        assert (build.artifact.folder / "a.gguf").read_text() == build.quantization
        assert list(build.artifact.files) == ["a.gguf"]
        assert build.artifact.lineage["quantization"] == build.quantization
        assert build.artifact.was_built


def test_a_base_model_as_it_is_says_where_it_comes_from(acme):
    build = request_builds(acme.owner, base_model=acme.base, quantizations=["f16"])[0]
    KINDS["build"].succeeded(build.order, sealed(build.order, [build]))
    build.refresh_from_db()
    assert build.artifact.lineage["base_model"]["source"] == acme.base.source
    assert list(build.artifact.parents.all()) == []


def test_the_worker_is_told_everything_in_one_order(acme):
    builds = request_builds(acme.owner, source=acme.artifact, quantizations=["f16", "q4_k_m"], importance=True)
    payload = KINDS["build"].payload(builds[0].order)
    assert (payload["quantizations"], payload["importance"], payload["kind"]) == (["f16", "q4_k_m"], True, "gguf")
    assert payload["about"]["author"] == "Acme"
    assert payload["state"] == str(builds[0].order.checkpoints)


def test_a_file_says_what_languages_it_was_taught(acme):
    acme.version.facts = (acme.version.facts or {}) | {"languages": {"looked_at": 100, "rows": {"": 20, "de": 30, "en": 48, "fr": 2}}}
    acme.version.save()
    build = request_builds(acme.owner, source=acme.artifact, quantizations=["f16"])[0]
    assert KINDS["build"].payload(Order.objects.get(pk=build.order_id))["about"]["languages"] == ["en", "de"]


def test_what_failed_is_tried_again_from_where_it_was(acme):
    failed = make_failed_build(acme.owner, acme.artifact)
    again = retry_build(acme.owner, failed)
    again.order.refresh_from_db()
    assert (again.pk, again.order.status, again.order.attempt) == (failed.pk, Order.Status.QUEUED, 2)
    assert (again.order.checkpoints / "unfinished").exists()
    assert AuditRecord.objects.filter(verb="build.retry").exists()
    with pytest.raises(UserError, match="has not failed"):
        retry_build(acme.owner, failed)


def test_a_file_that_did_not_pass_is_built_anew_beside_the_one_to_look_at(acme):
    odd = make_build(acme.owner, acme.artifact, quantization="f16", passed=False)
    again = retry_build(acme.owner, odd)
    assert again.pk != odd.pk
    assert (again.quantization, again.order.status) == ("f16", Order.Status.QUEUED)
    assert retry_build(acme.owner, odd) == again


def test_what_passed_is_neither_tried_again_nor_deleted(acme):
    for change in (retry_build, delete_build):
        with pytest.raises(UserError):
            change(acme.owner, acme.build)
    assert Build.objects.filter(pk=acme.build.pk).exists()


def test_what_is_being_built_is_stopped_first(acme):
    build = request_builds(acme.owner, source=acme.artifact, quantizations=["f16"])[0]
    with pytest.raises(UserError, match="Stop it first"):
        delete_build(acme.owner, build)
    stop_build(acme.owner, build)
    build.order.refresh_from_db()
    assert build.order.status == Order.Status.STOPPED
    delete_build(acme.owner, build)
    assert not Build.objects.filter(pk=build.pk).exists()


def test_a_failed_build_is_deleted_with_its_order_and_its_files(acme, django_capture_on_commit_callbacks):
    failed = make_failed_build(acme.owner, acme.artifact)
    order = failed.order
    Event.objects.create(order=order, seq=1, attempt=1, at=timezone.now(), type="note", body={})
    with django_capture_on_commit_callbacks(execute=True):
        delete_build(acme.owner, failed)
    assert not Order.objects.filter(pk=order.pk).exists()
    assert not order.folder.parent.exists()
    record = AuditRecord.objects.get(verb="build.delete")
    assert (record.label, record.change) == ("Try f16", {"quantization": ["f16", None]})


def test_deleting_one_type_leaves_the_others_of_its_order(acme, django_capture_on_commit_callbacks):
    builds = request_builds(acme.owner, source=acme.artifact, quantizations=["q4_k_m", "f16"])
    order = builds[0].order
    KINDS["build"].succeeded(order, sealed(order, builds))
    Order.objects.filter(pk=order.pk).update(status=Order.Status.SUCCEEDED)
    good, odd = Build.objects.get(order=order, quantization="q4_k_m"), Build.objects.get(order=order, quantization="f16")
    with django_capture_on_commit_callbacks(execute=True):
        delete_build(acme.owner, odd)
    assert (good.artifact.folder / "a.gguf").exists()
    assert not odd.artifact.folder.exists()
    assert not Artifact.objects.filter(pk=odd.artifact.pk).exists()
    assert Order.objects.filter(pk=order.pk).exists()


def test_the_last_type_takes_the_sealed_folder_along(acme, django_capture_on_commit_callbacks):
    odd = make_build(acme.owner, acme.artifact, quantization="f16", passed=False)
    shared = odd.artifact.folder.parent
    with django_capture_on_commit_callbacks(execute=True):
        delete_build(acme.owner, odd)
    assert not shared.exists()
    assert shared.parent == artifacts_folder()
    assert acme.build.artifact.folder.exists()


@pytest.mark.parametrize(("hours", "kept"), [(1, True), (25, False)])
def test_unfinished_files_of_what_failed_go_after_a_day(acme, hours, kept):
    failed = make_failed_build(acme.owner, acme.artifact)
    Order.objects.filter(pk=failed.order_id).update(ended_at=timezone.now() - timedelta(hours=hours))
    did = kinds.forget_states()
    assert failed.order.checkpoints.exists() == kept
    assert len(did) == (0 if kept else 1)
    assert kinds.forget_states() == []


def test_unfinished_files_of_what_goes_on_stay(acme):
    failed = make_failed_build(acme.owner, acme.artifact)
    Order.objects.filter(pk=failed.order_id).update(ended_at=timezone.now() - timedelta(days=3))
    failed.order.refresh_from_db()
    retry_build(acme.owner, failed)
    assert kinds.forget_states() == []
    assert failed.order.checkpoints.exists()
