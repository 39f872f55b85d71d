"""Whose turn it is in the queue: priorities, clients, places, times and limits; and two workers that ask at once."""

import threading
from collections import Counter
from datetime import UTC, datetime, time, timedelta

import pytest
from django.db import connection, connections
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from studio.orders.models import Order, Slot, Usage
from studio.orders.services import claim, claim_next, reconcile
from studio.orders.turns import Turns, Wait, is_night, next_night
from studio.runs.queue import words_for
from studio.workspaces.models import Client, Workspace
from studio.workspaces.months import Month
from studio.workspaces.services import create_client
from tests.fixtures import HOST_FACTS
from tests.orders.test_losing_workers import jobs, work_the_queue

LOW, NORMAL, HIGH = Order.Priority.values


@pytest.fixture
def globex(acme):
    return create_client(acme.owner, name="Globex")


def names(orders):
    return [order.run.name for order in orders]


def taken(*, worker="test"):
    order = claim_next("train", worker=worker)
    return order.run.name if order else None


def test_the_oldest_goes_first(wait):
    wait("first"), wait("second")
    assert [taken(), taken(), taken()] == ["first", "second", None]


def test_a_higher_priority_goes_before_what_came_earlier(wait):
    wait("low", priority=LOW), wait("normal"), wait("high", priority=HIGH)
    assert [taken(), taken(), taken()] == ["high", "normal", "low"]


def test_the_client_with_the_fewest_running_goes_first(wait, globex):
    for number in (1, 2, 3):
        wait(f"ours {number}")
    wait("theirs 1", client=globex), wait("theirs 2", client=globex)
    assert [taken() for _ in range(5)] == ["ours 1", "theirs 1", "ours 2", "theirs 2", "ours 3"]


def test_with_one_worker_clients_take_turns_as_well(wait, globex):
    for number in (1, 2, 3, 4):
        wait(f"ours {number}")
    wait("theirs 1", client=globex), wait("theirs 2", client=globex)

    def next_run() -> str | None:
        Order.objects.filter(status__in=Order.ACTIVE).update(status=Order.Status.SUCCEEDED)
        return taken()

    assert [next_run() for _ in range(3)] == ["ours 1", "theirs 1", "ours 2"]
    wait("theirs 3", client=globex)
    assert [next_run() for _ in range(4)] == ["theirs 2", "ours 3", "theirs 3", "ours 4"]


def test_somebody_new_comes_before_the_second_run_of_whoever_has_one_running(wait, globex):
    wait("ours 1", status=Order.Status.RUNNING), wait("ours 2")
    wait("theirs", client=globex)
    Order.objects.filter(status__in=Order.ACTIVE).update(status=Order.Status.SUCCEEDED)
    assert [taken(), taken()] == ["theirs", "ours 2"]


def test_a_priority_counts_more_than_fairness(wait, globex):
    wait("ours", status=Order.Status.RUNNING), wait("ours too", priority=HIGH), wait("theirs", client=globex)
    assert [taken(), taken()] == ["ours too", "theirs"]


def test_a_client_at_its_limit_is_passed_over_until_a_run_of_its_ends(wait, acme, globex):
    Workspace.objects.update(run_limit=1)
    running = wait("ours", status=Order.Status.RUNNING)
    wait("ours too"), wait("theirs", client=globex), wait("theirs too", client=globex)
    assert [taken(), taken()] == ["theirs", None]
    Order.objects.filter(pk=running.pk).update(status=Order.Status.SUCCEEDED)
    assert [taken(), taken()] == ["ours too", None]


def test_a_client_may_have_a_limit_of_its_own(wait, globex):
    Workspace.objects.update(run_limit=1)
    globex.run_limit = 2
    globex.save()
    for number in (1, 2, 3):
        wait(f"theirs {number}", client=globex)
    assert [taken(), taken(), taken()] == ["theirs 1", "theirs 2", None]


def use_gpu(acme, hours, *, before_month=timedelta()):
    begin = Month.now(acme.workspace).begins - before_month
    facts = {"worker_kind": "NVIDIA L4", "gpus": 1, "started_at": begin, "ended_at": begin + timedelta(hours=hours)}
    Usage.objects.create(workspace=acme.workspace, client=acme.client, order=acme.run.order, attempt=1, kind="train", **facts)


def test_what_waits_when_the_gpu_hours_are_used_up_waits_for_the_next_month_or_a_higher_limit(wait, acme, globex):
    waiting = [wait("ours", priority=HIGH), wait("ours too")]
    later = wait("ours in a year", start_at=timezone.now() + timedelta(days=366))
    wait("theirs", client=globex)
    acme.client.gpu_hours_limit = 10
    acme.client.save()
    use_gpu(acme, 10)
    turns = Turns.read("train")
    assert names(turns.may_start()) == ["theirs"]
    ends = Month.now(acme.workspace).ends
    told = {prospect.order.run.name: prospect for prospect in turns.prospects()}
    assert [(told[name].wait, told[name].until) for name in ("ours", "ours too")] == [(Wait.HOURS, ends)] * 2
    assert (told["ours in a year"].wait, told["ours in a year"].until) == (Wait.MOMENT, later.start_at)
    assert told["ours"].starts_at == ends and (told["theirs"].place, told["theirs"].wait) == (1, None)
    assert (
        words_for(waiting[0])
        == f"Waits for {ends:%d %b}, 00:00 (UTC) or a higher limit, since the client's GPU hours of this month are used up"
    )
    assert [taken(), taken()] == ["theirs", None]
    Client.objects.filter(pk=acme.client.pk).update(gpu_hours_limit=11)
    assert [taken(), taken()] == ["ours", "ours too"]


def test_gpu_hours_of_last_month_keep_nothing_waiting(wait, acme):
    wait("ours")
    Client.objects.update(gpu_hours_limit=10)
    use_gpu(acme, 10, before_month=timedelta(hours=10))
    assert taken() == "ours"


def test_gpu_hours_are_counted_once_however_many_wait_and_not_at_all_without_a_limit(wait, acme, globex):
    def asked() -> int:
        with CaptureQueriesContext(connection) as queries:
            Turns.read("train")
        return len(queries)

    wait("ours"), wait("theirs", client=globex)
    unlimited = asked()
    Client.objects.update(gpu_hours_limit=10)
    limited = asked()
    wait("ours too"), wait("theirs too", client=globex)
    assert unlimited < limited == asked()


def test_nothing_starts_before_its_moment(wait):
    later = wait("later", start_at=timezone.now() + timedelta(hours=1))
    wait("now")
    assert [taken(), taken()] == ["now", None]
    Order.objects.filter(pk=later.pk).update(start_at=timezone.now() - timedelta(seconds=1))
    assert taken() == "later"


def test_what_is_for_the_night_waits_by_day(wait):
    wait("by night", at_night=True), wait("by day")
    here = timezone.localtime(timezone=UTC)
    an_hour = timedelta(hours=1)
    Workspace.objects.update(night_from=(here + an_hour).time(), night_until=(here + 2 * an_hour).time())
    assert [taken(), taken()] == ["by day", None]
    Workspace.objects.update(night_from=(here - an_hour).time(), night_until=(here + an_hour).time())
    assert taken() == "by night"


@pytest.mark.parametrize(
    "hour, zone, night, begins",
    [
        (12, "UTC", False, "2026-07-01T20:00+00:00"),
        (20, "UTC", True, "2026-07-01T20:30+00:00"),
        (5, "UTC", True, "2026-07-01T05:30+00:00"),
        (6, "UTC", False, "2026-07-01T20:00+00:00"),
        (18, "Europe/Berlin", True, "2026-07-01T18:30+00:00"),
        (17, "Europe/Berlin", False, "2026-07-01T18:00+00:00"),
        (18, "No/Where", False, "2026-07-01T20:00+00:00"),
    ],
)
def test_the_night_is_that_of_the_workspace(hour, zone, night, begins):
    workspace, at = Workspace(time_zone=zone), datetime(2026, 7, 1, hour, 30, tzinfo=UTC)
    assert is_night(workspace, at) is night
    assert next_night(workspace, at) == datetime.fromisoformat(begins)


def test_a_night_can_lie_within_a_day():
    workspace = Workspace(night_from=time(1), night_until=time(5))
    late = datetime(2026, 7, 1, 23, tzinfo=UTC)
    assert not is_night(workspace, late)
    assert next_night(workspace, late) == datetime(2026, 7, 2, 1, tzinfo=UTC)


def test_a_worker_takes_only_what_it_can_do(wait):
    wait("with Unsloth", plugin="unsloth_lora"), wait("rehearsal")
    Slot.objects.update(facts=HOST_FACTS | {"packages": {"numpy": "2.0"}})
    assert [taken(), taken()] == ["rehearsal", None]
    packages = dict.fromkeys(("torch", "transformers", "peft", "safetensors", "unsloth", "bitsandbytes"), "1")
    Slot.objects.create(name="other", queue="train", facts=HOST_FACTS | {"packages": packages}, seen_at=timezone.now())
    assert taken(worker="other") == "with Unsloth"


@pytest.mark.django_db(transaction=True)
def test_workers_that_ask_at_once_take_different_runs_and_keep_to_the_limit(wait, globex):
    Workspace.objects.update(run_limit=2)
    for number in range(4):
        wait(f"ours {number}"), wait(f"theirs {number}", client=globex)
    found, together = [], threading.Barrier(6)

    def ask(name):
        together.wait()
        found.append(claim_next("train", worker=name))
        connections.close_all()

    threads = [threading.Thread(target=ask, args=(f"worker{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(names(order for order in found if order)) == ["ours 0", "ours 1", "theirs 0", "theirs 1"]
    assert Counter(Order.objects.filter(status="starting").values_list("client__name", flat=True)) == {"In-house": 2, "Globex": 2}


@pytest.mark.django_db(transaction=True)
def test_a_bell_of_one_order_starts_the_one_whose_turn_it_is(start, queue):
    start(), (high := start())
    Order.objects.filter(pk=high.pk).update(priority=HIGH)
    work_the_queue(queue)
    begun = list(Order.objects.filter(worker__gt="").order_by("started_at"))
    assert len(begun) == 2 and begun[0] == high


@pytest.mark.django_db(transaction=True)
def test_what_had_to_wait_rings_when_its_time_has_come(start, queue):
    order = start()
    queue.flushall()
    Order.objects.filter(pk=order.pk).update(start_at=timezone.now() + timedelta(hours=1))
    assert reconcile() == [] and jobs(queue) == []
    Order.objects.filter(pk=order.pk).update(start_at=timezone.now())
    assert reconcile() == [f"{order}: queued again"] and len(jobs(queue)) == 1


@pytest.mark.django_db(transaction=True)
def test_the_next_run_of_a_client_begins_when_one_of_its_ends(start, queue, acme):
    Workspace.objects.update(run_limit=1)
    first, second = start(), start()
    claim(str(first.pk), attempt=1, worker="other")
    work_the_queue(queue)  # both bells are heard in vain
    second.refresh_from_db()
    assert (second.status, jobs(queue)) == ("queued", [])
    Order.objects.filter(pk=first.pk).update(status="succeeded")
    assert reconcile() == [f"{second}: queued again"]


def test_the_queue_foretells_in_which_order_and_when(wait, globex):
    start = timezone.now()
    half = wait("half done", status=Order.Status.RUNNING, worker="test", done=50, total=100)
    Order.objects.filter(pk=half.pk).update(started_at=start - timedelta(seconds=300))
    wait("ours", seconds=100), wait("theirs", client=globex, seconds=200), wait("last", seconds=None), wait("unknown")
    told = Turns.read("train").prospects()
    # one of ours runs already, so theirs was placed before our second
    assert names(prospect.order for prospect in told) == ["theirs", "ours", "last", "unknown"]
    assert [prospect.place for prospect in told] == [1, 2, 3, 4]
    seconds = [prospect.starts_at and (prospect.starts_at - start).total_seconds() for prospect in told]
    assert seconds[:3] == [pytest.approx(300, abs=5), pytest.approx(500, abs=5), pytest.approx(600, abs=5)]
    assert seconds[3] is None  # nobody knows how long the one before it takes


def test_the_queue_says_what_each_waits_for(wait, acme):
    Workspace.objects.update(run_limit=1)
    Slot.objects.update(facts=HOST_FACTS | {"packages": {"numpy": "2.0"}})
    running = wait("running", status=Order.Status.RUNNING, worker="test")
    Order.objects.filter(pk=running.pk).update(started_at=timezone.now())
    moment = timezone.now() + timedelta(hours=9)
    wait("nobody can", plugin="unsloth_lora"), wait("at nine", start_at=moment), wait("limited")
    told = {prospect.order.run.name: prospect for prospect in Turns.read("train").prospects()}
    assert {name: (prospect.wait, prospect.place) for name, prospect in told.items()} == {
        "limited": (Wait.LIMIT, None),
        "at nine": (Wait.MOMENT, None),
        "nobody can": (Wait.WORKER, None),
    }
    assert told["limited"].starts_at is not None and told["nobody can"].starts_at is None
    assert told["at nine"].until == told["at nine"].starts_at == moment


def test_without_a_worker_there_is_an_order_and_no_time(wait):
    Slot.objects.all().delete()
    wait("first"), wait("second", priority=HIGH)
    told = Turns.read("train").prospects()
    assert [(prospect.order.run.name, prospect.place, prospect.starts_at) for prospect in told] == [("second", 1, None), ("first", 2, None)]
