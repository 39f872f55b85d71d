"""Tool calls in any of their spellings: what an assistant asks for, what came back, and which tools there are. Roles are judged elsewhere.

{"role": "assistant", "content": "", "tool_calls": [{"id", "type": "function", "function": {"name", "arguments": {...}}}]}
{"role": "tool", "content": "...", "tool_call_id": "...", "name": "..."}
"tools": [{"type": "function", "function": {"name", "description", "parameters"}}]
"""

from collections.abc import Iterator
from itertools import count
from typing import Any

import orjson

from studio.datasets.unusable import Unusable, kind_of

LONGEST_NAME = 200
MOST_TOOLS = 200
MOST_CALLS = 100
DEEPEST = 64


def tools(value: Any, name: str) -> list[dict[str, Any]]:
    """A row's tools from a list of them, a single one, or JSON text of these; with `{"type": "function"}` around each or without."""
    if isinstance(value, str):
        if not value.strip():
            return []
        value = _json(value, f"{name} must be a list of functions, found text.", column=name)
    if value is None:
        return []
    listed = [value] if isinstance(value, dict) else value
    if not isinstance(listed, list):
        raise Unusable(f"{name} must be a list of functions, found {kind_of(listed)}.", column=name)
    if len(listed) > MOST_TOOLS:
        raise Unusable(f"{name} has more than {MOST_TOOLS} functions.", column=name)
    return [_tool(tool, number, name) for number, tool in enumerate(listed, start=1)]


def _tool(tool: Any, number: int, column: str) -> dict[str, Any]:
    tool = _json(tool, f"tool {number} is not JSON.", column=column) if isinstance(tool, str) else tool
    function = tool.get("function", tool) if isinstance(tool, dict) else tool
    if not isinstance(function, dict):
        raise Unusable(f"tool {number} must be an object with a name, found {kind_of(function)}.", column=column)
    if not _is_name(function.get("name")):
        raise Unusable(f"tool {number} has no name.", column=column)
    return {"type": "function", "function": {key: said for key, said in function.items() if said is not None and key != "type"}}


def calls(message: dict[str, Any], spelt: Any, content: Any, number: int) -> list[dict[str, Any]]:
    """The calls of a message: OpenAI's `tool_calls`, its older `function_call`, or the content under the role `function_call`."""
    asked: Any = message.get("tool_calls") or message.get("function_call")
    if spelt in CALLING:
        asked = _json(content, "the tool call is not JSON.", message=number) if isinstance(content, str) else content
    if not asked:
        return []
    listed = asked if isinstance(asked, list) else [asked]
    if len(listed) > MOST_CALLS:
        raise Unusable(f"more than {MOST_CALLS} tool calls.", message=number)
    return [_call(call, number) for call in listed]


CALLING = ("function_call", "tool_call", "function-call")
"""Roles under which a call stands as JSON."""


def _call(call: Any, number: int) -> dict[str, Any]:
    """One call without an id where it came without one; see `linked`."""
    call = _json(call, "the tool call is not JSON.", message=number) if isinstance(call, str) else call
    function = call.get("function", call) if isinstance(call, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not _is_name(name):
        raise Unusable("a tool call must be an object with a name and arguments.", message=number)
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        arguments = _json(arguments, f"the arguments of {name} are not JSON.", message=number) if arguments.strip() else None
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise Unusable(f"the arguments of {name} must be an object, found {kind_of(arguments)}.", message=number)
    given = call.get("id")
    made = {"id": given} if isinstance(given, str) and given else {}
    return {**made, "type": "function", "function": {"name": name, "arguments": arguments}}


def linked(messages: list[dict[str, Any]], *, added: int = 0) -> list[dict[str, Any]]:
    """The same messages with an id for each call, and for each result the id and name of the call that it answers.

    A result without an id answers the first call that has none yet; one result may stand for all calls of a message that came without
    ids. Raises Unusable for a result that no call asked for, and for calls that the conversation passes over. `added` messages at the
    beginning are not counted.
    """
    if not any("tool_calls" in message or message["role"] == "tool" for message in messages):
        return messages
    taken = {call["id"] for message in messages for call in message.get("tool_calls", ()) if "id" in call}
    fresh = (name for name in (f"call{number:05d}" for number in count(1)) if name not in taken)
    found: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    waiting: list[str] = []
    together = False
    for number, message in enumerate(messages, start=1 - added):
        if message["role"] == "tool":
            found.append(_result(message, number, names, waiting))
            if together and not message.get("tool_call_id") and not _another_result(messages, number - 1 + added):
                waiting.clear()
            continue
        if waiting:
            raise Unusable(f"tool call {waiting[0][:40]} has no result before this message.", message=number)
        if asked := message.get("tool_calls"):
            together = not any("id" in call for call in asked)
            message = message | {"tool_calls": [{"id": call.get("id") or next(fresh), **_without_id(call)} for call in asked]}
            for call in message["tool_calls"]:
                names[call["id"]] = call["function"]["name"]
                waiting.append(call["id"])
        found.append(message)
    return found


def _without_id(call: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in call.items() if key != "id"}


def _another_result(messages: list[dict[str, Any]], place: int) -> bool:
    return place + 1 < len(messages) and messages[place + 1]["role"] == "tool"


def _result(message: dict[str, Any], number: int, names: dict[str, str], waiting: list[str]) -> dict[str, Any]:
    given = message.get("tool_call_id")
    if given is not None and given not in waiting:
        raise Unusable(f"no tool call with id {given[:40]}.", message=number)
    if given is None and not waiting:
        raise Unusable("a tool result without a tool call before it.", message=number)
    answered = given or next((call for call in waiting if names[call] == message.get("name")), waiting[0])
    waiting.remove(answered)
    return {"role": "tool", "content": message["content"], "tool_call_id": answered, "name": names[answered]}


def unlisted(messages: list[dict[str, Any]], listed: list[dict[str, Any]]) -> bool:
    """True where a call names none of the row's tools."""
    names = {tool["function"]["name"] for tool in listed}
    return any(call["function"]["name"] not in names for message in messages for call in message.get("tool_calls", ()))


def texts(value: Any) -> Iterator[str]:
    """Every text inside, names of keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, child in value.items():
            yield key
            yield from texts(child)
    elif isinstance(value, list):
        for child in value:
            yield from texts(child)


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and bool(name.strip()) and len(name) <= LONGEST_NAME


def _json(text: str, otherwise: str, *, message: int = 0, column: str = "") -> Any:
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise Unusable(otherwise, message=message, column=column) from None
    if text.count("[") + text.count("{") > DEEPEST and _deeper(found):
        raise Unusable(f"nested deeper than {DEEPEST}.", message=message, column=column)
    return found


def _deeper(value: Any) -> bool:
    """True for more than DEEPEST levels of lists and objects; what stands outside of texts was judged when the line was read."""
    level = [value]
    for _ in range(DEEPEST + 1):
        parents = [inner for inner in level if isinstance(inner, dict | list)]
        level = [child for inner in parents for child in (inner.values() if isinstance(inner, dict) else inner)]
        if not parents:
            return False
    return True
