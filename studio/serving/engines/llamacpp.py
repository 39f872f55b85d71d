"""llama.cpp as an engine: one server for each base model of a workspace, its adapters chosen for each question."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from studio.errors import UserError
from studio.ml.gguf.footprint import Footprint, footprint
from studio.ml.gguf.serving import Precision, Served, mark_used, prepare, sweep
from studio.serving.engines.contract import Route, State, Subject, Took
from studio.serving.engines.cores import Cores
from studio.serving.engines.room import Room, words
from studio.serving.engines.servers import Load, Server, Stable
from studio.serving.engines.watching import Watch
from studio.serving.engines.wire import chunks_of, post
from studio.serving.floor import Floor
from studio.storage import sealed_sha256

log = logging.getLogger("studio.engine")
ADAPTERS = 16
"""Adapters held for each base model; the one not asked for longest leaves first."""
CONTEXT = 4096
"""Tokens of one conversation at most, where nothing else is set."""
LONGEST_EMBEDDED = 2048
"""Tokens of one text that becomes a vector: all of them are computed at once."""
SLOTS = 4
"""Conversations that a base model answers side by side."""
TURN = 24
"""Questions to one adapter while others wait."""
PATIENCE = 600.0
"""Seconds that a server may say nothing: more than any prompt takes that fits."""
TELL_EVERY = 30.0
"""Seconds after which those who wait for files are told again."""
WATCH = 5.0
"""Seconds between two looks at servers that nobody asks."""
MISFITS = 6
"""Looks in a row at which an idle server has another number of threads than cores are free, until another one takes its place."""
RECENT = 600.0
"""Seconds after the last question in which that is worth a start."""
WORK_AT_ONCE = 16_000_000_000
"""Parameters times tokens that one thread computes in about a second on a busy machine."""
SMALLEST_BATCH, LARGEST_BATCH = 8, 256
PATHS: dict[Route, str] = {"chat": "/v1/chat/completions", "completion": "/v1/completions"}
GONE = "This model is not here any more. Choose another one."
TOOLS = ("tools", "tool_choice")
Key = tuple[str, str, bool]


@dataclass
class Home:
    """What one file answers for one workspace, by whichever server has it in memory now."""

    workspace: str
    sha256: str
    model: str
    embedding: bool
    size: Footprint
    floor: Floor
    swapping: "asyncio.Task[None] | None" = None
    server: Server | None = None
    adapters: "OrderedDict[str, str]" = field(default_factory=OrderedDict)
    """File to SHA-256, the one asked for last at the end: what the next server will have."""
    wanted: int = 0
    """Questions that are being answered or wait."""
    used_at: float = 0.0
    need: int = 0
    """Bytes, as they were estimated."""
    misfits: int = 0

    @property
    def slots(self) -> int:
        return 1 if self.embedding else SLOTS

    @property
    def idle(self) -> bool:
        return not self.wanted and self.swapping is None

    @property
    def ready(self) -> Server | None:
        return self.server if self.server and not self.server.ended else None

    def has(self, adapter: Path | None) -> bool:
        return self.ready is not None and (adapter is None or str(adapter) in self.ready.load.adapters)


class LlamaCpp:
    name = "llama.cpp"

    def __init__(
        self,
        cache: Path,
        *,
        sockets: Path,
        precision: Precision = "q8_0",
        budget: int = 0,
        adapters: int = ADAPTERS,
        patience: float = PATIENCE,
        context: int = 0,
    ):
        """To be made where a loop runs."""
        self.cache, self.precision, self.most_adapters, self.context = cache, precision, adapters, context or CONTEXT
        self.stable = Stable(sockets, patience=patience)
        self.stable.make_ready()
        self.watching = asyncio.create_task(self.watch())
        self.room = Room(budget)
        self.cores = Cores()
        self.homes: dict[Key, Home] = {}
        self.served: dict[Subject, Served] = {}
        self.preparing: dict[Subject, asyncio.Task[Served]] = {}
        self.bases: dict[tuple[str, str], asyncio.Lock] = {}
        """Of each base whose files were prepared: who makes one now."""
        self.counts = {"answers": 0, "prompt_tokens": 0, "completion_tokens": 0}

    # ── What the contract asks ──

    async def load(self, subject: Subject, state: State) -> None:
        served = await self.files(subject, state)
        await self.ready(await self.home(subject, served, embedding=False), served, subject, state)

    async def ask(
        self, subject: Subject, route: Route, body: dict[str, Any], *, state: State, took: Took
    ) -> AsyncGenerator[dict[str, Any]]:
        began = time.monotonic()
        async with self.place(subject, state, embedding=route == "embedding") as (server, adapter):
            took.waited = time.monotonic() - began
            state("answering")
            if route == "embedding":
                yield await self.embed(server, body | {"lora": server.lora(adapter)}, took)
            else:
                refuse_tools(server, body)
                asked = body | {"stream": True, "stream_options": {"include_usage": True}, "lora": server.lora(adapter)}
                async with aclosing(chunks_of(server.client, PATHS[route], asked, took)) as chunks:
                    async for chunk in chunks:
                        took.first = took.first or time.monotonic() - began
                        yield chunk
        took.first = took.first or time.monotonic() - began
        self.counts["answers"] += 1
        self.counts["prompt_tokens"] += took.prompt_tokens
        self.counts["completion_tokens"] += took.completion_tokens

    async def tokenize(self, subject: Subject, *, text: str = "", messages: list[dict[str, Any]] | None = None) -> list[int]:
        async with self.place(subject, lambda words: None, waits=False) as (server, _):
            if messages is not None:
                text = str((await post(server.client, "/apply-template", {"messages": messages}))["prompt"])
            told = await post(server.client, "/tokenize", {"content": text, "add_special": True, "parse_special": messages is not None})
        tokens: list[int] = told["tokens"]
        return tokens

    async def drop(self, names: list[str]) -> int:
        """Questions that still wait for what was dropped are refused; those to others on the same base wait for it to be loaded again."""
        self.served = {subject: served for subject, served in self.served.items() if not named(names, *map(str, served.files))}
        dropped = 0
        for home in list(self.homes.values()):
            told = {path for path, sha256 in home.adapters.items() if named(names, path, sha256)}
            for path in told:
                del home.adapters[path]
            if home.swapping:  # the server that it brings was told to load what was dropped
                with suppress(UserError):
                    await asyncio.shield(home.swapping)
            loaded = home.ready.load.adapters if home.ready else ()
            if home.ready and (told.intersection(loaded) or named(names, home.model, home.sha256, *loaded)):
                dropped += 1
                await self.let_go(home)
        return dropped

    async def make_room(self, wanted: int, *, on_gpu: bool = False) -> int:
        freed = 0
        for home in [] if on_gpu else sorted(self.homes.values(), key=lambda each: each.used_at):
            if freed < wanted and home.idle and (server := home.ready):
                freed += server.bytes
                await self.let_go(home)
        return freed

    def metrics(self) -> dict[str, Any]:
        models: list[dict[str, Any]] = [
            {
                "workspace": home.workspace,
                "base_sha256": home.sha256,
                "adapters": list(home.adapters.values()),
                "embedding": home.embedding,
                "bytes": server.bytes,
                "threads": server.load.threads,
                "running": home.floor.running,
                "waiting": home.wanted - home.floor.running,
                "idle": round(time.time() - home.used_at, 1) if home.idle else 0.0,
                "cold": round(server.cold, 2),
            }
            for home in self.homes.values()
            if (server := home.ready)
        ]
        used = sum(model["bytes"] for model in models)
        return {"engine": self.name, "on_gpu": False, "budget": self.room.budget, "used": used, "models": models} | self.counts

    # ── How it is done ──

    @asynccontextmanager
    async def place(
        self, subject: Subject, state: State, *, embedding: bool = False, waits: bool = True
    ) -> AsyncIterator[tuple[Server, str | None]]:
        """A server that has what is asked for, and a slot of it, for as long as it takes."""
        served = await self.files(subject, state)
        home = await self.home(subject, served, embedding=embedding)
        adapter = str(served.adapter) if served.adapter else None
        home.wanted += 1
        try:
            await self.ready(home, served, subject, state)
            if not waits:
                async with self.sound(home, await self.ready(home, served, subject, state)) as server:
                    yield server, adapter
                return
            if home.floor.running >= home.slots or home.floor.waiting:
                state("waiting for a turn")
            async with home.floor.place(adapter or ""):
                server = await self.ready(home, served, subject, state)  # it may have changed meanwhile
                async with self.sound(home, server):
                    yield server, adapter
        finally:
            home.wanted -= 1
            home.used_at = time.time()

    async def files(self, subject: Subject, state: State) -> Served:
        """What llama.cpp reads, made where it is missing. Raises UserError where what was asked for is not here any more."""
        check(subject.base, subject.base_sha256)
        if subject.adapter:
            check(subject.adapter, subject.adapter_sha256)
        if served := self.served.get(subject):
            with suppress(FileNotFoundError):
                mark_used(served)
                return served
        if subject not in self.preparing:
            self.preparing[subject] = asyncio.create_task(self.prepare(subject))
            self.preparing[subject].add_done_callback(lambda done: self.prepared(subject, done))
        return await self.told_meanwhile(self.preparing[subject], "preparing the model", state)

    async def prepare(self, subject: Subject) -> Served:
        """Once for all who ask. Of one base one file at a time, so that no more threads than one wait for its lock."""
        async with self.bases.setdefault(subject.home, asyncio.Lock()):
            folder = self.cache / subject.workspace
            served = await asyncio.to_thread(prepare, base=subject.base, adapter=subject.adapter, cache=folder, precision=self.precision)
            await asyncio.to_thread(sweep, self.cache, keep=served.files)
        self.served[subject] = served
        return served

    def prepared(self, subject: Subject, task: "asyncio.Task[Served]") -> None:
        del self.preparing[subject]
        if not task.cancelled():
            task.exception()  # those who wait hear of it; where they have left, nobody does

    async def told_meanwhile(self, task: "asyncio.Task[Served]", words: str, state: State) -> Served:
        """What the task brings. Whoever waits is told again and again, by which the process is also known to be alive."""
        began = time.monotonic()
        while not task.done():
            passed = time.monotonic() - began
            state(words if passed < TELL_EVERY else f"{words}, {passed:.0f} s so far")
            await asyncio.wait({task}, timeout=TELL_EVERY)
        return task.result()

    async def home(self, subject: Subject, served: Served, *, embedding: bool) -> Home:
        key = (subject.workspace, str(served.model), embedding)
        if key not in self.homes:
            size = await asyncio.to_thread(footprint, served.model)
            floor = Floor(slots=1 if embedding else SLOTS, turn=TURN)
            made = Home(subject.workspace, subject.base_sha256, str(served.model), embedding, size, floor)
            self.homes.setdefault(key, made)
        return self.homes[key]

    async def ready(self, home: Home, served: Served, subject: Subject, state: State) -> Server:
        """A server that has the base and the adapter in memory. One load at a time brings what all wait for; whoever leaves ends none."""
        while not self.has(home, served, subject):
            state("adding the adapter" if home.ready else f"loading the model ({words(home.size.weights)})")
            own = home.swapping is None
            if home.swapping is None:
                home.swapping = asyncio.create_task(self.swap(home, only=served.adapter))
            try:
                await asyncio.shield(home.swapping)
            except UserError:
                if own or home.ready is None:  # else it was another one's adapter
                    raise
        assert home.server
        return home.server

    def has(self, home: Home, served: Served, subject: Subject) -> bool:
        """Whether it is in memory; if not, the next server will have it. Raises UserError where it was erased while it was waited for."""
        home.used_at = time.time()
        if not all(path.exists() for path in served.files):
            raise UserError(GONE, code="gone")
        if served.adapter:
            home.adapters[str(served.adapter)] = subject.adapter_sha256
            home.adapters.move_to_end(str(served.adapter))
        return home.has(served.adapter)

    async def swap(self, home: Home, *, only: Path | None) -> None:
        """Starts a server with all adapters that are wanted beside the one that answers, and lets that end with its last answer."""
        known = home.ready.load.adapters if home.ready else ()
        try:
            for path in [path for path in home.adapters if not Path(path).exists()]:  # erased, or swept away while nobody asked
                del home.adapters[path]
            while len(home.adapters) > self.most_adapters:
                home.adapters.popitem(last=False)
            load = self.load_of(home)
            try:
                await self.fit(home, load)
                fresh = await self.stable.start(load)
            except UserError:  # one that cannot be loaded keeps nobody else from answering
                suspects = [path for path in home.adapters if path not in known]
                for path in suspects:
                    if path != str(only):
                        del home.adapters[path]
                if len(suspects) < 2:
                    home.adapters.pop(str(only), None)
                    raise
                fresh = await self.stable.start(self.load_of(home))
            old, home.server = home.server, fresh
            if old:
                old.retire()
        finally:
            home.swapping = None
            home.floor.reopen(home.slots)

    def load_of(self, home: Home) -> Load:
        context, threads = min(home.size.context, LONGEST_EMBEDDED if home.embedding else self.context), self.cores.look()
        return Load(
            model=home.model,
            adapters=tuple(home.adapters),
            context=context,
            slots=home.slots,
            batch=context if home.embedding else batch_of(home.size.parameters, threads),
            threads=threads,
            embedding=home.embedding,
            pooling=home.embedding and not home.size.pooling,
        )

    async def fit(self, home: Home, load: Load) -> None:
        """Makes room for a server: idle bases leave, the least recently used first. Raises UserError where that is not enough."""
        adapters = sum(Path(each).stat().st_size for each in load.adapters)
        home.need = home.size.bytes(tokens=load.context * load.slots, batch=load.batch) + adapters
        others = [each for each in self.homes.values() if each is not home and (each.ready or each.swapping)]
        while lacking := self.room.lacks(home.need, used=sum(each.need for each in others)):
            idle = sorted((each for each in others if each.idle), key=lambda each: each.used_at)
            if not idle:
                break
            others.remove(idle[0])
            await self.let_go(idle[0])
        if not lacking:
            return
        old = home.ready
        used = sum(each.need for each in others)
        if old is None or used + home.need > self.room.budget:
            raise self.room.refusal(home.need, used=used)
        home.floor.close()  # no room for two: the new server starts when the old one has answered
        while old.users:
            await asyncio.sleep(0.02)
        await self.let_go(home)
        if self.room.lacks(home.need, used=used):
            raise self.room.refusal(home.need, used=used)

    async def let_go(self, home: Home) -> None:
        """Answers under way end first."""
        server, home.server = home.server, None
        if server:
            server.retire()
            if not server.users:
                await server.process.wait()

    @asynccontextmanager
    async def sound(self, home: Home, server: Server) -> AsyncIterator[Server]:
        """The server in use. One that breaks or says nothing is ended, and the next question finds another."""
        try:
            with server:
                yield server
        except httpx.HTTPError as problem:
            hung = isinstance(problem, httpx.TimeoutException)
            log.warning("The server of %s %s", Path(home.model).name, "said nothing for too long" if hung else f"broke off: {problem!r}")
            if hung or not await server.is_well():
                server.end()
                await server.process.wait()
            words = "The model said nothing for too long, so it was ended." if hung else "The model broke off its answer."
            raise UserError(f"{words} Ask again.", code="broken") from problem

    async def watch(self) -> None:
        """Ends servers that go on computing though nobody asks, and replaces those whose threads do not fit the machine any more."""
        watch = Watch(most=WATCH / 10)
        while True:
            await asyncio.sleep(WATCH)
            for server in watch.look([server for home in self.homes.values() if (server := home.ready)]):
                log.warning("The server of %s computes though nobody asks; it is ended.", Path(server.load.model).name)
                server.end()
            for home in self.misfits():
                home.swapping = asyncio.create_task(self.renew(home))

    def misfits(self) -> list[Home]:
        """What was asked lately, is idle, and has been loaded for other cores than are free. For none of them another base has to leave."""
        free, used = self.cores.look(), sum(home.need for home in self.homes.values() if home.ready or home.swapping)
        found = []
        for home in self.homes.values():
            fits = not home.ready or not home.idle or home.ready.load.threads == free
            home.misfits = 0 if fits else home.misfits + 1
            if home.misfits == MISFITS and time.time() - home.used_at < RECENT and not self.room.lacks(home.need, used=used):
                found.append(home)
        return found[:1]

    async def renew(self, home: Home) -> None:
        try:
            await self.swap(home, only=None)
        except UserError as problem:  # nobody waits for it; the next question tells whoever asks
            log.warning("The server of %s could not be started anew: %s", Path(home.model).name, problem.message)

    async def embed(self, server: Server, body: dict[str, Any], took: Took) -> dict[str, Any]:
        began = time.monotonic()
        told = await post(server.client, "/v1/embeddings", body)
        took.prompt_tokens = int(told["usage"]["prompt_tokens"])
        took.seconds = round(time.monotonic() - began, 4)
        return told


def named(names: list[str], *paths: str) -> bool:
    return any(name in path for path in paths for name in names)


def check(path: Path, sha256: str) -> None:
    try:
        found = sealed_sha256(path)
    except (OSError, ValueError, KeyError):
        found = ""
    if not found or found != sha256:
        raise UserError(GONE, code="gone")


def refuse_tools(server: Server, body: dict[str, Any]) -> None:
    """llama.cpp would leave them out without a word."""
    if any(body.get(name) for name in TOOLS) and not server.props.get("chat_template_caps", {}).get("supports_tools"):
        text = "This model's chat template has no place for tools. Leave them out, or ask a model that was made for them."
        raise UserError(text, code="unsupported", fields={"tools": text})


def batch_of(parameters: int, threads: int) -> int:
    """Tokens of a prompt that are computed in one go, a power of two: whoever leaves meanwhile is noticed after it."""
    most = WORK_AT_ONCE * threads // max(parameters, 1)
    return max(SMALLEST_BATCH, min(LARGEST_BATCH, 1 << max(0, most.bit_length() - 1)))
