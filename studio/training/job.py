"""What a plugin is handed while it trains: its inputs, and the only ways to speak. Implemented in `studio.worker`."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from studio.training.facts import DatasetFacts, HostFacts, ModelFacts

Phase = Literal[
    "preparing", "loading", "tokenizing", "training", "evaluating", "saving", "downloading", "converting", "checking", "reading"
]


class Stopped(Exception):
    """Raised by `Job.raise_if_stopped` once somebody asked for a stop."""


class Job(ABC):
    """One attempt at one order, as the code that does it sees it."""

    work: Path
    """A folder of this attempt's own; what is left in it is thrown away."""
    out: Path
    """An empty folder; what stands in it at the end becomes the result."""

    # A training reads these; other orders leave them empty.
    base: Path
    """The folder of the base model: safetensors, config.json, tokenizer.json."""
    model: ModelFacts
    data: DatasetFacts
    host: HostFacts
    prompts: list[str]
    """Fixed prompts whose answers are shown at every evaluation."""
    checkpoints: Path
    """A folder that outlives the attempt, for the states of `studio.checkpoints.save_state`."""
    cache: Path | None = None
    """A folder that outlives the run, for what the next run on the same rows can use; None keeps nothing."""
    resume: Path | None = None
    """The newest whole state of an earlier attempt, to go on from; None starts from the beginning. Only for plugins with `resumes`."""

    @abstractmethod
    def rows(self, split: Literal["train", "validation"]) -> Iterator[dict[str, Any]]:
        """Canonical rows of one split, in the frozen order: `{"messages": [...]}` or `{"text": ...}`."""

    @abstractmethod
    def stopping(self) -> bool:
        """True once a stop was asked for. Look at every step; save what was learnt and return."""

    def pausing(self) -> bool:
        """True where that stop is a pause: save a state into `checkpoints`, leave `out` alone and raise Stopped."""
        return False

    @abstractmethod
    def phase(self, name: Phase, text: str = "") -> None:
        """What is being done now, in words for the status line."""

    @abstractmethod
    def progress(self, done: float, total: float, unit: str = "") -> None:
        """How far the phase is; sent at most four times a second."""

    @abstractmethod
    def metric(self, *, step: int, total: int, **values: float) -> None:
        """Numbers at a step: loss, validation_loss, learning_rate, grad_norm, tokens_per_second, memory, tokens, epoch."""

    @abstractmethod
    def sample(self, *, step: int, prompt: str, answer: str) -> None:
        """The model's answer to a fixed prompt at a step."""

    def rows_shown(  # noqa: B027 - a job that shows no rows is a job all the same
        self, *, step: int, name: Literal["first_batch", "best", "worst"], rows: list[dict[str, Any]]
    ) -> None:
        """Some rows as the model reads them: `{"pieces": [[text, learnt], ...], "loss": number or None}` each, cut where they are long."""

    @abstractmethod
    def checkpoint(self, *, step: int, folder: Path) -> None:
        """A complete state was written to `folder` at a step."""

    @abstractmethod
    def note(self, text: str, *, level: Literal["info", "warning"] = "info") -> None:
        """Something to know: above all, what was done instead of what was asked."""

    def raise_if_stopped(self) -> None:
        if self.stopping():
            raise Stopped
