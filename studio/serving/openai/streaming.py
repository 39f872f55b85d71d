"""The answer as server-sent events: comments while a model is loaded, an error as the last event, `[DONE]` at the end."""

from collections.abc import AsyncIterator
from typing import Any

import orjson
from asgiref.sync import sync_to_async

from studio.serving.models import LEFT
from studio.serving.openai.answers import Answers, Streamed
from studio.serving.openai.calls import Under
from studio.serving.openai.errors import Refused, of_engine
from studio.serving.openai.lines import Lines

HEARTBEAT = 5.0
"""Seconds without a word after which a comment says that the answer is still coming: proxies close what is silent."""
Conversation = list[dict[str, Any]]


class Telling:
    """Takes the engine's lines for one request, whether they are told at once or in one piece."""

    def __init__(self, under: Under, lines: Lines, answers: Answers, *, model: str, asked_in: str):
        self.under, self.lines, self.answers = under, lines, answers
        self.model, self.asked_in = model, asked_in
        self.left = len(lines.bodies)

    def take(self, number: int, line: dict[str, Any]) -> Any:
        """What the line adds, as a choice of a stream. Raises Refused for an error."""
        if error := line.get("error"):
            raise of_engine(error, model=self.model, asked_in=self.asked_in)
        if took := line.get("done"):
            self.left -= 1
            self.under.usage.add(number, took)
            return None
        if "chunk" not in line:
            return None
        self.under.begins()
        self.under.usage.under_way[number] += 1
        return self.answers.take(number, line["chunk"])

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece. Raises Refused."""
        while (line := await self.lines.next()) is not None:
            self.take(*line)
        if self.left:
            raise Refused(503, "engine_unavailable", "The answer broke off. Ask again.", headers={"Retry-After": "1"})
        return self.answers.whole()


class Events:
    """What a streaming response sends. Django closes it in the thread of the request, however it ended."""

    def __init__(self, telling: Telling, answers: Streamed, *, usage_wanted: bool, conversation: Conversation):
        self.telling, self.answers, self.usage_wanted, self.conversation = telling, answers, usage_wanted, conversation
        self.pieces = self.write()

    def __aiter__(self) -> "Events":
        return self

    async def __anext__(self) -> bytes:
        try:
            return await anext(self.pieces)
        except StopAsyncIteration:
            raise
        except Exception:  # a bug, which flies on; but the caller has not left
            await sync_to_async(self.telling.under.end)(500, "bug")
            raise

    async def write(self) -> AsyncIterator[bytes]:
        telling, under, answers = self.telling, self.telling.under, self.answers
        more: dict[str, Any] = {"usage": None} if self.usage_wanted else {}
        try:
            while telling.left:
                try:
                    line = await telling.lines.next(patience=HEARTBEAT)
                except TimeoutError:
                    yield b": the answer is coming\n\n"
                    continue
                if line is None:
                    return  # nobody has read for a while
                if state := line[1].get("state"):
                    yield f": {one_line(state)}\n\n".encode()
                elif (choice := telling.take(*line)) is not None:
                    yield event(answers.chunk([choice], **more))
        except Refused as refused:
            await sync_to_async(under.end)(refused.status, refused.code)
            yield b"event: error\n" + event(refused.body)
            return
        if self.usage_wanted:
            yield event(answers.chunk([], usage=answers.usage.told))
        said = answers.said
        await sync_to_async(under.end)(200, said=(self.conversation, said) if said else None)
        yield b"data: [DONE]\n\n"

    def close(self) -> None:
        self.telling.lines.close()
        self.telling.under.end(LEFT, "left")


def event(told: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(told) + b"\n\n"


def one_line(text: str) -> str:
    return " ".join(str(text).split())
