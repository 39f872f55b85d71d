"""How long a version's rows are in the tokens of a base model: the card of its overview, and what a max length would cost."""

from typing import Any

from django.http import HttpRequest

from studio.basemodels.models import BaseModel
from studio.datasets import services
from studio.datasets.models import DatasetVersion
from studio.workspaces.models import ScopedQuerySet


def ready_bases(request: HttpRequest) -> ScopedQuerySet:
    """The base models that rows can be read with, the newest first."""
    found: ScopedQuerySet = BaseModel.objects.for_action(request, "base_model.view").filter(facts__isnull=False)
    return found.order_by("-created_at")


def chosen_base(request: HttpRequest) -> BaseModel | None:
    """The base model that the address names, or the newest one; None where there is none yet."""
    typed = request.GET.get("base", "")
    if not typed:
        return ready_bases(request).first()
    found: BaseModel = ready_bases(request).named(typed)
    return found


def lengths(request: HttpRequest, found: DatasetVersion) -> dict[str, Any]:
    """Token lengths under the chosen base model; asked for where they are not known yet."""
    base = chosen_base(request)
    facts = found.token_facts(base)
    measurement = None
    if base is not None and facts is None and request.member.may("dataset.create"):  # type: ignore[attr-defined]
        measurement = services.measure(found, base, member=request.member)  # type: ignore[attr-defined]
    return {
        "base": base,
        "bases": ready_bases(request),
        "tokens": facts,
        "measurement": measurement,
        "bars": bars(facts.histogram) if facts else [],
    }


def bars(histogram: list[tuple[int, int]]) -> list[dict[str, float]]:
    """The histogram as rectangles in a picture that is 100 high and 100 wide per bar."""
    highest = max((count for _, count in histogram), default=1) or 1
    heights = [max(100 * count / highest, 2 if count else 0) for _, count in histogram]
    return [
        {"x": number * 100 + 4, "y": round(100 - height, 1), "height": round(height, 1), "edge": edge, "rows": count}
        for number, ((edge, count), height) in enumerate(zip(histogram, heights, strict=True))
    ]
