"""An OpenAI-compatible endpoint that answers one conversation after another. Bounded in size, time and tries."""

import os
import time
from collections.abc import Sequence
from typing import Any

import httpx
import orjson

from studio import outgoing
from studio.errors import UserError
from studio.outside import checked_address

KEY = "ADAPTER_STUDIO_ENDPOINT_KEY"
"""The variable that holds the key: it stands in no file of the order."""
LARGEST = 1 << 20
"""Bytes of an answer."""
TRIES = 5
LONGEST_WAIT = 60.0


class Endpoint:
    def __init__(self, *, url: str, model: str, private: Sequence[str]):
        self.url, self.model = f"{checked_address(url, private=private)}/chat/completions", model
        key = os.environ.get(KEY, "")
        self.client = outgoing.client(private=private, timeout=httpx.Timeout(120, connect=10))
        self.client.follow_redirects = False
        self.client.headers.update({"Authorization": f"Bearer {key}"} if key else {})

    def answer(self, messages: list[dict[str, str]], *, max_tokens: int, temperature: float, seed: int) -> str:
        """Raises UserError where the endpoint refuses, or goes on failing."""
        body = {"model": self.model, "messages": messages, "max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        for attempt in range(TRIES):
            try:
                status, answered, wait = self._post(body)
            except httpx.TransportError as error:
                status, answered, wait = 0, {"error": {"message": type(error).__name__}}, 0.0
            if status == 200:
                return text_of(answered)
            if status not in (0, 408, 409, 429) and status < 500:
                break
            if attempt + 1 < TRIES:
                time.sleep(min(LONGEST_WAIT, wait or 2.0**attempt))
        raise UserError(f"The endpoint does not answer ({status or 'no connection'}): {said(answered)}")

    def _post(self, body: dict[str, Any]) -> tuple[int, Any, float]:
        """(status, the answer's JSON, seconds to wait before another try)."""
        with self.client.stream("POST", self.url, json=body) as response:
            content = bytearray()
            for piece in response.iter_bytes():
                content += piece
                if len(content) > LARGEST:
                    raise UserError("The endpoint's answer is larger than 1 MB. Look at its address.")
            wait = response.headers.get("Retry-After", "")
        try:
            answered = orjson.loads(bytes(content))
        except orjson.JSONDecodeError:
            answered = {"error": {"message": "it sent no JSON"}}
            return (response.status_code if response.status_code != 200 else 502), answered, 0.0
        return response.status_code, answered, float(wait) if wait.isdigit() else 0.0


def text_of(answered: Any) -> str:
    try:
        found = answered["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise UserError("The endpoint's answer holds no message. It must speak as OpenAI's chat completions do.") from None
    return found if isinstance(found, str) else ""


def said(answered: Any) -> str:
    problem = answered.get("error") if isinstance(answered, dict) else None
    message = problem.get("message") if isinstance(problem, dict) else problem
    return str(message or "it gave no reason")[:300]
