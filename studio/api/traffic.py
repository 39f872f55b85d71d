"""The API's part about what the endpoint was asked and how it answered: figures, and the same for Prometheus."""

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from asgiref.sync import async_to_sync
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from ninja import Query, Router, Schema
from pydantic import Field

from studio.api.fields import Input, Moment
from studio.errors import UserError
from studio.releases.models import Release
from studio.serving.asking import state
from studio.serving.metrics import CONTENT_TYPE, exposition
from studio.serving.models import Deployment
from studio.serving.periods import Period, days, hours
from studio.serving.reading import Asked, traffic_of
from studio.serving.traffic import Sums
from studio.workspaces.models import Client, Member

router = Router(tags=["Deployments"])
LONGEST = {"hour": timedelta(days=31), "day": timedelta(days=366)}
SPANS = {"hour": timedelta(hours=23), "day": timedelta(days=29)}
"""What is told where no beginning is given."""


class TrafficFilters(Input):
    deployment: UUID | None = None
    client: UUID | None = None
    since: Moment | None = Field(None, alias="from")
    """The hour or the day in which it lies is the first; a day ago by hours, and 30 days by days, where it is left out."""
    until: Moment | None = None
    """The hour or the day in which it lies is the last; now where it is left out."""
    by: str = Field("hour", pattern="^(hour|day)$")
    """hour, or day on the clocks of the workspace."""


class TimesOut(Schema):
    """Seconds, within a tenth; null where nothing was answered."""

    p50: float | None
    p95: float | None


class FiguresOut(Schema):
    requests: int
    errors: int
    """Requests that failed; whoever left before the end is not one."""
    outcomes: dict[str, int]
    """By status and code, such as 200 and "429 rate_limit_exceeded"; 499 are callers who left before the end."""
    prompt_tokens: int
    cached_tokens: int
    """Of the prompts' tokens, those that were still in memory."""
    completion_tokens: int
    seconds: TimesOut
    """To the end of an answer."""
    first: TimesOut
    """To the first token."""


class PartOut(FiguresOut):
    begin: datetime
    end: datetime


class OfReleaseOut(FiguresOut):
    release: UUID | None
    name: str
    canary: bool
    share: float
    """Of all requests."""


class TrafficOut(Schema):
    begin: datetime
    end: datetime
    total: FiguresOut
    releases: list[OfReleaseOut]
    """What was asked most first; empty where neither a deployment nor a client is named."""
    items: list[PartOut]
    """Every hour or day, the earliest first, those without a request included."""


def figures(sums: Sums) -> dict[str, Any]:
    return {
        "requests": sums.calls,
        "errors": sums.errors,
        "outcomes": dict(sums.outcomes),
        "prompt_tokens": sums.prompt_tokens,
        "cached_tokens": sums.cached_tokens,
        "completion_tokens": sums.completion_tokens,
        "seconds": {"p50": sums.p50, "p95": sums.p95},
        "first": {"p50": sums.first_p50, "p95": sums.first_p95},
    }


def period_asked(filters: TrafficFilters, member: Member) -> Period:
    zone, until = member.workspace.zone, filters.until or timezone.now()
    since = filters.since or until - SPANS[filters.by]
    if since > until:
        raise UserError("The time cannot be used.", fields={"from": "Must not be after until."})
    if until - since > LONGEST[filters.by]:
        most = f"At most {LONGEST[filters.by].days} days at once by the {filters.by}."
        raise UserError("The time is too long.", fields={"from": most})
    if filters.by == "day":
        return Period("day", days(since.astimezone(zone).date(), until.astimezone(zone).date(), zone), zone)
    return Period("hour", hours(since, until), zone)


@router.get("/traffic", response=TrafficOut, url_name="traffic")
def traffic(request: HttpRequest, filters: Query[TrafficFilters]) -> dict[str, Any]:
    """How many requests there were, of how many tokens, how quickly they were answered, and by which releases."""
    member: Member = request.member  # type: ignore[attr-defined]
    where: dict[str, Any] = {}
    if filters.deployment is not None:
        where["deployment"] = Deployment.objects.for_action(member, "traffic.view").named(filters.deployment).pk
    if filters.client is not None:
        where["client"] = Client.objects.for_action(member, "traffic.view").named(filters.client).pk
    told = traffic_of(Asked(member, where), period_asked(filters, member), *(("release_id", "canary") if where else ()))
    edges, total, groups = told.period.edges, told.total, told.groups if where else {}
    names = dict(Release.objects.filter(pk__in=[release for release, _ in groups if release]).values_list("pk", "name"))
    releases = [
        {"release": release, "name": names.get(release, ""), "canary": canary, "share": sums.calls / total.calls, **figures(sums)}
        for (release, canary), sums in sorted(groups.items(), key=lambda group: -group[1].calls)
    ]
    parts = zip(edges, edges[1:], told.parts, strict=False)
    items = [{"begin": begin, "end": end, **figures(sums)} for begin, end, sums in parts]
    return {"begin": edges[0], "end": edges[-1], "total": figures(total), "releases": releases, "items": items}


@router.get("/metrics", url_name="metrics")
def metrics(request: HttpRequest) -> HttpResponse:
    """What Prometheus reads: requests, tokens and times by deployment and release, and what the engine has in memory."""
    told = async_to_sync(state)()
    return HttpResponse(exposition(request.member, told), content_type=CONTENT_TYPE)  # type: ignore[attr-defined]
