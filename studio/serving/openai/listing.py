"""What /v1/models tells: the deployments at which something answers, and the releases that can be asked by name."""

from typing import Any

from studio.serving.models import Deployment
from studio.serving.openai.calls import find
from studio.serving.openai.errors import not_found
from studio.serving.reach import deployments_for, releases_for
from studio.workspaces.models import Member

MOST_RELEASES = 1000
"""The newest of them; there are no pages in OpenAI's list."""


def models_for(member: Member) -> list[dict[str, Any]]:
    deployments = deployments_for(member).filter(release__isnull=False).order_by("client__slug", "slug")
    releases = releases_for(member).order_by("-created_at")[:MOST_RELEASES]
    told = [told_of(str(found), found.client.slug, found.created_at) for found in deployments]
    return told + [told_of(found.name, found.project.client.slug, found.created_at) for found in releases]


def model_for(member: Member, name: str) -> dict[str, Any]:
    found = find(member, name)
    if not isinstance(found, Deployment):
        return told_of(found.name, found.project.client.slug, found.created_at)
    if found.release is None:
        raise not_found(name)
    return told_of(str(found), found.client.slug, found.created_at)


def told_of(name: str, owner: str, created: Any) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": int(created.timestamp()), "owned_by": owner}
