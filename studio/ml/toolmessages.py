"""Messages with tool calls as one model's chat template takes them, and with stand-ins for their texts. Nothing is rendered here."""

import hashlib
import json
import re
from typing import Any

Message = dict[str, Any]

NO_TOOLS = "This model's template has no tool calls. Choose another base model, or leave out the rows with tools."
NINE_LETTERS = re.compile(r"length\s*!=\s*9\b")
"""Mistral's templates take no other ids."""


def takes_tools(source: str) -> bool:
    """True where a template writes tool calls, or at least tells the model how to write them."""
    return "tool_calls" in source or "xml_tools" in source


def uses_tools(messages: list[Message]) -> bool:
    return any("tool_calls" in message or message["role"] == "tool" for message in messages)


def as_taken(source: str, messages: list[Message]) -> list[Message]:
    """With ids of nine letters where the template insists on them, and calls in the text where it only tells the model of them."""
    if "tool_calls" not in source:
        messages = [_calls_in_text(message) for message in messages]
    return [_short_ids(message) for message in messages] if NINE_LETTERS.search(source) else messages


def stand_in(message: Message) -> Message:
    """The message with other texts in the same places; the first and last letters of each differ from what stands there."""
    changed = dict(message)
    if message["content"].strip() or "tool_calls" not in message:
        changed["content"] = _other(message["content"].strip())
    if "tool_calls" in message:
        changed["tool_calls"] = [
            call | {"function": {"name": _other(call["function"]["name"]), "arguments": {"Standin": "Standin"}}}
            for call in message["tool_calls"]
        ]
    return changed


def written(name: str) -> str:
    """A name as it stands inside JSON."""
    return json.dumps(name, ensure_ascii=False)[1:-1]


def _other(said: str) -> str:
    return f"{'Y' if said[:1] == 'Z' else 'Z'}standin{'y' if said[-1:] == 'z' else 'z'}"


def _calls_in_text(message: Message) -> Message:
    if "tool_calls" not in message:
        return message
    calls = [f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>" for call in message["tool_calls"]]
    return {"role": message["role"], "content": "\n".join([message["content"], *calls] if message["content"] else calls)}


def _short_ids(message: Message) -> Message:
    if "tool_calls" in message:
        return message | {"tool_calls": [call | {"id": _nine_letters(call["id"])} for call in message["tool_calls"]]}
    return message | {"tool_call_id": _nine_letters(message["tool_call_id"])} if "tool_call_id" in message else message


def _nine_letters(name: str) -> str:
    if len(name) == 9 and name.isascii() and name.isalnum():
        return name
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:9]
