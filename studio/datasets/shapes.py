"""Which columns mean what (`detect`), and one record's columns as a canonical row (`Converter.row`). No files, no counting of rows.

A canonical row is one of
    {"messages": [{"role", "content"}, ...]}                                  chat
    {"text": "..."}                                                           text
    {"prompt": [messages], "chosen": [messages], "rejected": [messages]}      preference
"""

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from studio.datasets.messages import Message, Unusable, conversation, merged, plain, shared_beginning, without_blank_system
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
    reason, sure = f"Recognised as {spelling.name} by its columns: {_listed(mapping)}.", spelling.sure
    for target in ("messages", "chosen"):
        column = mapping.get(target, "")
        if column and any(is_json_text(row.get(column)) for row in first_rows):
            reason, sure = f"{column} is text containing JSON. Parse it?", False
    return Detection(_shape(mapping), spelling.name, mapping, reason, sure, columns)


def is_json_text(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip()[:2].rstrip() in ("[{", "[", '{"') and value.rstrip()[-1:] in "]}"


def _shape(mapping: dict[str, str]) -> Shape:
    if "chosen" in mapping:
        return "preference"
    return "text" if "text" in mapping else "chat"


def _check_mapping(mapping: dict[str, str], columns: list[str]) -> None:
    for target, column in mapping.items():
        if target not in FIELDS:
            raise _mapping_error(f'"{target}" is not a field. Choose from: {", ".join(FIELDS)}.')
        if column not in columns:
            raise _mapping_error(f'Column "{column[:100]}" not found. Available: {_names(columns)}.')
    given = set(mapping)
    complete = (
        given == {"text"}
        or {"messages"} <= given <= {"messages", "system"}
        or {"prompt", "completion"} <= given <= {"prompt", "completion", "context", "system", "history"}
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
            return self._preference(columns)
        return self._chat(columns)

    def _text(self, columns: dict[str, Any]) -> dict[str, Any]:
        name = self.detection.mapping["text"]
        text = plain(columns.get(name), name)
        if not text.strip():
            raise Unusable(f"{name} is empty, there is nothing to learn.", column=name)
        return {"text": text}

    def _chat(self, columns: dict[str, Any]) -> dict[str, Any]:
        if "messages" in self.detection.mapping:
            name = self.detection.mapping["messages"]
            messages = conversation(columns.get(name), name, self.passed_over)
            system = self._system(columns) if messages[0]["role"] != "system" else []
        else:
            messages, system = self._prompt(columns) + self._answer(columns, "completion"), []
        check_order(system + messages, added=len(system))
        if not any(message.get("weight", 1) for message in messages if message["role"] == "assistant"):
            raise Unusable("every answer has the weight 0, there is nothing to learn.")
        return {"messages": without_blank_system(system + messages, self.passed_over)}

    def _preference(self, columns: dict[str, Any]) -> dict[str, Any]:
        chosen, rejected = self._answer(columns, "chosen"), self._answer(columns, "rejected")
        prompt = self._prompt(columns) if "prompt" in self.detection.mapping else self._system(columns)
        if chosen == rejected:
            raise Unusable("chosen and rejected are identical, they teach nothing.", column="rejected", kind="identical")
        if shared := shared_beginning(chosen, rejected):
            prompt = merged(prompt, shared)
            chosen, rejected = chosen[len(shared) :], rejected[len(shared) :]
        if not any(message["role"] == "user" for message in prompt):
            raise Unusable("there is no prompt before the answers.")
        check_order(prompt + chosen)
        check_order(prompt + rejected)
        return {"prompt": without_blank_system(prompt, self.passed_over), "chosen": chosen, "rejected": rejected}

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
        pairs = columns.get(name) or []
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

    `added` messages at the beginning stand in a column of their own and are not counted.
    """
    previous = ""
    for number, message in enumerate(messages, start=1 - added):
        role = message["role"]
        if role == "system" and not previous:
            previous = role
            continue
        expected = "assistant" if previous == "user" else "user"
        if role == "tool":
            raise Unusable("tool calls cannot be learnt from yet. Leave such rows out.", message=number)
        if role != expected:
            place = f"after {previous}" if previous else f"at the beginning, found {role}"
            raise Unusable(f"expected {expected} {place}.", message=number)
        if not message["content"].strip():
            if role == "assistant":
                raise Unusable("the assistant message is empty, there is nothing to learn.", column=f"message {number}")
            raise Unusable(f"the {role} message is empty.", message=number)
        previous = role
    if previous == "user":
        raise Unusable("ends with a question. Every chat must end with an answer.", whole=True)
    if previous != "assistant":
        raise Unusable("has no answer. Every chat must end with an answer.", whole=True)
