"""The registry: what training and building leave behind, immutable, hashed, with lineage; and the builds."""

import re
from pathlib import Path

from django.conf import settings
from django.db import models

from studio.basemodels.models import BaseModel
from studio.datasets.models import DatasetVersion, Upload
from studio.orders.models import Order
from studio.workspaces.models import Client, Project, Tenant


class Artifact(Tenant):
    WORKSPACE, CLIENT, GUEST = "project__client__workspace", "project__client", "releases__shared_at"

    class Kind(models.TextChoices):
        ADAPTER = "adapter", "Adapter"
        MODEL = "model", "Model"
        GGUF = "gguf", "GGUF file"
        GGUF_ADAPTER = "gguf_adapter", "GGUF adapter"
        REHEARSAL = "rehearsal", "Rehearsal"

    project = models.ForeignKey(Project, models.CASCADE, related_name="artifacts")
    kind = models.CharField(max_length=14, choices=Kind.choices)
    name = models.CharField(max_length=160)
    base_model = models.ForeignKey(BaseModel, models.PROTECT, null=True, related_name="artifacts")
    dataset_version = models.ForeignKey(DatasetVersion, models.PROTECT, null=True, related_name="artifacts")
    parents = models.ManyToManyField("self", symmetrical=False, blank=True, related_name="children")
    order = models.ForeignKey(Order, models.PROTECT, related_name="artifacts")
    """The order that made it; one that builds several types makes several."""
    folder_name = models.CharField(max_length=120)
    """Below DATA_DIR/artifacts: the sealed folder of its order, or a folder in that."""
    sha256 = models.CharField(max_length=64)
    size = models.BigIntegerField()
    files = models.JSONField(default=dict)
    """`{name: {sha256, size}}`, as sealed."""
    lineage = models.JSONField(default=dict)
    """What it was made from: base and revision, dataset version and hash, config, package versions, seed."""
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-created_at"]
        indexes = [
            models.Index(fields=["-created_at"], name="artifacts_newest"),
            models.Index(fields=["sha256"], name="artifacts_by_hash"),
            models.Index(fields=["project", "size"], name="artifacts_sizes"),
            # All that a search or a list looks at: the rows themselves are wide.
            models.Index(fields=["project", "created_at", "name", "base_model", "sha256", "kind", "id"], name="artifacts_found"),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def audit_client(self) -> Client:
        return self.project.client

    @property
    def folder(self) -> Path:
        return Path(settings.DATA_DIR, "artifacts", self.folder_name)

    @property
    def file_stem(self) -> str:
        """A file name that says what it is: client, project and run, in plain letters."""
        text = f"{self.project.client.slug}-{self.project.slug}-{self.name}".lower()
        return re.sub(r"[^a-z0-9.]+", "-", text).strip("-.")[:80]

    @property
    def is_chattable(self) -> bool:
        """True of what answers: an adapter on its base, or a model of its own. Of that a GGUF can be built as well.

        Merged weights are for taking home: what they were merged from answers for them.
        """
        if self.kind == self.Kind.MODEL:
            return not self.was_built
        return self.kind == self.Kind.ADAPTER and self.base_model is not None

    @property
    def was_built(self) -> bool:
        """True of what a build left: it was made from something here, and leaves the house only with a proof."""
        return self.kind in (self.Kind.GGUF, self.Kind.GGUF_ADAPTER) or "quantization" in self.lineage

    @property
    def answering(self) -> dict[str, str]:
        """The folders of what answers: `base`, a whole model, and `adapter`, which is put on it, or empty."""
        if self.kind == self.Kind.MODEL:
            return {"base": str(self.folder), "adapter": ""}
        assert self.base_model is not None  # an adapter has a base
        return {"base": str(self.base_model.folder), "adapter": str(self.folder)}


class Build(Tenant):
    """One file to take home in the making, and the proof that it runs. Those that were asked for together share an order."""

    WORKSPACE, CLIENT = "project__client__workspace", "project__client"

    class Kind(models.TextChoices):
        GGUF = "gguf", "GGUF file"
        GGUF_ADAPTER = "gguf_adapter", "GGUF adapter"
        MERGED = "merged", "Merged weights"

    project = models.ForeignKey(Project, models.CASCADE, related_name="builds")
    source = models.ForeignKey(Artifact, models.PROTECT, null=True, related_name="builds")
    """The adapter that is merged, or the model that is written as it is; None for a base model as it is."""
    base_model = models.ForeignKey(BaseModel, models.PROTECT, null=True, related_name="builds")
    """What a build without a source is made from."""
    kind = models.CharField(max_length=14, choices=Kind.choices, default=Kind.GGUF)
    quantization = models.CharField(max_length=10)
    """The type of a GGUF's weights, or the format (f32, f16, bf16) of merged weights and of a GGUF adapter."""
    importance = models.BooleanField(default=False)
    """Whether the weights that matter for the training rows are rounded with more care."""
    order = models.ForeignKey(Order, models.PROTECT, related_name="builds")
    artifact = models.OneToOneField(Artifact, models.PROTECT, null=True, related_name="build")
    """The file, once it is there."""
    verification = models.JSONField(null=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"{self.made_from.name} {self.quantization}"

    @property
    def audit_client(self) -> Client:
        return self.project.client

    @property
    def file_stem(self) -> str:
        """What its files are called, without type and suffix."""
        if self.source:
            return self.source.file_stem
        return re.sub(r"[^a-z0-9.]+", "-", self.made_from.name.lower()).strip("-.")[:80]

    @property
    def made_from(self) -> Artifact | BaseModel:
        found = self.source or self.base_model
        assert found is not None  # one of them always is
        return found

    @property
    def passed(self) -> bool:
        return bool(self.verification and self.verification.get("passed"))


class AdapterUpload(Tenant):
    """An adapter that was trained elsewhere, while it is looked through; what comes of it is its order's artifact."""

    WORKSPACE, CLIENT = "project__client__workspace", "project__client"

    project = models.ForeignKey(Project, models.CASCADE, related_name="adapter_uploads")
    name = models.CharField(max_length=160)
    base_model = models.ForeignKey(BaseModel, models.PROTECT, related_name="adapter_uploads")
    """What it is to stand on; its shapes must fit."""
    upload = models.ForeignKey(Upload, models.SET_NULL, null=True, related_name="adapters")
    """The file as it came, for as long as it is kept: until the adapter is taken, or nobody goes on with it."""
    filename = models.CharField(max_length=255)
    sha256 = models.CharField(max_length=64)
    """Of that file."""
    config = models.TextField(blank=True)
    """adapter_config.json, where it came apart from the weights."""
    order = models.OneToOneField(Order, models.PROTECT, related_name="adapter_upload")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return self.name

    @property
    def audit_client(self) -> Client:
        return self.project.client

    @property
    def artifact(self) -> Artifact | None:
        return next(iter(self.order.artifacts.all()), None)
