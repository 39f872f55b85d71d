"""A chat template as what stands around each message, where it is as regular as that: found by probing, and proved on further chats.

Ollama does not run the Jinja template that stands in a GGUF; it wants one in Go's language. What most templates do needs no program in
either: a text before and after each message, by its role. No torch.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

HALF = re.compile(r"[\ud800-\udfff]")
"""Half a sign of UTF-16, which no file can hold."""
Messages = Sequence[dict[str, str]]
Render = Callable[[Messages], str | None]
"""A chat that ends with a question, as text up to where the answer begins; None where the template refuses it."""

QUESTION, ANSWER, ORDER = "Qx7question", "Ax7answer", "Sx7order"
"""Contents that no template writes by itself."""


@dataclass(frozen=True)
class Turns:
    start: str
    """Before everything, in a chat that has no system message."""
    user: tuple[str, str]
    """Before and after what the role says."""
    assistant: tuple[str, str]
    system: tuple[str, str] | None
    """None where the template refuses system messages, or leaves them out."""
    generation: str
    """What the answer is asked for with."""
    folded: str = ""
    """Between a system message and the question, where the template writes both together as the last turn (Mistral)."""

    def render(self, messages: Messages) -> str:
        """The same text that `go_template` makes in Ollama."""
        system = messages[0]["content"] if messages and messages[0]["role"] == "system" else ""
        text = "" if system and not self.folded else self.start
        for number, message in enumerate(messages):
            last, around = number == len(messages) - 1, getattr(self, message["role"])
            if around is None:
                continue
            folded = system + self.folded if system and self.folded and last and message["role"] == "user" else ""
            text += around[0] + folded + message["content"]
            text += "" if last and message["role"] == "assistant" else around[1]
        return text if messages and messages[-1]["role"] == "assistant" else text + self.generation

    def go_template(self) -> str:
        """For Ollama's TEMPLATE (Go's text/template; docs/template.mdx of Ollama). Every text of the model's is a quoted string."""
        system = f'{{{{- if eq .Role "system" }}}}{_around(self.system)}\n{{{{- else if' if self.system else "{{- if"
        folded = f"{{{{- if and $last $.System }}}}{{{{ $.System }}}}{_said(self.folded)}{{{{- end }}}}" if self.folded else ""
        begins = "{{- if eq $i 0 }}" if self.folded else '{{- if and (eq $i 0) (ne .Role "system") }}'
        question = f"{_said(self.user[0])}{folded}{{{{ .Content }}}}{_said(self.user[1])}"
        answer = f"{_said(self.assistant[0])}{{{{ .Content }}}}"
        answer += f"{{{{- if not $last }}}}{_said(self.assistant[1])}{{{{- end }}}}" if self.assistant[1] else ""
        lines = [
            "{{- range $i, $_ := .Messages }}",
            "{{- $last := eq (len (slice $.Messages $i)) 1 }}",
            *([f"{begins}{_said(self.start)}{{{{- end }}}}"] if self.start else []),
            f'{system} eq .Role "user" }}}}{question}',
            f'{{{{- else if eq .Role "assistant" }}}}{answer}',
            "{{- end }}",
            *([f'{{{{- if and $last (ne .Role "assistant") }}}}{_said(self.generation)}{{{{- end }}}}'] if self.generation else []),
            "{{- end }}",
        ]
        return "\n".join(lines)


def find_turns(render: Render, *, ends: Sequence[str] = (), begin: str = "") -> Turns | None:
    """What `render` writes around messages; None where it does more than that, so that no list of turns says the same.

    `ends` are the tokens that end a turn, which belong to the turn that they end; `begin` is a text that the runner puts before every
    prompt by itself, and is left out.
    """

    def rendered(*messages: tuple[str, str]) -> str | None:
        text = render([{"role": role, "content": content} for role, content in messages])
        return None if text is None or HALF.search(text) else text.removeprefix(begin)

    asked, going_on = ("user", QUESTION), ("assistant", ANSWER)
    first = _parts(rendered(asked), QUESTION)
    if first is None:  # one that never ends is not asked again
        return None
    later = _parts(rendered(asked, going_on, asked), QUESTION, ANSWER, QUESTION)
    ordered = _parts(rendered(("system", ORDER), asked), ORDER, QUESTION)
    if later is None or later[0] != first[0] or later[3] != first[1]:
        return None
    befores = [first[0], later[2], *([ordered[1]] if ordered else [])]
    before = _after_ends(_alike([text[::-1] for text in befores])[::-1], ends)
    after = _to_end(_alike([first[1], later[1]]), ends)
    plain = Turns(
        start=first[0].removesuffix(before),
        user=(before, after),
        assistant=(later[1].removeprefix(after), later[2].removesuffix(before)),
        system=None,
        generation=first[1].removeprefix(after),
    )
    return next((turns for turns in _with_system(plain, ordered, rendered) if _holds(turns, rendered)), None)


def _with_system(plain: Turns, ordered: list[str] | None, rendered: Callable[..., str | None]) -> list[Turns]:
    """What the template may do with a system message: a turn of its own, a part of the last question, or nothing at all."""
    if ordered is None:
        return [plain]
    own = replace(plain, system=(ordered[0], ordered[1].removesuffix(plain.user[0])))
    whole = rendered(("system", ORDER), ("user", QUESTION), ("assistant", ANSWER), ("user", QUESTION))
    late = _parts(whole, QUESTION, ANSWER, ORDER, QUESTION)
    return [own, replace(plain, folded=late[3])] if late and late[3] else [own]


def _holds(found: Turns, rendered: Callable[..., str | None]) -> bool:
    """Whether other chats, longer and with lines, signs and a system message, come out alike."""
    asked, said = ("user", "What is 2 + 2?\nIn *words*, please."), ("assistant", "It is four.\n\nReally: <four> & {{ 4 }}.")
    system = ("system", "You are brief.\nYou are kind.")
    chats = [[asked], [asked, said, asked], [asked, said, ("user", "Why?"), said, ("user", "And 3 + 3?")]]
    if found.system or found.folded:
        chats += [[system, *chat] for chat in chats]
    return all(rendered(*chat) == found.render([{"role": role, "content": content} for role, content in chat]) for chat in chats)


def _parts(text: str | None, *contents: str) -> list[str] | None:
    """What stands before, between and after the contents, which must come in this order and once each; None where they do not."""
    if text is None or any(text.count(content) != contents.count(content) for content in contents):
        return None
    parts = []
    for content in contents:
        before, found, text = text.partition(content)
        if not found:
            return None
        parts.append(before)
    return [*parts, text]


def _alike(texts: Sequence[str]) -> str:
    """What all of them begin with."""
    shortest = min(texts, key=len)
    differs = (at for at in range(len(shortest)) if any(text[at] != shortest[at] for text in texts))
    return shortest[: next(differs, len(shortest))]


def _after_ends(before: str, ends: Sequence[str]) -> str:
    """What opens a turn, without the end of the one before it."""
    cuts = [at + len(end) for end in ends if end and (at := before.rfind(end)) >= 0]
    return before[max(cuts) :].lstrip("\n") if cuts else before


def _to_end(after: str, ends: Sequence[str]) -> str:
    """What closes a turn, without the opening of the one behind it."""
    cuts = [at + len(end) for end in ends if end and (at := after.find(end)) >= 0]
    if not cuts:
        return after
    rest = after[min(cuts) :]
    return after[: min(cuts)] + rest[: len(rest) - len(rest.lstrip("\n"))]


def _around(pieces: tuple[str, str]) -> str:
    return f"{_said(pieces[0])}{{{{ .Content }}}}{_said(pieces[1])}"


def _said(text: str) -> str:
    """A text as an action of Go's, whatever stands in it; nothing for an empty one.

    What JSON escapes, Go reads alike; the pairs that JSON can write of one sign beyond \\uffff Go refuses, so signs stand as they are.
    """
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""
