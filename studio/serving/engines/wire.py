"""How one llama.cpp server is asked by HTTP and what it says, in the studio's words. Chooses no server."""

from collections.abc import AsyncGenerator
from typing import Any

import httpx
import orjson

from studio.errors import UserError
from studio.serving.engines.contract import Took

LONGEST_REASON = 300


async def chunks_of(client: httpx.AsyncClient, path: str, body: dict[str, Any], took: Took) -> AsyncGenerator[dict[str, Any]]:
    """The pieces of one answer as OpenAI streams them; `took` has its figures at the end. Raises UserError for what is refused."""
    async with client.stream("POST", path, json=body) as answer:
        if answer.status_code != 200:
            raise refusal(await answer.aread())
        async for line in answer.aiter_lines():
            kind, _, text = line.partition(": ")
            if kind == "error":
                raise refusal(text.encode())
            if kind != "data" or text == "[DONE]":
                continue
            chunk = orjson.loads(text)
            if "error" in chunk:
                raise refusal(text.encode())
            count(took, chunk)
            if chunk.get("choices"):
                yield chunk


def count(took: Took, chunk: dict[str, Any]) -> None:
    chunk.pop("model", None)  # a path of this machine
    timings, usage = chunk.pop("timings", None) or {}, chunk.get("usage") or {}
    if timings:
        took.cached_tokens = int(timings.get("cache_n", 0))
        took.prompt_tokens = took.cached_tokens + int(timings.get("prompt_n", 0))
        took.completion_tokens = int(timings.get("predicted_n", 0))
        took.seconds = round(timings.get("predicted_ms", 0.0) / 1000, 4)
    if usage:
        took.prompt_tokens = int(usage.get("prompt_tokens", took.prompt_tokens))
        took.completion_tokens = int(usage.get("completion_tokens", took.completion_tokens))


async def post(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """One whole answer. Raises UserError for what is refused."""
    answer = await client.post(path, json=body)
    if answer.status_code != 200:
        raise refusal(answer.content)
    found: dict[str, Any] = orjson.loads(answer.content)
    found.pop("model", None)
    return found


def refusal(content: bytes) -> UserError:
    """What llama.cpp refuses, in the studio's words."""
    try:
        problem = orjson.loads(content)
    except ValueError:
        problem = {}
    problem = problem.get("error", problem) if isinstance(problem, dict) else {}
    kind, reason = problem.get("type"), str(problem.get("message", ""))[:LONGEST_REASON]
    if kind == "exceed_context_size_error":
        tokens, context = problem.get("n_prompt_tokens"), problem.get("n_ctx")
        return UserError(f"The conversation has {tokens} tokens, and {context} fit. Shorten it, or start a new one.", code="too_long")
    if "too large to process" in reason:
        return UserError("The text is too long to become one vector. Shorten it.", code="too_long")
    if kind == "not_supported_error":
        return UserError(f"This model cannot do that: {reason}", code="unsupported")
    if kind == "invalid_request_error":
        return UserError(f"The model refused the question: {reason}", code="invalid")
    return UserError(f"The model could not answer: {reason or 'it gave no reason'}", code="broken")
