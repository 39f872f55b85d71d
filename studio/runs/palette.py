"""What the command palette reaches besides pages, projects and clients: the newest runs, datasets and artifacts."""

from typing import Any

from django.urls import reverse

from studio.artifacts.models import Artifact
from studio.datasets.models import Dataset
from studio.runs.models import Run

NEWEST = 50
"""Of each kind; it travels with every page."""


def things(member: Any) -> list[dict[str, str]]:
    runs = Run.objects.for_action(member, "run.view").current().select_related("project")[:NEWEST]
    datasets = Dataset.objects.for_action(member, "dataset.view").current().select_related("project").order_by("-created_at")[:NEWEST]
    artifacts = Artifact.objects.for_action(member, "artifact.view").current().select_related("project")[:NEWEST]
    return [
        {"title": thing.name, "hint": thing.project.name, "url": reverse(f"{address}:detail", args=[thing.pk]), "kind": kind}
        for address, kind, found in (("runs", "run", runs), ("datasets", "dataset", datasets), ("artifacts", "artifact", artifacts))
        for thing in found
    ]
