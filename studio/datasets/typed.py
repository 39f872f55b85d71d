"""A row that a person or a model wrote, judged by the import's own rules. Where it goes is not asked here."""

from typing import Any

from studio.datasets.messages import Message, Unusable
from studio.datasets.shapes import CANONICAL, Converter, Detection, Shape, canonical_json, check_order

FIELDS: dict[str, tuple[str, ...]] = {"chat": ("messages",), "text": ("text",), "preference": ("prompt", "chosen", "rejected")}
"""What a row of each shape is made of."""
LONGEST = 4 << 20
"""Bytes of a row that somebody wrote: far more than any model reads, and little enough for a page."""


def accepted(row: Any, shape: str) -> dict[str, Any]:
    """The canonical row. Raises Unusable where the import would refuse such a line."""
    if not isinstance(row, dict):
        raise Unusable("must be an object.")
    names = FIELDS[shape]
    unknown = [str(name)[:40] for name in row if name not in names and name != "tools"]
    if unknown:
        raise Unusable(f"{unknown[0]} does not belong to a row of this dataset. Use {' and '.join(names)}.", column=unknown[0])
    taken = Converter(_detection(shape, tools="tools" in row)).row(row)
    if len(canonical_json(taken)) > LONGEST:
        raise Unusable(f"is longer than {LONGEST >> 20} MB.", whole=True)
    return taken


def place_of(problem: Unusable, row: dict[str, Any], shape: str) -> str:
    """The field of a form that a refusal stands beside: `text`, or a list of messages and the place in it, such as `chosen-0`."""
    if shape == "text":
        return "text"
    number = problem.message or _number_in(problem.column)
    if shape == "chat":
        return _within("messages", number, row.get("messages", []))
    prompt: list[Message] = row.get("prompt", [])
    answers: list[str] = [name for name in ("chosen", "rejected") if name in row]
    if number and number <= len(prompt):
        return f"prompt-{number - 1}"
    name = next((name for name in answers if problem.kind != "identical" and _refused(prompt + row[name])), (answers or ["prompt"])[-1])
    return _within(name, number - len(prompt) if number else 0, row.get(name, []))


def _within(name: str, number: int, messages: list[Message]) -> str:
    """The message of this number; what is about no single message stands beside the last one."""
    return f"{name}-{min(number, len(messages)) - 1 if number > 0 else max(0, len(messages) - 1)}"


def _number_in(column: str) -> int:
    word, _, number = column.partition(" ")
    return int(number) if word == "message" and number.isdecimal() else 0


def _refused(messages: list[Message]) -> bool:
    try:
        check_order(messages)
    except Unusable:
        return True
    return False


def _detection(shape: str, *, tools: bool) -> Detection:
    names = (*FIELDS[shape], "tools") if tools else FIELDS[shape]
    known: dict[str, Shape] = {"chat": "chat", "text": "text", "preference": "preference"}
    return Detection(known[shape], CANONICAL, {name: name for name in names}, "", True, list(names))
