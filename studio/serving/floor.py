"""Who of those that wait for one base model is answered next. Knows no model: only names of adapters and a number of slots.

llama.cpp computes answers together only where they have the same adapter; of different ones, one waits for the other within it.
So one adapter has the floor at a time: its questions fill the slots, and while others wait, it lets go after a turn's worth of them.
"""

from asyncio import CancelledError, Future, get_running_loop
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Floor:
    def __init__(self, *, slots: int, turn: int):
        self.slots, self.turn = slots, turn
        self.holder = ""
        self.running = 0
        self.given = 0
        """Places given to the holder while others waited."""
        self.queues: OrderedDict[str, deque[Future[None]]] = OrderedDict()
        """Those who wait, by adapter, in the order of the adapters' turns."""

    @property
    def waiting(self) -> int:
        return sum(map(len, self.queues.values()))

    @asynccontextmanager
    async def place(self, adapter: str) -> AsyncIterator[None]:
        """One slot, once it is this adapter's turn. Whoever stops waiting leaves the queue."""
        mine: Future[None] = get_running_loop().create_future()
        self.queues.setdefault(adapter, deque()).append(mine)
        self.give()
        try:
            await mine
        except CancelledError:
            if mine.cancelled():  # it was never given
                self.forget(adapter, mine)
            else:
                self.leave()
            raise
        try:
            yield
        finally:
            self.leave()

    def close(self) -> None:
        """Gives no more places until it is reopened."""
        self.slots = 0

    def reopen(self, slots: int) -> None:
        self.slots = slots
        self.give()

    def leave(self) -> None:
        self.running -= 1
        self.give()

    def forget(self, adapter: str, mine: "Future[None]") -> None:
        queue = self.queues.get(adapter, deque())
        if mine in queue:  # else its turn came while it was leaving
            queue.remove(mine)
            if not queue:
                del self.queues[adapter]
        self.give()  # with whoever left, the wish for a change of turns may have gone

    def give(self) -> None:
        """Gives away what slots are free."""
        while self.queues and self.running < self.slots:
            others = len(self.queues) > (self.holder in self.queues)
            if self.holder in self.queues and not (others and self.given >= self.turn):
                self.given = self.given + 1 if others else 0
                self.grant(self.holder)
            elif self.running == 0:
                self.pass_on()
            else:
                return

    def pass_on(self) -> None:
        """To the adapter that has waited longest for a turn; the one that had it goes to the end."""
        if self.holder in self.queues:
            self.queues.move_to_end(self.holder)
        self.holder, self.given = next(iter(self.queues)), 0

    def grant(self, adapter: str) -> None:
        queue = self.queues[adapter]
        mine = queue.popleft()
        if not queue:
            del self.queues[adapter]
        if not mine.done():  # else whoever asked has left, and their task has not noticed yet
            self.running += 1
            mine.set_result(None)
