"""What stands around every page of a dataset version: its heading, its versions and its tabs (templates/datasets/frame.html)."""

from functools import partial
from typing import Any

from django.http import HttpRequest
from django.shortcuts import get_object_or_404

from studio.datasets import shaping
from studio.datasets.models import DatasetVersion

MEANINGS = {
    "prompt": "the question",
    "completion": "the answer to learn",
    "context": "added below the question",
    "system": "what the model is told beforehand",
    "messages": "a whole conversation",
    "text": "plain text",
    "chosen": "the better answer",
    "rejected": "the worse answer",
    "label": "whether the answer is good or bad",
    "tools": "the tools that the model may call",
}
"""What a column can be, in the words of the form."""


def version_for(request: HttpRequest, action: str, pk: str) -> DatasetVersion:
    """The version, or 404 for whoever may not do that with it."""
    visible = DatasetVersion.objects.for_action(request, action)
    found: DatasetVersion = get_object_or_404(visible.select_related("order", "parent", "dataset__project__client"), pk=pk)
    return found


def about(found: DatasetVersion) -> dict[str, Any]:
    """What the page of a version shows in every state."""
    return {
        "section": "projects",
        "version": found,
        "dataset": found.dataset,
        "project": found.dataset.project,
        "order": found.order,
        "overlaps": partial(shaping.overlaps, found),
        "versions": found.dataset.versions.select_related("order"),
        "meanings": MEANINGS,
        "columns": meant(found, {column: field for field, column in found.mapping.items()}),
    }


def meant(found: DatasetVersion, fields: dict[str, str]) -> list[dict[str, str]]:
    """The columns of a refused file, each with its first value and what it was said to be."""
    return [{"name": name, "example": value, "meaning": fields.get(name, "")} for name, value in found.columns.items()]
