"""vLLM as an engine: servers that run elsewhere (STUDIO_VLLM_URLS), or that are started here, one for each base model of a workspace.

vLLM mixes adapters in one batch by itself, so nobody waits for a turn here; what is decided here is which servers are in memory.
"""

import asyncio
import logging
import shlex
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from studio.errors import UserError
from studio.serving.engines.contract import Route, State, Subject, Took
from studio.serving.engines.vllm_adapters import context_of, keys_and_values, obstacle_of_base, size_of
from studio.serving.engines.vllm_process import CONTEXT, Process
from studio.serving.engines.vllm_server import Server, salt_of
from studio.serving.engines.vllm_wire import PATHS, Upstream
from studio.worker.gpumemory import gpu_memory

log = logging.getLogger("studio.engine")
MOST = 0.9
"""Share of the GPU's memory that all servers together take."""
ROOM = 3 << 30
"""Bytes beside the weights: the conversations under way as long as they usually are, adapters, and the program itself."""
GROWTH = 1.2
"""What weights take in memory, against their files."""
ASK_EVERY = 30.0
"""Seconds after which servers elsewhere are asked again what they serve, where none was found for a model."""
TELL_EVERY = 5.0
HELD = (
    "The GPU's memory is taken: {need} are needed and {free} of {total} are free. Something else on this machine holds the rest, such as "
    "a training run. Ask again when it has ended."
)
BUSY = "Other models are answering and hold the GPU's memory. Ask again in a moment."


@dataclass(frozen=True)
class Way:
    """How vLLM is reached."""

    urls: tuple[str, ...] = ()
    key: str = ""
    command: str = "vllm"
    """What starts a server here, as a shell would read it; "" starts none."""
    context: int = 0
    """Tokens of one conversation at most, of a server that is started here; 0 is its own choice."""

    @property
    def is_installed(self) -> bool:
        words = shlex.split(self.command)
        return bool(words) and shutil.which(words[0]) is not None


class VLLM:
    name = "vLLM"

    def __init__(self, way: Way):
        self.way = way
        found = gpu_memory() if way.is_installed else None
        self.can_start, self.most = found is not None, int(found.total * MOST) if found else 0
        self.elsewhere = [Upstream(url, key=way.key) for url in way.urls]
        self.asking, self.asked_at = asyncio.Lock(), 0.0
        self.cards: list[tuple[Upstream, dict[str, Any]]] = []
        self.trouble = ""
        """Why one of them could not be asked."""
        self.servers: dict[tuple[str, str], Server] = {}
        """Started here by (workspace, base), elsewhere by (address, base)."""
        self.starting: dict[tuple[str, str], asyncio.Task[Server]] = {}
        self.unknown: set[str] = set()
        """Bases that vLLM could not start, for what they are."""
        self.one_at_a_time = asyncio.Lock()
        """vLLM measures the memory while it starts; a second one would spoil that."""
        self.ending: set[asyncio.Task[None]] = set()
        self.waiting: dict[tuple[str, str], int] = {}
        self.answers = self.prompt_tokens = self.completion_tokens = 0
        self.folder = tempfile.TemporaryDirectory(prefix="studio-vllm-")  # its owner's alone

    @property
    def is_possible(self) -> bool:
        return bool(self.elsewhere) or self.can_start

    # What the contract asks

    async def load(self, subject: Subject, state: State) -> None:
        server = await self.server(subject, state)
        async with server.answering(subject, state):
            return

    async def ask(
        self, subject: Subject, route: Route, body: dict[str, Any], *, state: State, took: Took
    ) -> AsyncGenerator[dict[str, Any], None]:
        began = time.monotonic()
        begun = False
        for again in (True, False):
            server = await self.server(subject, state)
            async with server.answering(subject, state) as name:
                took.waited = time.monotonic() - began
                asked = body | {"model": name, "cache_salt": salt_of(subject.workspace)}
                try:
                    chunks = self._whole(server, asked, took) if route == "embedding" else self._streamed(server, route, asked, took, began)
                    async with aclosing(chunks):
                        async for chunk in chunks:
                            begun = True
                            yield chunk
                except UserError as error:
                    if error.code != "unknown" or begun:
                        raise
                    self._forget(server)  # it was started anew meanwhile, perhaps for another model
                    if not again:
                        raise UserError(error.message, code="unsupported" if route == "embedding" else "broken") from error
                    continue
            self.answers += 1
            self.prompt_tokens += took.prompt_tokens
            self.completion_tokens += took.completion_tokens
            return

    async def tokenize(self, subject: Subject, *, text: str = "", messages: list[dict[str, Any]] | None = None) -> list[int]:
        server = await self.server(subject, lambda _: None)
        asked = {"messages": messages} if messages is not None else {"prompt": text, "add_special_tokens": False}
        async with server.answering(replace(subject, adapter=None)):  # its tokens are the base's
            tokens = (await server.upstream.call("POST", "/tokenize", {"model": server.name} | asked)).get("tokens")
        if not isinstance(tokens, list):
            raise UserError("The vLLM server counts no tokens.", code="broken")
        return [token for token in tokens if isinstance(token, int)]

    async def drop(self, names: list[str]) -> int:
        def meant(sha256: str) -> bool:
            return any(sha256.startswith(name) for name in names)

        held = [key for key, server in self.servers.items() if server.process and meant(server.base_sha256)]
        count = len(held)
        for key in held:
            self._end_when_quiet(self.servers.pop(key))
        for (_, base_sha256), task in self.starting.items():
            if meant(base_sha256):
                count += 1
                task.cancel()
        for server in self.servers.values():
            for name in [name for name in server.names if meant(name.rpartition(".")[2])]:
                count += 1
                self._later(self._take_off_when_quiet(server, name))
        for upstream in self.elsewhere:  # also what was put on before this process began
            count += await self._take_off_leftovers(upstream, meant)
        return count

    async def make_room(self, wanted: int, *, on_gpu: bool = False) -> int:
        freed = 0
        while on_gpu and freed < wanted and (key := self._least_used()):
            server = self.servers.pop(key)
            await server.end()
            freed += server.bytes
        return freed

    def metrics(self) -> dict[str, Any]:
        return {
            "engine": self.name,
            "on_gpu": True,
            "budget": self.most,
            "used": self._used(),
            "models": [line for server in self.servers.values() if server.is_alive for line in self._lines(server)],
            "answers": self.answers,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
        }

    async def close(self) -> None:
        """Ends what was started."""
        for server in [*self.servers.values()]:
            await server.end()
        self.servers.clear()
        for upstream in self.elsewhere:
            await upstream.close()

    # Answers

    async def _streamed(
        self, server: Server, route: Route, asked: dict[str, Any], took: Took, began: float
    ) -> AsyncGenerator[dict[str, Any], None]:
        first = 0.0
        asked = asked | {"stream": True, "stream_options": {"include_usage": True}}
        async with aclosing(server.upstream.stream(PATHS[route], asked)) as chunks:
            async for chunk in chunks:
                read_usage(chunk.pop("usage", None), took)
                choices = chunk.get("choices")
                if not isinstance(choices, list) or not choices:
                    continue
                if not first and any(has_words(choice) for choice in choices):
                    first = time.monotonic()
                    took.first = first - began
                yield chunk
        took.seconds = time.monotonic() - first if first else 0.0

    async def _whole(self, server: Server, asked: dict[str, Any], took: Took) -> AsyncGenerator[dict[str, Any], None]:
        began = time.monotonic()
        answer = await server.upstream.call("POST", PATHS["embedding"], asked)
        read_usage(answer.get("usage"), took)
        took.seconds = took.first = time.monotonic() - began
        yield answer

    # Servers

    async def server(self, subject: Subject, state: State) -> Server:
        """The server of the subject's base: running elsewhere, here already, or started now."""
        if why := obstacle_of_base(subject.base):
            if not subject.base.exists():
                raise UserError("This model is not here any more.", code="gone")
            raise UserError(why, code="unsupported")
        if found := await self._elsewhere(subject):
            return found
        here = self.servers.get(subject.home)
        if here is not None and here.is_alive:
            here.used_at = time.monotonic()
            return here
        if not self.can_start:
            raise UserError(f"No vLLM server that is set up serves this model. {self.trouble}".strip(), code="unsupported")
        if subject.base_sha256 in self.unknown:
            raise UserError("vLLM does not know this kind of model.", code="unsupported")
        if subject.home not in self.starting:
            task = self.starting[subject.home] = asyncio.create_task(self._start(subject))
            task.add_done_callback(lambda done: self._started(subject.home, done))
        return await self._waited_for(self.starting[subject.home], subject, state)

    async def _waited_for(self, task: "asyncio.Task[Server]", subject: Subject, state: State) -> Server:
        began = time.monotonic()
        self.waiting[subject.home] = self.waiting.get(subject.home, 0) + 1
        try:
            while not task.done():
                passed = time.monotonic() - began
                state("loading the model" if passed < TELL_EVERY else f"loading the model, {passed:.0f} s so far")
                await asyncio.wait({task}, timeout=TELL_EVERY)
        finally:
            self.waiting[subject.home] -= 1
            if not self.waiting[subject.home]:
                del self.waiting[subject.home]
        if task.cancelled():
            raise UserError("This model is not here any more.", code="gone")
        return task.result()

    def _started(self, home: tuple[str, str], task: "asyncio.Task[Server]") -> None:
        self.starting.pop(home, None)
        if not task.cancelled():
            task.exception()  # those who wait hear of it; where they have left, nobody does

    async def _start(self, subject: Subject) -> Server:
        async with self.one_at_a_time:
            await self._clear_dead()
            need, total = await self._place(subject.base)
            began = time.monotonic()
            name = f"{subject.base_sha256[:12]}-{salt_of(subject.workspace)[-8:]}"
            folder = Path(self.folder.name)
            process = Process(self.way.command, subject.base, name=name, share=need / total, folder=folder, context=self.way.context)
            upstream = Upstream("http://vllm", socket=str(process.socket))
            server = Server(upstream, name, base_sha256=subject.base_sha256, workspace=subject.workspace, process=process, size=need)
            try:
                await process.ready(upstream)
            except BaseException as error:
                await server.end()
                if isinstance(error, UserError) and error.code == "unsupported":
                    self.unknown.add(subject.base_sha256)
                raise
            server.cold = time.monotonic() - began
            self.servers[subject.home] = server
            return server

    async def _place(self, base: Path) -> tuple[int, int]:
        """(bytes that a server for this base takes, bytes of the GPU), once they are free; idle servers leave for it."""
        found = await asyncio.to_thread(gpu_memory)
        if found is None:
            raise UserError("The GPU does not say how much memory it has. Ask again in a moment.", code="broken")
        context = context_of(base, most=self.way.context or CONTEXT)
        need = int(size_of(base) * GROWTH) + ROOM + max(0, context - CONTEXT) * keys_and_values(base)
        if need > self.most:
            raise UserError("The model is larger than this machine's GPU.", code="unsupported")
        while self._used() + need > self.most or found.free < need:
            key = self._least_used()
            if found.free + self._used() < need:  # not even alone
                raise UserError(HELD.format(need=size(need), free=size(found.free), total=size(found.total)), code="no_memory")
            if key is None:
                raise UserError(BUSY, code="no_memory")
            await self.servers.pop(key).end()
            found = await asyncio.to_thread(gpu_memory) or found
        return need, found.total

    def _used(self) -> int:
        return sum(server.bytes for server in self.servers.values() if server.process)

    def _least_used(self) -> tuple[str, str] | None:
        """The server that was started here and has been idle for longest."""
        idle = {key: server for key, server in self.servers.items() if server.process and not server.running and key not in self.waiting}
        return min(idle, key=lambda key: idle[key].used_at, default=None)

    async def _clear_dead(self) -> None:
        for key in [key for key, server in self.servers.items() if not server.is_alive]:
            log.warning("vLLM ended by itself; it is started again when it is asked.")
            await self.servers.pop(key).end()

    def _end_when_quiet(self, server: Server) -> None:
        async def end() -> None:
            await server.quiet()
            await server.end()

        self._later(end())

    async def _take_off_when_quiet(self, server: Server, name: str) -> None:
        if loading := server.loading.get(name):
            await asyncio.wait({loading})
        await server.quiet(name)
        await server.take_off(name)

    def _later(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self.ending.add(task)  # a loop keeps no hold of its tasks
        task.add_done_callback(self.ending.discard)

    # Servers elsewhere

    async def _elsewhere(self, subject: Subject) -> Server | None:
        """A server elsewhere whose model is the subject's base: named by its SHA-256 or the folder, or loaded from that very folder."""
        if not self.elsewhere:
            return None
        for upstream in self.elsewhere:
            if known := self.servers.get((upstream.url, subject.base_sha256)):
                return known
        async with self.asking:  # one asks for all who come at once
            if not self.asked_at or time.monotonic() - self.asked_at > ASK_EVERY:
                self.cards, self.trouble = [], ""
                for upstream in self.elsewhere:
                    self.cards += [(upstream, card) for card in await self._cards(upstream)]
                self.asked_at = time.monotonic()
        for upstream, card in self.cards:
            if is_base(card, subject):
                server = Server(upstream, str(card["id"]), base_sha256=subject.base_sha256)
                self.servers[upstream.url, subject.base_sha256] = server
                return server
        return None

    def _forget(self, server: Server) -> None:
        server.adapters.clear()
        self.asked_at = 0.0
        if server.process is None:
            self.servers.pop((server.upstream.url, server.base_sha256), None)

    async def _cards(self, upstream: Upstream) -> list[dict[str, Any]]:
        try:
            return [card for card in await upstream.models() if not card.get("parent")]
        except UserError as error:
            log.warning("vLLM at %s: %s", upstream.url, error.message)
            self.trouble = error.message
            return []

    async def _take_off_leftovers(self, upstream: Upstream, meant: Callable[[str], bool]) -> int:
        """Adapters of this studio that a server elsewhere still knows from before this process began."""
        known = {name for server in self.servers.values() if server.upstream is upstream for name in server.names}
        try:
            names = [str(card.get("id")) for card in await upstream.models()]
        except UserError:
            return 0
        left = [name for name in names if name.startswith("adapter.") and name not in known and meant(name.rpartition(".")[2])]
        for name in left:
            with suppress(UserError):  # somebody else took it off meanwhile
                await upstream.unload_adapter(name)
        return len(left)

    # What people read

    def _lines(self, server: Server) -> list[dict[str, Any]]:
        """One line for each workspace that a server has something of."""
        workspaces = {put_on.workspace for put_on in server.adapters.values()} | set(server.by_workspace)
        return [
            {
                "workspace": workspace,
                "base_sha256": server.base_sha256,
                "adapters": [put_on.sha256 for put_on in server.adapters.values() if put_on.workspace == workspace],
                "bytes": server.bytes,  # with room for adapters, whether or not any are on it
                "running": server.by_workspace.get(workspace, 0),
                "waiting": self.waiting.get((workspace, server.base_sha256), 0),
                "idle": 0.0 if server.running else time.monotonic() - server.used_at,
                "cold": server.cold,
            }
            for workspace in sorted(workspaces | ({server.workspace} if server.workspace else set()))
        ]


def is_base(card: dict[str, Any], subject: Subject) -> bool:
    """Whether a server's model is the very base: by a name that begins with its SHA-256 (16 digits at least), or its folder."""
    name, root = str(card.get("id", "")), str(card.get("root") or "")
    by_hash = len(name) >= 16 and subject.base_sha256.startswith(name)
    return by_hash or name == subject.base.name or (bool(root) and Path(root) == subject.base)


def read_usage(usage: Any, took: Took) -> None:
    if not isinstance(usage, dict):
        return
    took.prompt_tokens = int(usage.get("prompt_tokens") or 0)
    took.completion_tokens = int(usage.get("completion_tokens") or 0)
    took.cached_tokens = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)


def has_words(choice: Any) -> bool:
    delta = choice.get("delta") or {} if isinstance(choice, dict) else {}
    return bool(
        isinstance(choice, dict) and (choice.get("text") or delta.get("content") or delta.get("tool_calls") or delta.get("reasoning"))
    )


def size(number: int) -> str:
    return f"{number / (1 << 30):.1f} GB"
