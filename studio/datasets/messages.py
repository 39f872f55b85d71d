"""A conversation in any of its spellings as [{"role", "content"}, ...]. The order of the roles is judged in `studio.datasets.shapes`."""

import re
from collections import Counter
from typing import Any

import orjson

from studio.datasets import toolcalls
from studio.datasets.unusable import Unusable as Unusable
from studio.datasets.unusable import kind_of

ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant",
    "chatgpt": "assistant", "model": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "tool_response": "tool", "function_response": "tool", "ipython": "tool",
}  # fmt: skip
MEDIA = {
    "image_url": "Images are", "image": "Images are", "input_image": "Images are",
    "input_audio": "Audio is", "audio": "Audio is", "video": "Video is", "video_url": "Video is", "file": "Attached files are",
}  # fmt: skip


Message = dict[str, Any]
"""role, content and, where an answer counts more or less than one, weight; see `studio.datasets.toolcalls` for what tools add."""
CHATML = re.compile(r"<\|im_start\|>[ \t]*([^\n<]{1,40}?)[ \t]*\n(.*?)(?:<\|im_end\|>\s*|\Z)", re.DOTALL)
CHATML_BEGINS = "<|im_start|>"
LARGEST_WEIGHT = 100
KEPT_SENTENCES = 50
"""Different sentences about what was passed over; a hostile file could hold any number of keys."""


def count(passed_over: Counter[str], sentence: str) -> None:
    if sentence in passed_over or len(passed_over) < KEPT_SENTENCES:
        passed_over[sentence] += 1


def plain(value: Any, name: str) -> str:
    if value is None:
        raise Unusable(f"{name} is missing, there is nothing to learn.", column=name)
    if not isinstance(value, str):
        raise Unusable(f"{name} must be text, found {kind_of(value)}.", column=name)
    return value


def conversation(value: Any, name: str, passed_over: Counter[str]) -> list[Message]:
    """Messages from a list of them, a single one, an object that holds `messages`, JSON text of these, or ChatML."""
    if is_chatml(value):
        value = _turns(value, name)
    elif isinstance(value, str):
        value = _parsed(value, name)
        count(passed_over, f"{name} is text containing JSON and was parsed")
    if isinstance(value, dict):
        value = value.get("messages", [value])
    if value is None or value == []:
        raise Unusable("no messages.", column=name)
    if not isinstance(value, list):
        raise Unusable(f"{name} must be a list of messages, found {kind_of(value)}.", column=name)
    return [_message(message, number, passed_over) for number, message in enumerate(value, start=1)]


def is_chatml(value: Any) -> bool:
    """True for `<|im_start|>user\\n2 + 2?<|im_end|>` and so on, written out as text."""
    return isinstance(value, str) and value.lstrip().startswith(CHATML_BEGINS)


def _turns(text: str, name: str) -> list[Message]:
    """What stands in ChatML, before its roles are judged. A last turn that only opens an answer is none."""
    text = text.strip().removesuffix("<|endoftext|>").rstrip()
    turns, at = [], 0
    for turn in CHATML.finditer(text):
        if turn.start() != at or CHATML_BEGINS in turn[2]:
            break
        turns.append({"role": turn[1], "content": turn[2]})
        at = turn.end()
    if at == len(text) and turns:
        return turns
    opening = text[at:].strip()
    if turns and opening in (f"{CHATML_BEGINS}assistant", CHATML_BEGINS):
        return turns
    raise Unusable(f"{name} is not whole ChatML: turn {len(turns) + 1} does not end with <|im_end|>.", column=name)


def _parsed(text: str, name: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        raise Unusable(f"{name} must be a list of messages, found text.", column=name) from None


def _message(message: Any, number: int, passed_over: Counter[str]) -> Message:
    if not isinstance(message, dict):
        raise Unusable(f"must be an object with role and content, found {kind_of(message)}.", message=number)
    role_key, content_key = ("role", "content") if "role" in message else ("from", "value")
    spelt = message.get(role_key)
    if not isinstance(spelt, str) or (spelt not in ROLES and spelt not in toolcalls.CALLING):
        found = f'role "{spelt[:40]}" is unknown' if isinstance(spelt, str) else "the role is missing"
        raise Unusable(f"{found}. Use system, user, assistant or tool.", message=number)
    role = ROLES.get(spelt, "assistant")
    weighed = role == "assistant" and message.get("weight") is not None
    used = {role_key, content_key} | ({"weight"} if weighed else set()) | TOOL_KEYS.get(role, set())
    for key, extra in message.items():
        if key not in used and extra is not None and extra != []:
            count(passed_over, f"{key[:40]} inside messages was left out")
    if role == "tool":
        return _result(message, content_key, number)
    asked = toolcalls.calls(message, spelt, message.get(content_key), number) if role == "assistant" else []
    said: Message = {"role": role, "content": "" if spelt in toolcalls.CALLING else _content(message.get(content_key), role, number)}
    if weighed and (weight := _weight(message["weight"], number)) != 1:
        said["weight"] = weight
    return said | {"tool_calls": asked} if asked else said


TOOL_KEYS = {"assistant": {"tool_calls", "function_call"}, "tool": {"tool_call_id", "name"}}


def _result(message: dict[str, Any], content_key: str, number: int) -> Message:
    """What a tool gave back; it may be nothing."""
    content = message.get(content_key)
    said: Message = {"role": "tool", "content": "" if content is None else _content(content, "tool", number)}
    return said | {key: message[key] for key in ("tool_call_id", "name") if isinstance(message.get(key), str) and message[key]}


def _weight(value: Any, number: int) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LARGEST_WEIGHT:
        raise Unusable(f"weight must be a number from 0 to {LARGEST_WEIGHT}, found {str(value)[:40]}.", message=number)
    return float(value)


def _content(content: Any, role: str, number: int) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(_part(part, number) for part in content)
    if content is None and role == "assistant":
        return ""  # judged as an empty answer
    raise Unusable(f"content must be text, found {kind_of(content)}.", message=number)


def _part(part: Any, number: int) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in MEDIA:
        raise Unusable(f"{MEDIA[kind]} not supported by this base model.", message=number)
    text = part if isinstance(part, str) else part.get("text", part.get("value")) if isinstance(part, dict) else None
    if not isinstance(text, str) or kind not in (None, "text", "input_text", "output_text"):
        raise Unusable("content parts must be of type text.", message=number)
    return text


def shared_beginning(first: list[Message], second: list[Message]) -> list[Message]:
    """The messages that two conversations begin with alike, up to and with a question or what a tool gave back."""
    shared = 0
    for one, other in zip(first[:-1], second[:-1], strict=False):
        if one != other:
            break
        shared += 1
    while shared and first[shared - 1]["role"] not in ("user", "tool"):
        shared -= 1
    return first[:shared]


def merged(prompt: list[Message], shared: list[Message]) -> list[Message]:
    """The prompt of two answers that begin alike: `shared` goes on from it, or repeats it as part of a whole conversation."""
    if shared[0]["role"] == "assistant":
        return prompt + shared
    system = prompt[:1] if prompt and prompt[0]["role"] == "system" and shared[0]["role"] != "system" else []
    return system + shared


def without_blank_system(messages: list[Message], passed_over: Counter[str]) -> list[Message]:
    if messages and messages[0]["role"] == "system" and not messages[0]["content"].strip():
        count(passed_over, "An empty system message was left out")
        return messages[1:]
    return messages
