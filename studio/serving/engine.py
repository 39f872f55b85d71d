"""The process that answers the playground: HTTP on a private unix socket, one JSON object per line back. No Django."""

import argparse
import asyncio
import faulthandler
import json
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from studio.errors import UserError
from studio.lifeline import die_with_parent
from studio.serving.engines.contract import Ask, Engine

log = logging.getLogger("studio.engine")
MAX_BODY = 1 << 20
LONGEST_STILLNESS = 300.0
"""Seconds in which no line of Python runs: where it loads a hostile chat template that never ends, llama.cpp lets nobody else work."""
LONGEST_SILENCE = 900.0
"""Seconds in which questions are open and none is answered, not even by a piece: more than any prompt takes that fits."""
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid")

    role: str = Field(pattern="^(system|user|assistant)$")
    content: str = Field(max_length=200_000)


class Question(BaseModel):
    """What the web process asks, by folders below the data folder."""

    model_config = ConfigDict(extra="forbid")

    base: str
    adapter: str = ""
    messages: list[Message] = Field(min_length=1, max_length=200)
    max_tokens: int = Field(256, ge=1, le=4096)
    temperature: float = Field(0.0, ge=0, le=2)
    seed: int = Field(0, ge=0, le=4_294_967_295)
    top_p: float | None = Field(None, gt=0, le=1)
    stop: list[str] = Field([], max_length=8)


class Forgotten(BaseModel):
    model_config = ConfigDict(extra="forbid")

    names: list[Annotated[str, Field(pattern="^[0-9a-f]{16}$")]]
    """What the files of erased models have in their names: the beginnings of their hashes."""


class Pulse:
    """Whether what is asked here is still being answered."""

    def __init__(self) -> None:
        self.open, self.heard_at = 0, time.monotonic()

    @contextmanager
    def question(self) -> Iterator[None]:
        self.heard()
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1

    def heard(self) -> None:
        self.heard_at = time.monotonic()

    def silence(self) -> float:
        """Seconds since anybody who waits was told anything."""
        return time.monotonic() - self.heard_at if self.open else 0.0


class Door:
    """The ASGI application: POST /chat streams an answer, POST /forget lets go of models, GET /healthz says that it is there."""

    def __init__(self, engine: Engine, root: Path):
        self.engine = engine
        self.root = root.resolve()
        self.pulse = Pulse()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["path"] == "/healthz":
            await self.reply(send, 200, {"ok": True})
        elif scope["path"] == "/chat" and scope["method"] == "POST":
            await self.chat(receive, send)
        elif scope["path"] == "/forget" and scope["method"] == "POST":
            await self.forget(receive, send)
        else:
            await self.reply(send, 404, {"error": "There is no such thing here."})

    async def reply(self, send: Send, status: int, body: dict[str, Any]) -> None:
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": json.dumps(body).encode()})

    async def body(self, receive: Receive) -> bytes:
        data, more = b"", True
        while more and len(data) <= MAX_BODY:
            message = await receive()
            data += message.get("body", b"")
            more = message.get("more_body", False)
        return data

    def inside(self, folder: str) -> Path:
        path = Path(folder).resolve()
        if not path.is_relative_to(self.root) or not path.is_dir():
            raise UserError("This model is not here any more.")
        return path

    async def chat(self, receive: Receive, send: Send) -> None:
        try:
            question = Question.model_validate_json(await self.body(receive))
            ask = Ask(
                base=self.inside(question.base),
                adapter=self.inside(question.adapter) if question.adapter else None,
                messages=[message.model_dump() for message in question.messages],
                max_tokens=question.max_tokens,
                temperature=question.temperature,
                seed=question.seed,
                top_p=question.top_p,
                stop=tuple(question.stop),
            )
        except (ValidationError, UserError) as error:
            await self.reply(send, 422, {"error": str(error)})
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/x-ndjson")]})
        gone = threading.Event()
        watcher = asyncio.create_task(self.watch(receive, gone))
        async for line in stream(self.engine, ask, gone, self.pulse):
            await send({"type": "http.response.body", "body": json.dumps(line, ensure_ascii=False).encode() + b"\n", "more_body": True})
        watcher.cancel()
        await send({"type": "http.response.body", "body": b""})

    async def forget(self, receive: Receive, send: Send) -> None:
        """Of what was erased nothing stays in memory."""
        try:
            names = Forgotten.model_validate_json(await self.body(receive)).names
        except ValidationError as error:
            await self.reply(send, 422, {"error": str(error)})
            return
        await self.reply(send, 200, {"forgotten": await asyncio.to_thread(self.engine.forget, names)})

    async def watch(self, receive: Receive, gone: threading.Event) -> None:
        while (await receive())["type"] != "http.disconnect":
            continue
        gone.set()


async def stream(engine: Engine, ask: Ask, gone: threading.Event, pulse: Pulse) -> Any:
    """What the engine says in its thread, as lines: state, delta, done or error."""
    loop, lines = asyncio.get_running_loop(), asyncio.Queue[dict[str, Any] | None]()

    def put(line: dict[str, Any] | None) -> None:
        pulse.heard()
        loop.call_soon_threadsafe(lines.put_nowait, line)

    def say(piece: str) -> bool:
        if piece:
            put({"delta": piece})
        return not gone.is_set()

    def work() -> None:
        try:
            with pulse.question():
                put({"done": True} | engine.answer(ask, say=say, state=lambda text: put({"state": text})))
        except UserError as error:
            put({"error": error.message})
        except Exception:  # the border to llama.cpp: whatever it was, the page must not wait for ever
            log.exception("An answer failed")
            put({"error": "The model could not answer. The server's log says why."})
        finally:
            put(None)

    threading.Thread(target=work, daemon=True).start()
    while (line := await lines.get()) is not None:
        yield line


def end_when_stuck(pulse: Pulse, *, stillness: float, silence: float) -> None:
    """Ends this process where it stands still or only burns time; the supervisor starts it again."""

    def watch() -> None:
        while pulse.silence() < silence:
            faulthandler.dump_traceback_later(stillness, exit=True)  # a clock that needs no lock of Python's
            time.sleep(min(5.0, stillness / 4, silence / 4))
        log.error("Nothing has been answered for %.0f s; starting anew.", silence)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="watch").start()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--root", type=Path, required=True, help="The data folder; no model outside it is opened.")
    parser.add_argument("--stillness", type=float, default=LONGEST_STILLNESS, help="Seconds after which a process that stands still ends.")
    parser.add_argument("--silence", type=float, default=LONGEST_SILENCE, help="Seconds without any answer after which it ends.")
    options = parser.parse_args()
    die_with_parent()
    from studio.serving.engines.llamacpp import LlamaCpp  # heavy, and only this process needs it

    Path(options.socket).unlink(missing_ok=True)
    door = Door(LlamaCpp(options.root / "cache" / "serving"), options.root)
    end_when_stuck(door.pulse, stillness=options.stillness, silence=options.silence)
    uvicorn.run(door, uds=options.socket, lifespan="off", log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
