"""A worker says that it lives, whatever happens to the database, and does what orders placed and nothing else."""

import json
import time

import django_rq
import pytest
from django.db import connection, connections
from django.utils import timezone
from rq.job import Callback

from studio.orders import slots
from studio.orders.models import Slot
from studio.orders.rqworker import SlotWorker
from studio.orders.services import claim
from studio.orders.supervising import write_order
from tests.fixtures import HOST_FACTS

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_forged_job_is_not_run(queue, tmp_path):
    """Whoever can write to Redis must not be able to run anything on the workers."""
    canary = tmp_path / "canary"
    train = django_rq.get_queue("train")
    train.enqueue("os.system", f"touch {canary}")
    train.enqueue("studio.orders.tasks.work", "train", "no id", 1, on_failure=Callback("os.system"), on_success=Callback("os.system"))
    forged = train.enqueue("os.getcwd")
    queue.hset(forged.key, "data", b"\x80\x04no json")
    SlotWorker([train], connection=queue).work(burst=True, logging_level="ERROR")
    assert train.count == 0
    assert not canary.exists()
    assert Slot.objects.count() == 0  # the worker has said goodbye


def test_a_worker_outlives_a_database_that_is_away_for_a_moment(monkeypatch):
    monkeypatch.setattr(slots, "EVERY", 0.05)
    announcer = slots.Announcer(name="steady", queue="train", facts={})
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE orders_slot RENAME TO away")
        announcer.start()
        time.sleep(0.3)
        cursor.execute("ALTER TABLE away RENAME TO orders_slot")
    time.sleep(0.3)
    announcer.ended.set()
    announcer.join()
    assert (timezone.now() - Slot.objects.get(name="steady").seen_at).total_seconds() < 5
    connections.close_all()


def test_a_run_is_told_of_the_machine_that_it_runs_on(start):
    """The estimate is made for the largest machine; another one may take the run."""
    Slot.objects.create(
        name="small", queue="train", facts=HOST_FACTS | {"name": "small", "cpus": 1, "memory": 1 << 30}, seen_at=timezone.now()
    )
    claimed = claim(str(start().pk), attempt=1, worker="small")
    assert json.loads(write_order(claimed).read_text())["payload"]["host"]["name"] == "small"
