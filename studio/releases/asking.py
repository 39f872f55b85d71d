"""What a release is asked with: its system prompt and how its answers are sampled."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from studio.errors import UserError

WORDS = {
    "system": "system prompt",
    "temperature": "temperature",
    "top_p": "top p",
    "max_tokens": "longest answer",
    "stop": "stop texts",
}
"""How people call each."""


class AskedWith(BaseModel):
    """What is None or empty is left to the model."""

    model_config = ConfigDict(extra="forbid")

    system: str = Field("", max_length=20_000)
    """The message that stands before every conversation."""
    temperature: float | None = Field(None, ge=0, le=2)
    """How freely it chooses its words; 0 always takes the likeliest."""
    top_p: float | None = Field(None, gt=0, le=1)
    """The share of likely words that it chooses from."""
    max_tokens: int | None = Field(None, ge=1, le=131_072)
    """Tokens after which an answer is cut off."""
    stop: list[str] = Field([], max_length=8)
    """Texts that end an answer where they would begin."""

    @field_validator("stop")
    @classmethod
    def short(cls, texts: list[str]) -> list[str]:
        kept = list(dict.fromkeys(text for text in texts if text.strip()))
        if any(len(text) > 100 for text in kept):
            raise ValueError("a stop text has at most 100 characters")
        return kept

    def kept(self) -> dict[str, Any]:
        """As it is stored: only what somebody set."""
        return {name: value for name, value in self.model_dump().items() if value not in (None, "", [])}


SENTENCES = {
    "system": "At most 20,000 characters.",
    "temperature": "Must be a number from 0 to 2.",
    "top_p": "Must be a number above 0 and at most 1.",
    "max_tokens": "Must be a whole number from 1 to 131,072.",
    "stop": "At most 8 texts of at most 100 characters.",
}


def asked_with(told: dict[str, Any]) -> dict[str, Any]:
    """The settings as they are stored. Raises UserError beside each field that cannot be so."""
    if any("\0" in text for text in (str(told.get("system", "")), *map(str, told.get("stop") or []))):
        raise UserError("Some settings cannot be used.", fields={"system": "It holds the character NUL. Leave it out."})
    try:
        return AskedWith.model_validate(told).kept()
    except ValidationError as error:
        names = [str(fault["loc"][0]) for fault in error.errors()]
        raise UserError(
            "Some settings cannot be used.", fields={name: SENTENCES.get(name, "There is no such setting.") for name in names}
        ) from error
