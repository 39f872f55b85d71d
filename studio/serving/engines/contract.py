"""What the playground asks of an engine, whatever runs the model."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Ask:
    """One question to a base model, with or without an adapter on it."""

    base: Path
    adapter: Path | None
    messages: list[dict[str, str]]
    max_tokens: int
    temperature: float
    seed: int
    top_p: float | None = None
    """None is the engine's own."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer where they would begin."""


class Engine(Protocol):
    def answer(self, ask: Ask, *, say: Callable[[str], bool], state: Callable[[str], None]) -> dict[str, Any]:
        """Streams the answer's pieces to `say`, which returns False to stop early; an empty piece only asks.

        `state` is told what is being waited for. Returns {"tokens", "seconds", "first"} (seconds to the first token).
        """
        ...

    def forget(self, names: list[str]) -> int:
        """Lets go of every model in memory whose files have one of these in their names; how many there were."""
        ...
