"""Comparisons that could not be measured, as lines of somebody's home page."""

from datetime import timedelta

from django.urls import reverse
from django.utils import timezone

from studio.comparisons.models import Comparison
from studio.workspaces.models import Member
from studio.workspaces.needs import Need

LATELY = timedelta(days=7)
MOST = 5
"""Lines."""


def failed(member: Member) -> list[Need]:
    mine = Comparison.objects.for_action(member, "comparison.edit").current()  # only who may do something about it
    rows = mine.filter(state=Comparison.State.FAILED, ended_at__gte=timezone.now() - LATELY).select_related("project__client")
    return [
        Need(
            str(found),
            found.error,
            reverse("comparisons:detail", args=[found.pk]),
            level="error",
            colour=found.project.client.colour,
        )
        for found in rows.defer("metrics", "sweep", "verdict").order_by("-ended_at")[:MOST]
    ]
