"""A row without what was found in it: masked, stripped or filled in. Which rows, and whether, is decided by a person."""

from collections.abc import Callable, Mapping
from typing import Any

from studio.datasets import personal
from studio.datasets.findings import CONTROL_TOKENS, HIDDEN, placeholder_name, placeholders
from studio.datasets.flags import Flag

MASKS: dict[personal.Kind, str] = {
    "secret": "[secret]",
    "e-mail": "[e-mail]",
    "phone": "[phone]",
    "iban": "[account]",
    "card": "[card]",
}

Row = dict[str, Any]


def fix(row: Row, flag: Flag) -> Row:
    """The row without what `flag` stands for, which may leave an answer empty: then it is a row no more, as `typed.accepted` tells.

    Placeholders stay: `fill` needs to know what to put there. The row that is given is not changed.
    """
    return _mapped(row, FIXES[flag]) if flag in FIXES else row


def fill(row: Row, values: Mapping[str, str]) -> Row:
    """The row with its placeholders filled in: `{{name}}` by what stands under `name`. Capitals in names do not matter."""
    folded = {name.strip().casefold(): value for name, value in values.items()}

    def filled(text: str) -> str:
        pieces, end = [], 0
        for match in placeholders(text):
            value = folded.get(placeholder_name(match).casefold())
            if value is not None:
                pieces += [text[end : match.start()], value]
                end = match.end()
        return "".join([*pieces, text[end:]])

    return _mapped(row, filled)


def names(row: Row) -> list[str]:
    """The names of the row's placeholders, each once, in their order."""
    found: dict[str, str] = {}

    def look(text: str) -> str:
        for match in placeholders(text):
            name = placeholder_name(match)
            found.setdefault(name.casefold(), name)
        return text

    _mapped(row, look)
    return list(found.values())


def _masked(text: str, *, secrets: bool) -> str:
    for found in reversed(list(personal.secrets(text) if secrets else personal.personal(text))):
        text = text[: found.begin] + MASKS[found.kind] + text[found.end :]
    return text


FIXES: dict[Flag, Callable[[str], str]] = {
    Flag.SECRET: lambda text: _masked(text, secrets=True),
    Flag.PERSONAL: lambda text: _masked(text, secrets=False),
    Flag.CONTROL: lambda text: CONTROL_TOKENS.sub("", text),
    Flag.HIDDEN: lambda text: HIDDEN.sub("", text),
}


def _mapped(row: Row, change: Callable[[str], str]) -> Row:
    """The same row with each of its texts changed, and what tools are called with."""

    def inside(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: inside(child) for key, child in value.items()}
        return [inside(child) for child in value] if isinstance(value, list) else change(value) if isinstance(value, str) else value

    def called(call: Row) -> Row:
        function = call["function"]
        return call | {"function": function | {"arguments": inside(function.get("arguments"))}}

    def message(said: Row) -> Row:
        changed = said | {"content": change(said["content"])} if said.get("content") else said
        return changed | {"tool_calls": [called(call) for call in said["tool_calls"]]} if said.get("tool_calls") else changed

    return {
        name: change(value) if isinstance(value, str) else [message(said) if "role" in said else said for said in value]
        for name, value in row.items()
    }
