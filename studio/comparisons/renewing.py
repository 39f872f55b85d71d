"""Finds verdicts anew that an earlier studio stored, from what was measured then: no worker is needed, and blind ratings count on."""

import logging
import time

from django.db import InterfaceError, OperationalError
from django.db.models import Q, QuerySet

from studio.comparisons import verdict
from studio.comparisons.figures import TRIED, VERSION
from studio.comparisons.models import Comparison
from studio.errors import UserError
from studio.orders.models import Order

log = logging.getLogger(__name__)

AT_ONCE = 3
"""Verdicts of one round: what else it looks after waits for them."""
SELDOM = 60.0
"""Seconds to the next look once none is left, for every stored verdict is read: more come only with a new version of the studio."""


class Renewing:
    """Goes through them a few in each round, the newest comparisons first."""

    def __init__(self) -> None:
        self.next_look = 0.0

    def advance(self) -> list[str]:
        if time.monotonic() < self.next_look:
            return []
        found = list(earlier()[:AT_ONCE])
        did = [line for each in found if (line := renewed(each))]
        if len(found) < AT_ONCE:
            self.next_look = time.monotonic() + SELDOM
        return did


def earlier() -> "QuerySet[Comparison]":
    """As `verdict.is_awaited` says of one."""
    stored = Comparison.objects.filter(verdict__isnull=False, order__status=Order.Status.SUCCEEDED).exclude(state__in=Comparison.LIVE)
    tried = Q(verdict__has_key=TRIED) & Q(**{f"verdict__{TRIED}": VERSION})
    now = Q(verdict__has_key="version") & Q(verdict__version=VERSION)
    return stored.filter(~tried, ~now).select_related("order").order_by("-created_at")


def renewed(comparison: Comparison) -> str:
    """What became of it; empty where it is measured anew, or was, in the meantime. What cannot be found anew is not tried again."""
    try:
        stored, said = verdict.reckoned(comparison).model_dump(mode="json"), "its verdict is found anew"
    except (OperationalError, InterfaceError):  # of the database, and none of the comparison's
        raise
    except Exception as problem:  # what was kept may be damaged in any way: it is told, and keeps no other verdict waiting
        if not isinstance(problem, UserError):
            log.exception("The verdict of comparison %s could not be found anew.", comparison.pk)
        stored, said = (comparison.verdict or {}) | {TRIED: VERSION}, "its verdict cannot be found anew"
    same = Comparison.objects.filter(pk=comparison.pk, order=comparison.order).exclude(state__in=Comparison.LIVE)
    return f"{comparison}: {said}" if same.update(verdict=stored) else ""
