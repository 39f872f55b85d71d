"""What somebody, or the key that they act through, may ask at the endpoint: deployments, and releases by their own names."""

from typing import Any

from django.db.models import QuerySet

from studio.releases.models import Release
from studio.serving.models import Deployment
from studio.workspaces.models import Member, ScopedQuerySet


def deployments_for(member: Member) -> ScopedQuerySet:
    """Those at work; of a key that is narrowed to deployments only its own. Whether anything answers there is `choosing`'s to say."""
    found: ScopedQuerySet = Deployment.objects.for_action(member, "chat.use").filter(archived_at=None)
    return found.select_related("client", "project__client", "release", "canary")


def releases_for(member: Member) -> "QuerySet[Release]":
    """Approved ones that may be asked by name; none for a key that is narrowed to deployments."""
    found: QuerySet[Any] = Release.objects.for_action(member, "chat.use").filter(stage=Release.Stage.APPROVED)
    return found.select_related("project__client", "artifact", "base_model")


def asked_by(member: Member) -> list[Deployment] | None:
    """The deployments at work that a member's key is narrowed to, by name; None where it is narrowed to none in particular."""
    if member.key is None or not member.key.by_deployment:
        return None
    return list(deployments_for(member).order_by("client__slug", "slug"))
