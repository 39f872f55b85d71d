"""A page watches a run: every event arrives, once and in order, whenever it comes, goes and comes back."""

import json
import re
import secrets
import time

import httpx
import pytest
from django.test import Client as Browser
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from studio.orders import live
from studio.orders.models import Event
from studio.workspaces import people
from studio.workspaces.services import create_client
from studio.workspaces.watching import people_changed
from tests.fixtures import make_member, work_off
from tests.web.conftest import cookie, cookie_in


def stored(order, *, after=0):
    """What the database says that a page must have been sent."""
    events = Event.objects.filter(order=order, seq__gt=after)
    return json.loads(json.dumps([event.wire() for event in events]))


def test_a_page_that_is_open_sees_all_of_a_run(order, watching):
    page = watching(order.run)
    assert work_off(order).status == "succeeded"
    page.join()
    assert page.events == stored(order)
    assert page.numbers == list(range(1, order.last_seq + 1))
    assert len([event for event in page.events if "loss" in event]) == 60
    assert page.connections == 1


def test_after_every_broken_connection_it_goes_on_where_it_was(order, watching):
    page = watching(order.run, patience=7)
    work_off(order)
    page.join()
    assert page.numbers == list(range(1, order.last_seq + 1))
    assert page.events == stored(order)
    assert page.connections > 10


def test_a_page_that_is_opened_later_is_told_what_it_has_not(order, watching):
    work_off(order)
    for after in (0, 5, order.last_seq - 1):
        page = watching(order.run, after=after)
        page.join()
        assert page.events == stored(order, after=after)


def test_a_page_shows_what_was_and_its_socket_goes_on_from_there(order, watching, server, world):
    work_off(order)
    text = httpx.get(f"{server.address}/runs/{order.run.pk}/", headers={"Cookie": cookie(world.owner)}).text
    after = int(re.search(r'data-after="(\d+)"', text).group(1))
    shown = json.loads(re.search(r'<script id="run-events" type="application/json">(.*?)</script>', text, re.DOTALL).group(1))
    assert after == order.last_seq
    assert shown == [event for event in stored(order) if event["type"] != "progress"]


def test_two_pages_of_two_runs_are_told_apart(order, watching, world):
    other = world.run
    Event.objects.create(order=other.order, seq=1, attempt=1, at=order.created_at, type="end", body={"status": "succeeded"})
    mine, theirs = watching(order.run), watching(other)
    second = watching(order.run)
    work_off(order)
    for page in (mine, theirs, second):
        page.join()
    assert mine.events == second.events == stored(order)
    assert theirs.events == stored(other.order)


def test_without_the_doorbell_pages_look_by_themselves(order, watching, queue, monkeypatch):
    monkeypatch.setattr(live, "PATIENCE", 0.05)
    page = watching(order.run)
    queue.client_kill_filter(_type="pubsub")
    queue.config_set("maxclients", 2)
    try:
        work_off(order)
        page.join()
    finally:
        queue.config_set("maxclients", 10_000)
    assert page.events == stored(order)


def test_a_socket_that_fails_is_closed_so_that_its_page_comes_back(order, server, world, monkeypatch):
    def broken(self, after):
        raise OSError("the disk is gone")

    monkeypatch.setattr(live.OrderConsumer, "events_after", broken)
    with server.watch(world.owner, order.run) as page, pytest.raises(ConnectionClosed) as closed:
        page.recv(timeout=5)
    assert closed.value.rcvd.code == 1011


def test_a_foreign_page_is_shut_out(order, server, world):
    address = f"{server.address.replace('http', 'ws')}/ws/runs/{order.run.pk}/"
    for headers in ({"Cookie": cookie(world.owner), "Origin": "http://evil.example"}, {"Origin": server.address}):
        with pytest.raises(InvalidStatus) as refused, connect(address, additional_headers=headers, proxy=None):
            pass
        assert refused.value.response.status_code == 403


def test_a_browser_that_shouts_is_cut_off(order, server, world):
    with server.watch(world.owner, order.run) as page, pytest.raises(ConnectionClosed):
        page.send("x" * (17 << 20))
        page.recv(timeout=10)


def lose_as_others_do(world, member):
    """What ends somebody's right to watch, each as it is done on a page."""
    other = create_client(world.owner, name="Globex")
    return {
        "made a guest": lambda: people.change(world.owner, member, role="guest", clients=people.Sight(frozenset({other.pk}))),
        "given other clients": lambda: people.change(world.owner, member, clients=people.Sight(frozenset({other.pk}))),
        "removed": lambda: people.remove(world.owner, member),
    }


@pytest.mark.parametrize("loss", ["made a guest", "given other clients", "removed"])
def test_who_may_no_longer_watch_is_shut_out_at_once(order, server, world, loss):
    member = make_member(world.workspace, role="member", email="max@example.com")
    with server.watch(member, order.run) as page, server.watch(world.owner, order.run) as mine:
        began = time.monotonic()
        lose_as_others_do(world, member)[loss]()
        with pytest.raises(ConnectionClosed) as closed:
            page.recv(timeout=live.AUTHORITY)
        assert time.monotonic() - began < live.AUTHORITY / 2  # it was rung for; a quiet machine takes a tenth of a second
        assert closed.value.rcvd.code == 4403
        with pytest.raises(TimeoutError):
            mine.recv(timeout=0.2)  # everybody else goes on


def test_who_signs_out_is_shut_out_at_once(order, server, world):
    member = make_member(world.workspace, role="member", email="max@example.com")
    browser = Browser()
    browser.force_login(member.user)
    with server.watch_with(cookie_in(browser), order.run) as page:
        began = time.monotonic()
        browser.post("/logout/")
        with pytest.raises(ConnectionClosed) as closed:
            page.recv(timeout=live.AUTHORITY)
        assert time.monotonic() - began < live.AUTHORITY / 2  # it was rung for; a quiet machine takes a tenth of a second
        assert closed.value.rcvd.code == 4403


def test_who_reads_slowly_is_shut_out_in_the_middle_of_what_is_sent(order, server, world, monkeypatch):
    """More than the network between keeps, and nothing that packing makes smaller: the server waits with most of it."""
    monkeypatch.setattr(live, "AUTHORITY", 0)
    member = make_member(world.workspace, role="member", email="max@example.com")
    line = {"attempt": 1, "at": order.created_at, "type": "log", "body": {"text": secrets.token_urlsafe(48_000)}}
    Event.objects.bulk_create(Event(order=order, seq=number, **line) for number in range(1, 501))
    with server.watch_slowly(member, order.run) as page:
        page.recv(timeout=5)
        people.remove(world.owner, member)
        read = 1
        with pytest.raises(ConnectionClosed) as closed:
            while read < 500:
                page.recv(timeout=5)
                read += 1
        assert closed.value.rcvd.code == 4403
        assert read < 500


def test_who_may_still_watch_goes_on(order, watching, world):
    page = watching(order.run)
    people_changed(world.owner.user_id)
    work_off(order)
    page.join()
    assert page.numbers == list(range(1, order.last_seq + 1))
    assert page.connections == 1
