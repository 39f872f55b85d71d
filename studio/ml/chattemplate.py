"""Which characters of a chat, as the model's template writes it, are the assistant's answers. No tokens, no torch.

Templates come from strangers: they run in the immutable sandbox of transformers, inside a worker process, for a limited time, and what
they write is text.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

from studio.errors import UserError

_render: Any = render_jinja_template  # its annotation promises a text; it returns texts and marks

LONGEST_RENDERING = 5.0
"""Seconds of processor time for one chat; a template of a real model takes a few milliseconds."""

Messages = list[dict[str, Any]]
Span = tuple[int, int]

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

    def render(self, messages: Messages, *, prompt: bool = False) -> str:
        """The whole chat as text; with `prompt`, up to where the next answer begins."""
        return self._write(messages, add_generation_prompt=prompt)[0]

    def answers(self, messages: Messages) -> tuple[str, list[Span]]:
        """The rendered chat, and the [start, end) of every answer with its end-of-turn token.

        Three ways, the surest first: the template's own {% generation %} marks; the text around stand-ins for the contents,
        which must give the real text back; and what each further message adds to the text, which must only grow at its end.
        Raises UserError where none holds.
        """
        if "endgeneration" in self.source:
            text, marked = self._write(messages, return_assistant_tokens_mask=True)
            spans = [(start, end) for start, end in marked]
        else:
            text = self.render(messages)
            found = self._spans_by_layout(messages, text)
            spans = self._spans_by_growth(messages, text) if found is None else found
        spans = [(_with_spaces_before(text, start), self._end_of_turn(text, end)) for start, end in spans]
        return self._closed(text, spans) if messages[-1]["role"] == "assistant" else (text, spans)

    def _write(self, messages: Messages, **options: Any) -> tuple[str, list[Any]]:
        try:
            with limited(LONGEST_RENDERING):
                texts, marks = _render([messages], chat_template=self.source, **options, **self.tokens)
        except TEMPLATE_ERRORS as error:
            roles = ", ".join(message["role"] for message in messages[:6])
            raise UserError(
                f"The model's chat template refuses a row with the roles {roles}: {error}. Change the row or choose another model."
            ) from error
        return texts[0], marks[0] if marks else []

    def _spans_by_layout(self, messages: Messages, text: str) -> list[Span] | None:
        roles = tuple(message["role"] for message in messages)
        if roles not in self.layouts:
            self.layouts[roles] = self._layout(roles)
        layout = self.layouts[roles]
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
        if not before:
            return 0
        without, prompted = self.render(before), self.render(before, prompt=True)
        opening = prompted[len(without) :] if prompted.startswith(without) else ""
        return len(piece) - piece.rindex(opening) - len(opening) if opening and opening in piece else 0

    def _spans_by_growth(self, messages: Messages, text: str) -> list[Span]:
        spans = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.render(messages[:number], prompt=True)
            until = self.render(messages[: number + 1])
            if not (text.startswith(until) and until.startswith(before)):
                raise UserError(
                    "The model's chat template rewrites earlier messages, so its answers cannot be told from the rest. "
                    "Choose another model, or use rows with a single answer."
                )
            spans.append((len(before), len(until.rstrip())))
        return spans

    def _end_of_turn(self, text: str, end: int) -> int:
        """Behind the control token that closes the answer; `end` where only the next turn's opening or nothing follows."""
        if text[:end].endswith(self._closing):
            return end
        after = len(text) - len(text[end:].lstrip())
        token = next((token for token in self._closing if text.startswith(token, after)), None)
        return after + len(token) if token else end

    def _closed(self, text: str, spans: list[Span]) -> tuple[str, list[Span]]:
        """A last answer that no control token closes gets the end-of-text token, or the model never learns to stop."""
        eos = self.tokens.get("eos_token", "")
        start, end = spans[-1] if spans else (0, 0)
        if not spans or not eos or text[:end].endswith(self._closing):
            return text, spans
        text = text[:end] + eos
        return text, [*spans[:-1], (start, len(text))]

    @property
    def _closing(self) -> tuple[str, ...]:
        opening = self.tokens.get("bos_token") if self.tokens.get("bos_token") != self.tokens.get("eos_token") else None
        return tuple(token for token in self.control if token != opening)


def _with_spaces_before(text: str, start: int) -> int:
    """After `Assistant: ` a tokenizer reads the space and the first word as one token: that token is learnt."""
    return len(text[:start].rstrip(" "))


@lru_cache(maxsize=8)
def chat_template(source: str, tokens: tuple[tuple[str, str], ...], control: tuple[str, ...]) -> ChatTemplate:
    """One ChatTemplate for each template in use, so that its layouts are found once."""
    return ChatTemplate(source=source, tokens=dict(tokens), control=control)
