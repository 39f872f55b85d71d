"""What one column is asked with: its own system prompt and settings, or what somebody set in their place."""

from typing import Any

from pydantic import Field, ValidationError

from studio.errors import UserError
from studio.releases.asking import SENTENCES, WORDS, AskedWith
from studio.releases.models import Release
from studio.serving.columns import Column

USUAL, LONGEST = 512, 4096
"""Tokens of an answer where nobody says otherwise, and the most that somebody may ask for here."""
GREEDY = {"temperature": 0.0}
"""So that the same question has the same answer, unless somebody wants it otherwise."""


class Sampling(AskedWith):
    """What somebody set themselves; what is None or empty is left to each column."""

    max_tokens: int | None = Field(None, ge=1, le=LONGEST)
    seed: int | None = Field(None, ge=0, le=4_294_967_295)
    """The same seed draws the same words again."""
    frequency_penalty: float | None = Field(None, ge=0, le=2)
    """How much a word loses each time it was used already; 0 leaves repetition as it is."""


SAID = SENTENCES | {
    "max_tokens": f"Must be a whole number from 1 to {LONGEST:,}.",
    "seed": "Must be a whole number from 0 to 4,294,967,295.",
    "frequency_penalty": "Must be a number from 0 to 2.",
}


def sampling(told: Any) -> dict[str, Any]:
    """What somebody set, without what they left open. Raises UserError beside each field that cannot be so."""
    try:
        return Sampling.model_validate(told if told is not None else {}).kept()
    except ValidationError as problem:
        names = dict.fromkeys(str(error["loc"][0]) for error in problem.errors() if error["loc"])
        fields = {name: SAID.get(name, "There is no such setting.") for name in names}
        told = "; ".join(f"{WORDS.get(name, name)}: {sentence}" for name, sentence in fields.items())
        raise UserError(f"These settings cannot be used. {told}".strip(), fields=fields) from problem


def own_settings(column: Column) -> dict[str, Any]:
    """A release's; empty for everything else."""
    return column.thing.asked_with if isinstance(column.thing, Release) else {}


def body_of(column: Column, messages: list[dict[str, str]], chosen: dict[str, Any], *, longest: int | None = None) -> dict[str, Any]:
    """What the engine is asked, in OpenAI's words. `longest` can only shorten an answer."""
    asked = {"max_tokens": USUAL} | GREEDY | own_settings(column) | chosen
    system = asked.pop("system", "")
    if isinstance(column.thing, Release) or system:
        messages = [message for message in messages if message["role"] != "system"]
    limit = min(asked["max_tokens"], LONGEST, longest or LONGEST)
    said = [{"role": "system", "content": system}] if system else []
    return asked | {"messages": said + messages, "max_tokens": max(1, limit)}
