"""Who may watch an order live, and for how long: what the policy table says, at the door and while the socket is open."""

import asyncio
import uuid
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from asgiref.testing import ApplicationCommunicator
from django.conf import settings
from django.test import Client as Browser
from django.utils import timezone

from studio.asgi import application
from studio.orders import live
from studio.orders.models import Event, Order
from studio.workspaces.models import Member
from studio.workspaces.policy import ROLE_ACTIONS, SOCKETS
from tests.fixtures import make_key, make_member


@pytest.fixture(autouse=True)
def one_connection(monkeypatch):
    """Channels closes connections around each query, as Django does around requests; the test's transaction must outlive that."""
    monkeypatch.setattr("channels.db.close_old_connections", lambda: None)


class Socket:
    """A browser's end of a websocket, without a network between."""

    def __init__(self, browser: Browser, path: str, *, origin: str | None = "http://localhost", key: str = ""):
        path, _, query = path.partition("?")
        cookie = browser.cookies.get(settings.SESSION_COOKIE_NAME)
        headers = [(b"host", b"localhost")]
        headers += [(b"origin", origin.encode())] if origin else []
        headers += [(b"authorization", f"Bearer {key}".encode())] if key else []
        headers += [(b"cookie", f"{settings.SESSION_COOKIE_NAME}={cookie.value}".encode())] if cookie else []
        scope = {"type": "websocket", "path": path, "query_string": query.encode(), "headers": headers, "subprotocols": []}
        self.end = ApplicationCommunicator(application, scope)

    async def opened(self) -> int:
        """0 where it was let in, else the code it was closed with."""
        await self.end.send_input({"type": "websocket.connect"})
        return await self.closed()

    async def closed(self) -> int:
        """The code of the next message, if that closes it; 0 for any other."""
        answer: dict[str, Any] = await self.end.receive_output(timeout=5)
        return answer.get("code") or 1000 if answer["type"] == "websocket.close" else 0

    async def leave(self) -> None:
        await self.end.send_input({"type": "websocket.disconnect", "code": 1000})
        await self.end.wait(timeout=5)


def knock(browser: Browser, path: str, **options: Any) -> int:
    async def try_it() -> int:
        socket = Socket(browser, path, **options)
        code = await socket.opened()
        await socket.leave()
        return code

    return async_to_sync(try_it)()


def browser_of(member: Member) -> Browser:
    browser = Browser()
    browser.force_login(member.user)
    return browser


def addresses(world: Any) -> list[str]:
    return [f"/ws/runs/{world.run.pk}/", f"/ws/orders/{world.run.order_id}/"]


@pytest.mark.parametrize("role", ["owner", "admin", "member", "viewer", "guest"])
def test_each_role_watches_what_the_table_lets_it_see(town, role):
    member = town.acme.owner if role == "owner" else make_member(town.acme.workspace, role=role, email="max@example.com")
    allowed = {action in ROLE_ACTIONS[role] for action in SOCKETS.values()}
    browser = browser_of(member)
    assert [knock(browser, path) for path in addresses(town.acme)] == [0 if allowed == {True} else 4404] * 2
    nowhere = uuid.uuid4()
    for path in (*addresses(town.rival), f"/ws/runs/{nowhere}/", f"/ws/orders/{nowhere}/", "/ws/", "/", "/ws/runs/seven/"):
        assert knock(browser, path) == 4404, path


def test_a_member_of_one_client_watches_nothing_of_another(town):
    browser = browser_of(make_member(town.acme.workspace, role="member", email="max@example.com", clients=[town.acme.client]))
    assert [knock(browser, path) for path in addresses(town.acme)] == [0, 0]
    assert [knock(browser, path) for path in addresses(town.globex)] == [4404, 4404]


@pytest.mark.parametrize("role", ["admin", "member", "viewer", "guest"])
@pytest.mark.parametrize("assigned", ["acme", "globex", "archived"])
def test_who_is_assigned_to_a_client_watches_that_one_alone(town, role, assigned):
    """What an archived client's runs did is still looked at; a guest watches nothing."""
    browser = browser_of(make_member(town.acme.workspace, role=role, email="max@example.com", clients=[getattr(town, assigned).client]))
    for world in ("acme", "globex", "archived", "rival"):
        allowed = world == assigned and role != "guest"
        assert [knock(browser, path) for path in addresses(getattr(town, world))] == [0 if allowed else 4404] * 2, world


@pytest.mark.parametrize("scopes", [["read"], ["admin"]])
def test_a_key_opens_no_socket(town, scopes):
    secret = make_key(town.acme.owner, scopes=scopes)
    for path in addresses(town.acme):
        assert knock(Browser(), path, key=secret) == 4404
        assert knock(Browser(), f"{path}?key={secret}&token={secret}") == 4404


def test_a_stranger_watches_their_own_alone(town):
    browser = browser_of(town.rival.owner)
    assert [knock(browser, path) for path in addresses(town.rival)] == [0, 0]
    assert [knock(browser, path) for world in (town.acme, town.globex, town.archived) for path in addresses(world)] == [4404] * 6


def test_whoever_sees_all_clients_watches_the_archived_one_too(town):
    assert [knock(browser_of(town.acme.owner), path) for path in addresses(town.archived)] == [0, 0]


def test_nobody_watches_without_signing_in(town):
    assert [knock(Browser(), path) for path in addresses(town.acme)] == [4404, 4404]


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost.evil.example", None])
def test_a_page_from_elsewhere_is_refused(town, origin):
    browser = browser_of(town.acme.owner)
    assert [knock(browser, path, origin=origin) for path in addresses(town.acme)] == [1000, 1000]


def losing(browser: Browser, path: str, lose: Any) -> int:
    """The code with which an open socket is closed after `lose` was done."""

    async def watch() -> int:
        socket = Socket(browser, path)
        assert await socket.opened() == 0
        await sync_to_async(lose)()
        code = await socket.closed()
        await socket.leave()
        return code

    return async_to_sync(watch)()


def remove(member: Member) -> None:
    member.delete()


def make_guest(member: Member) -> None:
    Member.objects.filter(pk=member.pk).update(role="guest")


def move_to_another_client(member: Member) -> None:
    member.clients.set(member.workspace.clients.filter(name__startswith="Globex"))


def close_the_account(member: Member) -> None:
    member.user.is_active = False
    member.user.save()


def change_the_password(member: Member) -> None:
    member.user.set_password("another long password")
    member.user.save()


@pytest.mark.parametrize("lose", [remove, make_guest, move_to_another_client, close_the_account, change_the_password])
def test_an_open_socket_is_closed_once_its_member_may_no_longer_watch(town, monkeypatch, lose):
    monkeypatch.setattr(live, "AUTHORITY", 0.1)
    monkeypatch.setattr(live, "PATIENCE", 0.05)
    member = make_member(town.acme.workspace, role="member", email="max@example.com")
    assert losing(browser_of(member), addresses(town.acme)[0], lambda: lose(member)) == 4403


def test_an_open_socket_is_closed_after_signing_out(town, monkeypatch):
    monkeypatch.setattr(live, "AUTHORITY", 0.1)
    monkeypatch.setattr(live, "PATIENCE", 0.05)
    browser = browser_of(town.acme.owner)
    other = Browser()
    other.cookies = browser.cookies.copy()
    assert losing(browser, addresses(town.acme)[0], lambda: other.post("/logout/")) == 4403


def test_a_socket_stays_open_as_long_as_its_member_may_watch(town, monkeypatch):
    monkeypatch.setattr(live, "AUTHORITY", 0.02)
    monkeypatch.setattr(live, "PATIENCE", 0.01)

    async def watch() -> bool:
        socket = Socket(browser_of_owner, addresses(town.acme)[0])
        assert await socket.opened() == 0
        quiet = await socket.end.receive_nothing(timeout=0.2)
        await socket.leave()
        return quiet

    browser_of_owner = browser_of(town.acme.owner)
    assert async_to_sync(watch)()


@pytest.mark.parametrize("after", ["", "-1", "seven", "9" * 30, "9" * 5000, "²"])
def test_a_number_that_is_none_starts_at_the_beginning(town, after):
    order: Order = town.acme.run.order
    Event.objects.create(order=order, seq=1, attempt=1, at=timezone.now(), type="note", body={"text": "first"})

    async def watch() -> dict[str, Any]:
        socket = Socket(browser, f"{addresses(town.acme)[0]}?after={after}")
        assert await socket.opened() == 0
        answer: dict[str, Any] = await socket.end.receive_output(timeout=5)
        await socket.leave()
        return answer

    browser = browser_of(town.acme.owner)
    assert '"text": "first"' in async_to_sync(watch)()["text"]


def test_what_a_browser_says_is_not_listened_to(town):
    async def talk() -> bool:
        socket = Socket(browser, addresses(town.acme)[0])
        assert await socket.opened() == 0
        await socket.end.send_input({"type": "websocket.receive", "text": '{"seq": 1, "type": "end"}'})
        await socket.end.send_input({"type": "websocket.receive", "bytes": b"\x00" * 1000})
        await asyncio.sleep(0)
        quiet = await socket.end.receive_nothing(timeout=0.1)
        await socket.leave()
        return quiet

    browser = browser_of(town.acme.owner)
    assert async_to_sync(talk)()
    assert Event.objects.count() == 0
