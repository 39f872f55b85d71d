"""One vLLM server's HTTP: asked, listened to, and its errors told as what people can mend. Keeps nothing in mind."""

import json
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

import httpx

from studio.errors import UserError

PATHS = {"chat": "/v1/chat/completions", "completion": "/v1/completions", "embedding": "/v1/embeddings"}
TIMEOUT = httpx.Timeout(900, connect=10)
TOO_LONG = ("maximum context length", "maximum model length", "context length is", "max_model_len", "input is too long")
"""Words by which vLLM's versions say that a conversation does not fit. Its error has no code for that."""
NOT_STARTED_FOR = (
    "requires --",
    "does not support",
    "not supported",
    "is greater than max_lora_rank",
    "only supports",
    "lora is not enabled",
)
"""Words by which it says that the server, or its model, cannot do this at all."""


class Upstream:
    def __init__(self, url: str, *, key: str = "", socket: str | None = None):
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.url = url
        self.client = httpx.AsyncClient(
            base_url=url,
            headers=headers,
            timeout=TIMEOUT,
            trust_env=False,
            transport=httpx.AsyncHTTPTransport(uds=socket, limits=httpx.Limits(max_connections=None, max_keepalive_connections=20)),
        )

    async def close(self) -> None:
        await self.client.aclose()

    async def is_ready(self) -> bool:
        with suppress(httpx.HTTPError):
            return (await self.client.get("/health", timeout=5)).status_code == 200
        return False

    async def models(self) -> list[dict[str, Any]]:
        """What it answers as: `{"id", "root", "parent", "max_model_len"}` each; an adapter has the base as its parent."""
        found = (await self.call("GET", "/v1/models")).get("data")
        return [model for model in found if isinstance(model, dict)] if isinstance(found, list) else []

    async def load_adapter(self, name: str, folder: str) -> None:
        await self.call("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": folder})

    async def unload_adapter(self, name: str) -> None:
        await self.call("POST", "/v1/unload_lora_adapter", {"lora_name": name})

    async def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The whole answer; an empty one where it is no object, as of the adapters' routes."""
        try:
            answer = await self.client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise self.broke_off(error) from error
        if answer.status_code != 200:
            raise refusal(answer.status_code, answer.content, path)
        with suppress(ValueError):
            found = answer.json()
            if isinstance(found, dict):
                return found
        return {}

    async def stream(self, path: str, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of an answer. Closing the iterator closes the connection, and vLLM writes no further."""
        try:
            async with self.client.stream("POST", path, json=body) as answer:
                if answer.status_code != 200:
                    raise refusal(answer.status_code, await answer.aread(), path)
                async for line in answer.aiter_lines():
                    if not line.startswith("data:"):
                        continue
                    said = line.removeprefix("data:").strip()
                    if said == "[DONE]":
                        return
                    yield read_chunk(said)
        except httpx.HTTPError as error:
            raise self.broke_off(error) from error
        raise UserError("The answer broke off: vLLM ended it half way. Ask again.", code="broken")

    def broke_off(self, error: httpx.HTTPError) -> UserError:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return UserError("The vLLM server cannot be reached. Ask again once it runs.", code="broken")
        return UserError("The connection to the vLLM server broke off. Ask again.", code="broken")


def read_chunk(said: str) -> dict[str, Any]:
    try:
        chunk = json.loads(said)
    except (ValueError, RecursionError) as error:
        raise UserError("The answer broke off: vLLM sent what cannot be read.", code="broken") from error
    if not isinstance(chunk, dict):
        raise UserError("The answer broke off: vLLM sent what cannot be read.", code="broken")
    if "error" in chunk:
        raise refusal(500, said.encode(), "")
    return chunk


def refusal(status: int, content: bytes, path: str) -> UserError:
    """vLLM's error: `{"error": {"message", "type", "param", "code"}}`, or the same without the outer one in older versions."""
    found: Any = {}
    with suppress(ValueError, RecursionError):
        found = json.loads(content)
    found = found if isinstance(found, dict) else {}
    problem = found.get("error", found)
    problem = problem if isinstance(problem, dict) else {"message": problem}
    message, param = str(problem.get("message") or "")[:500], str(problem.get("param") or "")
    stated = problem.get("code")
    status = stated if isinstance(stated, int) and 400 <= stated < 600 else status
    said = message.lower()
    if any(words in said for words in TOO_LONG):
        return UserError(
            "The conversation does not fit into what this model can read at once. Shorten it, or ask for less.", code="too_long"
        )
    if any(words in said for words in NOT_STARTED_FOR) or status == 501:
        return UserError(f"This vLLM server cannot do that: {message or 'it says no more'}", code="unsupported")
    if status in (401, 403):
        return UserError("The vLLM server wants a key. Whoever runs this studio sets it as STUDIO_VLLM_KEY.", code="broken")
    if status == 404:
        return UserError(f"The vLLM server does not know this: {message or path}", code="unknown")
    if 400 <= status < 500:
        return UserError(message or "The vLLM server refused this.", code="invalid", fields={param: message} if param and message else None)
    return UserError(f"The vLLM server failed. {message}".strip(), code="broken")
