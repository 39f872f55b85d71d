"""What the pages of builds show beyond their rows: the ladder of a source, and how long a build still takes."""

from datetime import datetime
from typing import Any

from django.http import HttpRequest
from django.utils import timezone

from studio.artifacts.chart import Point, ladder_chart
from studio.artifacts.forms import BuildForm
from studio.artifacts.ladder import Rung, rungs
from studio.artifacts.models import Artifact, Build
from studio.basemodels.models import BaseModel
from studio.orders.models import Event, Order
from studio.workspaces.models import ScopedQuerySet

SOON = 3.0
"""Seconds of progress before the time left is told; earlier it would jump."""


def builds_of(request: HttpRequest, made_from: Artifact | BaseModel) -> ScopedQuerySet:
    """Every build of a source, or of a base model as it is, the newest first."""
    by = {"source": made_from} if isinstance(made_from, Artifact) else {"base_model": made_from, "source": None}
    found: ScopedQuerySet = Build.objects.for_action(request, "build.view").filter(**by)
    return found.select_related("order", "artifact", "source", "base_model")


def seconds_left(order: Order) -> float | None:
    """How long the bytes that are left take at the pace of this phase so far; None where nobody can say."""
    if not (order.is_live and order.unit == "bytes" and 0 < order.done < order.total):
        return None
    events = Event.objects.filter(order=order, attempt=order.attempt)
    phase = events.filter(type="phase").order_by("-seq").first()
    first = events.filter(type="progress", seq__gt=phase.seq if phase else 0).order_by("seq").first()
    if first is None:
        return None
    return _at_this_pace(order, since=first.at, done=float(first.body.get("done") or 0))


def _at_this_pace(order: Order, *, since: datetime, done: float) -> float | None:
    seconds, moved = (timezone.now() - since).total_seconds(), order.done - done
    if seconds < SOON or moved <= 0:
        return None
    return (order.total - order.done) * seconds / moved


def ladder_page(request: HttpRequest, made_from: Artifact | BaseModel) -> dict[str, Any]:
    """The ladder of one source, what is on its way to it or did not get there, and the form for more."""
    member = request.member  # type: ignore[attr-defined]
    steps = rungs(member, made_from)
    builds = list(builds_of(request, made_from))
    there = {(step.quantization, step.importance) for step in steps}
    unproved = [build for build in reversed(builds) if build.kind == Build.Kind.GGUF and not build.passed]
    return {
        "section": "artifacts" if isinstance(made_from, Artifact) else "basemodels",
        "made_from": made_from,
        "steps": [(step, smallest_of_each(step.devices)) for step in steps],
        "best": next((step for step in steps if step.recommended), None),
        "chart": ladder_chart([point_of(step) for step in steps if step.mean_kl is not None]),
        "live": with_time_left([build for build in unproved if build.order.is_live]),
        "fallen": [build for build in unproved if not build.order.is_live and (build.quantization, build.importance) not in there],
        "form": BuildForm.of(made_from, builds=builds) if is_buildable(made_from) else None,
    }


def with_time_left(builds: list[Build]) -> list[Build]:
    """The builds, each with the `seconds_left` of its order, which several of them share."""
    orders = {build.order_id: build.order for build in builds}
    waits = {pk: seconds_left(order) for pk, order in orders.items()}
    for build in builds:
        build.seconds_left = waits[build.order_id]  # type: ignore[attr-defined]
    return builds


def smallest_of_each(devices: list[str]) -> list[str]:
    """Of each sort of device, such as "a laptop with 8 GB", the first; a server only where nothing else has room."""
    found: dict[str, str] = {}
    for device in devices:
        sort = device.partition(" with ")[0]
        if sort != "a server" or not found:
            found.setdefault(sort, device.removeprefix("a "))
    return list(found.values())


def is_buildable(made_from: Artifact | BaseModel) -> bool:
    return made_from.is_chattable if isinstance(made_from, Artifact) else made_from.is_ready


def point_of(step: Rung) -> Point:
    return Point(
        label=step.quantization,
        size=step.size,
        loss=step.mean_kl or 0.0,
        careful=step.importance,
        recommended=step.recommended,
    )
