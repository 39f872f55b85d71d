"""Runs that are really worked off by worker processes, and what happens to them meanwhile."""

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connections

from studio.orders import supervising
from studio.orders.models import Event, Order
from studio.orders.turns import fair_rank
from studio.runs.models import Run
from studio.runs.services import create_run
from studio.workspaces.models import Client
from studio.workspaces.services import create_project
from tests.fixtures import World, make_order, make_version, work_off
from tests.worker.conftest import plugin, site

__all__ = ["plugin", "site"]  # fixtures


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Seconds that a person would wait for are tenths here."""
    monkeypatch.setattr(supervising, "HEARTBEAT", 0.05)
    monkeypatch.setattr(supervising, "STOP_GRACE", 10.0)
    monkeypatch.setattr(supervising, "EXIT_GRACE", 1.0)


@pytest.fixture
def start(acme: World, slot: Any) -> Callable[..., Order]:
    """Places a run as the form does; its order waits in the queue."""

    def placed(plugin_name: str = "rehearsal", **config: Any) -> Order:
        run = create_run(
            acme.owner,
            project=acme.project,
            name="A run",
            plugin_name=plugin_name,
            config={"max_steps": 4, "seconds_per_step": 0.0} | config,
            base=acme.base,
            version=acme.version,
        )
        return run.order

    return placed


@pytest.fixture
def wait(acme: World, slot: Any) -> Callable[..., Order]:
    """`wait("a run", client=…, priority=…)`: a run that waits in the queue, in the place that it would be put in."""

    def place(
        name: str,
        *,
        client: Client | None = None,
        status: str = Order.Status.QUEUED,
        plugin: str = "rehearsal",
        seconds: float | None = 600.0,
        worker: str = "",
        **columns: Any,
    ) -> Order:
        project = (
            acme.project
            if client in (None, acme.client)
            else client.projects.first() or create_project(acme.owner, client=client, name=name)
        )
        columns.setdefault("rank", fair_rank("train", holder_id=project.client_id, priority=columns.get("priority", Order.Priority.NORMAL)))
        order = make_order(acme.owner, kind="train", client=project.client, status=status)
        Order.objects.filter(pk=order.pk).update(queue="train", started_at=None, ended_at=None, worker=worker, **columns)
        version = acme.version if project == acme.project else make_version(acme.owner, project, name=name)
        estimate = {"seconds": {"low": seconds, "high": seconds}} if seconds else None
        Run.objects.create(
            project=project,
            name=name,
            plugin=plugin,
            config={},
            base_model=acme.base,
            dataset_version=version,
            order=order,
            estimate=estimate,
        )
        order.refresh_from_db()
        return order

    return place


@pytest.fixture
def strange(plugin: Any, site: Any, monkeypatch: Any) -> Any:
    """`strange("name", "line", ...)` installs a stranger's plugin whose train() has these lines."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
    return plugin


def work_while(order: Order, do: Callable[[], Any], *, until: int = 6) -> Order:
    """Works an order off; after its first `until` events, `do` happens in another thread, as from a web process."""
    failures: list[BaseException] = []
    over = threading.Event()

    def act() -> None:
        try:
            deadline = time.monotonic() + 30
            while Event.objects.filter(order=order).count() < until:
                assert time.monotonic() < deadline and not over.is_set(), "The worker reported too little."
                time.sleep(0.02)
            do()
        except BaseException as error:  # told by the thread that waits
            failures.append(error)
        finally:
            connections.close_all()

    actor = threading.Thread(target=act)
    actor.start()
    try:
        work_off(order)
    finally:
        over.set()
        actor.join()
    if failures:
        raise failures[0]
    return order


def events_of(order: Order) -> list[Event]:
    """Every event, after making sure that the numbers have no gap and the last one is the order's."""
    events = list(Event.objects.filter(order=order))
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    order.refresh_from_db()
    assert order.last_seq == len(events)
    return events
