"""The engine's chunks as OpenAI's clients know them: ids and names of our own, and no field that only one engine has.

One object keeps the answers to one request: it says what each chunk becomes in a stream, and what all of them come to in one piece.
"""

import base64
import time
import uuid
from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

Choice = dict[str, Any]
TOKEN = ("token", "logprob", "bytes")


@dataclass
class Usage:
    """Tokens of all answers to one request together. A prompt counts once, however many answers to it are asked for."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    prompts: list[int] = field(default_factory=list)
    """About how many tokens each prompt has."""
    each: int = 1
    """Answers to each prompt."""
    counted: set[int] = field(default_factory=set)
    """Prompts that are."""
    under_way: Counter[int] = field(default_factory=Counter)
    """Pieces of each answer that has begun and not ended: about as many tokens."""

    def add(self, number: int, took: dict[str, Any]) -> None:
        del self.under_way[number]
        self.completion_tokens += int(took.get("completion_tokens") or 0)
        if self.is_first(number):
            self.prompt_tokens += int(took.get("prompt_tokens") or 0)
            self.cached_tokens += int(took.get("cached_tokens") or 0)

    def settle(self) -> None:
        """Whoever leaves, or is cut off, has used what was read and written until then: nobody told how much, so about as much."""
        for number, pieces in self.under_way.items():
            self.completion_tokens += pieces
            if self.is_first(number):
                self.prompt_tokens += self.prompts[number // self.each]
        self.under_way.clear()

    def is_first(self, number: int) -> bool:
        """Of the answers to its prompt, to be counted. Asked once for each."""
        if (prompt := number // self.each) in self.counted:
            return False
        self.counted.add(prompt)
        return True

    @property
    def total(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @property
    def told(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.total,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


class Answers(Protocol):
    """What becomes of the chunks of one request."""

    usage: Usage

    def take(self, number: int, chunk: dict[str, Any]) -> Choice | None:
        """A chunk of the answer with this number, as a choice of a stream; None where it says nothing."""
        ...

    def whole(self) -> dict[str, Any]: ...

    @property
    def said(self) -> dict[str, Any] | None:
        """The message that the first answer is, once it is whole."""
        ...


@runtime_checkable
class Streamed(Answers, Protocol):
    """Those that can be told piece by piece."""

    def chunk(self, choices: list[Choice], **more: Any) -> dict[str, Any]: ...


@dataclass
class Head:
    """What every chunk begins with."""

    pk: uuid.UUID
    model: str
    """As it was asked for."""
    fingerprint: str
    """Of the weights that answer: another one as soon as another release does."""
    created: int = field(default_factory=lambda: int(time.time()))

    def told(self, prefix: str, kind: str) -> dict[str, Any]:
        return {
            "id": f"{prefix}-{self.pk.hex}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


@dataclass
class Message:
    """One answer of a chat, as far as it has come."""

    content: str | None = None
    tool_calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None

    @property
    def told(self) -> dict[str, Any]:
        content = self.content if self.content is not None or self.tool_calls else ""
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None, "annotations": []}
        if self.tool_calls:
            message["tool_calls"] = [self.tool_calls[place] for place in sorted(self.tool_calls)]
        return message


class Chats:
    """Answers of /v1/chat/completions."""

    def __init__(self, head: Head, usage: Usage, *, logprobs: bool):
        self.head, self.logprobs, self.usage = head, logprobs, usage
        self.messages: dict[int, Message] = {}

    def take(self, number: int, chunk: dict[str, Any]) -> Choice | None:
        found = next(iter(chunk.get("choices") or []), None)
        if found is None:
            return None
        begins = number not in self.messages
        message = self.messages.setdefault(number, Message())
        delta = self.delta(message, found.get("delta") or {})
        if begins:
            delta = {"role": "assistant", "content": ""} | delta
        tokens = [token_of(token) for token in (found.get("logprobs") or {}).get("content") or []] if self.logprobs else []
        message.logprobs += tokens
        reason = found.get("finish_reason")
        message.finish_reason = reason or message.finish_reason
        if not (delta or tokens or reason):
            return None
        logprobs = {"content": tokens, "refusal": None} if tokens else None
        return {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def delta(self, message: Message, told: dict[str, Any]) -> dict[str, Any]:
        delta: dict[str, Any] = {}
        if content := told.get("content"):
            message.content = (message.content or "") + content
            delta["content"] = content
        if calls := [self.call(message, call) for call in told.get("tool_calls") or []]:
            delta["tool_calls"] = calls
        return delta

    def call(self, message: Message, told: dict[str, Any]) -> dict[str, Any]:
        """A piece of a tool call; the first has its name, and an id, which the engine may have left out."""
        place, said = int(told.get("index") or 0), told.get("function") or {}
        function = {"name": said.get("name") or "", "arguments": said.get("arguments") or ""}
        if place in message.tool_calls:
            message.tool_calls[place]["function"]["arguments"] += function["arguments"]
            return {"index": place, "function": {"arguments": function["arguments"]}}
        begun = {"id": told.get("id") or f"call_{uuid.uuid4().hex[:24]}", "type": "function"}
        message.tool_calls[place] = begun | {"function": dict(function)}
        return {"index": place} | begun | {"function": function}

    def chunk(self, choices: list[Choice], **more: Any) -> dict[str, Any]:
        return self.head.told("chatcmpl", "chat.completion.chunk") | {"choices": choices} | more

    def whole(self) -> dict[str, Any]:
        choices = [
            {
                "index": number,
                "message": message.told,
                "logprobs": {"content": message.logprobs, "refusal": None} if self.logprobs else None,
                "finish_reason": message.finish_reason or "stop",
            }
            for number, message in sorted(self.messages.items())
        ]
        return self.head.told("chatcmpl", "chat.completion") | {"choices": choices, "usage": self.usage.told}

    @property
    def said(self) -> dict[str, Any] | None:
        if 0 not in self.messages:
            return None
        told = self.messages[0].told
        return {name: told[name] for name in ("role", "content", "tool_calls") if name in told}


def token_of(token: dict[str, Any]) -> dict[str, Any]:
    top = [{name: other.get(name) for name in TOKEN} for other in token.get("top_logprobs") or []]
    return {name: token.get(name) for name in TOKEN} | {"top_logprobs": top}


class Completions:
    """Answers of /v1/completions. With `echo` each begins with its prompt."""

    def __init__(self, head: Head, usage: Usage, *, logprobs: bool, echoes: list[str]):
        self.head, self.logprobs, self.echoes, self.usage = head, logprobs, echoes, usage
        self.choices: dict[int, Choice] = {}

    def take(self, number: int, chunk: dict[str, Any]) -> Choice | None:
        found = next(iter(chunk.get("choices") or []), None)
        if found is None:
            return None
        text, reason = found.get("text") or "", found.get("finish_reason")
        begins = number not in self.choices
        choice = self.choices.setdefault(number, {"text": "", "index": number, "logprobs": None, "finish_reason": None})
        if begins and self.echoes:
            text = self.echoes[number] + text
        logprobs = legacy_logprobs(found.get("logprobs"), begin=len(choice["text"])) if self.logprobs else None
        if not (text or logprobs or reason):
            return None
        choice["text"] += text
        choice["finish_reason"] = reason or choice["finish_reason"]
        if logprobs:
            choice["logprobs"] = {name: (choice["logprobs"] or {}).get(name, []) + values for name, values in logprobs.items()}
        return {"text": text, "index": number, "logprobs": logprobs, "finish_reason": reason}

    def chunk(self, choices: list[Choice], **more: Any) -> dict[str, Any]:
        return self.head.told("cmpl", "text_completion") | {"choices": choices} | more

    def whole(self) -> dict[str, Any]:
        choices = [choice | {"finish_reason": choice["finish_reason"] or "stop"} for _, choice in sorted(self.choices.items())]
        return self.head.told("cmpl", "text_completion") | {"choices": choices, "usage": self.usage.told}

    @property
    def said(self) -> dict[str, Any] | None:
        return {"role": "assistant", "content": self.choices[0]["text"]} if 0 in self.choices else None


def legacy_logprobs(told: dict[str, Any] | None, *, begin: int) -> dict[str, list[Any]] | None:
    """In the shape of /v1/completions, whichever of the two an engine writes; `begin` is where the text of this chunk stands."""
    if not told:
        return None
    if told.get("content") is None:
        names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        return {name: list(told.get(name) or []) for name in names} if told.get("tokens") else None
    tokens, offsets = told["content"], []
    for token in tokens:
        offsets.append(begin)
        begin += len(token["token"])
    if not tokens:
        return None
    return {
        "tokens": [token["token"] for token in tokens],
        "token_logprobs": [token["logprob"] for token in tokens],
        "top_logprobs": [{other["token"]: other["logprob"] for other in token.get("top_logprobs") or []} for token in tokens],
        "text_offset": offsets,
    }


class Embeddings:
    """The answer of /v1/embeddings, which comes in one piece."""

    def __init__(self, head: Head, usage: Usage, *, as_base64: bool):
        self.head, self.as_base64, self.usage = head, as_base64, usage
        self.vectors: list[list[float]] = []

    def take(self, number: int, chunk: dict[str, Any]) -> Choice | None:
        self.vectors += [found["embedding"] for found in sorted(chunk.get("data") or [], key=lambda found: found.get("index", 0))]
        return None

    def whole(self) -> dict[str, Any]:
        listed = [
            {"object": "embedding", "index": number, "embedding": packed(vector) if self.as_base64 else vector}
            for number, vector in enumerate(self.vectors)
        ]
        usage = {"prompt_tokens": self.usage.prompt_tokens, "total_tokens": self.usage.prompt_tokens}
        return {"object": "list", "data": listed, "model": self.head.model, "usage": usage}

    @property
    def said(self) -> dict[str, Any] | None:
        return None


def packed(vector: list[float]) -> str:
    """Little-endian 32-bit floats, as the Python client asks for them."""
    return base64.b64encode(array("f", vector).tobytes()).decode()
