"""What a run reads: a dataset, and its immutable versions with a hash and a frozen split."""

from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import models

from studio.basemodels.models import BaseModel
from studio.orders.models import Order
from studio.training import DatasetFacts, TokenFacts
from studio.workspaces.models import Client, Project, Tenant, Workspace


class Dataset(Tenant):
    WORKSPACE, CLIENT = "project__client__workspace", "project__client"

    project = models.ForeignKey(Project, models.CASCADE, related_name="datasets")
    name = models.CharField(max_length=80)
    held_out = models.BooleanField(default=False)
    """Kept for gates and comparisons: no run may train on it."""
    license = models.CharField(max_length=80, blank=True)
    """On what terms its rows may be used, such as cc-by-4.0; empty where nobody has said."""
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
    """Canonical rows, from an uploaded file or made of other versions. Never changed once it is ready."""

    WORKSPACE, CLIENT = "dataset__project__client__workspace", "dataset__project__client"

    dataset = models.ForeignKey(Dataset, models.CASCADE, related_name="versions")
    number = models.PositiveIntegerField()
    filename = models.CharField(max_length=255)
    """What the person called it; a label, never a path."""
    upload = models.CharField(max_length=64, blank=True)
    """Name of the stored file below DATA_DIR/uploads; empty where the rows come from elsewhere."""
    upload_sha256 = models.CharField(max_length=64, blank=True)
    parent = models.ForeignKey("self", models.SET_NULL, null=True, blank=True, related_name="children")
    """The version that this one was edited from."""
    origin = models.JSONField(default=dict)
    """Where the rows come from when it is no upload: `{"kind": "revision" | "mix" | "hub" | "object" | "split", ...}`."""
    note = models.CharField(max_length=500, blank=True)
    """Why it was made, in the words of whoever made it."""
    reading = models.JSONField(default=dict)
    """How the file is read where a person chose: `encoding`, `refused` (skip or stop), `sheet`."""
    rules = models.JSONField(default=dict)
    """How the rows are split, beyond share and seed: `stratify` and `together` (names of columns), `near_duplicates` (kept together)."""
    mapping = models.JSONField(default=dict)
    validation_percent = models.FloatField(default=5.0)
    seed = models.BigIntegerField(default=42)
    facts = models.JSONField(null=True)
    """What the import found: shape, rows, refused, duplicates, split, notices, warnings, statistics."""
    tokens = models.JSONField(default=dict)
    """`{base model id: training.TokenFacts}`."""
    sha256 = models.CharField(max_length=64, blank=True)
    """Of the canonical rows."""
    size = models.BigIntegerField(default=0)
    """Bytes that it takes on the disk: its rows, and the file that they were read from."""
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
        return dict((self.order.result or {}).get("columns", [])) if self.status == "refused" else {}

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
        split, forms = facts["split"], facts.get("statistics", {}).get("forms", {})
        return DatasetFacts(
            name=str(self),
            shape=facts["shape"],
            rows=facts["rows"],
            train=split["train"],
            validation=split["validation"],
            tokens=self.token_facts(base),
            unpaired=forms.get("liked", 0) + forms.get("disliked", 0),
            liked=forms.get("liked", 0),
            tools=forms.get("tools", 0),
        )


class Upload(Tenant):
    """A file that arrives in pieces, and can go on after a break. Once it is complete, a version takes it over."""

    WORKSPACE, CLIENT = "project__client__workspace", "project__client"

    class Purpose(models.TextChoices):
        DATASET = "dataset", "Dataset"
        ADAPTER = "adapter", "Adapter"

    project = models.ForeignKey(Project, models.CASCADE, related_name="uploads")
    purpose = models.CharField(max_length=10, choices=Purpose.choices, default=Purpose.DATASET)
    """What is to become of it."""
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="+")
    filename = models.CharField(max_length=255)
    length = models.PositiveBigIntegerField()
    sha256 = models.CharField(max_length=64, blank=True)
    """Of the whole file, once it is complete."""
    claimed_sha256 = models.CharField(max_length=64, blank=True)
    """What whoever sends it says it has; empty where they did not say."""
    name = models.CharField(max_length=64)
    """Of the file below DATA_DIR/uploads."""
    origin = models.JSONField(default=dict)
    """Where the studio fetches it from, `{"kind": "hub" | "object", ...}`; empty where a person sends it."""
    order = models.OneToOneField(Order, models.PROTECT, null=True, related_name="upload")
    """The order that fetches it."""
    created_at = models.DateTimeField(auto_now_add=True)
    touched_at = models.DateTimeField(auto_now=True)
    """When the last piece arrived; what nobody goes on with is removed after a while."""

    class Meta:
        ordering = ["-created_at"]

    @property
    def audit_client(self) -> Client:
        return self.project.client

    @property
    def path(self) -> Path:
        return Path(settings.DATA_DIR, "uploads", self.name)

    @property
    def offset(self) -> int:
        """Bytes that have arrived."""
        return self.path.stat().st_size if self.path.is_file() else 0

    @property
    def percent(self) -> int:
        return 100 * self.offset // self.length

    @property
    def is_complete(self) -> bool:
        return bool(self.sha256)


class Draft(Tenant):
    """What one person has changed in a version and not saved yet. Saving makes the next version."""

    WORKSPACE, CLIENT = "version__dataset__project__client__workspace", "version__dataset__project__client"

    version = models.ForeignKey(DatasetVersion, models.CASCADE, related_name="drafts")
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="+")
    changes = models.JSONField(default=dict)
    """`{"edited": {index: row}, "dropped": [index], "added": [row], "rules": [{"finding": name, "do": "drop" | "fix"}]}`."""
    created_at = models.DateTimeField(auto_now_add=True)
    touched_at = models.DateTimeField(auto_now=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["version", "created_by"], name="one_draft_per_person_and_version")]

    @property
    def audit_client(self) -> Client:
        return self.version.audit_client


class RowMark(models.Model):
    """A row that somebody marked, by its content, so that the mark stays from version to version."""

    class Mark(models.TextChoices):
        STAR = "star", "Good example"
        LOOK = "look", "Look at again"

    dataset = models.ForeignKey(Dataset, models.CASCADE, related_name="marks")
    row_hash = models.BigIntegerField()
    """The row's 64-bit hash, as a signed number."""
    mark = models.CharField(max_length=8, choices=Mark.choices)
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["dataset", "row_hash", "mark"], name="one_mark_of_a_kind_per_row")]


class Connection(Tenant):
    """A place outside the studio that a workspace may ask: an endpoint with models, or a store of files."""

    WORKSPACE = "workspace"

    class Kind(models.TextChoices):
        OPENAI = "openai", "OpenAI-compatible endpoint"
        S3 = "s3", "S3"
        GCS = "gcs", "Google Cloud Storage"
        HUB = "hub", "Hugging Face"

    workspace = models.ForeignKey(Workspace, models.CASCADE, related_name="connections")
    kind = models.CharField(max_length=8, choices=Kind.choices)
    name = models.CharField(max_length=80)
    settings = models.JSONField(default=dict)
    """By kind: `url` and `model`; `bucket`, `region`, `url`, `key_id`; nothing secret."""
    secret = models.TextField(blank=True)
    """Encrypted; never shown again once it is stored."""
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["name"]
        constraints = [models.UniqueConstraint(fields=["workspace", "name"], name="connection_name_per_workspace")]

    def __str__(self) -> str:
        return self.name

    @property
    def place(self) -> str:
        """Where it leads, in a word."""
        return str(self.settings.get("url") or self.settings.get("bucket") or "")


class Synthesis(Tenant):
    """Rows that a model writes after seeds and an instruction; each waits until a person accepts or rejects it."""

    WORKSPACE, CLIENT = "dataset__project__client__workspace", "dataset__project__client"

    dataset = models.ForeignKey(Dataset, models.CASCADE, related_name="syntheses")
    version = models.ForeignKey(DatasetVersion, models.SET_NULL, null=True, related_name="syntheses")
    """Where the seeds come from."""
    connection = models.ForeignKey(Connection, models.SET_NULL, null=True, blank=True, related_name="+")
    settings = models.JSONField(default=dict)
    """`instruction`, `target` (rows wanted), `seeds` (indices), `model`, `temperature`, `artifact` (id of a model of the workspace)."""
    order = models.OneToOneField(Order, models.PROTECT, related_name="synthesis")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-created_at"]

    @property
    def audit_client(self) -> Client:
        return self.dataset.project.client


class SyntheticRow(models.Model):
    class State(models.TextChoices):
        WAITING = "waiting", "Waiting"
        ACCEPTED = "accepted", "Accepted"
        REJECTED = "rejected", "Rejected"
        SAVED = "saved", "Saved"

    synthesis = models.ForeignKey(Synthesis, models.CASCADE, related_name="rows")
    number = models.PositiveIntegerField()
    row = models.JSONField()
    state = models.CharField(max_length=8, choices=State.choices, default=State.WAITING)
    edited = models.BooleanField(default=False)
    decided_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+")

    class Meta:
        ordering = ["number"]
        constraints = [models.UniqueConstraint(fields=["synthesis", "number"], name="synthetic_row_number")]


class TokenView(models.Model):
    """The order that writes rows of a version in a base model's tokens, to be looked at."""

    version = models.ForeignKey(DatasetVersion, models.CASCADE, related_name="token_views")
    base = models.ForeignKey(BaseModel, models.CASCADE, related_name="+")
    begin = models.PositiveBigIntegerField()
    """Index of the first row; each view holds a block of rows."""
    order = models.OneToOneField(Order, models.CASCADE, related_name="token_view")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["version", "base", "begin"], name="one_token_view_per_block")]


class Measurement(models.Model):
    """The order that measures a version's rows with a base model's tokenizer."""

    version = models.ForeignKey(DatasetVersion, models.CASCADE, related_name="measurements")
    base = models.ForeignKey(BaseModel, models.CASCADE, related_name="measurements")
    order = models.OneToOneField(Order, models.CASCADE, related_name="measurement")
