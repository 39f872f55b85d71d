"""Runs that differ in one thing, and what was found: comparisons with their arms, surveys before a run, extracted adapters, retraining."""

from typing import ClassVar

from django.conf import settings
from django.db import models
from django.utils import timezone

from studio.artifacts.models import Artifact
from studio.basemodels.models import BaseModel
from studio.datasets.models import DatasetVersion
from studio.orders.models import Order
from studio.releases.models import Release
from studio.runs.models import Run
from studio.workspaces.models import Client, Project, Tenant, Workspace


class Comparison(Tenant):
    """Arms that differ in one thing, on the same rows, split, seeds, effective batch and budget, and one verdict about them."""

    WORKSPACE, CLIENT, GUEST = "project__client__workspace", "project__client", "shared_at"

    class Differs(models.TextChoices):
        METHOD = "method", "Method"
        RANK = "rank", "Rank"
        TARGETS = "targets", "Targets"
        LEARNING_RATE = "learning_rate", "Learning rate"
        BASE_MODEL = "base_model", "Base model"
        DATASET_VERSION = "dataset_version", "Dataset version"
        SWEEP = "sweep", "Sweep"

    class State(models.TextChoices):
        RUNNING = "running", "Training"
        MEASURING = "measuring", "Measuring"
        DONE = "done", "Done"
        STOPPED = "stopped", "Stopped"
        FAILED = "failed", "Failed"

    LIVE: ClassVar[tuple[str, ...]] = (State.RUNNING, State.MEASURING)

    project = models.ForeignKey(Project, models.CASCADE, related_name="comparisons")
    name = models.CharField(max_length=120)
    differs = models.CharField(max_length=20, choices=Differs.choices)
    state = models.CharField(max_length=12, choices=State.choices, default=State.RUNNING, db_index=True)
    seeds = models.JSONField()
    """Whole numbers: each arm is trained once with each."""
    shared_settings = models.JSONField(default=dict)
    """`{"epochs", "max_steps", "max_length", "effective_batch", ...}`: what all arms have in common, as far as it is not a plugin's own."""
    sweep = models.JSONField(null=True)
    """`{"by": "grid" | "random" | "tpe", "space": {setting: [values] | {"low", "high", "log"}}, "most": arms, "prune": bool}`."""
    metrics = models.JSONField(default=list)
    """What answers are scored by: `training.scoring.Metric` each."""
    probe = models.ForeignKey(DatasetVersion, models.PROTECT, null=True, related_name="probed_by")
    """The rows that forgetting is measured on; None takes those that the studio brings along."""
    stops_hopeless = models.BooleanField(default=True)
    """Whether a run that cannot catch up is stopped early."""
    order = models.OneToOneField(Order, models.PROTECT, null=True, related_name="comparison")
    """The one that measures the results; None before all runs have ended."""
    before = models.OneToOneField(Order, models.PROTECT, null=True, related_name="+")
    """The earlier measurement, kept until the order has succeeded; None where there is none, or it has."""
    verdict = models.JSONField(null=True)
    """A comparisons.verdict.Verdict; None before anything was measured."""
    error = models.TextField(blank=True)
    shared_at = models.DateTimeField(null=True)
    """Since when guests of the client may rate its answers."""
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    ended_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return self.name

    @property
    def audit_client(self) -> Client:
        return self.project.client

    @property
    def is_live(self) -> bool:
        return self.state in self.LIVE

    @property
    def sentence(self) -> str:
        """The verdict in one; empty where there is none, or one that an older studio wrote."""
        from studio.comparisons.figures import Verdict

        verdict = Verdict.of(self)
        return verdict.sentence if verdict else ""


class Arm(Tenant):
    """One of the ways that are compared: a plugin with its settings, on a base model and rows."""

    WORKSPACE, CLIENT = "comparison__project__client__workspace", "comparison__project__client"

    comparison = models.ForeignKey(Comparison, models.CASCADE, related_name="arms")
    number = models.PositiveSmallIntegerField()
    """From 0, in the order of the form."""
    name = models.CharField(max_length=120)
    """What differs, in words: "LoRA, rank 16"."""
    plugin = models.CharField(max_length=60)
    config = models.JSONField()
    """The plugin's Config, whole, but for the seed, which is each run's own."""
    base_model = models.ForeignKey(BaseModel, models.PROTECT, related_name="arms")
    dataset_version = models.ForeignKey(DatasetVersion, models.PROTECT, related_name="arms")
    is_reference = models.BooleanField(default=False)
    """The one that the others are held against: full fine-tuning, where there is one."""

    class Meta:
        ordering = ["number"]
        constraints = [models.UniqueConstraint(fields=["comparison", "number"], name="arm_number_per_comparison")]

    def __str__(self) -> str:
        return self.name

    @property
    def part_of(self) -> Comparison:
        """What keeps the rows that it learns from, in the eyes of whoever wants to delete them."""
        return self.comparison

    @property
    def audit_client(self) -> Client:
        return self.comparison.project.client


class ArmRun(Tenant):
    """An arm trained with one of the seeds."""

    WORKSPACE, CLIENT = "arm__comparison__project__client__workspace", "arm__comparison__project__client"

    arm = models.ForeignKey(Arm, models.CASCADE, related_name="runs")
    seed = models.BigIntegerField()
    run = models.OneToOneField(Run, models.PROTECT, related_name="arm_run")
    ended_early = models.CharField(max_length=300, blank=True)
    """Why the comparison stopped it: a sentence. Empty where it did not."""

    class Meta:
        ordering = ["arm__number", "seed"]
        constraints = [models.UniqueConstraint(fields=["arm", "seed"], name="run_per_arm_and_seed")]

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}"


class Rating(Tenant):
    """Which of two arms' answers to one prompt somebody found better, without knowing whose they were."""

    WORKSPACE, CLIENT = "comparison__project__client__workspace", "comparison__project__client"

    comparison = models.ForeignKey(Comparison, models.CASCADE, related_name="ratings")
    prompt = models.PositiveIntegerField()
    """Its number among the prompts that were measured."""
    left = models.ForeignKey(Arm, models.CASCADE, related_name="+")
    right = models.ForeignKey(Arm, models.CASCADE, related_name="+")
    left_seed = models.BigIntegerField()
    right_seed = models.BigIntegerField()
    better = models.CharField(max_length=5, choices=[("left", "Left"), ("right", "Right"), ("equal", "Equal")])
    by_guest = models.BooleanField(default=False)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"Rating of {timezone.localtime(self.created_at):%Y-%m-%d %H:%M}"

    @property
    def audit_client(self) -> Client:
        return self.comparison.project.client


class Survey(Tenant):
    """What a base model makes of a dataset before it learns: how surprising the rows are to it, and which learning rates it takes.

    It goes with its rows, by `datasets.deleting`, which takes its order along; nothing else takes it away from its order.
    """

    WORKSPACE, CLIENT = "dataset_version__dataset__project__client__workspace", "dataset_version__dataset__project__client"

    dataset_version = models.ForeignKey(DatasetVersion, models.CASCADE, related_name="surveys")
    base_model = models.ForeignKey(BaseModel, models.PROTECT, related_name="surveys")
    order = models.OneToOneField(Order, models.PROTECT, related_name="survey")
    result = models.JSONField(null=True)
    """A training.advisor.Surveyed; None until it has been measured."""
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"Survey of {self.dataset_version} with {self.base_model}"

    @property
    def audit_client(self) -> Client:
        return self.dataset_version.dataset.project.client


class Extraction(Tenant):
    """Adapters taken out of a fully trained model, one for each rank, and how much of what it learnt each keeps."""

    WORKSPACE, CLIENT = "source__project__client__workspace", "source__project__client"

    source = models.ForeignKey(Artifact, models.PROTECT, related_name="extractions")
    """The fully trained model."""
    order = models.OneToOneField(Order, models.PROTECT, related_name="extraction")
    ranks = models.JSONField()
    """Whole numbers; 0 is the full rank."""
    keeps_tables = models.BooleanField(default=False)
    """Whether the tables of words, which no product of a low rank holds, go into each adapter whole."""
    result = models.JSONField(null=True)
    """What was measured at each rank, as its order kind judged it; None until it has ended."""
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"Adapters from {self.source}"

    @property
    def audit_client(self) -> Client:
        return self.source.project.client


class Retraining(Tenant):
    """Releases of many clients trained anew from their recipes on another base model."""

    WORKSPACE, CLIENT, SHARED = "workspace", "client", True

    workspace = models.ForeignKey(Workspace, models.CASCADE, related_name="retrainings")
    client = models.ForeignKey(Client, models.CASCADE, null=True, related_name="retrainings")
    """Whose releases alone; None where they are of several."""
    base_model = models.ForeignKey(BaseModel, models.PROTECT, related_name="retrainings")
    """The new one."""
    name = models.CharField(max_length=120)
    options = models.JSONField(default=dict)
    """A comparisons.retraining.Options: what was chosen for all of them."""
    stopped_at = models.DateTimeField(null=True)
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return self.name

    @property
    def audit_client(self) -> Client | None:
        return self.client


class Retrained(Tenant):
    """One release of a retraining: what it was, the run that trains it anew, and the release that comes of it."""

    WORKSPACE, CLIENT = "before__project__client__workspace", "before__project__client"

    retraining = models.ForeignKey(Retraining, models.CASCADE, related_name="releases")
    before = models.ForeignKey(Release, models.CASCADE, related_name="retrained")
    run = models.OneToOneField(Run, models.SET_NULL, null=True, related_name="retrained")
    after = models.ForeignKey(Release, models.SET_NULL, null=True, related_name="+")
    """Proposed once its run has ended; it meets the project's gate as every release does."""
    problem = models.CharField(max_length=300, blank=True)
    """Why it could not be trained anew: a sentence."""

    class Meta:
        ordering = ["before__name"]
        constraints = [models.UniqueConstraint(fields=["retraining", "before"], name="release_once_per_retraining")]

    def __str__(self) -> str:
        return f"{self.before} in {self.retraining}"

    @property
    def audit_client(self) -> Client:
        return self.before.project.client
