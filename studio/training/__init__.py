"""The contract between the studio and a way to train. pydantic and the standard library; no Django, no torch."""

from studio.training.config import FullConfig, LoraConfig, TrainConfig, setting
from studio.training.facts import DatasetFacts, Estimate, HostFacts, Issue, Memory, ModelFacts, Span, TokenFacts
from studio.training.job import Job, Stopped
from studio.training.plugin import TrainingPlugin

__all__ = [
    "DatasetFacts",
    "Estimate",
    "FullConfig",
    "HostFacts",
    "Issue",
    "Job",
    "LoraConfig",
    "Memory",
    "ModelFacts",
    "Span",
    "Stopped",
    "TokenFacts",
    "TrainConfig",
    "TrainingPlugin",
    "setting",
]
