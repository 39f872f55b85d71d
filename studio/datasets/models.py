"""What a run reads: a dataset, and its immutable versions with a hash and a frozen split."""

from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import models

from studio.basemodels.models import BaseModel
from studio.orders.models import Order
from studio.training import DatasetFacts, TokenFacts
from studio.workspaces.models import Client, Project, Tenant


class Dataset(Tenant):
    WORKSPACE, CLIENT = "project__client__workspace", "project__client"

    project = models.ForeignKey(Project, models.CASCADE, related_name="datasets")
    name = models.CharField(max_length=80)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["name"]
        constraints = [models.UniqueConstraint(fields=["project", "name"], name="dataset_name_per_project")]

    def __str__(self) -> str:
        return self.name

    @property
    def audit_client(self) -> Client:
        return self.project.client

    @property
    def newest(self) -> "DatasetVersion | None":
        return self.versions.order_by("-number").first()


class DatasetVersion(Tenant):
    """One uploaded file as canonical rows. Never changed once it is ready."""

    WORKSPACE, CLIENT = "dataset__project__client__workspace", "dataset__project__client"

    dataset = models.ForeignKey(Dataset, models.CASCADE, related_name="versions")
    number = models.PositiveIntegerField()
    filename = models.CharField(max_length=255)
    """What the person called it; a label, never a path."""
    upload = models.CharField(max_length=64)
    """Name of the stored file below DATA_DIR/uploads."""
    upload_sha256 = models.CharField(max_length=64)
    mapping = models.JSONField(default=dict)
    validation_percent = models.FloatField(default=5.0)
    seed = models.BigIntegerField(default=42)
    facts = models.JSONField(null=True)
    """What the import found: shape, rows, refused, duplicates, split, notices, warnings, statistics."""
    tokens = models.JSONField(default=dict)
    """`{base model id: training.TokenFacts}`."""
    sha256 = models.CharField(max_length=64, blank=True)
    """Of the canonical rows."""
    order = models.OneToOneField(Order, models.PROTECT, related_name="dataset_version")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["dataset", "-number"]
        constraints = [models.UniqueConstraint(fields=["dataset", "number"], name="version_number_per_dataset")]

    def __str__(self) -> str:
        return f"{self.dataset.name} v{self.number}"

    @property
    def audit_client(self) -> Client:
        return self.dataset.project.client

    @property
    def is_ready(self) -> bool:
        return self.facts is not None

    @property
    def status(self) -> str:
        """importing, ready or refused: the words of the API."""
        if self.is_ready:
            return "ready"
        return "importing" if self.order.is_live else "refused"

    @property
    def columns(self) -> dict[str, str]:
        """`{column: its first value}` of a file that was refused because nobody could tell what its columns mean."""
        found: dict[str, str] = (self.order.result or {}).get("columns", {}) if self.status == "refused" else {}
        return found

    @property
    def folder(self) -> Path:
        return Path(settings.DATA_DIR, "datasets", str(self.pk))

    @property
    def rows_path(self) -> Path:
        return self.folder / "rows.parquet"

    def token_facts(self, base: BaseModel | None) -> TokenFacts | None:
        found: dict[str, Any] | None = self.tokens.get(str(base.pk)) if base else None
        return TokenFacts.model_validate(found) if found else None

    def dataset_facts(self, base: BaseModel | None) -> DatasetFacts:
        facts = self.facts or {}
        split = facts["split"]
        return DatasetFacts(
            name=str(self),
            shape=facts["shape"],
            rows=facts["rows"],
            train=split["train"],
            validation=split["validation"],
            tokens=self.token_facts(base),
        )


class Measurement(models.Model):
    """The order that measures a version's rows with a base model's tokenizer."""

    version = models.ForeignKey(DatasetVersion, models.CASCADE, related_name="measurements")
    base = models.ForeignKey(BaseModel, models.CASCADE, related_name="measurements")
    order = models.OneToOneField(Order, models.CASCADE, related_name="measurement")
