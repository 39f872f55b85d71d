"""What a run starts from: a folder of safetensors and a tokenizer, with facts read from its headers."""

from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import models

from studio.orders.models import Order
from studio.training import ModelFacts
from studio.workspaces.models import Tenant, Workspace


class BaseModel(Tenant):
    WORKSPACE = "workspace"

    workspace = models.ForeignKey(Workspace, models.CASCADE, related_name="base_models")
    name = models.CharField(max_length=120)
    source = models.CharField(max_length=300)
    """package:NAME, path:FOLDER, hub:OWNER/NAME@REVISION, or base:ID where it is another one with `new_tokens`."""
    new_tokens = models.JSONField(default=list)
    """What was added to the vocabulary of its source."""
    revision = models.CharField(max_length=80, blank=True)
    license = models.CharField(max_length=80, blank=True)
    facts = models.JSONField(null=True)
    """A training.ModelFacts, once it is here."""
    proof = models.JSONField(default=dict)
    """What was checked about its tokenizer."""
    sha256 = models.CharField(max_length=64, blank=True)
    size = models.BigIntegerField(default=0)
    order = models.OneToOneField(Order, models.PROTECT, related_name="base_model")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["name", "-created_at"]

    def __str__(self) -> str:
        return self.name

    @property
    def status(self) -> str:
        return "ready" if self.facts else self.order.status

    @property
    def is_ready(self) -> bool:
        return self.facts is not None

    @property
    def folder(self) -> Path:
        return Path(settings.DATA_DIR, "base_models", str(self.pk))

    @property
    def model_facts(self) -> ModelFacts:
        return ModelFacts.model_validate(self.facts)

    @property
    def summary(self) -> dict[str, Any]:
        """The few facts that lists show."""
        facts = self.facts or {}
        return {key: facts.get(key) for key in ("parameters", "context_length", "architecture", "dtype")}
