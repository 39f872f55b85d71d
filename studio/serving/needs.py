"""Deployments that fail too often, as lines of somebody's home page."""

from datetime import timedelta

from django.db.models import Count, F, Q
from django.urls import reverse
from django.utils import timezone

from studio.serving.models import LEFT, Call, Deployment
from studio.workspaces.models import Member
from studio.workspaces.needs import Need

ENOUGH = 20
"""Requests of the last hour, below which a few failures say nothing."""
TOO_MANY = 0.05
"""Share of them that failed."""
MOST = 5
"""Lines."""


def failing(member: Member) -> list[Need]:
    """What failed most first."""
    if not member.may("deployment.promote"):  # only who may do something about it
        return []
    lately = Call.objects.for_action(member, "traffic.view").filter(at__gte=timezone.now() - timedelta(hours=1), deployment__isnull=False)
    sums = (
        lately.order_by().values("deployment").annotate(calls=Count("pk"), errors=Count("pk", filter=Q(status__gte=400) & ~Q(status=LEFT)))
    )
    bad = {row["deployment"]: row for row in sums.filter(calls__gte=ENOUGH, errors__gt=F("calls") * TOO_MANY)}
    worst = sorted(bad, key=lambda pk: -bad[pk]["errors"] / bad[pk]["calls"])[:MOST]
    deployments = Deployment.objects.filter(archived_at=None).select_related("client").in_bulk(worst)
    found = []
    for deployment in (deployments[pk] for pk in worst if pk in deployments):
        row = bad[deployment.pk]
        share = round(100 * row["errors"] / row["calls"])
        text = f"{share} % of its {row['calls']:,} requests in the last hour failed."
        url = reverse("deployments:detail", args=[deployment.pk]) + "?period=hour#traffic"
        found.append(Need(str(deployment), text, url, level="error", colour=deployment.client.colour))
    return found
