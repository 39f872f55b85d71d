"""Workers, machines and queues that are lost: nothing else is lost with them, and two never do the same."""

import threading
import uuid
from datetime import timedelta
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management import call_command
from django.db import connections
from django.test import override_settings
from django.utils import timezone
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.worker import SimpleWorker

from studio.artifacts.models import Artifact
from studio.datasets.models import DatasetVersion
from studio.datasets.services import Upload, add_version
from studio.orders import services, storedays
from studio.orders.models import Event, Order
from studio.orders.services import claim, reconcile, request_stop, worker_lost
from studio.orders.supervising import Supervisor
from studio.runs.services import stop_run
from tests.fixtures import work_off
from tests.orders.conftest import events_of, work_while


def jobs(queue, name="train"):
    """The jobs of a queue, as whoever looks into Redis sees them."""
    names = [value.decode() for value in queue.lrange(f"rq:queue:{name}", 0, -1)]
    return [Job.fetch(name, connection=queue, serializer=JSONSerializer) for name in names]


def work_the_queue(queue, name="train"):
    import django_rq

    SimpleWorker([django_rq.get_queue(name)], connection=queue, serializer=JSONSerializer).work(burst=True, logging_level="ERROR")


def redis_away():
    away = "unix:///nonexistent/redis.sock"
    return override_settings(REDIS_URL=away, RQ_QUEUES={name: facts | {"URL": away} for name, facts in settings.RQ_QUEUES.items()})


def begun(order, *, worker="test"):
    """The order as a worker has it that dies without a word."""
    claimed = claim(str(order.pk), attempt=order.attempt, worker=worker)
    Order.objects.filter(pk=order.pk).update(heartbeat_at=timezone.now() - timedelta(minutes=1))
    return claimed


@pytest.mark.django_db(transaction=True)
def test_a_job_says_which_order_and_nothing_else(start, queue):
    order = start()
    (job,) = jobs(queue)
    assert (job.func_name, job.args, job.kwargs) == ("studio.orders.tasks.work", ["train", str(order.pk), 1], {})
    assert job.timeout == -1
    assert b"rehearsal" not in b"".join(value for value in queue.hgetall(job.key).values())


@pytest.mark.django_db(transaction=True)
def test_a_worker_of_the_queue_does_the_order(start, queue):
    order = start()
    work_the_queue(queue)
    order.refresh_from_db()
    assert (order.status, bool(order.worker)) == ("succeeded", True)
    assert events_of(order)[-1].type == "end"
    assert jobs(queue) == []


@pytest.mark.django_db(transaction=True)
def test_of_two_workers_one_gets_the_order(start):
    order, claimed, together = start(), [], threading.Barrier(4)

    def try_it(name):
        together.wait()
        claimed.append(claim(str(order.pk), attempt=1, worker=name))
        connections.close_all()

    threads = [threading.Thread(target=try_it, args=(f"worker{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [each for each in claimed if each]
    order.refresh_from_db()
    assert [(winner.status, winner.worker) for winner in winners] == [("starting", order.worker)]


def test_what_is_not_there_any_more_is_not_claimed(start):
    order = start()
    assert claim(str(order.pk), attempt=2, worker="early") is None
    assert claim(str(uuid.uuid4()), attempt=1, worker="lost") is None
    assert claim(str(order.pk), attempt=1, worker="test")
    assert claim(str(order.pk), attempt=1, worker="test") is None


@pytest.mark.django_db(transaction=True)
def test_a_late_attempt_writes_nothing_more_and_ends(start, queue):
    order = start(max_steps=100_000, seconds_per_step=0.01)
    work_while(order, lambda: worker_lost("test"))
    order.refresh_from_db()
    assert (order.status, order.attempt) == ("recovering", 2)
    events = events_of(order)
    assert (events[-1].type, events[-1].body["text"]) == ("note", "The worker was lost. Trying again.")
    assert [job.args[2] for job in jobs(queue)] == [1, 2]  # of which the first will find nothing to do


def test_a_late_attempt_cannot_end_the_order(start):
    late = begun(start())
    assert reconcile()[0] == f"{late}: recovering"
    assert services.finish(late, status="succeeded", result={"folder": "x"}, error="") is False
    assert services.held(late).update(phase="late") == 0
    Supervisor(late).store([b'{"seq": 1, "attempt": 1, "type": "note", "text": "late"}\n'])
    assert not Event.objects.filter(body__text="late").exists()


def test_the_next_attempt_goes_on_with_the_numbers(start):
    order = start()
    begun(order)
    Event.objects.create(order=order, seq=1, attempt=1, at=timezone.now(), type="note", body={})
    Order.objects.filter(pk=order.pk).update(last_seq=1)
    reconcile()
    order.refresh_from_db()
    assert (order.status, order.attempt, order.heartbeat_at) == ("recovering", 2, None)
    work_off(order)
    assert order.status == "succeeded"
    assert [event.attempt for event in events_of(order)][:4] == [1, 2, 2, 2]
    assert order.artifacts.get().folder_name == f"{order.pk}-2"


def test_three_losses_are_a_failure_that_says_what_to_do(start):
    order = start()
    for attempt in (1, 2, 3):
        order.refresh_from_db()
        assert order.attempt == attempt
        begun(order)
        reconcile()
    order.refresh_from_db()
    assert (order.status, order.error) == ("failed", "The worker was lost 3 times. Look at its log and memory, then start it again.")
    assert events_of(order)[-1].body == {"status": "failed", "error": order.error}
    assert reconcile() == []


def test_a_lost_worker_that_was_asked_to_stop_is_not_tried_again(start):
    order = start()
    request_stop(begun(order))
    reconcile()
    order.refresh_from_db()
    assert (order.status, order.attempt, events_of(order)[-1].body["status"]) == ("stopped", 1, "stopped")


def test_a_worker_with_a_pulse_is_left_alone(start):
    order = start()
    claim(str(order.pk), attempt=1, worker="test")
    reconcile()
    order.refresh_from_db()
    assert (order.status, order.attempt) == ("starting", 1)


def test_what_an_ended_worker_held_is_taken_up_at_once_and_nothing_of_others(start):
    mine, other = start(), start()
    claim(str(mine.pk), attempt=1, worker="files-7")
    claim(str(other.pk), attempt=1, worker="files-70")
    assert worker_lost("files-7") == [f"{mine}: recovering"]
    other.refresh_from_db()
    assert other.status == "starting"


def test_what_a_lost_attempt_sealed_without_saying_so_is_made_again(start):
    order = start()
    begun(order)
    orphan = Path(settings.DATA_DIR, "artifacts", f"{order.pk}-1")
    orphan.mkdir(parents=True)
    (orphan / "rehearsal.json").write_text("of the lost attempt")
    reconcile()
    order.refresh_from_db()
    work_off(order)
    assert order.status == "succeeded"
    assert not orphan.exists()
    assert Artifact.objects.filter(order=order).count() == 1


def test_a_dataset_whose_worker_was_lost_after_sealing_is_read_again(acme):
    content = b'{"prompt": "Hi?", "completion": "Hello."}\n' * 4
    upload = Upload(filename="rows.jsonl", chunks=[content], size=len(content))
    version: DatasetVersion = add_version(acme.owner, dataset=acme.version.dataset, upload=upload)
    begun(version.order)
    version.folder.mkdir(parents=True)
    (version.folder / "rows.parquet").write_bytes(b"of the lost attempt")
    reconcile()
    version.order.refresh_from_db()
    assert work_off(version.order).error == ""
    version.refresh_from_db()
    assert version.is_ready


@pytest.mark.django_db(transaction=True)
def test_a_flushed_queue_loses_nothing(start, queue):
    first, second = start(), start()
    assert reconcile() == []  # both are still to be heard
    queue.flushall()
    assert sorted(reconcile()) == sorted([f"{first}: queued again", f"{second}: queued again"])
    assert reconcile() == []
    assert {job.args[1] for job in jobs(queue)} == {str(first.pk), str(second.pk)}
    work_the_queue(queue)
    assert set(Order.objects.filter(kind="train", worker__gt="").values_list("status", flat=True)) == {"succeeded"}


@pytest.mark.django_db(transaction=True)
def test_while_the_queue_is_away_nothing_is_lost_and_pages_go_on(start, queue):
    with redis_away():
        order = start()
        assert reconcile() == []
        request_stop(start())
    assert jobs(queue) == []
    assert reconcile() == [f"{order}: queued again"]
    work_the_queue(queue)
    order.refresh_from_db()
    assert order.status == "succeeded"


@pytest.mark.django_db(transaction=True)
def test_a_run_goes_on_while_redis_is_away(start):
    order = start()
    with redis_away():
        assert work_off(order).status == "succeeded"
    events_of(order)


@pytest.mark.django_db(transaction=True)
def test_a_stopped_order_whose_job_is_taken_later_does_nothing(start, queue, acme):
    order = start()
    stop_run(acme.owner, order.run)
    work_the_queue(queue)
    order.refresh_from_db()
    assert (order.status, order.worker, [event.type for event in events_of(order)]) == ("stopped", "", ["end"])


def test_the_command_says_what_it_did(start, capsys):
    order = start()
    storedays.write_down()  # as an earlier round of the day did
    claim(str(order.pk), attempt=1, worker="train0-7")
    call_command("reconcile", "--lost", "train0-7")
    assert capsys.readouterr().out.splitlines() == [f"{order}: recovering", f"{order}: queued again"]
