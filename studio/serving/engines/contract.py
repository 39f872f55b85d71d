"""What the studio asks of an engine, whatever runs the model: load a base, add and drop adapters, answer, count tokens, say how it goes."""

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

Route = Literal["chat", "completion", "embedding"]
State = Callable[[str], None]
"""Is told, in words that people read, what is being waited for."""


@dataclass(frozen=True)
class Subject:
    """What is to answer. Nothing in memory is shared between workspaces, so the workspace is part of it."""

    workspace: str
    base: Path
    """A sealed folder with a model, or one GGUF file that is complete in itself."""
    base_sha256: str
    adapter: Path | None = None
    """A sealed folder with an adapter of that base."""
    adapter_sha256: str = ""

    @property
    def home(self) -> tuple[str, str]:
        """What shares one base in memory."""
        return self.workspace, self.base_sha256


@dataclass
class Took:
    """What one answer took."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    """Of writing the answer, by the engine's own clock."""
    first: float = 0.0
    """From the question to the first token."""
    waited: float = 0.0
    """For the model to be loaded and for a free slot."""
    details: dict[str, Any] = field(default_factory=dict)


class Engine(Protocol):
    """Each call may come from many tasks of one loop at once. Raises UserError for what whoever asked can mend.

    Codes: "too_long" (the conversation does not fit), "no_memory" (try again later), "unsupported" (this model or engine cannot),
    "invalid" (the engine refused a value), "gone" (the files are not here any more), "broken" (the engine failed; its log says why).
    """

    name: str

    async def load(self, subject: Subject, state: State) -> None:
        """Has the base in memory, and the adapter ready on it. Answers under way are not disturbed."""
        ...

    def ask(self, subject: Subject, route: Route, body: dict[str, Any], *, state: State, took: Took) -> AsyncGenerator[dict[str, Any]]:
        """Loads what is missing, waits for a slot, and yields the chunks of one answer as OpenAI streams them (`choices[].delta`, or
        `choices[].text`); for embeddings the one whole answer. `took` is filled in by its end. Closing the iterator frees the slot.
        """
        ...

    async def tokenize(self, subject: Subject, *, text: str = "", messages: list[dict[str, Any]] | None = None) -> list[int]:
        """The tokens of a text, or of a conversation as the model's template writes it."""
        ...

    async def drop(self, names: list[str]) -> int:
        """Lets go of every base and adapter whose SHA-256 begins with one of these; how many there were. Answers under way end first."""
        ...

    async def make_room(self, wanted: int, *, on_gpu: bool = False) -> int:
        """Lets go of idle bases until so many bytes are freed, of the machine's memory or of the GPU's, the least recently used first; how
        many were."""
        ...

    def metrics(self) -> dict[str, Any]:
        """`{"engine", "on_gpu", "budget", "used", "models": [{"workspace", "base_sha256", "adapters", "bytes", "running", "waiting",
        "idle", "cold"}], "answers", "prompt_tokens", "completion_tokens"}`; bytes, seconds, counts since it began. `cold` is how long the
        start took; what runs on processors also has "threads". Where there are several engines, `engines` has one such object for each.
        """
        ...
