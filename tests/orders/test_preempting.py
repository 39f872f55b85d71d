"""What gives way to a higher priority, or to the day, and goes on by itself; and how long a state is kept that nobody resumes."""

from datetime import UTC, timedelta

import pytest
from django.conf import settings
from django.core.management import call_command
from django.utils import timezone

from studio.artifacts.models import Artifact
from studio.errors import UserError
from studio.orders import preempting, storedays
from studio.orders.models import Order, Slot
from studio.orders.preempting import make_room, rest_by_day
from studio.orders.services import claim_next, finish, reconcile, request_pause, request_stop
from studio.orders.states import discard_states, kept_until, sweep
from studio.orders.supervising import Supervisor
from studio.workspaces.models import Workspace
from studio.workspaces.services import create_client
from tests.fixtures import HOST_FACTS, work_off
from tests.orders.conftest import events_of, work_while
from tests.orders.test_pausing import LONG, losses
from tests.orders.test_queue import HIGH, LOW, NORMAL

LATER = " It goes on by itself when its turn comes."


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch):
    """Rehearsals of seconds are not waited for either."""
    monkeypatch.setattr(preempting, "ENDS_SOON", 0.0)


def prioritised(order, priority):
    Order.objects.filter(pk=order.pk).update(priority=priority)
    order.refresh_from_db()
    return order


def notes(order):
    return [event.body["text"] for event in events_of(order) if event.type == "note"]


@pytest.mark.django_db(transaction=True)
def test_a_run_of_higher_priority_takes_the_worker_and_the_other_goes_on_without_a_trace(start):
    whole = losses(work_off(start(**LONG | {"seconds_per_step": 0.0})))
    patient, urgent = start(**LONG), None

    def place_urgent():
        nonlocal urgent
        urgent = prioritised(start(), HIGH)
        assert make_room("train") == [f"{patient}: paused for {urgent}"]
        assert make_room("train") == []  # one is on its way out already

    work_while(patient, place_urgent, until=12)
    assert (patient.status, patient.attempt, patient.losses, patient.comes_back) == ("queued", 2, 0, "")
    step = patient.saved_step
    assert 1 <= step < 40
    assert notes(patient)[-1] == f"Paused for “A run”, which has a higher priority.{LATER} It goes on from step {step}."
    assert notes(urgent) == ["It is next: “A run” is paused for it, and goes on later."]
    taken = []
    while order := claim_next("train", worker="test"):
        taken.append(order)
        Supervisor(order).run()
    assert taken == [urgent, patient]
    assert [order.status for order in taken] == ["succeeded", "succeeded"]
    assert losses(taken[1]) == whole


@pytest.fixture
def runs(wait):
    """One run at work on the only worker, and another that waits: `runs(its priority, the other's)`."""

    def made(priority, other, *, client=None, **columns):
        running = wait("at work", status=Order.Status.RUNNING, worker="test", priority=priority, **columns)
        Order.objects.filter(pk=running.pk).update(started_at=timezone.now(), heartbeat_at=timezone.now())
        return running, wait("waits", priority=other, client=client)

    return made


@pytest.mark.parametrize(
    "priority, other, gives_way", [(LOW, NORMAL, True), (NORMAL, HIGH, True), (HIGH, HIGH, False), (HIGH, NORMAL, False)]
)
def test_only_a_higher_priority_pushes_away(runs, priority, other, gives_way):
    running, waiting = runs(priority, other)
    assert bool(make_room("train")) is gives_way
    running.refresh_from_db()
    assert running.status == ("pausing" if gives_way else "running")
    assert bool(notes(waiting)) is gives_way


def test_nothing_gives_way_while_a_worker_is_free(runs):
    running, waiting = runs(LOW, HIGH)
    free = Slot.objects.create(name="free", queue="train", facts=HOST_FACTS, seen_at=timezone.now())
    assert make_room("train") == []
    free.delete()
    assert make_room("train") == [f"{running}: paused for {waiting}"]


def test_the_lowest_priority_gives_way_and_of_those_what_began_last(runs, wait):
    _, waiting = runs(NORMAL, HIGH)
    for number, (name, priority) in enumerate([("long at work", LOW), ("just begun", LOW)], 1):
        Slot.objects.create(name=name, queue="train", facts=HOST_FACTS, seen_at=timezone.now())
        order = wait(name, status=Order.Status.RUNNING, worker=name, priority=priority)
        Order.objects.filter(pk=order.pk).update(started_at=timezone.now() - timedelta(hours=2 - number))
    assert make_room("train") == [f"{order}: paused for {waiting}"]
    assert Order.objects.get(status="pausing").run.name == "just begun"


def test_what_cannot_go_on_or_ends_soon_is_left_alone(runs, monkeypatch):
    running, waiting = runs(LOW, HIGH)
    with monkeypatch.context() as patch:
        patch.setattr("training_plugins.rehearsal.Rehearsal.resumes", False)
        assert make_room("train") == []
    monkeypatch.setattr(preempting, "ENDS_SOON", 3600.0)
    assert make_room("train") == []
    monkeypatch.setattr(preempting, "ENDS_SOON", 60.0)
    assert make_room("train") == [f"{running}: paused for {waiting}"]


def test_nothing_gives_way_to_another_workspace(runs, rival):
    _, waiting = runs(LOW, HIGH)
    Order.objects.filter(pk=waiting.pk).update(workspace=rival.workspace, client=rival.client)
    assert make_room("train") == []


def test_another_clients_run_is_not_named(runs, acme):
    running, waiting = runs(LOW, HIGH, client=create_client(acme.owner, name="Globex"))
    make_room("train")
    running.refresh_from_db()
    assert running.comes_back == "Paused for another client's run, which has a higher priority."
    assert notes(waiting) == ["It is next: another client's run is paused for it, and goes on later."]


@pytest.mark.parametrize("keep", [request_pause, request_stop])
def test_whoever_pauses_or_stops_what_gives_way_keeps_it_paused(runs, keep):
    running, _ = runs(LOW, HIGH)
    make_room("train")
    running.refresh_from_db()
    keep(running)
    Order.objects.filter(pk=running.pk).update(heartbeat_at=None)
    reconcile()
    running.refresh_from_db()
    assert (running.status, running.attempt) == ("paused", 1)


def test_a_worker_that_is_lost_while_its_run_gives_way_leaves_it_in_the_queue(runs):
    running, waiting = runs(LOW, HIGH)
    make_room("train")
    Order.objects.filter(pk=running.pk).update(heartbeat_at=None)
    reconcile()
    running.refresh_from_db()
    assert (running.status, running.attempt) == ("queued", 2)
    assert claim_next("train", worker="test") == waiting


def test_what_is_for_the_night_rests_by_day(runs, wait):
    by_night, by_day = runs(NORMAL, NORMAL, at_night=True)
    here = timezone.localtime(timezone=UTC)
    Workspace.objects.update(night_from=(here - timedelta(hours=1)).time(), night_until=(here + timedelta(hours=1)).time())
    assert rest_by_day() == []
    begins = (here + timedelta(hours=2)).time()
    Workspace.objects.update(night_from=begins, night_until=(here + timedelta(hours=3)).time())
    assert rest_by_day() == [f"{by_night}: paused until the night"]
    by_night.refresh_from_db()
    assert by_night.comes_back == f"Paused until {begins:%H:%M}, since it is only for the night."
    finish(by_night, status="paused", result=None, error="")
    by_night.refresh_from_db()
    assert by_night.status == "queued"
    assert claim_next("train", worker="test") == by_day and claim_next("train", worker="test") is None


def with_state(order, *, status, days=0):
    state = order.checkpoints / "step-00000007"
    state.mkdir(parents=True)
    (state / "manifest.json").write_text("{}")
    Order.objects.filter(pk=order.pk).update(status=status, ended_at=timezone.now() - timedelta(days=days))
    order.refresh_from_db()
    return order


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("status, left", [("paused", "stopped"), ("failed", "failed")])
def test_a_state_is_kept_for_thirty_days(wait, status, left):
    old, young = (with_state(wait(name), status=status, days=days) for name, days in (("old", 31), ("young", 29)))
    assert (kept_until(young) - timezone.now()).days == 0
    assert sweep() == [f"{old}: its state has expired"]
    assert sweep() == []
    old.refresh_from_db()
    assert (old.status, old.saved_step, old.can_resume, kept_until(old)) == (left, None, False, None)
    assert notes(old) == ["Its state was kept for 30 days and then deleted, so it cannot be resumed any more."]
    assert young.saved_step == 7


@pytest.mark.django_db(transaction=True)
def test_states_are_discarded_before_and_results_never(wait, acme):
    failed, paused = with_state(wait("failed"), status="failed"), with_state(wait("paused"), status="paused")
    discard_states(failed), discard_states(paused)
    failed.refresh_from_db(), paused.refresh_from_db()
    assert (failed.status, failed.saved_step, failed.can_resume) == ("failed", None, False)
    assert (paused.status, paused.saved_step) == ("stopped", None)
    assert acme.artifact.folder.exists() and Artifact.objects.filter(pk=acme.artifact.pk).exists()
    for order, sentence in ((failed, "nothing to discard"), (wait("waits"), "still going on"), (acme.run.order, "nothing to discard")):
        with pytest.raises(UserError, match=sentence):
            discard_states(order)


@pytest.mark.django_db(transaction=True)
def test_the_rounds_do_all_of_it(runs, wait, capsys):
    old = with_state(wait("old"), status="failed", days=settings.STATES_KEPT_DAYS + 1)
    running, waiting = runs(LOW, HIGH)
    storedays.write_down()  # as an earlier round of the day did
    call_command("reconcile")
    said = capsys.readouterr().out.splitlines()
    assert said == [f"{waiting}: queued again", f"{running}: paused for {waiting}", f"{old}: its state has expired"]
