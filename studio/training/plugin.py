"""A way to train: one class, one file, or a package with an entry point in the group `adapter_studio.plugins`."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from studio.training.config import TrainConfig
from studio.training.facts import DatasetFacts, Estimate, HostFacts, Issue, ModelFacts
from studio.training.job import Job


class TrainingPlugin(ABC):
    """A way to train. Its docstring heads its page; its Config draws its form."""

    name: ClassVar[str]
    """Stored with every run, so never changed: lower-case letters, digits and underscores."""
    title: ClassVar[str]
    """What people read."""
    method: ClassVar[str] = "lora"
    """lora, full or none: decides the colour in charts and whether the result is an adapter or a model."""
    reads: ClassVar[tuple[str, ...]] = ("chat", "text")
    """The shapes of rows it can learn from."""
    requires: ClassVar[tuple[str, ...]] = ()
    """Packages that the worker must have."""
    resumes: ClassVar[bool] = False
    """It saves states into `job.checkpoints` and goes on exactly from `job.resume`, so its runs can be paused and survive a lost worker."""
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    """Named sets of settings: `{"Quick try": {"epochs": 1}}`."""

    class Config(TrainConfig):
        pass

    def check(self, config: Any, base: ModelFacts, data: DatasetFacts, host: HostFacts) -> list[Issue]:
        """What speaks against this run, or should be known. Fast, no torch: it is asked while the form is typed."""
        return []

    def host_issues(self, host: HostFacts) -> list[Issue]:
        """What speaks against this machine whatever is to be trained. It stands on the plugin's page, and beside what `check` says."""
        return []

    @abstractmethod
    def estimate(self, config: Any, base: ModelFacts, data: DatasetFacts, host: HostFacts) -> Estimate:
        """Memory, time and disk as ranges. Fast, no torch."""

    @abstractmethod
    def train(self, config: Any, job: Job) -> Path:
        """Trains, speaking through `job`; returns the folder it made (`job.out`). Import torch here, not above."""
