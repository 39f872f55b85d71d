"""Which characters of a chat, as the model's template writes it, are the assistant's answers. No tokens, no torch.

Templates come from strangers: they run in the immutable sandbox of transformers, inside a worker process, for a limited time, and what
they write is text.
"""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

from studio.errors import UserError
from studio.ml.toolmessages import NO_TOOLS, as_taken, stand_in, takes_tools, uses_tools, written

_render: Any = render_jinja_template  # its annotation promises a text; it returns texts and marks

LONGEST_RENDERING = 5.0
"""Seconds of processor time for one chat; a template of a real model takes a few milliseconds."""

Messages = list[dict[str, Any]]
Tools = list[dict[str, Any]] | None
Span = tuple[int, int]
PLAIN_ROLES = ("user", "assistant")

REWRITES = (
    "The model's chat template rewrites earlier messages, so its answers cannot be told from the rest. "
    "Choose another model, or use rows with a single answer."
)
LOSES_THINKING = (
    "The model's chat template rewrites earlier messages: it leaves the thinking out of message {number}, so that answer would be learnt "
    "without it. Learn from the last answer alone, or use rows with a single answer."
)
LOSES_MESSAGE = (
    "The model's chat template leaves out message {number} ({role}) of such a row, so the model would learn without it. "
    "Put its text into the question before the answer, or choose another model."
)
LOSES_WORDS = (
    "The model's chat template leaves out what the assistant says beside a tool call (message {number}). "
    "Remove that text from the row, or choose another model."
)
ALL_IN_ONE = (
    "The model's chat template does not mark each answer by itself, so tool calls cannot be told from the rest. Choose another model."
)

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ '### ' + message['role'] | capitalize + ':\\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\\n' }}{% endif %}"
)
"""For base models that come without a template: headings in plain words, and the end-of-text token after each answer."""

# A template is a program: it can fail in any of the ways that arithmetic, indexing and calls can.
TEMPLATE_ERRORS = (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError)


class Endless(UserError):
    """The template goes on and on, by mistake or by intent. A model with such a template is of no use anywhere."""


class _TimeIsUp(BaseException):
    """No Exception, so that nothing on the way takes it for one of its own."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Breaks off what takes longer, in processor time; raises Endless. Only in a main thread, where workers do their orders."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(_number: int, _frame: object) -> None:
        raise _TimeIsUp

    before = signal.signal(signal.SIGVTALRM, ring)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    except _TimeIsUp as error:
        raise Endless(f"The model's chat template does not end within {seconds:.0f} seconds for one chat. Choose another model.") from error
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@dataclass(frozen=True)
class Layout:
    """What a template writes around the contents of messages with a given order of roles."""

    start: str
    parts: list[tuple[int, int, str]]
    """(message, characters between the generation prompt and its content, the text after its content), in the order written."""


@dataclass
class ChatTemplate:
    """A template with the tokens it may write. `answers` is what the rest of the house asks of it."""

    source: str
    tokens: dict[str, str]
    """bos_token, eos_token, ...: what the template can write by name."""
    control: tuple[str, ...]
    """Every control token, as text."""
    layouts: dict[tuple[str, ...], Layout | None] = field(default_factory=dict)
    whole: set[tuple[Any, ...]] = field(default_factory=set)
    """Orders of roles and calls of which every message is written."""

    def render(self, messages: Messages, *, prompt: bool = False, tools: Tools = None) -> str:
        """The whole chat as text; with `prompt`, up to where the next answer begins."""
        return self._write(messages, tools, add_generation_prompt=prompt)[0]

    def answers(self, messages: Messages, *, tools: Tools = None, wanted: Sequence[bool] | None = None) -> tuple[str, list[Span | None]]:
        """The rendered chat, and the [start, end) of every answer with its end-of-turn token.

        Four ways, the surest first: the template's own {% generation %} marks; the text around stand-ins for the contents, which must
        give the real text back; what each further message adds to the text, where it only grows at its end; and what changes in the
        text when the answer does. Answers that are not `wanted` may come as None. Raises UserError where none holds, and where the
        template leaves out what the row has: tools, their calls, a message.
        """
        calling = bool(tools) or uses_tools(messages)
        if calling and not takes_tools(self.source):
            raise UserError(NO_TOOLS)
        if calling:
            messages = as_taken(self.source, messages)
        if "endgeneration" in self.source:
            text, marked = self._write(messages, tools, return_assistant_tokens_mask=True)
            spans = self._inside(messages, tools, text, marked)
        else:
            text = self.render(messages, tools=tools)
            found = None if calling else self._spans_by_layout(messages, text)
            spans = [*found] if found is not None else self._spans_one_by_one(messages, tools, text, wanted)
        spans = [span and (_with_spaces_before(text, span[0]), self._end_of_turn(text, span[1])) for span in spans]
        if calling:
            _refuse_lost_tools(messages, tools, text, spans)
        return self._closed(text, spans) if messages[-1]["role"] == "assistant" else (text, spans)

    def _write(self, messages: Messages, tools: Tools = None, **options: Any) -> tuple[str, list[Any]]:
        if tools and "xml_tools" in self.source:
            options["xml_tools"] = [tool["function"] for tool in tools]
        try:
            with limited(LONGEST_RENDERING):
                texts, marks = _render([messages], tools=tools or None, chat_template=self.source, **options, **self.tokens)
        except TEMPLATE_ERRORS as error:
            roles = ", ".join(message["role"] for message in messages[:6])
            raise UserError(
                f"The model's chat template refuses a row with the roles {roles}: {error}. Change the row or choose another model."
            ) from error
        return texts[0], marks[0] if marks else []

    def _inside(self, messages: Messages, tools: Tools, text: str, marked: Sequence[Span]) -> list[Span | None]:
        """Some templates mark the whole turn: without the prompt that it begins with, and the white space behind its end."""
        answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        if len(answers) != len(marked):
            answers = answers[:1] * len(marked)
        spans: list[Span | None] = []
        for number, (start, end) in zip(answers, marked, strict=True):
            opening = self._opening(messages[:number], tools)
            begin = start + len(opening) if opening and text.startswith(opening, start) else start
            spans.append((begin, max(begin, start + len(text[start:end].rstrip()))))
        return spans

    def _opening(self, before: Messages, tools: Tools) -> str:
        """What the template writes to ask for an answer; empty where nothing can be told."""
        if not before:
            return ""
        without, prompted = self.render(before, tools=tools), self.render(before, tools=tools, prompt=True)
        return prompted[len(without) :] if prompted.startswith(without) else ""

    def _spans_by_layout(self, messages: Messages, text: str) -> list[Span] | None:
        roles = tuple(message["role"] for message in messages)
        layout = self._layout_of(roles)
        if layout is None or not text.startswith(layout.start):
            return None
        at, spans = len(layout.start), []
        for number, lead, after in layout.parts:
            content = messages[number]["content"]
            written = next((c for c in (content, content.strip()) if text.startswith(c + after, at)), None)
            if written is None:
                return None
            if roles[number] == "assistant":
                spans.append((at - lead, at + len(written)))
            at += len(written) + len(after)
        return spans if at == len(text) else None

    def _layout_of(self, roles: tuple[str, ...]) -> Layout | None:
        if roles not in self.layouts:
            self.layouts[roles] = self._layout(roles)
        return self.layouts[roles]

    def _layout(self, roles: tuple[str, ...]) -> Layout | None:
        stand_ins = [f"Standin{number:06d}text" for number in range(len(roles))]
        messages = [{"role": role, "content": content} for role, content in zip(roles, stand_ins, strict=True)]
        text = self.render(messages)
        if any(text.count(content) != 1 for content in stand_ins):
            return None
        order = sorted(range(len(roles)), key=lambda number: text.index(stand_ins[number]))
        starts = [text.index(stand_ins[number]) for number in order]
        ends = [start + len(stand_ins[0]) for start in starts]
        befores = [text[left:right] for left, right in zip([0, *ends], [*starts, len(text)], strict=True)]
        parts = []
        for place, number in enumerate(order):
            lead = self._lead(messages[:number], befores[place]) if roles[number] == "assistant" else 0
            parts.append((number, lead, befores[place + 1]))
        return Layout(start=befores[0], parts=parts)

    def _lead(self, before: Messages, piece: str) -> int:
        """Characters between the generation prompt and an answer, such as an empty <think> block: these are learnt too."""
        opening = self._opening(before, None)
        return len(piece) - piece.rindex(opening) - len(opening) if opening and opening in piece else 0

    def _spans_one_by_one(self, messages: Messages, tools: Tools, text: str, wanted: Sequence[bool] | None) -> list[Span | None]:
        answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        spans = [
            self._grown(messages, tools, text, number) or self._changing(messages, tools, text, number) if is_wanted else None
            for number, is_wanted in zip(answers, wanted or [True] * len(answers), strict=True)
        ]
        self._refuse_lost_messages(messages, tools, text)
        return spans

    def _refuse_lost_messages(self, messages: Messages, tools: Tools, text: str) -> None:
        order = (bool(tools), *((message["role"], "tool_calls" in message) for message in messages))
        if order in self.whole:
            return
        for number, message in enumerate(messages):
            if message["role"] in ("system", "user") and self._region(messages, tools, text, number) is None:
                raise UserError(LOSES_MESSAGE.format(number=number + 1, role=message["role"]))
        self.whole.add(order)

    def _grown(self, messages: Messages, tools: Tools, text: str, number: int) -> Span | None:
        """What this answer adds to the text, where the text so far stays as it is."""
        before = self.render(messages[:number], tools=tools, prompt=True)
        if not text.startswith(before):
            return None
        until = self.render(messages[: number + 1], tools=tools)
        return (len(before), len(until.rstrip())) if text.startswith(until) and until.startswith(before) else None

    def _changing(self, messages: Messages, tools: Tools, text: str, number: int) -> Span:
        """What changes in the text when this answer does, from the prompt before it to the end of its turn."""
        said = messages[number]["content"]
        region = self._region(messages, tools, text, number)
        if region is None or said.strip() not in text[region[0] : region[1]]:
            raise UserError(LOSES_THINKING.format(number=number + 1) if "</think>" in said else REWRITES)
        following = self._region(messages, tools, text, number + 1) if number + 1 < len(messages) else None
        start = self._start(messages, tools, text, number, region[0])
        end = self._closing_after(text, region[1], following[0] if following else len(text))
        if start is None or end is None:
            raise UserError(REWRITES)
        return start, end

    def _region(self, messages: Messages, tools: Tools, text: str, number: int) -> Span | None:
        """From the first to the last character that changes when the message does; None where nothing changes."""
        other = self.render([*messages[:number], stand_in(messages[number]), *messages[number + 1 :]], tools=tools)
        if other == text:
            return None
        begin = _alike(text, other)
        most = min(len(text), len(other)) - begin
        return begin, len(text) - _alike(text[len(text) - most :][::-1], other[len(other) - most :][::-1])

    def _start(self, messages: Messages, tools: Tools, text: str, number: int, begin: int) -> int | None:
        """Where the answer that changes from `begin` on starts: behind its generation prompt, else behind the end of the turn before it."""
        before = self.render(messages[:number], tools=tools, prompt=True)
        if text.startswith(before) and len(before) <= begin:
            return len(before)
        previous = self._region(messages, tools, text, number - 1) if number else None
        least = previous[1] if previous else 0
        if opening := self._opening(messages[:number], tools):
            at = text.rfind(opening, least, begin)
            return at + len(opening) if at >= 0 else None
        return self._first_closing(text, least, begin)

    def _closing_after(self, text: str, end: int, limit: int) -> int | None:
        """Behind the token that ends an answer, or behind the first control token where that one is not there."""
        usual = self._usual_closing()
        at = text.find(usual, end, limit) if usual else -1
        if at >= 0:
            return at + len(usual)
        found = self._first_closing(text, end, limit)
        return len(text.rstrip()) if found is None and limit == len(text) else found

    def _first_closing(self, text: str, begin: int, limit: int) -> int | None:
        ends = [(at, at + len(token)) for token in self._closing if (at := text.find(token, begin, limit)) >= 0]
        return min(ends)[1] if ends else None

    def _usual_closing(self) -> str:
        """The control token behind an answer without tools."""
        layout = self._layout_of(PLAIN_ROLES)
        after = layout.parts[-1][2].lstrip() if layout else ""
        return next((token for token in self._closing if after.startswith(token)), "")

    def _end_of_turn(self, text: str, end: int) -> int:
        """Behind the control token that closes the answer; `end` where only the next turn's opening or nothing follows."""
        if text[:end].endswith(self._closing):
            return end
        after = len(text) - len(text[end:].lstrip())
        token = next((token for token in self._closing if text.startswith(token, after)), None)
        return after + len(token) if token else end

    def _closed(self, text: str, spans: list[Span | None]) -> tuple[str, list[Span | None]]:
        """A last answer that no control token closes gets the end-of-text token, or the model never learns to stop."""
        eos = self.tokens.get("eos_token", "")
        last = spans[-1] if spans else None
        if last is None or not eos or text[: last[1]].endswith(self._closing):
            return text, spans
        text = text[: last[1]] + eos
        return text, [*spans[:-1], (last[0], len(text))]

    @property
    def _closing(self) -> tuple[str, ...]:
        opening = self.tokens.get("bos_token") if self.tokens.get("bos_token") != self.tokens.get("eos_token") else None
        return tuple(token for token in self.control if token != opening)


def _refuse_lost_tools(messages: Messages, tools: Tools, text: str, spans: list[Span | None]) -> None:
    """Nothing of what a row says about tools may be missing from its text."""
    if not all(written(tool["function"]["name"]) in text for tool in tools or ()):
        raise UserError(NO_TOOLS)
    answers = [(number, message) for number, message in enumerate(messages, start=1) if message["role"] == "assistant"]
    if len(answers) != len(spans):
        raise UserError(ALL_IN_ONE)
    for (number, message), span in zip(answers, spans, strict=True):
        said = text[span[0] : span[1]] if span else ""
        if span is None or "tool_calls" not in message:
            continue
        if not all(written(call["function"]["name"]) in said for call in message["tool_calls"]):
            raise UserError(NO_TOOLS)
        if message["content"].strip() not in said:
            raise UserError(LOSES_WORDS.format(number=number))


def _alike(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    least, most = 0, min(len(one), len(other))
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if one[:middle] == other[:middle] else (least, middle - 1)
    return least


def _with_spaces_before(text: str, start: int) -> int:
    """After `Assistant: ` a tokenizer reads the space and the first word as one token: that token is learnt."""
    return len(text[:start].rstrip(" "))


@lru_cache(maxsize=8)
def chat_template(source: str, tokens: tuple[tuple[str, str], ...], control: tuple[str, ...]) -> ChatTemplate:
    """One ChatTemplate for each template in use, so that its layouts are found once."""
    return ChatTemplate(source=source, tokens=dict(tokens), control=control)
