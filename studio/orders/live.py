"""Both ends of the one wire: what a browser that watches an order is sent, from any event number on.

The database is read; Redis only says that there is something to read.
"""

import asyncio
import json
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from math import inf
from typing import Any
from urllib.parse import parse_qs
from uuid import UUID

import redis.asyncio
from asgiref.sync import sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer
from django.conf import settings

from studio.orders.models import Event, Order
from studio.orders.services import DOORBELL
from studio.workspaces.middleware import member_by_cookie
from studio.workspaces.models import Member
from studio.workspaces.watching import PEOPLE

log = logging.getLogger("studio.orders")
PATIENCE = 2.0
"""Seconds after which a socket looks by itself, for the case that the doorbell is broken."""
AUTHORITY = 15.0
"""Seconds after which a socket asks again whether its member may watch, though nobody rang for them."""
PAGE = 500
ASKED_EVERY = 50
"""Events after which a socket looks whether it is time to ask; many may wait for a slow browser."""
CLOSE_NOT_FOUND, CLOSE_FORBIDDEN, CLOSE_BROKEN = 4404, 4403, 1011
NUMBER = re.compile(r"\d{1,9}", re.ASCII)


class Doorbell:
    """One subscription per web process; wakes the sockets of the order, or of the person, for whom it rang."""

    def __init__(self) -> None:
        self.waiting: defaultdict[tuple[str, str], set[Callable[[], None]]] = defaultdict(set)
        self.task: asyncio.Task[None] | None = None

    def listen(self, channel: str, whom: str, wake: Callable[[], None]) -> None:
        self.waiting[channel, whom].add(wake)
        # A task belongs to one event loop; a new loop needs a new one.
        if self.task is None or self.task.done() or self.task.get_loop() is not asyncio.get_running_loop():
            self.task = asyncio.create_task(self.run())

    def leave(self, channel: str, whom: str, wake: Callable[[], None]) -> None:
        self.waiting[channel, whom].discard(wake)
        if not self.waiting[channel, whom]:
            del self.waiting[channel, whom]

    def wake(self, rung: Iterable[tuple[str, str]]) -> None:
        for wake in [each for bell in rung for each in self.waiting.get(bell, ())]:
            wake()

    async def run(self) -> None:
        while True:
            try:
                # redis-py gives up a read after 5 s by default, which would break every longer wait.
                async with redis.asyncio.Redis.from_url(settings.REDIS_URL, socket_timeout=None) as client, client.pubsub() as bells:
                    await bells.subscribe(DOORBELL, PEOPLE)
                    self.wake(self.waiting)  # who knows what rang while nobody listened
                    async for message in bells.listen():
                        if message["type"] == "message":
                            self.wake([(message["channel"].decode(), message["data"].decode())])
            except (redis.RedisError, OSError) as error:
                log.warning("The doorbell is away (%s).", error)
                await asyncio.sleep(1)


DOOR = Doorbell()


class OrderConsumer(AsyncWebsocketConsumer):
    """`/ws/orders/<id>/?after=<seq>`: every event after `seq`, stored ones first, each once and in order."""

    action = "run.view"

    async def connect(self) -> None:
        self.pump: asyncio.Task[None] | None = None
        self.order = await sync_to_async(self.find)()
        if self.order is None:
            await self.close(code=CLOSE_NOT_FOUND)
            return
        after = parse_qs(self.scope["query_string"].decode("latin-1")).get("after", ["0"])[0]
        await self.accept()
        self.pump = asyncio.create_task(self.send_events(int(after) if NUMBER.fullmatch(after) else 0))
        self.pump.add_done_callback(self.broke_off)

    async def disconnect(self, code: int) -> None:
        if self.pump is not None:
            self.pump.cancel()

    def broke_off(self, pump: "asyncio.Task[None]") -> None:
        """Closes the socket of a pump that failed, so that its browser comes back and goes on from its last number."""
        if pump.cancelled() or (error := pump.exception()) is None:
            return
        log.error("A socket broke off: %s", error, exc_info=error)
        self.closing = asyncio.create_task(self.close(code=CLOSE_BROKEN))

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """Nothing is expected from a browser here."""

    async def send_events(self, after: int) -> None:
        order, user, bell = str(self.order), str(self.user), asyncio.Event()
        self.asked_at = asyncio.get_running_loop().time()

        def ask_again() -> None:
            self.asked_at = -inf
            bell.set()

        DOOR.listen(DOORBELL, order, bell.set)
        DOOR.listen(PEOPLE, user, ask_again)
        try:
            while True:
                bell.clear()
                while events := await sync_to_async(self.events_after)(after):
                    for number, event in enumerate(events):
                        # A slow browser takes long over a page, and may lose its right meanwhile.
                        if number % ASKED_EVERY == 0 and not await self.may_go_on():
                            return
                        await self.send(json.dumps(event))  # waits for a slow browser, so nothing piles up
                    after = events[-1]["seq"]
                if not await self.may_go_on():
                    return
                try:
                    await asyncio.wait_for(bell.wait(), PATIENCE)
                except TimeoutError:
                    continue
        finally:
            DOOR.leave(DOORBELL, order, bell.set)
            DOOR.leave(PEOPLE, user, ask_again)

    async def may_go_on(self) -> bool:
        """Asks again where somebody rang, or it is long ago; closes the socket of one who may not watch any more."""
        now = asyncio.get_running_loop().time()
        if now - self.asked_at <= AUTHORITY:
            return True
        self.asked_at = now
        if await sync_to_async(self.find)() is not None:
            return True
        await self.close(code=CLOSE_FORBIDDEN)
        return False

    def member(self) -> Member | None:
        """Who watches. Read anew each time: since the socket opened they may have signed out or changed their password."""
        return member_by_cookie(self.scope["session"].session_key)

    def find(self) -> UUID | None:
        """The order's id where this member may watch it."""
        member = self.member()
        self.user = member.user_id if member else None
        return self.order_id(member) if member else None

    def order_id(self, member: Member) -> UUID | None:
        rows = Order.objects.for_action(member, self.action).filter(pk=self.scope["url_route"]["kwargs"]["pk"])
        return rows.values_list("pk", flat=True).first()

    def events_after(self, after: int) -> list[dict[str, Any]]:
        return [event.wire() for event in Event.objects.filter(order=self.order, seq__gt=after)[:PAGE]]
