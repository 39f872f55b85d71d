"""What of releases, keys, limits and the disk waits for somebody: lines of their home page."""

import shutil
from datetime import timedelta

from django.conf import settings
from django.db.models import Q
from django.urls import reverse
from django.utils import timezone

from studio.orders.quotas import quotas, telling
from studio.releases.gates import approvals_condition
from studio.releases.models import Release
from studio.workspaces.models import ApiKey, Client, Member
from studio.workspaces.needs import Need
from studio.workspaces.templatetags.studio import filesize

SOON = timedelta(days=7)
MOST = 5
"""Lines of one sort."""
LOOKED_AT = 20
"""Candidates that are looked at for these lines, the oldest."""
NEARLY_FULL = 0.9
"""Share of the disk from which on it is said."""
LITTLE = 20 << 30
"""Bytes; where more are free, a disk is not called full, however large it is."""


def approvals(member: Member) -> list[Need]:
    """Candidates whose gate asks for people, that this one may approve, has not made, and has said nothing of yet."""
    waiting = (
        Release.objects.for_action(member, "release.approve")
        .filter(stage=Release.Stage.CANDIDATE, project__gate__approvals__gt=0)
        .exclude(created_by=member.user_id)
        .exclude(approvals__user=member.user_id)
        .select_related("project__client", "project__gate")
        .prefetch_related("approvals")
        .order_by("created_at")
    )
    found = []
    for release in waiting[:LOOKED_AT]:
        gate = release.project.gate
        counts = not gate.roles or member.role in gate.roles
        if counts and not approvals_condition(release, gate, list(release.approvals.all())).met:
            url, colour = reverse("releases:detail", args=[release.pk]), release.project.client.colour
            found.append(Need(release.name, "It waits for your approval.", url, colour=colour))
    return found[:MOST]


def keys(member: Member) -> list[Need]:
    """Their own keys that end within a week."""
    now = timezone.now()
    mine = ApiKey.objects.for_action(member, "key.view").filter(member=member.pk, revoked_at=None, expires_at__gt=now)
    ending = mine.filter(expires_at__lt=now + SOON).order_by("expires_at")[:MOST]
    url = reverse("settings:index")
    return [
        Need(f"API key {key.name}", f"It ends on {key.expires_at:%d %b %Y}. Scripts that use it are refused from then on.", url)
        for key in ending
    ]


def limits(member: Member) -> list[Need]:
    """Clients that have used most of what they may; one line each, the most urgent."""
    limited = Q(storage_limit__isnull=False) | Q(gpu_hours_limit__isnull=False)
    mine = Client.objects.for_action(member, "usage.view").filter(limited, archived_at=None)
    found = []
    for of_client in quotas(member.workspace, mine).values():
        for quota in telling([quota for quota in of_client if quota.name != "runs"])[:1]:
            client = quota.client
            found.append(
                Need(client.name, quota.sentence, reverse("clients:detail", args=[client.pk]), level=quota.level, colour=client.colour)
            )
    return sorted(found, key=lambda need: need.level != "error")[:MOST]


def disk(member: Member) -> list[Need]:
    """For those who may do something about it: whoever sees to the settings."""
    if not member.may("settings.view"):
        return []
    size = shutil.disk_usage(settings.DATA_DIR)
    if size.used / size.total < NEARLY_FULL or size.free > LITTLE:
        return []
    text = f"{filesize(size.free)} of {filesize(size.total)} are left. Delete what is not needed, or make the disk larger."
    return [Need("The server's disk is nearly full", text, reverse("usage:month"), level="error")]
