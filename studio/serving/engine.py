"""The process that answers: HTTP on a private unix socket, one JSON object per line back. Which engine runs the models is not known here.

No Django.
"""

import argparse
import asyncio
import faulthandler
import json
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from studio.errors import UserError
from studio.lifeline import die_with_parent
from studio.serving.engines.choosing import add_options, chosen
from studio.serving.engines.contract import Engine, Route, Subject, Took
from studio.worker.gpumemory import gpus_in_use

log = logging.getLogger("studio.engine")
MAX_BODY = 4 << 20
LONGEST_STILLNESS = 300.0
"""Seconds in which no line of Python runs."""
LONGEST_SILENCE = 900.0
"""Seconds in which questions are open and none is answered, not even by a piece: more than any prompt takes that fits."""
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Wanted(BaseModel):
    """A subject, by paths below the data folder."""

    model_config = ConfigDict(extra="forbid")

    workspace: str = Field(pattern="^[0-9A-Za-z-]{1,64}$")
    base: str
    base_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    adapter: str = ""
    adapter_sha256: str = Field("", pattern="^([0-9a-f]{64})?$")


class Question(BaseModel):
    """`body` is OpenAI's, checked by whoever asks; what the engine does not know, it refuses."""

    model_config = ConfigDict(extra="forbid")

    subject: Wanted
    route: Route
    body: dict[str, Any]


class Text(BaseModel):
    model_config = ConfigDict(extra="forbid")

    subject: Wanted
    text: str = ""
    messages: list[dict[str, Any]] | None = None


class Forgotten(BaseModel):
    model_config = ConfigDict(extra="forbid")

    names: list[Annotated[str, Field(pattern="^[0-9a-f]{16}$")]]
    """What the files of erased models have in their names: the beginnings of their hashes."""


class Room(BaseModel):
    model_config = ConfigDict(extra="forbid")

    bytes: int = Field(ge=0)
    gpus: list[str] = []
    """Of these GPUs' memory; none for the machine's."""


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
    """The ASGI application, on the wire that `studio.serving.asking` speaks."""

    def __init__(self, engine: Engine, root: Path):
        self.engine = engine
        self.root = root.resolve()
        self.pulse = Pulse()
        self.routes: dict[tuple[str, str], Callable[[bytes], Awaitable[dict[str, Any]]]] = {
            ("GET", "/healthz"): self.healthz,
            ("GET", "/state"): self.state,
            ("POST", "/tokenize"): self.tokenize,
            ("POST", "/forget"): self.forget,
            ("POST", "/make_room"): self.make_room,
        }

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if (scope["method"], scope["path"]) == ("POST", "/ask"):
            await self.ask(receive, send)
            return
        answer = self.routes.get((scope["method"], scope["path"]))
        if answer is None:
            await reply(send, 404, told("invalid", "There is no such thing here."))
            return
        try:
            await reply(send, 200, await answer(await body_of(receive)))
        except ValidationError as problem:
            await reply(send, 422, told("invalid", str(problem)))
        except UserError as problem:
            await reply(send, 422, told(problem.code, problem.message, problem.fields))

    async def healthz(self, body: bytes) -> dict[str, Any]:
        return {"ok": True}

    async def state(self, body: bytes) -> dict[str, Any]:
        return self.engine.metrics()

    async def tokenize(self, body: bytes) -> dict[str, Any]:
        asked = Text.model_validate_json(body)
        with self.pulse.question():
            return {"tokens": await self.engine.tokenize(self.subject(asked.subject), text=asked.text, messages=asked.messages)}

    async def forget(self, body: bytes) -> dict[str, Any]:
        """Of what was erased nothing stays in memory."""
        return {"forgotten": await self.engine.drop(Forgotten.model_validate_json(body).names)}

    async def make_room(self, body: bytes) -> dict[str, Any]:
        """What idle models gave up, and what those hold that answer."""
        asked = Room.model_validate_json(body)
        on_gpu = bool(asked.gpus)
        if on_gpu and not set(asked.gpus) & set(gpus_in_use()[:1]):  # models are on the first one alone
            return {"freed": 0, "answering": 0}
        freed = await self.engine.make_room(asked.bytes, on_gpu=on_gpu)
        return {"freed": freed, "answering": answering(self.engine.metrics(), on_gpu=on_gpu)}

    def subject(self, wanted: Wanted) -> Subject:
        adapter = self.inside(wanted.adapter) if wanted.adapter else None
        return Subject(wanted.workspace, self.inside(wanted.base), wanted.base_sha256, adapter, wanted.adapter_sha256)

    def inside(self, name: str) -> Path:
        path = Path(name).resolve()
        if not path.is_relative_to(self.root) or not (path.is_dir() or (path.suffix == ".gguf" and path.is_file())):
            raise UserError("This model is not here any more.", code="gone")
        return path

    async def ask(self, receive: Receive, send: Send) -> None:
        """Whoever leaves ends the work for them. The answer is fetched as fast as it is made: a slow reader keeps no slot from others."""
        body = await body_of(receive)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/x-ndjson")]})
        lines = asyncio.Queue[dict[str, Any] | None]()
        work = asyncio.create_task(self.answer(body, lines))
        watcher = asyncio.create_task(cancel_when_gone(receive, work))
        try:
            while (line := await lines.get()) is not None and not watcher.done():
                await send({"type": "http.response.body", "body": json.dumps(line, ensure_ascii=False).encode() + b"\n", "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            watcher.cancel()
            work.cancel()

    async def answer(self, body: bytes, lines: "asyncio.Queue[dict[str, Any] | None]") -> None:
        """What the engine says, as lines; None after the last."""

        def put(line: dict[str, Any]) -> None:
            self.pulse.heard()
            lines.put_nowait(line)

        took = Took()
        try:
            question = Question.model_validate_json(body)
            subject = self.subject(question.subject)
            with self.pulse.question():
                chunks = self.engine.ask(subject, question.route, question.body, state=lambda words: put({"state": words}), took=took)
                async with aclosing(chunks):
                    async for chunk in chunks:
                        put({"chunk": chunk})
            put({"done": figures(took)})
        except UserError as problem:
            put(told(problem.code, problem.message, problem.fields))
        except ValidationError as problem:
            put(told("invalid", str(problem)))
        except Exception:  # the border to the engine: whatever it was, whoever asked must not wait for ever
            log.exception("An answer failed")
            put(told("broken", "The model could not answer. The server's log says why."))
        finally:
            lines.put_nowait(None)


def figures(took: Took) -> dict[str, Any]:
    named = ("prompt_tokens", "cached_tokens", "completion_tokens", "seconds", "first", "waited")
    return {name: round(getattr(took, name), 4) for name in named} | took.details


def answering(metrics: dict[str, Any], *, on_gpu: bool) -> int:
    """Bytes of models that answer, or are waited for."""
    engines = [engine for engine in metrics.get("engines") or [metrics] if engine["on_gpu"] == on_gpu]
    return sum(model["bytes"] for engine in engines for model in engine["models"] if model["running"] or model["waiting"])


def told(code: str, message: str, fields: dict[str, str] | None = None) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "fields": fields or {}}}


async def reply(send: Send, status: int, body: dict[str, Any]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})


async def body_of(receive: Receive) -> bytes:
    data, more = b"", True
    while more and len(data) <= MAX_BODY:
        message = await receive()
        data += message.get("body", b"")
        more = message.get("more_body", False)
    return data


async def cancel_when_gone(receive: Receive, work: "asyncio.Task[None]") -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
    work.cancel()


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
    parser.add_argument("--precision", choices=["q8_0", "f16"], default="q8_0", help="Type of the models' weights and their adapters'.")
    parser.add_argument("--memory", type=int, default=0, help="Bytes that all models may take together; 0 is half of what the machine has.")
    add_options(parser)
    parser.add_argument("--adapters", type=int, default=16, help="Adapters that are held for each base model.")
    parser.add_argument("--patience", type=float, default=600.0, help="Seconds after which a model that says nothing is ended.")
    parser.add_argument("--stillness", type=float, default=LONGEST_STILLNESS, help="Seconds after which a process that stands still ends.")
    parser.add_argument("--silence", type=float, default=LONGEST_SILENCE, help="Seconds without any answer after which it ends.")
    options = parser.parse_args()
    die_with_parent()
    Path(options.socket).unlink(missing_ok=True)
    asyncio.run(serve(options))


async def serve(options: argparse.Namespace) -> None:
    def llamacpp() -> Engine:
        from studio.serving.engines.llamacpp import LlamaCpp  # heavy, and only this process needs it

        cache, sockets = options.root / "cache" / "serving", Path(options.socket).parent
        return LlamaCpp(
            cache,
            sockets=sockets,
            precision=options.precision,
            budget=options.memory,
            adapters=options.adapters,
            patience=options.patience,
            context=options.context,
        )

    door = Door(chosen(options, llamacpp), options.root)
    end_when_stuck(door.pulse, stillness=options.stillness, silence=options.silence)
    await uvicorn.Server(uvicorn.Config(door, uds=options.socket, lifespan="off", log_level="warning", access_log=False)).serve()


if __name__ == "__main__":
    main()
