"""llama.cpp's servers, each a process of its own: what one model does wrong ends one process, and its memory comes back whole.

One process more waits with everything read that it needs, so that a server for a new adapter starts without delay.
"""

import asyncio
import itertools
import json
import os
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakSet

import httpx
import psutil

from studio.errors import UserError

ONE_EACH = httpx.Limits(max_connections=None, max_keepalive_connections=0)
"""A connection for each question: llama.cpp closes those that rest just when the next one is sent."""


@dataclass(frozen=True)
class Load:
    """What a server has in memory and how it shares it out."""

    model: str
    adapters: tuple[str, ...] = ()
    context: int = 4096
    """Tokens of one conversation."""
    slots: int = 4
    batch: int = 64
    threads: int = 1
    embedding: bool = False
    pooling: bool = False
    """Whether the vectors of all tokens are averaged, as the model does not say itself."""


class Server:
    """One that answers. Those who use it are counted: once it is retired, it ends after the last."""

    def __init__(self, load: Load, process: Process, socket: Path, *, patience: float):
        self.load, self.process, self.socket = load, process, socket
        self.client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(socket), limits=ONE_EACH),
            timeout=httpx.Timeout(patience, connect=10),
            base_url="http://llama",
        )
        self.users = 0
        self.uses = 0
        """How often it has been used."""
        self.retired = self.over = False
        self.cold = 0.0
        """Seconds that its start took."""
        self.props: dict[str, Any] = {}

    def lora(self, adapter: str | None) -> list[dict[str, Any]]:
        """Every adapter by name: one that were left out would keep what the question before it had."""
        return [{"id": number, "scale": 1.0 if path == adapter else 0.0} for number, path in enumerate(self.load.adapters)]

    @property
    def ended(self) -> bool:
        return self.over or self.process.returncode is not None  # a process that was killed is there until it is waited for

    async def is_well(self) -> bool:
        try:
            return (await self.client.get("/health", timeout=10)).status_code == 200
        except httpx.HTTPError:
            return False

    @property
    def bytes(self) -> int:
        """What it takes in memory now."""
        try:
            found: int = psutil.Process(self.process.pid).memory_info().rss
        except psutil.NoSuchProcess:
            return 0
        return found

    @property
    def seconds(self) -> float:
        """That it has computed, on all cores together."""
        try:
            times = psutil.Process(self.process.pid).cpu_times()
        except psutil.NoSuchProcess:
            return 0.0
        return float(times.user + times.system)

    def __enter__(self) -> "Server":
        self.users += 1
        self.uses += 1
        return self

    def __exit__(self, *problem: object) -> None:
        self.users -= 1
        if self.retired and not self.users:
            self.end()

    def retire(self) -> None:
        """Answers under way end first."""
        self.retired = True
        if not self.users:
            self.end()

    def end(self) -> None:
        """At once. Whoever still reads from it gets an error."""
        if not self.ended:
            self.process.kill()
        self.over = True
        self.socket.unlink(missing_ok=True)


class Stable:
    """Where servers come from."""

    def __init__(self, folder: Path, *, patience: float):
        self.folder, self.patience = folder, patience
        self.numbers = itertools.count()
        self.spare: asyncio.Task[Process] | None = None
        self.taken: WeakSet[Process] = WeakSet()
        for left in folder.glob("llama*.sock"):  # of an engine that was killed
            left.unlink()

    def make_ready(self) -> None:
        if self.spare is None or (self.spare.done() and (self.spare.cancelled() or self.spare.exception())):
            self.spare = asyncio.create_task(waiting_process())

    async def take(self) -> Process:
        """The one that waits, or another one where it has been taken or has ended meanwhile."""
        self.make_ready()
        assert self.spare
        process = await asyncio.shield(self.spare)
        if process in self.taken or process.returncode is not None:
            process = await waiting_process()
        else:
            self.taken.add(process)
            self.spare = None
        return process

    async def start(self, load: Load) -> Server:
        """Raises UserError where llama.cpp cannot load it."""
        began = time.monotonic()
        process = await self.take()
        socket = self.folder / f"llama{next(self.numbers)}.sock"
        server = Server(load, process, socket, patience=self.patience)
        try:
            said = await asyncio.wait_for(tell(process, load, socket), self.patience)
            if said != "listening":
                reason = said.removeprefix("failed: ") or "its process ended"
                raise UserError(f"llama.cpp could not load the model: {reason[:300]}", code="broken")
            server.props = (await server.client.get("/props")).json()
        except TimeoutError as problem:
            server.end()
            raise UserError("The model did not load in time. Its chat template may never end.", code="broken") from problem
        except BaseException:
            server.end()
            raise
        self.make_ready()
        server.cold = time.monotonic() - began
        return server


async def waiting_process() -> Process:
    command = [sys.executable, "-m", "studio.ml.llamaserver"]
    try:
        process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=None if os.isatty(2) else DEVNULL)
    except OSError as problem:  # no memory for it, or too many files open
        raise UserError("This machine could not start another process. Ask again in a moment.", code="broken") from problem
    assert process.stdout
    await process.stdout.readline()
    return process


async def tell(process: Process, load: Load, socket: Path) -> str:
    """What it says of what it was told to load; "" where it ended."""
    assert process.stdin and process.stdout
    process.stdin.write(json.dumps(load.__dict__ | {"socket": str(socket)}).encode() + b"\n")
    await process.stdin.drain()
    return (await process.stdout.readline()).decode(errors="replace").strip()
