"""One training: plugin, config, base model and dataset version, and the order that does it."""

from typing import Any

from django.db import models

from studio.artifacts.models import Artifact
from studio.basemodels.models import BaseModel
from studio.datasets.models import DatasetVersion
from studio.orders.models import Order
from studio.workspaces.models import Client, Project, Tenant


class Run(Tenant):
    WORKSPACE, CLIENT = "project__client__workspace", "project__client"

    project = models.ForeignKey(Project, models.CASCADE, related_name="runs")
    name = models.CharField(max_length=120)
    plugin = models.CharField(max_length=60)
    config = models.JSONField()
    """The plugin's Config, whole."""
    base_model = models.ForeignKey(BaseModel, models.PROTECT, related_name="runs")
    dataset_version = models.ForeignKey(DatasetVersion, models.PROTECT, related_name="runs")
    prompts = models.JSONField(default=list)
    estimate = models.JSONField(null=True)
    """What was predicted before it started: a training.Estimate."""
    correction = models.JSONField(default=dict)
    """What that prediction had learnt from earlier runs: `{"memory": 1.04, "seconds": 0.9}`, by which the plugin's own was multiplied."""
    measured = models.JSONField(null=True)
    """What it took, once it has ended with a result: `{"memory": bytes, "seconds": s}`, as far as it was told."""
    order = models.OneToOneField(Order, models.PROTECT, related_name="run")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-created_at"]
        indexes = [
            models.Index(fields=["-created_at"], name="runs_newest"),
            # All that a search or a list looks at: the rows themselves are wide.
            models.Index(fields=["project", "created_at", "name", "base_model", "order", "id"], name="runs_found"),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def audit_client(self) -> Client:
        return self.project.client

    @property
    def status(self) -> str:
        return self.order.status

    @property
    def artifact(self) -> Artifact | None:
        return next(iter(self.order.artifacts.all()), None)

    @property
    def usage(self) -> dict[str, Any]:
        """What it has taken so far: seconds, bytes, tokens."""
        latest = self.order.latest
        return {
            "seconds": round(self.order.seconds, 1),
            "peak_memory": latest.get("memory"),
            "tokens": latest.get("tokens"),
            "tokens_per_second": latest.get("tokens_per_second"),
        }
