"""What the engine is asked: the request with what its release brings along.

The release's system prompt stands before the conversation; where the conversation begins with instructions of its own, they follow within
the same message, for many templates know only one. Temperature and top_p of the caller win over the release's, and those over OpenAI's 1.
The release's max_tokens is a limit: a caller can only ask for less. Stops of both end an answer. A completion is the bare prompt.
"""

from typing import Any

from studio.releases.models import Release
from studio.serving.openai.errors import Refused, invalid
from studio.serving.openai.requests import (
    Answer,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    Instruction,
    NamedTool,
    Part,
    Sampled,
    ToolResult,
)

LEGACY_LENGTH = 16
"""Tokens of a completion that names no length, as OpenAI has it."""
RANDOM_SEED = 2**32 - 1
"""What llama.cpp takes for "draw one"."""
CHARACTERS_PER_TOKEN = 4
UNSAID_ANSWER = 256
"""Tokens that an answer is reckoned with which names no length, until it is there."""
Body = dict[str, Any]


def chat_bodies(asked: ChatRequest, release: Release) -> list[Body]:
    """One for each of `n` answers."""
    settings = release.asked_with
    refuse_tools(asked, release)
    body: Body = {"messages": conversation(asked, settings.get("system") or "")} | sampling(asked, settings)
    if asked.logprobs:
        body |= {"logprobs": True, "top_logprobs": asked.top_logprobs or 0}
    if asked.response_format and (wanted := asked.response_format.upstream):
        body["response_format"] = wanted
    if asked.tools:
        body |= tools(asked)
    return many(body, asked)


def completion_bodies(asked: CompletionRequest, release: Release) -> list[Body]:
    """One for each of `n` answers to each prompt, in OpenAI's order."""
    settings = sampling(asked, release.asked_with, longest=LEGACY_LENGTH)
    if asked.logprobs is not None:
        settings["logprobs"] = asked.logprobs
    return [body for prompt in asked.prompts for body in many({"prompt": prompt} | settings, asked)]


def embedding_bodies(asked: EmbeddingRequest) -> list[Body]:
    return [{"input": asked.inputs}]


def many(body: Body, asked: Sampled) -> list[Body]:
    """`n` of them. With a seed each gets one of its own, so that they differ, and differ the same way every time."""
    if asked.seed is None:
        return [body] * (asked.n or 1)
    return [body | {"seed": (asked.seed + number) % RANDOM_SEED} for number in range(asked.n or 1)]


def sampling(asked: Sampled, settings: dict[str, Any], *, longest: int | None = None) -> Body:
    wanted = getattr(asked, "max_completion_tokens", None) or asked.max_tokens or longest
    limits = [limit for limit in (wanted, settings.get("max_tokens")) if limit]
    body: Body = {"temperature": first_of(asked.temperature, settings.get("temperature"), 1.0)}
    body["top_p"] = first_of(asked.top_p, settings.get("top_p"), 1.0)
    if limits:
        body["max_tokens"] = min(limits)
    if stops := list(dict.fromkeys([*(settings.get("stop") or []), *asked.stops])):
        body["stop"] = stops
    for name in ("presence_penalty", "frequency_penalty", "logit_bias"):
        if value := getattr(asked, name):
            body[name] = value
    return body


def first_of(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def conversation(asked: ChatRequest, system: str) -> list[dict[str, Any]]:
    said = [message_of(message) for message in asked.messages]
    if not system:
        return said
    if said[0]["role"] == "system":
        return [{"role": "system", "content": f"{system}\n\n{said[0]['content']}"}, *said[1:]]
    return [{"role": "system", "content": system}, *said]


def message_of(message: Any) -> dict[str, Any]:
    """As every template reads it: text for content, and system for developer."""
    role = "system" if isinstance(message, Instruction) else message.role
    told: dict[str, Any] = {"role": role, "content": text_of(message.content)}
    if isinstance(message, Answer) and message.tool_calls:
        told["tool_calls"] = [call.model_dump() for call in message.tool_calls]
    if isinstance(message, ToolResult):
        told["tool_call_id"] = message.tool_call_id
    return told


def text_of(content: str | list[Part] | None) -> str:
    return content or "" if isinstance(content, str | None) else "\n".join(part.text for part in content)


def refuse_tools(asked: ChatRequest, release: Release) -> None:
    """A template that does not write tools would leave them out, and the model would answer as if none had been given."""
    base = release.artifact.base_model
    if base is not None and (base.facts or {}).get("takes_tools"):
        return
    if asked.tools:
        raise unsupported("tools")
    for number, message in enumerate(asked.messages):
        if isinstance(message, ToolResult):
            raise unsupported(f"messages[{number}].role")
        if isinstance(message, Answer) and message.tool_calls:
            raise unsupported(f"messages[{number}].tool_calls")


def unsupported(param: str) -> Refused:
    message = "This model cannot call tools: its chat template does not write them. Leave them out, or ask a model that can."
    return invalid(message, param, code="unsupported_parameter")


def tools(asked: ChatRequest) -> Body:
    """A function that is asked for by name is the only one that the model is told of, and must be called."""
    offered, choice = asked.tools or [], asked.tool_choice
    if isinstance(choice, NamedTool):
        offered, choice = [tool for tool in offered if tool.function.name == choice.function.name], "required"
    body: Body = {"tools": [tool.model_dump(exclude_none=True) for tool in offered]}
    return body | ({"tool_choice": choice} if choice else {})


def expected_tokens(bodies: list[Body], *, each: int) -> int:
    """About how many tokens will be read and written, for the limits of the key; what it was is told them in the end."""
    return sum(prompts(bodies, each=each)) + sum(length(body) for body in bodies)


def prompts(bodies: list[Body], *, each: int) -> list[int]:
    """About how many tokens each prompt has, to which there are `each` answers."""
    return [characters(body) // CHARACTERS_PER_TOKEN + 1 for body in bodies[::each]]


def length(body: Body) -> int:
    return 0 if "input" in body else int(body.get("max_tokens") or UNSAID_ANSWER)


def characters(body: Body) -> int:
    if "messages" in body:
        return sum(len(message["content"]) for message in body["messages"])
    if "input" in body:
        return sum(len(text) for text in body["input"])
    return len(body["prompt"])
