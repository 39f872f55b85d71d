"""Asks the process that answers, from the web process: lines as they come. What keeps them from coming is a line, too."""

from collections.abc import AsyncGenerator
from typing import Any

import httpx
import orjson
from django.conf import settings

from studio.errors import UserError
from studio.serving.holding import with_reason
from studio.serving.subjects import Subject

TIMEOUT = httpx.Timeout(1200, connect=5)
"""Longer than the engine itself waits for a model that says nothing."""
NOT_RUNNING = "The process that answers is not running. It starts with the server; try again in a moment."
BROKE_OFF = "The answer broke off. Ask again."


def client() -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=settings.ENGINE_SOCKET), timeout=TIMEOUT, base_url="http://engine")


async def ask(subject: Subject, route: str, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
    """`{"state"}` while it waits, `{"chunk"}` as OpenAI streams them, then `{"done": {...}}` or `{"error": {code, message, fields}}`.

    Whoever leaves early closes the iterator, which frees the model for others.
    """
    ended = False
    try:
        asked = {"subject": subject, "route": route, "body": body}
        async with client() as engine, engine.stream("POST", "/ask", json=asked) as answer:
            async for text in answer.aiter_lines():
                line = orjson.loads(text)
                ended = "done" in line or "error" in line
                yield await with_reason(line)
    except httpx.ConnectError:
        yield broken(NOT_RUNNING)
    except httpx.HTTPError:
        if not ended:
            yield broken(BROKE_OFF)


async def tokenize(subject: Subject, *, text: str = "", messages: list[dict[str, Any]] | None = None) -> list[int]:
    """The tokens of a text, or of a conversation as the model's template writes it. Raises UserError where nobody can say."""
    asked: dict[str, Any] = {"subject": subject} | ({"text": text} if messages is None else {"messages": messages})
    try:
        async with client() as engine:
            told = (await engine.post("/tokenize", json=asked)).json()
    except httpx.HTTPError as problem:
        raise UserError(NOT_RUNNING, code="broken") from problem
    if refused := told.get("error"):
        raise UserError(refused["message"], code=refused["code"], fields=refused["fields"])
    tokens: list[int] = told["tokens"]
    return tokens


async def state() -> dict[str, Any] | None:
    """What is in memory and what is being answered, see `Engine.metrics`. None where nobody answers."""
    try:
        async with client() as engine:
            told: dict[str, Any] = (await engine.get("/state", timeout=5)).json()
    except httpx.HTTPError:
        return None
    return told


def broken(message: str) -> dict[str, Any]:
    return {"error": {"code": "broken", "message": message, "fields": {}}}
