"""The web process as it runs, HTTP and websockets, in a thread of the test."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import uvicorn
from django.conf import settings
from django.test import Client as Browser
from playwright.sync_api import Page, expect, sync_playwright
from websockets.sync.client import ClientConnection, connect

from studio.asgi import application
from studio.orders.models import Order
from studio.runs.models import Run
from studio.runs.services import create_run
from studio.workspaces.models import Member
from tests.fixtures import World, make_slot, make_world

Do = Callable[[Page], None]
SLOW = 90_000
"""Milliseconds that a machine may take which does much else."""
expect.set_options(timeout=SLOW)


@dataclass(frozen=True)
class Server:
    address: str

    def watch(self, member: Member, run: Run, *, after: int = 0) -> ClientConnection:
        """The socket of a page that shows this run and has its events up to `after`."""
        return self.watch_with(cookie(member), run, after=after)

    def watch_slowly(self, member: Member, run: Run) -> ClientConnection:
        """As `watch`, and reads no faster than the test."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        sock.connect(("127.0.0.1", int(self.address.rpartition(":")[2])))
        return self.watch_with(cookie(member), run, max_queue=1, sock=sock)

    def watch_with(self, cookies: str, run: Run, *, after: int = 0, max_queue: int | None = None, **more: Any) -> ClientConnection:
        """As `watch`, in a session that is there already."""
        return connect(
            f"{self.address.replace('http', 'ws')}/ws/runs/{run.pk}/?after={after}",
            origin=self.address,  # type: ignore[arg-type]
            additional_headers={"Cookie": cookies},
            proxy=None,
            max_queue=max_queue,  # by default the client stops reading, and then never sees that the server closes too
            **more,
        )


def cookie(member: Member) -> str:
    browser = Browser()
    browser.force_login(member.user)
    return cookie_in(browser)


def cookie_in(browser: Browser) -> str:
    return f"{settings.SESSION_COOKIE_NAME}={browser.cookies[settings.SESSION_COOKIE_NAME].value}"


@pytest.fixture
def server(transactional_db: None, queue: Any) -> Iterator[Server]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(application, lifespan="off", log_level="warning", ws="websockets-sansio", timeout_graceful_shutdown=1)
    web = uvicorn.Server(config)
    thread = threading.Thread(target=web.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not web.started:
        time.sleep(0.01)
    yield Server(f"http://127.0.0.1:{listener.getsockname()[1]}")
    web.should_exit = True
    thread.join(10)


@pytest.fixture
def world(server: Server) -> World:
    make_slot()
    return make_world()


@pytest.fixture
def order(world: World) -> Order:
    """Of a run of 60 steps that waits in the queue."""
    run = create_run(
        world.owner,
        project=world.project,
        name="Watched",
        plugin_name="rehearsal",
        config={"max_steps": 60, "seconds_per_step": 0.01},
        base=world.base,
        version=world.version,
    )
    return run.order


class Watcher(threading.Thread):
    """Somebody with the run's page open, whose connection breaks after every `patience` events."""

    def __init__(self, server: Server, member: Member, run: Run, *, after: int = 0, patience: int = 1_000_000):
        super().__init__()
        self.server, self.member, self.run_, self.after, self.patience = server, member, run, after, patience
        self.events: list[dict[str, Any]] = []
        self.connections = 0
        self.watching = threading.Event()

    def run(self) -> None:
        while not self.events or self.events[-1]["type"] != "end":
            self.connections += 1
            with self.server.watch(self.member, self.run_, after=self.events[-1]["seq"] if self.events else self.after) as page:
                self.watching.set()
                for _ in range(self.patience):
                    self.events.append(json.loads(page.recv(timeout=30)))
                    if self.events[-1]["type"] == "end":
                        break

    @property
    def numbers(self) -> list[int]:
        return [event["seq"] for event in self.events]


@pytest.fixture
def watching(server: Server, world: World) -> Iterator[Any]:
    """`watching(run, ...)` opens a page beside the test; `.join()` waits until it has seen the end."""
    watchers: list[Watcher] = []

    def open_page(run: Run, **options: Any) -> Watcher:
        watchers.append(Watcher(server, world.owner, run, **options))
        watchers[-1].start()
        assert watchers[-1].watching.wait(10)
        return watchers[-1]

    yield open_page
    for watcher in watchers:
        watcher.join(30)


@pytest.fixture(scope="session")
def in_chromium(browser_type_launch_args: dict[str, Any]) -> Iterator[Callable[[Do], None]]:
    """`in_chromium(do)` does something with a page of the one Chromium that all tests of a process share; cookies and storage are its own.

    In a thread of its own: the browser's driver brings an event loop, beside which Django's database would not be asked.
    """
    started: list[Any] = []

    def visit(do: Do) -> None:
        if not started or not started[-1].is_connected():  # it has not begun, or has crashed
            started.append(playwright.chromium.launch(**browser_type_launch_args))
        context = started[-1].new_context()
        page = context.new_page()
        page.set_default_timeout(SLOW)
        try:
            do(page)
        finally:
            context.close()

    with ThreadPoolExecutor(1) as pool:
        playwright = pool.submit(lambda: sync_playwright().start()).result()
        yield lambda do: pool.submit(visit, do).result()
        pool.submit(playwright.stop).result()


@pytest.fixture
def browse(server: Server, world: World, in_chromium: Callable[[Do], None]) -> Callable[[str, Do], None]:
    """`browse(path, do)` opens a page in Chromium, with the world's owner signed in, and does something there."""
    name, value = cookie(world.owner).split("=")

    def visited(path: str, do: Do) -> None:
        def signed_in(page: Page) -> None:
            page.context.add_cookies([{"name": name, "value": value, "url": server.address}])
            page.goto(f"{server.address}{path}")
            do(page)

        in_chromium(signed_in)

    return visited
