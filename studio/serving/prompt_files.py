"""Prompts out of what somebody pasted or uploaded: one a line, JSON lines (MT-Bench's file as it is, too), or a table with a header."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from studio.datasets.readers import READERS, Line, Reading, Refusal
from studio.errors import UserError
from studio.serving.prompts import MOST_PROMPTS, Prompt, judged

LARGEST = 1 << 20
"""Bytes of a file."""
MOST_REFUSED = 50
"""Lines that are refused one by one; with more of them it is the wrong file."""
QUESTIONS = ("prompt", "question", "instruction", "text", "input")
"""Columns that may hold the one question of a line, the first of them that is there."""

SYSTEM_LEFT_OUT = "System messages are left out: a trial has a system prompt of its own."


@dataclass(frozen=True)
class Found:
    prompts: list[Prompt]
    refused: list[str]
    """A sentence for each line that cannot be used, with its number."""
    notes: list[str]


def read(content: bytes, *, filename: str = "") -> Found:
    """What a file holds. Raises UserError where it is none that can be read, or where no line of it can be used."""
    if len(content) > LARGEST:
        raise UserError("The file is too large.", fields={"file": f"At most {LARGEST >> 20} MB: a set has at most {MOST_PROMPTS} prompts."})
    found = Found([], [], [])
    for number, turns, category in conversations(content, form_of(content, filename), found.notes):
        if isinstance(turns, str):
            found.refused.append(turns)
        else:
            try:
                found.prompts.append(judged(turns, category))
            except UserError as problem:
                found.refused.append(f"Line {number}: {problem.message}")
        if len(found.prompts) > MOST_PROMPTS:
            sentence = f"It has more than {MOST_PROMPTS} prompts. Split it into several sets."
            raise UserError("There are too many prompts.", fields={"prompts": sentence})
        if len(found.refused) > MOST_REFUSED:
            break
    if found.refused:
        fields = {f"line {place}": sentence for place, sentence in enumerate(found.refused[:MOST_REFUSED], start=1)}
        more = "More lines than are shown cannot be used." if len(found.refused) > MOST_REFUSED else "Some lines cannot be used."
        raise UserError(f"{more} Mend them, then try again.", fields=fields)
    if not found.prompts:
        raise UserError("There is no prompt in it.", fields={"prompts": "Write one prompt a line."})
    return found


def form_of(content: bytes, filename: str) -> str:
    suffix = PurePath(filename).suffix.lower()
    if suffix in (".csv", ".tsv"):
        return "CSV"
    head = content[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")
    if head.startswith(b"["):
        raise UserError("This is a list in JSON.", fields={"file": "Write one JSON object a line, or one prompt a line."})
    return "JSONL" if suffix in (".jsonl", ".ndjson", ".json") or head.startswith(b"{") else "text"


Conversation = tuple[int, Any, Any]
"""(line, its questions or the sentence why there are none, its category)."""


def conversations(content: bytes, form: str, notes: list[str]) -> Iterator[Conversation]:
    if b"\0" in content:
        raise UserError("The file holds the character NUL, so it is no text.", fields={"file": "Save it as UTF-8 text."})
    if form == "text":
        yield from lines_of(content)
        return
    reading = Reading(Path("prompts"), form, "utf-8", len(content), asks=False, unpacked=lambda: io.BytesIO(content))
    if form == "CSV":
        reading.delimiter = delimiter_of(content)
    for line in READERS[form](reading):
        if isinstance(line, Refusal):
            yield line.line, line.reason, ""
        else:
            yield conversation_of(line, notes)


def lines_of(content: bytes) -> Iterator[Conversation]:
    """One prompt a line; blank lines are nothing."""
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"), start=1):
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            yield number, f"Line {number} is not UTF-8. Save the file as UTF-8.", ""
            continue
        if text.strip():
            yield number, [text], ""


def delimiter_of(content: bytes) -> str:
    """What separates the names of a header."""
    head = content.removeprefix(b"\xef\xbb\xbf").split(b"\n", 1)[0].decode(errors="replace")
    return max(",;\t|", key=head.count) if any(mark in head for mark in ",;\t|") else ","


def conversation_of(line: Line, notes: list[str]) -> Conversation:
    """The questions of one object or record."""
    columns, number = line.columns, line.number
    category = columns.get("category", "")
    if "turns" in columns:
        return number, columns["turns"] if isinstance(columns["turns"], list) else [columns["turns"]], category
    if "messages" in columns:
        return number, asked_in(columns["messages"], number, notes), category
    name = next((name for name in QUESTIONS if name in columns), None)
    if name is None:
        expected = "turns, prompt or messages"
        return number, f"Line {number}: no question. Name its column prompt; JSON may have {expected}.", ""
    return number, [columns[name]], category


def asked_in(messages: Any, number: int, notes: list[str]) -> Any:
    """What the user says in a conversation; a sentence for what is none."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return f"Line {number}: messages must be a list of objects with role and content."
    if any(message.get("role") == "system" for message in messages) and SYSTEM_LEFT_OUT not in notes:
        notes.append(SYSTEM_LEFT_OUT)
    return [message.get("content") for message in messages if message.get("role") == "user"]
