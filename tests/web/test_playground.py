"""The playground is everybody's: one person's questions leave room for those of others."""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from studio.serving.views import AT_ONCE, WAITING, in_turn


async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An engine that takes questions and says nothing."""
    await reader.read(1 << 20)
    await asyncio.sleep(60)


def in_a_thread(work: Coroutine[Any, Any, Any]) -> Any:
    """The test's own thread may hold the event loop of a browser."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


async def first(answer: AsyncIterator[bytes]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await anext(answer))
    return found


def test_a_person_waits_for_a_few_answers_at_once(settings: Any, tmp_path: Path):
    settings.ENGINE_SOCKET = str(tmp_path / "e.sock")

    async def ask_much() -> None:
        engine = await asyncio.start_unix_server(never, settings.ENGINE_SOCKET)
        waiting = [asyncio.create_task(first(in_turn(7, {}))) for _ in range(AT_ONCE)]
        await asyncio.sleep(0.2)
        assert "waiting for 4 answers" in (await first(in_turn(7, {})))["error"]
        another = asyncio.create_task(first(in_turn(8, {})))
        await asyncio.sleep(0.2)
        assert not another.done()
        for task in (*waiting, another):
            task.cancel()
        await asyncio.gather(*waiting, another, return_exceptions=True)
        assert not WAITING  # who leaves gives their places back
        engine.close()

    in_a_thread(ask_much())


def test_without_an_engine_the_page_is_told_so(settings: Any, tmp_path: Path):
    settings.ENGINE_SOCKET = str(tmp_path / "nobody.sock")
    assert "not running" in in_a_thread(first(in_turn(7, {})))["error"]
    assert not WAITING
