"""Which columns mean what (`detect`), and one record's columns as a canonical row (`Converter.row`). No files, no counting of rows.

A canonical row is one of
    {"messages": [{"role", "content"}, ...]}                                  chat
    {"text": "..."}                                                           text
    {"prompt": [messages], "chosen": [messages], "rejected": [messages]}      preference
    {"prompt": [messages], "chosen": [messages]}                              preference: an answer that somebody liked
    {"prompt": [messages], "rejected": [messages]}                            preference: an answer that somebody disliked
A row whose conversation has tools ends with "tools"; how calls and tools stand there is told in `studio.datasets.toolcalls`.
"""

import re
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from studio.datasets import toolcalls
from studio.datasets.messages import (
    Message,
    Unusable,
    conversation,
    count,
    is_chatml,
    merged,
    plain,
    shared_beginning,
    without_blank_system,
)
from studio.datasets.unusable import kind_of
from studio.errors import UserError

Shape = Literal["chat", "text", "preference"]

FIELDS: dict[str, str] = {
    "messages": "a whole conversation",
    "system": "what the model is told beforehand",
    "prompt": "the question or instruction",
    "context": "what the question is about, added below it",
    "history": "earlier pairs of question and answer",
    "completion": "the answer to learn",
    "text": "plain text to go on learning from",
    "chosen": "the better answer",
    "rejected": "the worse answer",
    "label": "whether the answer is good or bad",
    "tools": "the tools that the model may call",
}
"""The fields that columns can be mapped to, with what each is in a few words."""
ALIASES = {"answer": "completion"}
"""The word of the form for a field."""


@dataclass(frozen=True)
class Spelling:
    """One way in which people write rows: its name, and which column is which field."""

    name: str
    needed: dict[str, str]
    optional: dict[str, str] = field(default_factory=dict)
    sure: bool = True


SYSTEM = {"system": "system"}
SYSTEM_PROMPT = {"system": "system_prompt"}
ALPACA_EXTRAS = {"context": "input", "history": "history"} | SYSTEM
LABELS = ("label", "kto_tag", "thumbs", "thumb", "feedback")
"""Columns that may hold thumbs, where their values can be read as such."""
TOOLS = ("tools", "functions")
GOOD = {
    "true", "1", "1.0", "+1", "yes", "good", "up", "thumbs_up", "thumb_up", "thumbsup", "👍", "like", "liked", "positive", "desirable",
    "chosen", "accepted", "preferred",
}  # fmt: skip
BAD = {
    "false", "0", "0.0", "-1", "-1.0", "no", "bad", "down", "thumbs_down", "thumb_down", "thumbsdown", "👎", "dislike", "disliked",
    "negative", "undesirable", "rejected",
}  # fmt: skip
LONGEST_LABEL = 20
CANONICAL = "canonical"
"""The spelling of rows that are canonical already, such as those that a person edits; no file is detected as such."""
SPELLINGS = (
    Spelling("OpenAI preference", {"prompt": "input", "chosen": "preferred_output", "rejected": "non_preferred_output"}),
    Spelling("preference pairs", {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}, SYSTEM),
    Spelling("ShareGPT preference", {"prompt": "conversations", "chosen": "chosen", "rejected": "rejected"}, SYSTEM),
    Spelling("OpenAI messages preference", {"prompt": "messages", "chosen": "chosen", "rejected": "rejected"}, SYSTEM),
    Spelling("Alpaca preference", {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}, ALPACA_EXTRAS),
    Spelling("question preference", {"prompt": "question", "chosen": "chosen", "rejected": "rejected"}, SYSTEM),
    Spelling("preference conversations", {"chosen": "chosen_messages", "rejected": "rejected_messages"}),
    Spelling("preference conversations", {"chosen": "chosen", "rejected": "rejected"}),
    Spelling("OpenAI messages", {"messages": "messages"}, SYSTEM),
    Spelling("ShareGPT", {"messages": "conversations"}, SYSTEM),
    Spelling("ShareGPT", {"messages": "conversation"}, SYSTEM),
    Spelling("Alpaca", {"prompt": "instruction", "completion": "output"}, ALPACA_EXTRAS),
    Spelling("Dolly", {"prompt": "instruction", "completion": "response"}, {"context": "context"} | SYSTEM),
    Spelling("instruction and answer", {"prompt": "instruction", "completion": "answer"}, ALPACA_EXTRAS),
    Spelling("prompt and completion", {"prompt": "prompt", "completion": "completion"}, SYSTEM),
    Spelling("prompt and response", {"prompt": "prompt", "completion": "response"}, SYSTEM),
    Spelling("prompt and answer", {"prompt": "prompt", "completion": "answer"}, SYSTEM),
    Spelling("question and answer", {"prompt": "question", "completion": "answer"}, {"context": "context"} | SYSTEM | SYSTEM_PROMPT),
    Spelling("question and response", {"prompt": "question", "completion": "response"}, SYSTEM | SYSTEM_PROMPT),
    Spelling("query and response", {"prompt": "query", "completion": "response"}, SYSTEM),
    Spelling("query and answer", {"prompt": "query", "completion": "answer"}, SYSTEM),
    Spelling("input and output", {"prompt": "input", "completion": "output"}, SYSTEM),
    Spelling("user and assistant", {"prompt": "user", "completion": "assistant"}, SYSTEM),
    Spelling("text", {"text": "text"}),
    Spelling("text", {"text": "content"}, sure=False),
    Spelling("text", {"text": "document"}, sure=False),
)


@dataclass(frozen=True)
class Detection:
    """What the columns were taken for. `shape` is None where nothing fits and a person has to say what is what."""

    shape: Shape | None
    format: str
    """The spelling: OpenAI messages, ShareGPT, Alpaca, ..."""
    mapping: dict[str, str]
    """Field -> column."""
    reason: str
    sure: bool
    columns: list[str]
    """All columns seen, in the order of the file."""


def detect(first_rows: list[dict[str, Any]], *, mapping: dict[str, str] | None = None) -> Detection:
    """What the first records hold, or what `mapping` (field -> column) says they hold.

    Raises UserError where the mapping names a field or a column that does not exist, or leaves the answer out.
    """
    columns = list(dict.fromkeys(name for row in first_rows for name in row))
    chosen = {ALIASES.get(target, target): column for target, column in (mapping or {}).items() if column}
    if chosen:
        _check_mapping(chosen, columns)
        return Detection(_shape(chosen), "your mapping", chosen, f"You chose {_listed(chosen)}.", True, columns)
    for spelling in SPELLINGS:
        if found := _match(spelling, columns):
            return _detected(spelling, found, columns, first_rows)
    reason = f"Found: {_names(columns)}. Need messages, or prompt + completion, or text."
    return Detection(None, "", {}, reason, False, columns)


def _match(spelling: Spelling, columns: list[str]) -> dict[str, str]:
    """Field -> column as the file spells it (capitals do not matter), or nothing where a needed column is missing."""
    by_name = {column.strip().lower(): column for column in reversed(columns)}
    if not all(column in by_name for column in spelling.needed.values()):
        return {}
    wanted = spelling.needed | spelling.optional
    return {target: by_name[column] for target, column in wanted.items() if column in by_name}


def _detected(spelling: Spelling, mapping: dict[str, str], columns: list[str], first_rows: list[dict[str, Any]]) -> Detection:
    if "text" in mapping and _all(first_rows, mapping["text"], is_chatml):
        column = mapping["text"]
        reason = f"Recognised as ChatML: {column} is written with <|im_start|> and <|im_end|>."
        return Detection("chat", "ChatML", {"messages": column}, reason, True, columns)
    mapping = mapping | _further(mapping, columns, first_rows)
    name = f"{spelling.name} with thumbs up or down" if "label" in mapping else spelling.name
    reason, sure = f"Recognised as {name} by its columns: {_listed(mapping)}.", spelling.sure
    for target in ("messages", "chosen"):
        column = mapping.get(target, "")
        if column and any(is_json_text(row.get(column)) for row in first_rows):
            reason, sure = f"{column} is text containing JSON. Parse it?", False
        elif column and _all(first_rows, column, is_chatml):
            name = "ChatML"
            reason = f"Recognised as ChatML: {column} is written with <|im_start|> and <|im_end|>."
    return Detection(_shape(mapping), name, mapping, reason, sure, columns)


def _further(mapping: dict[str, str], columns: list[str], first_rows: list[dict[str, Any]]) -> dict[str, str]:
    """Columns that any spelling may have beside its own, told from their values too: the tools, and a thumb for the answer."""
    by_name = {column.strip().lower(): column for column in reversed(columns) if column not in mapping.values()}
    found: dict[str, str] = {}
    if "text" in mapping:
        return found
    for name in TOOLS:
        if name in by_name and "tools" not in found and _all(first_rows, by_name[name], _is_tools):
            found["tools"] = by_name[name]
    for name in LABELS:
        if name in by_name and "chosen" not in mapping and "label" not in found and _all(first_rows, by_name[name], _is_thumb):
            found["label"] = by_name[name]
    return found


def _all(rows: list[dict[str, Any]], column: str, fits: Callable[[Any], bool]) -> bool:
    """True where a column has values, and all of the first ones fit."""
    values = [row[column] for row in rows if row.get(column) not in (None, "", [])]
    return bool(values) and all(fits(value) for value in values)


def _is_tools(value: Any) -> bool:
    return is_json_text(value) or (isinstance(value, list) and all(isinstance(tool, dict) or is_json_text(tool) for tool in value))


def _is_thumb(value: Any) -> bool:
    return thumb(value) is not None


def thumb(value: Any) -> bool | None:
    """True for an answer that somebody liked, False for one they disliked, None where the value says neither."""
    said = str(value).strip().lower() if isinstance(value, str | int | float) else ""
    said = re.sub(r"(?<=[a-z])[ -](?=[a-z])", "_", said) if len(said) <= LONGEST_LABEL else ""
    return True if said in GOOD else False if said in BAD else None


def is_json_text(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip()[:2].rstrip() in ("[{", "[", '{"') and value.rstrip()[-1:] in "]}"


def _shape(mapping: dict[str, str]) -> Shape:
    if "chosen" in mapping or "label" in mapping:
        return "preference"
    return "text" if "text" in mapping else "chat"


def _check_mapping(mapping: dict[str, str], columns: list[str]) -> None:
    for target, column in mapping.items():
        if target not in FIELDS:
            raise _mapping_error(f'"{target}" is not a field. Choose from: {", ".join(FIELDS)}.')
        if column not in columns:
            raise _mapping_error(f'Column "{column[:100]}" not found. Available: {_names(columns)}.')
    given = set(mapping) - {"tools"}
    complete = (
        given == {"text"}
        or {"messages"} <= given <= {"messages", "system", "label"}
        or {"prompt", "completion"} <= given <= {"prompt", "completion", "context", "system", "history", "label"}
        or {"chosen", "rejected"} <= given <= {"chosen", "rejected", "prompt", "context", "system", "history"}
    )
    if not complete:
        raise _mapping_error("Choose columns for messages, or for prompt + completion, or for text, or for prompt + chosen + rejected.")


def _mapping_error(sentence: str) -> UserError:
    return UserError(sentence, fields={"mapping": sentence}, code="invalid_mapping")


def _names(columns: list[str]) -> str:
    shown = [name if len(name) <= 40 else name[:40] + "…" for name in columns[:20]]
    return ", ".join(shown) + (f" and {len(columns) - 20} more" if len(columns) > 20 else "") if columns else "no columns"


def _listed(mapping: dict[str, str]) -> str:
    pairs = [column if column.lower() == target else f"{column} (as {target})" for target, column in mapping.items()]
    return ", ".join(pairs)


@dataclass
class Converter:
    """Turns columns into rows of one shape; `passed_over` counts what was left out on the way, by sentence."""

    detection: Detection
    passed_over: Counter[str] = field(default_factory=Counter)

    def row(self, columns: dict[str, Any]) -> dict[str, Any]:
        """The canonical row. Raises Unusable with a sentence about this record."""
        shape = self.detection.shape
        if shape == "text":
            return self._text(columns)
        if shape == "preference":
            return self._judged(columns) if "label" in self.detection.mapping else self._preference(columns)
        return self._chat(columns)

    def _text(self, columns: dict[str, Any]) -> dict[str, Any]:
        name = self.detection.mapping["text"]
        text = plain(columns.get(name), name)
        if not text.strip():
            raise Unusable(f"{name} is empty, there is nothing to learn.", column=name)
        return {"text": text}

    def _chat(self, columns: dict[str, Any]) -> dict[str, Any]:
        messages, added = self._conversation(columns)
        messages = toolcalls.linked(messages, added=added)
        check_order(messages, added=added)
        if not any(message.get("weight", 1) for message in messages if message["role"] == "assistant"):
            raise Unusable("every answer has the weight 0, there is nothing to learn.")
        return {"messages": without_blank_system(messages, self.passed_over)} | self._tools(columns, messages)

    def _conversation(self, columns: dict[str, Any]) -> tuple[list[Message], int]:
        """Question and answer; and how many messages at the beginning stand in another column than the conversation."""
        if "messages" not in self.detection.mapping:
            return self._prompt(columns) + self._answer(columns, "completion"), 0
        name = self.detection.mapping["messages"]
        messages = conversation(columns.get(name), name, self.passed_over)
        system = self._system(columns) if messages[0]["role"] != "system" else []
        return system + messages, len(system)

    def _canonical_judged(self, columns: dict[str, Any]) -> dict[str, Any]:
        end = "chosen" if "chosen" in columns else "rejected"
        prompt, answer = self._prompt(columns), self._answer(columns, end)
        messages = toolcalls.linked(prompt + answer)
        check_order(messages)
        prompt, answer = without_blank_system(messages[: len(prompt)], self.passed_over), messages[len(prompt) :]
        return {"prompt": prompt, end: answer} | self._tools(columns, messages)

    def _judged(self, columns: dict[str, Any]) -> dict[str, Any]:
        """One answer, and whether somebody liked it."""
        name = self.detection.mapping["label"]
        value = columns.get(name)
        liked = thumb(value)
        if liked is None:
            found = "nothing" if value is None else f'"{str(value)[:40]}"' if isinstance(value, str | int | float) else kind_of(value)
            raise Unusable(f"{name} must say whether the answer is good (true) or bad (false), found {found}.", column=name)
        messages, added = self._conversation(columns)
        messages = toolcalls.linked(messages, added=added)
        check_order(messages, added=added)
        prompt, answer = messages[:-1], messages[-1:]
        tools = self._tools(columns, messages)
        return {"prompt": without_blank_system(prompt, self.passed_over), "chosen" if liked else "rejected": answer} | tools

    def _preference(self, columns: dict[str, Any]) -> dict[str, Any]:
        if self.detection.format == CANONICAL and ("chosen" in columns) != ("rejected" in columns):
            return self._canonical_judged(columns)
        chosen, rejected = self._answer(columns, "chosen"), self._answer(columns, "rejected")
        prompt = self._prompt(columns) if "prompt" in self.detection.mapping else self._system(columns)
        if chosen == rejected:
            raise Unusable("chosen and rejected are identical, they teach nothing.", column="rejected", kind="identical")
        if shared := shared_beginning(chosen, rejected):
            prompt = merged(prompt, shared)
            chosen, rejected = chosen[len(shared) :], rejected[len(shared) :]
        if not any(message["role"] == "user" for message in prompt):
            raise Unusable("there is no prompt before the answers.")
        better, worse = toolcalls.linked(prompt + chosen), toolcalls.linked(prompt + rejected)
        check_order(better)
        check_order(worse)
        before = len(prompt)
        row = {"prompt": without_blank_system(better[:before], self.passed_over), "chosen": better[before:], "rejected": worse[before:]}
        return row | self._tools(columns, better + worse)

    def _tools(self, columns: dict[str, Any], messages: list[Message]) -> dict[str, Any]:
        """`{"tools": [...]}` where the row has any: in a column, or beside the messages that a column holds."""
        mapping = self.detection.mapping
        name = mapping.get("tools", "")
        value = columns.get(name)
        if value is None:
            holding = columns.get(mapping.get("messages", mapping.get("prompt", "")))
            value, name = (holding.get("tools"), "tools") if isinstance(holding, dict) else (None, name)
        tools = toolcalls.tools(value, name)
        if tools and toolcalls.unlisted(messages, tools):
            count(self.passed_over, "A tool call names none of the row's tools")
        return {"tools": tools} if tools else {}

    def _system(self, columns: dict[str, Any]) -> list[Message]:
        name = self.detection.mapping.get("system")
        if name is None or columns.get(name) is None:
            return []
        return [{"role": "system", "content": plain(columns[name], name)}]

    def _prompt(self, columns: dict[str, Any]) -> list[Message]:
        """System, history and question. The prompt may be text or messages; the context stands below it."""
        mapping = self.detection.mapping
        value, context = columns.get(mapping["prompt"]), columns.get(mapping.get("context", ""))
        before = self._system(columns) + self._history(columns)
        if isinstance(value, list | dict) or self._is_conversation(value):
            return before + conversation(value, mapping["prompt"], self.passed_over)
        parts = [plain(part, mapping[target]) for target, part in (("prompt", value), ("context", context)) if part is not None]
        question = "\n\n".join(part for part in parts if part.strip())
        if not question:
            raise Unusable(f"{mapping['prompt']} is empty, there is nothing to answer.", column=mapping["prompt"])
        return [*before, {"role": "user", "content": question}]

    def _is_conversation(self, value: Any) -> bool:
        """True for JSON text of messages where the answers are spelt as JSON too; elsewhere a prompt may well be JSON."""
        return self.detection.shape == "preference" and is_json_text(value) and ('"content"' in value or '"value"' in value)

    def _history(self, columns: dict[str, Any]) -> list[Message]:
        name = self.detection.mapping.get("history", "")
        messages: list[Message] = []
        pairs: Any = columns.get(name) or []
        if isinstance(pairs, str):  # a cell of a table
            with suppress(orjson.JSONDecodeError):
                pairs = orjson.loads(pairs)
        if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
            raise Unusable(f"{name} must be a list of [question, answer] pairs.", column=name)
        for question, answer in pairs:
            messages += [{"role": "user", "content": plain(question, name)}, {"role": "assistant", "content": plain(answer, name)}]
        return messages

    def _answer(self, columns: dict[str, Any], target: str) -> list[Message]:
        name = self.detection.mapping[target]
        value = columns.get(name)
        if isinstance(value, list | dict) or (target != "completion" and is_json_text(value)):
            return conversation(value, name, self.passed_over)
        if value is None:
            raise Unusable(f"{name} is missing, there is nothing to learn.", column=name)
        if not (text := plain(value, name)).strip():
            raise Unusable(f"{name} is empty, there is nothing to learn.", column=name)
        return [{"role": "assistant", "content": text}]


def check_order(messages: list[Message], *, added: int = 0) -> None:
    """An optional system message, then user and assistant in turn, ending with an assistant. Raises Unusable.

    What tools gave back stands between the assistant that asked for it and the assistant that goes on from there. `added` messages at
    the beginning stand in a column of their own and are not counted.
    """
    previous = ""
    for number, message in enumerate(messages, start=1 - added):
        role = message["role"]
        if role == "system" and not previous:
            previous = role
            continue
        if role == "tool":
            previous = role  # that somebody asked for it was judged when the calls were linked
            continue
        expected = "assistant" if previous in ("user", "tool") else "user"
        if role != expected:
            place = f"after {previous}" if previous else f"at the beginning, found {role}"
            raise Unusable(f"expected {expected} {place}.", message=number)
        if not message["content"].strip() and not message.get("tool_calls"):
            if role == "assistant":
                raise Unusable("the assistant message is empty, there is nothing to learn.", column=f"message {number}")
            raise Unusable(f"the {role} message is empty.", message=number)
        previous = role
    if previous in ("user", "tool"):
        what = "a question" if previous == "user" else "a tool's result"
        raise Unusable(f"ends with {what}. Every chat must end with an answer.", whole=True)
    if previous != "assistant":
        raise Unusable("has no answer. Every chat must end with an answer.", whole=True)


def canonical_json(row: dict[str, Any]) -> bytes:
    """Compact JSON, whose hash is the row's. Raises Unusable for text that a database or another program could not take."""
    try:
        written = orjson.dumps(row)
    except orjson.JSONEncodeError:
        raise Unusable("broken Unicode escape.") from None
    if b"\\u0000" in written and any("\0" in text for text in toolcalls.texts(row)):
        raise Unusable("contains a NUL character.")
    return written
