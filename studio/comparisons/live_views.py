"""The page of one comparison while it trains and after, and the curves that it fetches. What is said is put together elsewhere."""

from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, render

from studio.comparisons.curves import curves_of, stands
from studio.comparisons.differences import settings_of
from studio.comparisons.marks import marks_of
from studio.comparisons.measured import Measured
from studio.comparisons.models import Arm, Comparison
from studio.comparisons.rating_views import ratings_context
from studio.comparisons.side_by_side import side_by_side
from studio.comparisons.strip import strip_of
from studio.comparisons.verdict import verdict_context
from studio.errors import UserError
from studio.orders.pages import render_live
from studio.workspaces.lists import query_of


def found_for(request: HttpRequest, pk: str) -> Comparison:
    visible = Comparison.objects.for_action(request, "comparison.view").select_related("project__client__workspace", "order", "created_by")
    found: Comparison = get_object_or_404(visible, pk=pk)
    return found


def detail(request: HttpRequest, pk: str) -> HttpResponse:
    """The verdict, the curves, what differs, ratings and answers. While it lives, the part with its runs is drawn again and again."""
    comparison, member = found_for(request, pk), request.member  # type: ignore[attr-defined]
    arms = list(comparison.arms.select_related("base_model", "dataset_version__dataset"))
    context: dict[str, Any] = {"section": "comparisons", "comparison": comparison, "strip": strip_of(comparison, arms)}
    context["live"] = comparison.is_live or context["strip"].is_moving
    if request.headers.get("HX-Request") and request.GET.get("part") == "live":
        return render_live(request, "comparisons/detail.html#live", context, live=context["live"])
    marks, settings = marks_of(arms), settings_of(comparison, arms)
    marked = [(arm, marks[arm.number]) for arm in arms]
    context |= {
        "arms": marked,
        "rows": list(zip(marked, settings.by_arm, strict=True)) if settings.differing else [],
        "drawn": [drawn(arm, marks[arm.number].colour, marks[arm.number].dash) for arm in arms],
        "settings": settings,
        **answers_for(request, comparison, arms),
        "query": query_of(request),
    }
    context |= verdict_context(comparison, member) | ratings_context(comparison, member)
    return render(request, "comparisons/detail.html", context)


def drawn(arm: Arm, colour: int, dash: int) -> dict[str, Any]:
    return {"number": arm.number, "name": arm.name, "colour": colour, "dash": dash}


def answers_for(request: HttpRequest, comparison: Comparison, arms: list[Arm]) -> dict[str, Any]:
    """Nothing before anything was measured, or where nobody was asked anything; in words what cannot be read any more."""
    try:
        measured = Measured.of(comparison)
    except UserError as problem:
        return {"damaged": problem.message if problem.code == "damaged" else ""}
    if not measured.prompts:
        return {}
    typed = request.GET
    shown = side_by_side(comparison, measured, arms, seed=typed.get("seed", ""), page=typed.get("page", "1"), wanted=typed.getlist("arm"))
    return {"answers": shown}


def curves(request: HttpRequest, pk: str) -> JsonResponse:
    comparison = found_for(request, pk)
    costs = request.member.may("usage.view")  # type: ignore[attr-defined]
    return JsonResponse(curves_of(comparison, since=stands(request.GET.get("since", "")), costs=costs))
