"""What leaves the workshop: releases named by rule, the gate before they are approved, and deliveries to clients."""

from django.conf import settings
from django.db import models
from django.utils import timezone

from studio.artifacts.models import Artifact, Build
from studio.basemodels.models import BaseModel
from studio.datasets.models import Dataset, DatasetVersion
from studio.orders.models import Order
from studio.workspaces.models import Client, Project, Tenant


class Gate(Tenant):
    """What a project asks of a release before it is approved."""

    WORKSPACE, CLIENT = "project__client__workspace", "project__client"

    project = models.OneToOneField(Project, models.CASCADE, related_name="gate")
    evaluated = models.BooleanField(default=False)
    """An evaluation on held-out rows must not be worse than that of the release in production by more than `margin`."""
    held_out = models.ForeignKey(Dataset, models.SET_NULL, null=True, related_name="+")
    """The client's held-out rows; None takes the validation rows of the version that the artifact learnt from."""
    margin = models.FloatField(default=2.0)
    """Per cent by which the loss may be higher."""
    approvals = models.PositiveSmallIntegerField(default=0)
    """How many people must approve; whoever made the release does not count."""
    roles = models.JSONField(default=list)
    """Roles whose approval counts; guest is the client's own sign-off. Empty means every role that may approve."""
    guest_sign_off = models.BooleanField(default=False)
    """At least one of the approvals must be a guest's."""

    def __str__(self) -> str:
        return f"Gate of {self.project}"

    @property
    def audit_client(self) -> Client:
        return self.project.client


class Release(Tenant):
    """A version of a client's adapter or model, named by rule, with what it is asked with."""

    WORKSPACE, CLIENT, GUEST = "project__client__workspace", "project__client", "shared_at"

    class Stage(models.TextChoices):
        DRAFT = "draft", "Draft"
        CANDIDATE = "candidate", "Candidate"
        APPROVED = "approved", "Approved"
        RETIRED = "retired", "Retired"

    class Bump(models.TextChoices):
        MAJOR = "major", "Major"
        MINOR = "minor", "Minor"
        PATCH = "patch", "Patch"

    project = models.ForeignKey(Project, models.CASCADE, related_name="releases")
    artifact = models.ForeignKey(Artifact, models.PROTECT, related_name="releases")
    """The adapter or model; its builds are what is delivered."""
    base_model = models.ForeignKey(BaseModel, models.PROTECT, null=True, related_name="releases")
    previous = models.ForeignKey("self", models.SET_NULL, null=True, related_name="+")
    """What the bump was counted from."""
    task = models.SlugField(max_length=60)
    name = models.CharField(max_length=200, db_index=True)
    """`{client}-{task}-{base}-v{major}.{minor}.{patch}`, as it was called when it was made."""
    major = models.PositiveIntegerField()
    minor = models.PositiveIntegerField()
    patch = models.PositiveIntegerField()
    bump = models.CharField(max_length=6, choices=Bump.choices)
    asked_with = models.JSONField(default=dict)
    """`{system, temperature, top_p, max_tokens, stop}`; what is missing is the model's own default."""
    notes = models.TextField(blank=True)
    stage = models.CharField(max_length=10, choices=Stage.choices, default=Stage.DRAFT, db_index=True)
    shared_at = models.DateTimeField(null=True)
    """Since when the client's guests see it: it was delivered, or their sign-off was asked for."""
    approved_at = models.DateTimeField(null=True)
    retired_at = models.DateTimeField(null=True)
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-created_at"]
        indexes = [models.Index(fields=["-created_at"], name="releases_newest")]
        constraints = [models.UniqueConstraint(fields=["project", "task", "major", "minor", "patch"], name="version_per_task")]

    def __str__(self) -> str:
        return self.name

    @property
    def audit_client(self) -> Client:
        return self.project.client

    @property
    def version(self) -> str:
        return f"v{self.major}.{self.minor}.{self.patch}"

    @property
    def handed_over(self) -> "models.QuerySet[Delivery]":
        """Its deliveries, as a list shows them."""
        return self.deliveries.select_related("build").defer("build__verification")

    @property
    def standing(self) -> str:
        """Its stage within a sentence: a draft, approved."""
        return f"a {self.stage}" if self.stage in (self.Stage.DRAFT, self.Stage.CANDIDATE) else self.stage


class Approval(Tenant):
    """What one person said of a release, with the samples that they saw."""

    WORKSPACE, CLIENT, GUEST = "release__project__client__workspace", "release__project__client", "release__shared_at"

    release = models.ForeignKey(Release, models.CASCADE, related_name="approvals")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+")
    email = models.CharField(max_length=254)
    """Who it was, also once they are gone."""
    role = models.CharField(max_length=10)
    """The role that they had then."""
    approves = models.BooleanField()
    comment = models.TextField(blank=True)
    samples = models.JSONField(default=list)
    """`[{prompt, answer, before}]` as they were shown: what the release answers, and what the one in production does."""
    at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["at"]
        constraints = [models.UniqueConstraint(fields=["release", "user"], name="one_approval_per_person")]

    def __str__(self) -> str:
        return f"{self.email}: {'approved' if self.approves else 'refused'}"

    @property
    def audit_client(self) -> Client:
        return self.release.project.client


class Evaluation(Tenant):
    """A release measured on held-out rows beside the one in production, and what both answer to a few of their questions."""

    WORKSPACE, CLIENT = "release__project__client__workspace", "release__project__client"

    release = models.ForeignKey(Release, models.CASCADE, related_name="evaluations")
    against = models.ForeignKey(Release, models.SET_NULL, null=True, related_name="+")
    """The release in production then; None where there was none."""
    dataset_version = models.ForeignKey(DatasetVersion, models.PROTECT, related_name="+")
    order = models.ForeignKey(Order, models.PROTECT, related_name="evaluations")
    result = models.JSONField(null=True)
    """`{rows, tokens, loss, before, change, low, high, unit, of, learnt, unknown, cut, samples: [{prompt, answer, before, expected}]}`.

    `loss` and `before` are in nats for each `unit` (token, or character where the two read in other tokens); `change` is in per cent, with
    its 95 % interval from `low` to `high`. What there was nothing to compare with is null. `of` rows there are, `learnt` were left out
    because one of the two was trained on them, `cut` because they are too long; of `unknown` nobody knows what it was trained on.
    """
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"Evaluation of {self.release}"

    @property
    def audit_client(self) -> Client:
        return self.release.project.client


class Delivery(Tenant):
    """A bundle handed to a client by a link that expires. Only the hash of the link is kept."""

    WORKSPACE, CLIENT, GUEST = "release__project__client__workspace", "release__project__client", "release__shared_at"

    release = models.ForeignKey(Release, models.PROTECT, related_name="deliveries")
    build = models.ForeignKey(Build, models.PROTECT, related_name="deliveries")
    """The file that is in the bundle."""
    recipient = models.CharField(max_length=120, blank=True)
    """For whom, in words."""
    sha256 = models.CharField(max_length=64, unique=True)
    signed_in = models.BooleanField(default=False)
    """The link alone is not enough: whoever opens it must be a guest of this client, or a member who may see it."""
    limit = models.PositiveIntegerField(null=True)
    """How many times it can be downloaded; None sets no limit."""
    downloads = models.PositiveIntegerField(default=0)
    expires_at = models.DateTimeField()
    revoked_at = models.DateTimeField(null=True)
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-created_at"]
        verbose_name_plural = "deliveries"

    def __str__(self) -> str:
        return f"{self.release} for {self.recipient or self.release.project.client}"

    @property
    def audit_client(self) -> Client:
        return self.release.project.client

    @property
    def is_open(self) -> bool:
        return self.state == "open"

    @property
    def state(self) -> str:
        """open, revoked, expired or spent."""
        if self.revoked_at is not None:
            return "revoked"
        if self.expires_at <= timezone.now():
            return "expired"
        return "spent" if self.left == 0 else "open"

    @property
    def left(self) -> int | None:
        """How many downloads are left; None where nothing limits them."""
        return None if self.limit is None else max(0, self.limit - self.downloads)


class Download(models.Model):
    """That a delivery was fetched: when, from where, by whom where that is known."""

    delivery = models.ForeignKey(Delivery, models.CASCADE, related_name="log")
    goes_on = models.ForeignKey("self", models.CASCADE, null=True, related_name="resumes")
    """The download that broke off and that this one goes on with: it is on record, and not counted."""
    at = models.DateTimeField(auto_now_add=True)
    ip = models.GenericIPAddressField(null=True)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+")
    agent = models.CharField(max_length=200, blank=True)

    class Meta:
        ordering = ["-at"]

    def __str__(self) -> str:
        return f"{self.delivery} at {self.at}"
