"""The comparisons that a client's guests are asked to rate, as lines of their home page: no name, no setting, no arm."""

from django.db.models import Count, F, Q
from django.urls import reverse

from studio.comparisons.models import Comparison
from studio.orders.models import Order
from studio.workspaces.models import Member
from studio.workspaces.portal import Asked

MOST = 10
"""Lines, those shared last."""


def ratings(member: Member) -> list[Asked]:
    """What they have rated of each is counted, and what is left is not: that would read the answers of them all."""
    mine = Q(ratings__user=member.user_id, ratings__created_at__gte=F("order__created_at"))
    found = (
        Comparison.objects.for_action(member, "comparison.rate")
        .filter(shared_at__isnull=False, order__status=Order.Status.SUCCEEDED)
        .exclude(state__in=Comparison.LIVE)
        .select_related("project__client")
        .annotate(mine=Count("ratings", filter=mine, distinct=True))
        .order_by("-shared_at")
    )
    return [
        Asked(
            "Which answer is better?",
            f"{each.mine} rated by you" if each.mine else "two answers at a time",
            reverse("shared_rate", args=[each.pk]),
            "Go on" if each.mine else "Rate answers",
            since=each.shared_at,
        )
        for each in found[:MOST]
    ]
