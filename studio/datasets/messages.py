"""A conversation in any of its spellings as [{"role", "content"}, ...]. The order of the roles is judged in `studio.datasets.shapes`."""

from collections import Counter
from typing import Any

import orjson

ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant",
    "chatgpt": "assistant", "model": "assistant", "tool": "tool", "function": "tool", "observation": "tool",
}  # fmt: skip
KINDS = {str: "text", list: "a list", dict: "an object", bool: "true or false", int: "number", float: "number", type(None): "nothing"}
MEDIA = {
    "image_url": "Images are", "image": "Images are", "input_image": "Images are",
    "input_audio": "Audio is", "audio": "Audio is", "video": "Video is", "video_url": "Video is", "file": "Attached files are",
}  # fmt: skip


class Unusable(Exception):
    """Why one record cannot become a row. `message` is a place inside it, from 1; `whole` needs no colon after the line."""

    def __init__(self, text: str, *, message: int = 0, column: str = "", whole: bool = False, kind: str = ""):
        super().__init__(text)
        self.text, self.message, self.column, self.whole, self.kind = text, message, column, whole, kind

    def sentence(self, place: str) -> str:
        """The sentence with its place, such as "Line 9, message 2: role "bot" is unknown. ..."."""
        if self.whole:
            return f"{place} {self.text}"
        return f"{place}, message {self.message}: {self.text}" if self.message else f"{place}: {self.text}"


Message = dict[str, Any]
"""role, content and, where an answer counts more or less than one, weight."""
LARGEST_WEIGHT = 100
KEPT_SENTENCES = 50
"""Different sentences about what was passed over; a hostile file could hold any number of keys."""


def count(passed_over: Counter[str], sentence: str) -> None:
    if sentence in passed_over or len(passed_over) < KEPT_SENTENCES:
        passed_over[sentence] += 1


def kind_of(value: Any) -> str:
    return KINDS.get(type(value), type(value).__name__)


def plain(value: Any, name: str) -> str:
    if value is None:
        raise Unusable(f"{name} is missing, there is nothing to learn.", column=name)
    if not isinstance(value, str):
        raise Unusable(f"{name} must be text, found {kind_of(value)}.", column=name)
    return value


def conversation(value: Any, name: str, passed_over: Counter[str]) -> list[Message]:
    """Messages from a list of them, a single one, an object that holds `messages`, or JSON text of these."""
    if isinstance(value, str):
        value = _parsed(value, name)
        count(passed_over, f"{name} is text containing JSON and was parsed")
    if isinstance(value, dict):
        value = value.get("messages", [value])
    if value is None or value == []:
        raise Unusable("no messages.", column=name)
    if not isinstance(value, list):
        raise Unusable(f"{name} must be a list of messages, found {kind_of(value)}.", column=name)
    return [_message(message, number, passed_over) for number, message in enumerate(value, start=1)]


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
    if spelt in ("function_call", "tool_call") or message.get("tool_calls") or message.get("function_call"):
        raise Unusable("tool calls cannot be learnt from yet. Leave such rows out.", message=number)
    if not isinstance(spelt, str) or spelt not in ROLES:
        found = f'role "{spelt[:40]}" is unknown' if isinstance(spelt, str) else "the role is missing"
        raise Unusable(f"{found}. Use system, user, assistant or tool.", message=number)
    role = ROLES[spelt]
    if role == "tool" and message.get("tool_call_id"):
        raise Unusable(f"no tool call with id {str(message['tool_call_id'])[:40]}.", message=number)
    weighed = role == "assistant" and message.get("weight") is not None
    for key, extra in message.items():
        if key not in (role_key, content_key) and extra is not None and not (weighed and key == "weight"):
            count(passed_over, f"{key[:40]} inside messages was left out")
    said: Message = {"role": role, "content": _content(message.get(content_key), role, number)}
    return said | {"weight": weight} if weighed and (weight := _weight(message["weight"], number)) != 1 else said


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
    """The messages that two conversations begin with alike, up to and with a question."""
    shared = 0
    for one, other in zip(first[:-1], second[:-1], strict=False):
        if one != other:
            break
        shared += 1
    while shared and first[shared - 1]["role"] != "user":
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
