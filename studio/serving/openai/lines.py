"""Several answers of the engine under way at once, as one row of numbered lines. Whoever closes it frees their places in the engine."""

import asyncio
from contextlib import aclosing, suppress
from typing import Any

from studio.serving import asking
from studio.serving.subjects import Subject

AT_ONCE = 4
"""Answers of one request that are asked for side by side, where its key has no limit of them."""
AHEAD = 64
"""Lines that the engine may be ahead of a caller who reads slowly."""
STALLED = 60.0
"""Seconds after which a caller who reads nothing more is taken to have left."""
Line = tuple[int, dict[str, Any]]


class Lines:
    """`await lines.next()` is the next `(number, line)`; None once every answer is whole, or one of them failed."""

    def __init__(
        self,
        subject: Subject,
        route: str,
        bodies: list[dict[str, Any]],
        *,
        left: asyncio.Event | None = None,
        side_by_side: int = AT_ONCE,
    ):
        self.subject, self.route, self.bodies = subject, route, bodies
        self.queue: asyncio.Queue[Line | None] = asyncio.Queue(AHEAD)
        self.turns = asyncio.Semaphore(side_by_side)
        self.loop = asyncio.get_running_loop()
        self.kept: Line | None = None
        self.task = asyncio.create_task(self.pump())
        if left is not None:
            watch = asyncio.create_task(left.wait())
            watch.add_done_callback(lambda _: self.task.cancel())
            self.task.add_done_callback(lambda _: watch.cancel())

    async def pump(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for number, body in enumerate(self.bodies):
                    group.create_task(self.one(number, body))
        finally:
            with suppress(asyncio.QueueFull):  # then whoever reads finds the end behind what is in it
                self.queue.put_nowait(None)

    async def one(self, number: int, body: dict[str, Any]) -> None:
        async with self.turns, aclosing(asking.ask(self.subject, self.route, body)) as lines:
            async for line in lines:
                try:
                    async with asyncio.timeout(STALLED):  # wait_for would lose, on Python 3.11, that it is cancelled
                        await self.queue.put((number, line))
                except TimeoutError:
                    return  # the engine is free for others; the answer is never whole

    async def next(self, *, patience: float | None = None) -> Line | None:
        """Raises TimeoutError where nothing came within so many seconds; it may be asked for again."""
        if self.kept is not None:
            line, self.kept = self.kept, None
            return line
        if self.queue.empty() and self.task.done():
            found = None
        else:
            async with asyncio.timeout(patience):
                found = await self.queue.get()
        if found is None:
            await self.task  # a bug flies
        return found

    async def look_ahead(self, *, patience: float) -> None:
        """Waits until it is known how it begins, or the patience is over: what is refused at once can still have a status of its own."""
        until = self.loop.time() + patience
        try:
            while (line := await self.next(patience=max(0.0, until - self.loop.time()))) is not None:
                if "state" not in line[1]:
                    self.kept = line
                    return
        except TimeoutError:
            return

    def close(self) -> None:
        """From any thread."""
        self.loop.call_soon_threadsafe(self.task.cancel)
