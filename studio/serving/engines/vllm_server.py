"""One vLLM server with its base, and the adapters that were put on it: under names that no two workspaces share."""

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studio.errors import UserError
from studio.serving.engines.contract import State, Subject
from studio.serving.engines.vllm_adapters import obstacle_of_adapter
from studio.serving.engines.vllm_process import LARGEST_RANK, Process
from studio.serving.engines.vllm_wire import Upstream

log = logging.getLogger("studio.engine")
NAMED = 64
"""Adapters that one server knows by name; the one unused longest is forgotten, and put on again when it is asked for."""
ANY_RANK = 512
"""What a server that was started elsewhere may take; it says itself where that is too much."""
SECRET = secrets.token_bytes(32)
"""Nobody else who reaches a server can guess what the studio's prefixes are kept under."""


def adapter_name(subject: Subject) -> str:
    """vLLM keys the prefixes that it keeps in memory by this name, so it holds whose it is and exactly which."""
    return f"adapter.{subject.workspace}.{subject.adapter_sha256}"


def salt_of(workspace: str) -> str:
    """What keeps the prefixes of one workspace apart from all others', also of the base alone. Can be no adapter's name."""
    return f"workspace:{hashlib.sha256(SECRET + workspace.encode()).hexdigest()}"


@dataclass
class PutOn:
    """An adapter that a server knows."""

    workspace: str
    sha256: str
    running: int = 0
    used_at: float = field(default_factory=time.monotonic)


class Server:
    """What answers for one base. Started here for one workspace (`process`), or running elsewhere, perhaps for several."""

    def __init__(
        self, upstream: Upstream, name: str, *, base_sha256: str, workspace: str = "", process: Process | None = None, size: int = 0
    ):
        self.upstream, self.name, self.base_sha256, self.workspace = upstream, name, base_sha256, workspace
        self.process, self.bytes = process, size
        self.adapters: dict[str, PutOn] = {}
        self.loading: dict[str, asyncio.Task[None]] = {}
        self.running, self.used_at, self.cold = 0, time.monotonic(), 0.0
        self.by_workspace: dict[str, int] = {}
        """Answers under way for each workspace that has asked."""

    @property
    def is_alive(self) -> bool:
        return self.process is None or self.process.runs

    @property
    def largest_rank(self) -> int:
        return LARGEST_RANK if self.process else ANY_RANK

    @property
    def names(self) -> set[str]:
        """Of the adapters that are on it or are being put on."""
        return {*self.adapters, *self.loading}

    async def put_on(self, subject: Subject) -> str:
        """The name that the adapter is asked by; the base's where there is none. Several may ask at once: it is loaded once."""
        if subject.adapter is None:
            return self.name
        name = adapter_name(subject)
        if name not in self.adapters:
            if not subject.adapter.exists():
                raise UserError("This adapter is not here any more.", code="gone")
            if name not in self.loading:
                task = self.loading[name] = asyncio.create_task(self._put_on(name, subject, subject.adapter))
                task.add_done_callback(lambda done: self._loaded(name, done))
            await asyncio.shield(self.loading[name])
        if name not in self.adapters:
            raise UserError("This adapter is not here any more.", code="gone")
        self.adapters[name].used_at = time.monotonic()
        return name

    def _loaded(self, name: str, task: "asyncio.Task[None]") -> None:
        self.loading.pop(name, None)
        if not task.cancelled():
            task.exception()  # whoever asked for it has heard of it, or has left

    async def _put_on(self, name: str, subject: Subject, folder: Path) -> None:
        if why := await asyncio.to_thread(obstacle_of_adapter, folder, most=self.largest_rank):
            raise UserError(why, code="unsupported")
        try:
            await self.upstream.load_adapter(name, str(folder))
        except UserError as error:
            if not await self._knows(name):  # of the same name and so the same bytes, from before this process began
                raise UserError(*self._why_not(error), code="unsupported" if error.code != "broken" else "broken") from error
        self.adapters[name] = PutOn(subject.workspace, subject.adapter_sha256)
        idle = sorted((found for found in self.adapters if not self.adapters[found].running and found != name), key=self._used_at)
        for old in idle[: max(0, len(self.adapters) - NAMED)]:
            await self.take_off(old)

    def _used_at(self, name: str) -> float:
        return self.adapters[name].used_at

    def _why_not(self, error: UserError) -> tuple[str]:
        if error.code != "unknown":
            return (error.message,)
        log.warning("vLLM at %s cannot load an adapter: %s", self.upstream.url, error.message)
        return (
            "The vLLM server cannot load the adapter. It needs --enable-lora, VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, and the data folder "
            "at the same path.",
        )

    async def _knows(self, name: str) -> bool:
        return any(model.get("id") == name for model in await self.upstream.models())

    async def take_off(self, name: str) -> None:
        self.adapters.pop(name, None)
        try:
            await self.upstream.unload_adapter(name)
        except UserError as error:
            if error.code != "unknown":  # it did not know it any more
                log.warning("vLLM at %s did not let go of an adapter: %s", self.upstream.url, error.message)

    @asynccontextmanager
    async def answering(self, subject: Subject, state: State = lambda _: None) -> AsyncIterator[str]:
        """The name to ask by, with the adapter on. Counted from before it is put on, so that nothing which is needed is let go of."""
        with self._counted(self, subject.workspace):
            if subject.adapter is not None and adapter_name(subject) not in self.adapters:
                state("putting the adapter on")
            name = await self.put_on(subject)
            with self._counted(self.adapters.get(name)):
                yield name

    @contextmanager
    def _counted(self, used: "Server | PutOn | None", workspace: str = "") -> Iterator[None]:
        if used is None:  # the base alone
            yield
            return
        used.running += 1
        if workspace:
            self.by_workspace[workspace] = self.by_workspace.get(workspace, 0) + 1
        try:
            yield
        finally:
            used.running -= 1
            used.used_at = time.monotonic()
            if workspace:
                self.by_workspace[workspace] -= 1

    async def quiet(self, name: str = "") -> None:
        """Returns once no answer is under way, or none of this adapter."""
        counted: Any = self.adapters.get(name) if name else self
        while counted is not None and counted.running:
            await asyncio.sleep(0.1)

    async def end(self) -> None:
        if self.process is not None:
            await self.process.end()
        await self.upstream.close()
