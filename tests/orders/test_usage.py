"""What each attempt took is written down once: when it ended, was paused, was given back, or when its worker was last heard of."""

from datetime import timedelta

import pytest
from django.db import IntegrityError, transaction
from django.utils import timezone

from studio.datasets.services import Upload, add_version
from studio.orders.models import Order, Slot, Usage
from studio.orders.services import claim, finish, make_way, reconcile, release, request_stop, worker_lost
from studio.runs.services import pause_run, resume_run
from tests.fixtures import HOST_FACTS, work_off
from tests.orders.conftest import work_while
from tests.orders.test_losing_workers import begun
from tests.orders.test_pausing import LONG

GPU = {"name": "NVIDIA H100", "memory": 80 << 30}


@pytest.fixture
def gpus(slot):
    """The worker has two GPUs."""
    Slot.objects.filter(pk=slot.pk).update(facts=HOST_FACTS | {"gpus": [GPU, GPU]})


def attempts(order):
    return list(Usage.objects.filter(order=order).order_by("attempt").values_list("attempt", flat=True))


@pytest.mark.django_db(transaction=True)
def test_a_run_that_ends_leaves_what_it_took_and_on_which_machine(start, gpus, acme):
    order = work_off(start())
    used = Usage.objects.get(order=order)
    assert (used.kind, used.title, used.project, used.client) == ("train", "A run", acme.project.pk, acme.client)
    assert (used.worker_kind, used.gpus) == ("NVIDIA H100", 2)
    assert (used.started_at, used.ended_at) == (order.started_at, order.ended_at)


@pytest.mark.django_db(transaction=True)
def test_a_worker_without_a_gpu_is_a_cpu(start):
    order = work_off(start())
    assert (Usage.objects.get(order=order).worker_kind, Usage.objects.get(order=order).gpus) == ("CPU", 0)


@pytest.mark.django_db(transaction=True)
def test_each_attempt_of_a_paused_run_is_counted_and_the_rest_between_is_not(start, acme):
    order = start(**LONG)
    work_while(order, lambda: pause_run(acme.owner, order.run), until=12)
    resume_run(acme.owner, order.run)
    order.refresh_from_db()
    work_off(order)
    assert attempts(order) == [1, 2]
    first, second = Usage.objects.filter(order=order).order_by("attempt")
    assert first.ended_at <= second.started_at
    assert abs((first.hours + second.hours) * 3600 - order.seconds) < 0.5


@pytest.mark.django_db(transaction=True)
def test_a_lost_attempt_counts_to_its_last_heartbeat_on_the_machine_that_is_gone(start, gpus):
    order = begun(start())
    Order.objects.filter(pk=order.pk).update(started_at=timezone.now() - timedelta(minutes=5))
    worker_lost("test")
    used = Usage.objects.get(order=order)
    assert (used.attempt, used.gpus) == (1, 2)
    assert used.hours * 60 == pytest.approx(4, abs=0.05)
    assert not Slot.objects.filter(name="test").exists()
    assert worker_lost("test") == reconcile() == []
    assert attempts(order) == [1]


@pytest.mark.django_db(transaction=True)
def test_the_loss_that_is_one_too_many_is_counted_as_those_before(start):
    order = start()
    for _ in range(Order.MAX_LOSSES):
        begun(order)
        worker_lost("test")
        order.refresh_from_db()
    assert (order.status, attempts(order)) == ("failed", [1, 2, 3])


@pytest.mark.django_db(transaction=True)
def test_an_attempt_that_is_given_back_counts_until_then(start):
    order = claim(str(start().pk), attempt=1, worker="test")
    Order.objects.filter(pk=order.pk).update(started_at=timezone.now() - timedelta(minutes=2))
    order.refresh_from_db()
    release(order)
    assert Usage.objects.get(order=order).hours * 60 == pytest.approx(2, abs=0.05)
    assert order.worked == pytest.approx(120, abs=3)


@pytest.mark.django_db(transaction=True)
def test_what_gives_way_counts_its_attempt_before_it_goes_back_into_the_queue(start):
    order = claim(str(start().pk), attempt=1, worker="test")
    assert make_way(order, why="Paused for another.")
    finish(order, status=Order.Status.PAUSED, result=None, error="")
    assert (order.status, order.attempt, attempts(order)) == ("queued", 2, [1])


@pytest.mark.django_db(transaction=True)
def test_what_no_worker_began_took_nothing(start):
    order = start()
    request_stop(order)
    assert attempts(order) == []


@pytest.mark.django_db(transaction=True)
def test_a_late_end_counts_nothing_twice(start):
    order = claim(str(start().pk), attempt=1, worker="test")
    assert finish(order, status=Order.Status.FAILED, result=None, error="It broke.")
    assert not finish(order, status=Order.Status.FAILED, result=None, error="It broke.")
    assert attempts(order) == [1]
    with pytest.raises(IntegrityError), transaction.atomic():
        Usage.objects.create(
            workspace=order.workspace,
            order=order,
            attempt=1,
            kind="train",
            worker_kind="CPU",
            started_at=order.started_at,
            ended_at=order.ended_at,
        )


@pytest.mark.django_db(transaction=True)
def test_an_import_counts_to_its_project_and_the_version_knows_its_size(acme):
    content = b'{"text": "one line of text"}\n' * 40
    upload = Upload(filename="rows.jsonl", chunks=[content], size=len(content))
    version = add_version(acme.owner, dataset=acme.version.dataset, upload=upload)
    assert version.size == len(content)
    order = work_off(version.order)
    used = Usage.objects.get(order=order)
    assert (used.kind, used.title, used.project) == ("dataset", "", acme.project.pk)
    version.refresh_from_db()
    assert version.size == len(content) + order.result["size"] > len(content)
