"""Who of those that wait is answered next: one adapter at a time, nobody for ever, and no slot is lost."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from studio.serving.floor import Floor


def run(work: Callable[[], Awaitable[None]]) -> None:
    """In a thread: the test's own may hold the event loop of a browser."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: asyncio.run(work())).result()  # type: ignore[arg-type]


class Hall:
    """Questions that are answered when the test says so, and the order in which they began."""

    def __init__(self, *, slots: int = 4, turn: int = 8):
        self.floor = Floor(slots=slots, turn=turn)
        self.begun: list[str] = []
        self.ends: list[asyncio.Event] = []
        self.now: list[str] = []

    async def answer(self, adapter: str, end: asyncio.Event) -> None:
        async with self.floor.place(adapter):
            self.begun.append(adapter)
            self.ends.append(end)
            self.now.append(adapter)
            assert len(set(self.now)) == 1 and len(self.now) <= self.floor.slots
            await end.wait()
            self.now.remove(adapter)

    async def ask(self, *adapters: str) -> list["asyncio.Task[None]"]:
        tasks = [asyncio.create_task(self.answer(adapter, asyncio.Event())) for adapter in adapters]
        await settle()
        return tasks

    async def end_one(self) -> None:
        self.ends.pop(0).set()
        await settle()

    async def end_all(self) -> None:
        while self.ends:
            await self.end_one()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_the_questions_of_one_adapter_are_answered_together():
    async def work() -> None:
        hall = Hall()
        await hall.ask("a", "b", "a", "b", "a", "a", "a")
        assert hall.begun == ["a"] * 4  # the first came alone, and found the slots free
        await hall.end_all()
        assert hall.begun == ["a"] * 5 + ["b"] * 2
        assert hall.floor.running == hall.floor.waiting == 0

    run(work)


def test_the_floor_changes_after_a_turn_though_more_of_the_same_wait():
    async def work() -> None:
        hall = Hall(slots=2, turn=4)
        await hall.ask(*["a"] * 20, *["b"] * 3, "c")
        await hall.end_all()
        assert "".join(hall.begun) == "aaaaaa" + "bbb" + "c" + "a" * 14  # two had begun before anybody else came

    run(work)


def test_nobody_waits_for_more_than_one_turn_of_each_other():
    async def work() -> None:
        hall = Hall(slots=4, turn=8)
        dice = random.Random(7)
        await hall.ask(*["a"] * 30)
        await hall.ask("late")
        for _ in range(400):
            await hall.ask(dice.choice("abcdefg"))
            if hall.ends:
                await hall.end_one()
        waited = hall.begun.index("late")
        assert waited <= 4 + 7 * 8
        await hall.end_all()
        assert hall.floor.running == hall.floor.waiting == 0

    run(work)


def test_a_slot_is_free_for_the_same_adapter_at_once_where_nobody_else_waits():
    async def work() -> None:
        hall = Hall(slots=2, turn=1)
        await hall.ask("a", "a", "a")
        await hall.end_one()
        assert hall.begun == ["a"] * 3

    run(work)


def test_who_leaves_before_or_after_their_turn_came_takes_no_slot_along():
    async def work() -> None:
        floor, dice = Floor(slots=2, turn=4), random.Random(3)

        async def hold(adapter: str) -> None:
            async with floor.place(adapter):
                await asyncio.sleep(dice.random() / 1000)

        for _ in range(100):
            tasks = [asyncio.create_task(hold(dice.choice("abc"))) for _ in range(6)]
            await asyncio.sleep(dice.random() / 1000)
            for task in dice.sample(tasks, 3):
                task.cancel()
            await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
            assert floor.running == 0 and not floor.queues

    run(work)


def test_a_slot_that_comes_free_while_the_next_in_line_leaves_goes_to_the_one_behind():
    async def work() -> None:
        floor, told = Floor(slots=1, turn=4), []

        async def hold(name: str, until: asyncio.Event) -> None:
            async with floor.place("a"):
                told.append(name)
                await until.wait()

        first, now = asyncio.Event(), asyncio.Event()
        now.set()
        tasks = [asyncio.create_task(hold(name, until)) for name, until in (("first", first), ("leaves", now), ("behind", now))]
        await asyncio.sleep(0)
        first.set()
        tasks[1].cancel()  # the slot is given away before this one has noticed
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        assert told == ["first", "behind"]
        assert floor.running == 0 and not floor.queues

    run(work)


def test_a_place_that_was_given_while_whoever_asked_was_leaving_is_given_back():
    async def work() -> None:
        floor = Floor(slots=1, turn=4)
        order: list[str] = []

        async def hold(adapter: str) -> None:
            async with floor.place(adapter):
                order.append(adapter)
                await asyncio.sleep(0.01)

        first = asyncio.create_task(hold("a"))
        await settle()
        second, third = asyncio.create_task(hold("b")), asyncio.create_task(hold("c"))
        await settle()
        floor.leave()  # the place goes to b, whose task has not woken yet
        floor.running += 1  # the first still holds its own
        second.cancel()
        await asyncio.gather(first, second, third, return_exceptions=True)
        assert order == ["a", "c"]
        assert floor.running == 0 and floor.waiting == 0

    run(work)
