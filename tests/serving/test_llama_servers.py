"""llama.cpp's servers as processes: who computes for nobody is found, nobody else is, and one that cannot be started is tried again."""

import asyncio
import subprocess
import sys
import time
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from studio.errors import UserError
from studio.serving.engines.cores import own_seconds
from studio.serving.engines.servers import Load, Server, Stable
from studio.serving.engines.watching import Watch

BUSY = "while True: pass"
RESTING = "import time; time.sleep(60)"


def run(work: Callable[[], Awaitable[None]]) -> None:
    """In a thread: the test's own may hold the event loop of a browser."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: asyncio.run(work())).result()  # type: ignore[arg-type]


@asynccontextmanager
async def server(folder: Path, script: str) -> AsyncIterator[Server]:
    """A process that computes as the script says."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdin=DEVNULL)
    made = Server(Load("model.gguf"), process, folder / "llama.sock", patience=5)
    try:
        yield made
    finally:
        made.end()
        await process.wait()


async def computed(server: Server, seconds: float) -> None:
    until, deadline = server.seconds + seconds, time.monotonic() + 60
    while server.seconds < until:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def test_a_server_that_computes_though_nobody_asks_is_found(tmp_path: Path):
    async def work() -> None:
        watch = Watch(most=0.2)
        async with server(tmp_path, BUSY) as busy, server(tmp_path, RESTING) as resting:
            with busy:
                pass
            for found in ([], [], [busy]):  # what was begun for whoever left last may still be computed at the second look
                await computed(busy, 0.4)
                assert watch.look([busy, resting]) == found

    run(work)


def test_a_server_that_is_asked_between_two_looks_is_not(tmp_path: Path):
    async def work() -> None:
        watch = Watch(most=0.2)
        async with server(tmp_path, BUSY) as busy:
            for _ in range(5):
                with busy:
                    await computed(busy, 0.3)
                assert watch.look([busy]) == []
            with busy:
                assert watch.look([busy]) == []

    run(work)


def test_a_server_that_was_ended_answers_nobody_from_then_on(tmp_path: Path):
    async def work() -> None:
        async with server(tmp_path, RESTING) as resting:
            assert not resting.ended
            resting.end()
            assert resting.ended and resting.process.returncode is None  # before the process could be waited for

    run(work)


def test_after_a_process_could_not_be_started_another_one_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async def work() -> None:
        stable, python = Stable(tmp_path, patience=30), sys.executable
        monkeypatch.setattr(sys, "executable", str(tmp_path / "nowhere"))
        stable.make_ready()
        with pytest.raises(UserError, match="could not start another process") as problem:
            await stable.take()
        assert problem.value.code == "broken"
        monkeypatch.setattr(sys, "executable", python)
        process: Any = await stable.take()
        assert process.returncode is None
        process.kill()
        await process.wait()

    run(work)


def test_what_a_server_computed_stays_the_studios_own_after_it_ended():
    before = own_seconds()
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 1: pass"], check=True)
    assert own_seconds() - before > 0.9
