"""What the command palette reaches of releases: the newest, by their names."""

from typing import Any

from django.urls import reverse

from studio.releases.models import Release

NEWEST = 50
"""It travels with every page."""


def releases(member: Any) -> list[dict[str, str]]:
    found = Release.objects.for_action(member, "release.view").current().select_related("project")[:NEWEST]
    return [
        {"title": release.name, "hint": release.project.name, "url": reverse("releases:detail", args=[release.pk]), "kind": "release"}
        for release in found
    ]
