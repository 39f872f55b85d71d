"""Named places that answer: which release each points at, and everything that it pointed at before."""

from django.conf import settings
from django.db import models

from studio.releases.models import Release
from studio.workspaces.models import Client, Project, Tenant


class Deployment(Tenant):
    """A named slot of a client ("acme/support") that points at a release, and may try another on a share of the requests."""

    WORKSPACE, CLIENT = "project__client__workspace", "project__client"

    project = models.ForeignKey(Project, models.CASCADE, related_name="deployments")
    client = models.ForeignKey(Client, models.CASCADE, related_name="deployments")
    """The project's, so that the name is unique."""
    slug = models.SlugField(max_length=60)
    release = models.ForeignKey(Release, models.PROTECT, null=True, related_name="deployments")
    """What answers; None before the first promotion."""
    canary = models.ForeignKey(Release, models.PROTECT, null=True, related_name="canaries")
    canary_percent = models.PositiveSmallIntegerField(default=0)
    """Share of the requests that the canary answers."""
    changed_at = models.DateTimeField(auto_now=True)
    created_at = models.DateTimeField(auto_now_add=True)
    archived_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["slug"]
        constraints = [models.UniqueConstraint(fields=["client", "slug"], name="deployment_slug_per_client")]

    def __str__(self) -> str:
        return f"{self.client.slug}/{self.slug}"

    @property
    def audit_client(self) -> Client:
        return self.client

    @property
    def main_percent(self) -> int:
        """Share of the requests that the release answers, where a canary is tried."""
        return 100 - self.canary_percent


class DeploymentState(Tenant):
    """One entry of a deployment's history: what it pointed at from then on, who changed it and why."""

    WORKSPACE, CLIENT = "deployment__client__workspace", "deployment__client"

    class Change(models.TextChoices):
        PROMOTE = "promote", "Promoted"
        CANARY = "canary", "Canary"
        ROLLBACK = "rollback", "Rolled back"
        CLEAR = "clear", "Cleared"

    deployment = models.ForeignKey(Deployment, models.CASCADE, related_name="states")
    number = models.PositiveIntegerField()
    change = models.CharField(max_length=10, choices=Change.choices)
    release = models.ForeignKey(Release, models.PROTECT, null=True, related_name="states")
    canary = models.ForeignKey(Release, models.PROTECT, null=True, related_name="+")
    canary_percent = models.PositiveSmallIntegerField(default=0)
    back_to = models.ForeignKey("self", models.SET_NULL, null=True, related_name="+")
    """The state that a rollback brought back."""
    why = models.TextField(blank=True)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+")
    key = models.CharField(max_length=80, blank=True)
    at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-number"]
        constraints = [models.UniqueConstraint(fields=["deployment", "number"], name="state_number_per_deployment")]

    def __str__(self) -> str:
        return f"{self.deployment} {self.number}"
