"""What a client may take: said from 80 %, refused at 100 % with a sentence, also for two who come at once; what runs goes on."""

import threading
from datetime import timedelta

import pytest
from django.db import connections
from django.test import Client as Browser
from django.utils import timezone

from studio.artifacts.services import request_builds
from studio.audit.models import AuditRecord
from studio.datasets.models import DatasetVersion, Upload
from studio.datasets.services import Upload as Wanted
from studio.datasets.services import add_version
from studio.datasets.shaping import split_again
from studio.errors import UserError
from studio.orders.models import Order, Slot, Usage
from studio.orders.quotas import quotas_of
from studio.runs.models import Run
from studio.workspaces.models import Client
from studio.workspaces.months import Month
from tests.fixtures import HOST_FACTS, World, make_member, make_order, make_run, make_upload

MB = 10**6


@pytest.fixture
def ana(acme: World) -> Browser:
    browser = Browser()
    browser.force_login(acme.owner.user)
    return browser


def limited(acme: World, **limits) -> None:
    Client.objects.filter(pk=acme.client.pk).update(**limits)
    acme.client.refresh_from_db()


def stored(acme: World, size: int) -> None:
    """The client stores so many bytes."""
    for thing in (acme.artifact, acme.build.artifact):
        type(thing).objects.filter(pk=thing.pk).update(size=0)
    DatasetVersion.objects.filter(pk=acme.version.pk).update(size=size)


def gpu_hours(acme: World, hours: float) -> None:
    begin = Month.now(acme.workspace).begins
    facts = {"worker_kind": "NVIDIA L4", "gpus": 2, "started_at": begin, "ended_at": begin + timedelta(hours=hours / 2)}
    Usage.objects.create(workspace=acme.workspace, client=acme.client, order=acme.run.order, attempt=1, kind="train", **facts)


def start(acme: World):
    body = {"project": acme.project.pk, "plugin": "rehearsal", "base_model": acme.base.pk, "dataset_version": acme.version.pk}
    return acme.api.post("runs", {name: str(value) for name, value in body.items()})


def test_eighty_per_cent_is_said_on_every_page_where_it_matters_in_one_line(acme, ana, slot):
    limited(acme, storage_limit=100 * MB, gpu_hours_limit=10)
    stored(acme, 85 * MB)
    sentence = "In-house stores 85 MB of the 100 MB that it may store."
    for page in ("/", f"/clients/{acme.client.pk}/", f"/runs/new/?project={acme.project.pk}"):
        assert ana.get(page).content.decode().count(sentence) == 1, page
    stored(acme, 79 * MB)
    for page in ("/", f"/clients/{acme.client.pk}/", f"/runs/new/?project={acme.project.pk}"):
        assert "that it may" not in ana.get(page).content.decode(), page


def test_who_may_not_see_usage_is_told_no_figures_of_a_quota(acme):
    limited(acme, storage_limit=100 * MB, gpu_hours_limit=10, run_limit=1)
    stored(acme, 85 * MB)
    gpu_hours(acme, 9)
    make_run(acme.owner, acme.project, acme.base, acme.version, status=Order.Status.RUNNING)
    for role, sees in (("member", True), ("viewer", False)):
        reader = Browser()
        reader.force_login(make_member(acme.workspace, role=role, email=f"{role}@example.com").user)
        for address in ("/", "/clients/", f"/clients/{acme.client.pk}/"):
            page = reader.get(address).content.decode()
            for figure in ("85 MB", "100 MB", "9.0 of the 10 GPU hours", "that In-house may have at once"):
                assert sees or figure not in page, (role, address, figure)
        assert sees is ("9.0 of the 10 GPU hours" in page and "that In-house may have at once" in page), role


def test_full_storage_refuses_a_run_a_build_a_split_and_a_file_and_says_whom_to_ask(acme, slot):
    limited(acme, storage_limit=100 * MB)
    stored(acme, 100 * MB)
    answer = start(acme)
    assert answer.status_code == 409
    assert answer.json()["error"] == {
        "code": "quota",
        "message": "In-house stores 100 MB of the 100 MB that it may store. "
        "Delete what is not needed, or ask an owner or admin of Acme to raise the limit.",
        "fields": {},
    }
    refused = [
        lambda: request_builds(acme.owner, source=acme.artifact, quantizations=["q4_k_m"]),
        lambda: split_again(acme.owner, acme.version, percent=20, seed=1),
        lambda: add_version(acme.owner, dataset=acme.version.dataset, upload=Wanted(filename="a", chunks=[b"{}"], size=2)),
    ]
    for attempt in refused:
        with pytest.raises(UserError, match="an owner or admin of Acme"):
            attempt()
    assert acme.api.post("uploads", {"project": str(acme.project.pk), "filename": "a", "length": 1}).status_code == 409
    assert not Run.objects.exclude(pk=acme.run.pk).exists()


def test_a_file_that_does_not_fit_is_refused_before_it_is_sent_and_one_that_fits_is_taken(acme, ana):
    limited(acme, storage_limit=100 * MB)
    stored(acme, 90 * MB)
    sent = {"project": str(acme.project.pk), "filename": "rows.jsonl"}
    refused = acme.api.post("uploads", sent | {"length": 20 * MB})
    assert (refused.status_code, "This needs 20 MB." in refused.json()["error"]["message"]) == (409, True)
    assert acme.api.post("uploads", sent | {"length": 9 * MB}).status_code == 201
    assert acme.api.post("uploads", sent | {"length": 9 * MB}).status_code == 409  # the first one counts with all that it announced


def test_a_refused_file_leaves_nothing_on_the_disk(acme, data_folder):
    limited(acme, storage_limit=10)
    before = set(data_folder.glob("uploads/*"))
    answer = acme.api.upload(f"datasets/{acme.version.dataset_id}/versions", b'{"text": "one line"}\n')
    assert answer.status_code == 409
    assert set(data_folder.glob("uploads/*")) == before


def test_a_file_that_has_arrived_is_imported_as_long_as_the_client_is_not_full(acme):
    limited(acme, storage_limit=100 * MB)
    stored(acme, 99 * MB)
    upload = make_upload(acme.owner, acme.project, content=b'{"text": "one"}\n')
    answer = acme.api.post(f"datasets/{acme.version.dataset_id}/versions", {"upload": str(upload.pk)})
    assert answer.status_code == 202, answer.content
    stored(acme, 100 * MB)
    upload = make_upload(acme.owner, acme.project, content=b'{"text": "two"}\n')
    assert acme.api.post(f"datasets/{acme.version.dataset_id}/versions", {"upload": str(upload.pk)}).status_code == 409
    assert Upload.objects.filter(pk=upload.pk).exists()


def test_used_gpu_hours_refuse_runs_and_resuming_and_leave_what_runs_alone(acme, slot):
    limited(acme, gpu_hours_limit=10)
    running = make_run(acme.owner, acme.project, acme.base, acme.version, status=Order.Status.RUNNING)
    paused = make_run(acme.owner, acme.project, acme.base, acme.version, status=Order.Status.PAUSED)
    gpu_hours(acme, 9.9)
    assert start(acme).status_code == 201
    Usage.objects.all().delete()
    gpu_hours(acme, 10)
    refused = start(acme)
    assert refused.status_code == 409
    month = Month.now(acme.workspace).words
    sentence = (
        f"In-house has used 10.0 of the 10 GPU hours that it may use in {month}, so no run can start. "
        "Ask an owner or admin of Acme to raise the limit, or wait for the next month."
    )
    assert refused.json()["error"]["message"] == sentence
    assert acme.api.post(f"runs/{paused.pk}/resume").status_code == 409
    running.order.refresh_from_db()
    assert (running.status, running.order.stop_requested_at) == ("running", None)


def test_a_run_that_was_placed_before_the_gpu_hours_were_used_says_on_its_page_and_in_the_queue_that_it_waits(acme, ana, slot):
    limited(acme, gpu_hours_limit=10)
    placed = start(acme).json()["id"]
    gpu_hours(acme, 10)
    for page in (f"/runs/{placed}/", "/runs/queue/"):
        assert "since the client&#x27;s GPU hours of this month are used up" in ana.get(page).content.decode(), page


def test_what_runs_now_counts_as_far_as_it_has_come(acme, slot):
    limited(acme, gpu_hours_limit=4)
    Slot.objects.filter(pk=slot.pk).update(facts=HOST_FACTS | {"gpus": [{"name": "NVIDIA L4", "memory": 1 << 34}]})
    running = make_run(acme.owner, acme.project, acme.base, acme.version, status=Order.Status.RUNNING)
    begun = max(timezone.now() - timedelta(hours=5), Month.now(acme.workspace).begins)
    Order.objects.filter(pk=running.order_id).update(started_at=begun, ended_at=None, worker="test")
    (quota,) = quotas_of(acme.client)
    assert quota.used == pytest.approx((timezone.now() - begun).total_seconds() / 3600, abs=0.01)


def test_what_was_used_last_month_does_not_count(acme):
    limited(acme, gpu_hours_limit=4)
    gpu_hours(acme, 8)
    begins = Month.now(acme.workspace).begins
    Usage.objects.update(started_at=begins - timedelta(hours=3), ended_at=begins + timedelta(hours=1))
    (quota,) = quotas_of(acme.client)
    assert quota.used == 2  # one hour of two GPUs lies in this month


def test_the_limit_of_runs_at_once_is_said_and_further_ones_wait(acme, ana, slot):
    limited(acme, run_limit=1)
    order = make_order(acme.owner, kind="train", client=acme.client, status=Order.Status.RUNNING)
    Run.objects.create(
        project=acme.project, name="On", plugin="rehearsal", config={}, base_model=acme.base, dataset_version=acme.version, order=order
    )
    Order.objects.filter(pk=order.pk).update(queue="train")
    sentence = "1 of the 1 runs that In-house may have at once are running, so further ones wait."
    assert sentence in ana.get(f"/clients/{acme.client.pk}/").content.decode()
    assert sentence in ana.get(f"/runs/new/?project={acme.project.pk}").content.decode()
    started = start(acme)
    assert started.status_code == 201
    assert "limit of 1 run is reached" in ana.get(f"/runs/{started.json()['id']}/").content.decode()


@pytest.mark.django_db(transaction=True)
def test_of_two_files_that_come_at_once_the_one_too_many_is_refused(acme):
    limited(acme, storage_limit=100 * MB)
    stored(acme, 50 * MB)
    together, statuses = threading.Barrier(2), []

    def send():
        try:
            together.wait()
            answer = acme.api.post("uploads", {"project": str(acme.project.pk), "filename": "rows.jsonl", "length": 40 * MB})
            statuses.append(answer.status_code)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=send) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [201, 409]


def test_limits_are_set_on_the_client_s_page_with_one_record(acme, ana):
    answer = ana.post(f"/clients/{acme.client.pk}/quotas/", {"storage_limit": "1.5", "gpu_hours_limit": "100", "run_limit": "2"})
    assert answer.status_code == 302
    acme.client.refresh_from_db()
    assert (acme.client.storage_limit, acme.client.gpu_hours_limit, acme.client.run_limit) == (1_500_000_000, 100, 2)
    page = ana.get(f"/clients/{acme.client.pk}/").content.decode()
    assert 'value="1.5"' in page and 'value="100"' in page and 'value="2"' in page
    (told,) = AuditRecord.objects.filter(verb="client.update")
    assert told.change["storage_limit"] == [None, 1_500_000_000]
    ana.post(f"/clients/{acme.client.pk}/quotas/", {"storage_limit": "", "gpu_hours_limit": "", "run_limit": ""})
    acme.client.refresh_from_db()
    assert (acme.client.storage_limit, acme.client.gpu_hours_limit, acme.client.run_limit) == (None, None, None)


@pytest.mark.parametrize(
    ("field", "typed"),
    [
        ("storage_limit", "0"),
        ("storage_limit", "-1"),
        ("storage_limit", "much"),
        ("storage_limit", "1e300"),
        ("gpu_hours_limit", "nan"),
        ("gpu_hours_limit", "9999999"),
        ("run_limit", "1.5"),
        ("run_limit", "1001"),
    ],
)
def test_a_limit_that_is_none_is_refused_beside_its_field(acme, ana, field, typed):
    answer = ana.post(f"/clients/{acme.client.pk}/quotas/", {field: typed})
    assert answer.status_code == 422
    assert f'id="id_{field}_error"' in answer.content.decode()
    acme.client.refresh_from_db()
    assert getattr(acme.client, field) is None


def test_the_api_sets_what_it_names_and_leaves_the_rest(acme):
    assert acme.api.patch(f"clients/{acme.client.pk}", {"storage_limit": 5 * MB, "gpu_hours_limit": 2.5}).json()["storage_limit"] == 5 * MB
    found = acme.api.patch(f"clients/{acme.client.pk}", {"gpu_hours_limit": None}).json()
    assert (found["storage_limit"], found["gpu_hours_limit"]) == (5 * MB, None)
    assert AuditRecord.objects.filter(verb="client.update").count() == 2
    refused = acme.api.patch(f"clients/{acme.client.pk}", {"run_limit": 0, "storage_limit": -1})
    assert (refused.status_code, set(refused.json()["error"]["fields"])) == (422, {"run_limit", "storage_limit"})


def test_a_member_cannot_set_limits(acme):
    member = Browser()
    member.force_login(make_member(acme.workspace, role="member", email="max@example.com").user)
    assert member.post(f"/clients/{acme.client.pk}/quotas/", {"storage_limit": "1"}).status_code == 404
    assert "Limits" not in member.get(f"/clients/{acme.client.pk}/").content.decode()
