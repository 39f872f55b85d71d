"""A run is paused and resumed, or goes on after its worker was lost or it failed: from its last state, with nothing learnt twice."""

import os
import signal

import psutil
import pytest

from studio.artifacts.models import Artifact
from studio.audit.models import AuditRecord
from studio.checkpoints import newest, states, step_of
from studio.errors import UserError
from studio.orders import supervising
from studio.orders.models import Event, Order
from studio.orders.services import claim, reconcile, worker_lost
from studio.orders.supervising import Supervisor
from studio.runs.services import pause_run, resume_run, stop_run
from tests.fixtures import make_slot, work_off
from tests.orders.conftest import events_of, work_while
from tests.orders.test_losing_workers import begun

LONG = {"max_steps": 40, "save_every": 5, "evaluate_every": 5, "seconds_per_step": 0.05}


def losses(order):
    """Of each step that stands in the charts: what a later attempt reports takes the place of what an earlier one did."""
    found = {}
    for event in Event.objects.filter(order=order, type="metric"):
        values = {name: event.body[name] for name in ("loss", "validation_loss") if name in event.body}
        found[event.body["step"]] = found.get(event.body["step"], {}) | values
    return found


def child_of(order):
    """The process that works on an order, by its command line."""
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if "studio.worker" in command and str(order.pk) in command[-1]:
            return process.pid
    raise AssertionError("No process works on it.")


@pytest.fixture
def whole(start):
    """What a run reports that is left alone."""
    return losses(work_off(start(**LONG | {"seconds_per_step": 0.0})))


@pytest.mark.django_db(transaction=True)
def test_a_paused_run_frees_its_worker_and_goes_on_without_a_trace(start, acme, whole):
    order = start(**LONG)
    work_while(order, lambda: pause_run(acme.owner, order.run), until=12)
    assert (order.status, order.error, order.pausing, order.losses) == ("paused", "", True, 0)
    assert events_of(order)[-1].body == {"status": "paused", "error": ""}
    assert not Artifact.objects.filter(order=order).exists()
    paused_at, seconds = order.saved_step, order.seconds
    assert 1 <= paused_at < 40
    assert claim(str(order.pk), attempt=1, worker="other") is None

    resume_run(acme.owner, order.run)
    order.refresh_from_db()
    assert (order.status, order.attempt, order.stop_requested_at, order.ended_at) == ("queued", 2, None, None)
    work_off(order)
    assert (order.status, order.losses) == ("succeeded", 0)
    assert order.seconds > seconds
    second = [event for event in events_of(order) if event.attempt == 2]
    assert [event.body["text"] for event in second[:2]] == [
        f"Resumed; it waits for a worker. It goes on from step {paused_at}.",
        f"Resumed from step {paused_at}.",
    ]
    steps = [event.body["step"] for event in events_of(order) if event.type == "metric" and "loss" in event.body]
    assert steps == list(range(1, 41))
    assert losses(order) == whole
    assert not order.checkpoints.exists()
    said = list(AuditRecord.objects.filter(object_id=str(order.run.pk)).order_by("id").values_list("verb", flat=True))
    assert said == ["run.create", "run.pause", "run.resume"]


@pytest.mark.django_db(transaction=True)
def test_a_killed_process_leaves_a_failed_run_that_can_be_resumed(start, acme, whole):
    order = start(**LONG)
    work_while(order, lambda: os.kill(child_of(order), signal.SIGKILL), until=22)
    assert order.status == "failed" and "memory was not full" in order.error
    assert order.can_resume and order.saved_step % 5 == 0
    resume_run(acme.owner, order.run)
    order.refresh_from_db()
    assert work_off(order).status == "succeeded"
    assert losses(order) == whole
    assert order.error == ""


@pytest.mark.django_db(transaction=True)
def test_a_lost_worker_costs_only_the_steps_after_the_last_state(start, whole):
    order = start(**LONG)
    work_while(order, lambda: worker_lost("test"), until=22)
    assert (order.status, order.attempt) == ("recovering", 2)
    state = step_of(newest(order.checkpoints))
    make_slot()  # the new worker says what it has
    work_off(order)
    assert (order.status, order.error) == ("succeeded", "")
    first = next(event for event in events_of(order) if event.attempt == 2 and event.type == "metric")
    assert first.body["step"] == state + 1 > 1
    assert losses(order) == whole


@pytest.mark.django_db(transaction=True)
def test_a_server_that_ends_lets_the_run_save_where_it_is(start, monkeypatch, whole):
    order = start(**LONG)
    monkeypatch.setattr(supervising, "EXIT_GRACE", 5.0)
    heard = []

    def told_to_end(self, child):
        heard.append(child)
        if len(heard) > 8:
            raise SystemExit

        return True

    monkeypatch.setattr(Supervisor, "beat", told_to_end)
    with pytest.raises(SystemExit):
        work_off(order)
    monkeypatch.undo()
    order.refresh_from_db()
    assert (order.status, order.attempt, order.losses) == ("recovering", 2, 0)
    made = max(event.body["step"] for event in Event.objects.filter(order=order, type="metric"))
    assert order.saved_step == made
    work_off(order)
    assert (order.status, losses(order)) == ("succeeded", whole)


@pytest.mark.parametrize("status", ["queued", "recovering"])
def test_a_run_that_waits_is_paused_at_once_and_its_job_does_nothing(start, acme, status):
    order = start()
    Order.objects.filter(pk=order.pk).update(status=status)
    pause_run(acme.owner, order.run)
    order.refresh_from_db()
    assert (order.status, events_of(order)[-1].body["status"]) == ("paused", "paused")
    assert claim(str(order.pk), attempt=1, worker="late") is None
    assert reconcile() == []
    resume_run(acme.owner, order.run)
    order.refresh_from_db()
    assert work_off(order).status == "succeeded"


def test_a_worker_that_is_lost_while_it_pauses_leaves_a_paused_run(start, acme):
    order = begun(start())
    pause_run(acme.owner, order.run)
    order.refresh_from_db()
    assert order.status == "pausing"
    Order.objects.filter(pk=order.pk).update(heartbeat_at=None)
    reconcile()
    order.refresh_from_db()
    assert (order.status, order.attempt) == ("paused", 1)


@pytest.mark.django_db(transaction=True)
def test_a_run_that_does_not_pause_in_time_is_paused_at_its_last_state(strange, start, acme, monkeypatch):
    monkeypatch.setattr(supervising, "STOP_GRACE", 0.3)
    strange(
        "deaf",
        "import time",
        "from training_plugins.rehearsal import save",
        "import random",
        "save(job, step=7, tokens=0, chance=random.Random(1))",
        "time.sleep(60)",
    )
    order = start("deaf")
    work_while(order, lambda: pause_run(acme.owner, order.run), until=2)
    assert (order.status, order.saved_step) == ("paused", 7)
    assert order.error == "It did not stop in time and was ended; what it learnt until step 7 is kept."


@pytest.mark.django_db(transaction=True)
def test_a_paused_run_that_is_discarded_leaves_nothing(start, acme):
    order = start(**LONG)
    work_while(order, lambda: pause_run(acme.owner, order.run), until=12)
    with pytest.raises(UserError, match="Resume it to go on, or discard it"):
        stop_run(acme.owner, order.run)
    stop_run(acme.owner, Order.objects.get(pk=order.pk).run, discard=True)
    order.refresh_from_db()
    assert order.status == "stopped" and not order.checkpoints.exists()
    with pytest.raises(UserError, match="already ended"):
        resume_run(acme.owner, order.run)


@pytest.mark.django_db(transaction=True)
def test_a_run_that_is_stopped_before_it_has_gone_on_loses_nothing(start, acme):
    order = start(**LONG)
    work_while(order, lambda: worker_lost("test"), until=22)
    stop_run(acme.owner, order.run)
    order.refresh_from_db()
    assert order.status == "paused" and states(order.checkpoints)


def test_what_cannot_be_paused_or_resumed_says_why(start, acme, strange):
    order = start()
    refused = [(resume_run, order, "This is not paused, so there is nothing to resume.")]
    pause_run(acme.owner, order.run)
    order.refresh_from_db()
    refused.append((pause_run, order, "This is paused already."))
    done = work_off(start())
    refused += [(pause_run, done, "This has already ended."), (resume_run, done, "This has already ended.")]
    failed = work_off(start(fail_at=1))
    refused.append((resume_run, failed, "Nothing was saved before it failed, so there is nothing to go on from."))
    stopping = begun(start())
    stop_run(acme.owner, stopping.run)
    stopping.refresh_from_db()
    refused.append((pause_run, stopping, "This is already stopping or finishing, so there is nothing left to pause."))
    for act, given, sentence in refused[1:]:
        with pytest.raises(UserError, match=sentence):
            act(acme.owner, given.run)
    with pytest.raises(UserError, match="This is not paused"):
        resume_run(acme.owner, start().run)


def test_a_plugin_that_cannot_go_on_is_not_paused(start, acme, strange, monkeypatch):
    monkeypatch.setattr("training_plugins.rehearsal.Rehearsal.resumes", False)
    with pytest.raises(UserError, match="cannot go on from where it was, so its runs cannot be paused"):
        pause_run(acme.owner, start().run)
