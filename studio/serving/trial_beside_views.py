"""The pages of two trials beside each other: which other one, and then both. What stands there is `trial_beside`'s."""

from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from studio.serving.models import Trial
from studio.serving.trial_beside import SETTINGS, Beside, comparable
from studio.serving.trial_views import SHOWN, found_for
from studio.training.form import as_text
from studio.workspaces.lists import page_of, query_of


def beside(request: HttpRequest, pk: str) -> HttpResponse:
    """The other trials of its set to choose from; with one that is chosen, both."""
    trial = found_for(request, "prompts.view", pk)
    others = comparable(trial, Trial.objects.for_action(request, "prompts.view")).select_related("client", "order", "order__created_by")
    if "trial" in request.GET:
        return draw(request, trial, Beside.of(trial, others.named(request.GET["trial"])))
    page = page_of(request, others.order_by("-created_at", "-pk").defer("prompts", "answers"))
    return render(request, "trials/others.html", {"section": "prompts", "trial": trial, "page": page, "query": query_of(request)})


def draw(request: HttpRequest, trial: Trial, both: Beside) -> HttpResponse:
    differing, everything = both.differing(), "differing" not in request.GET
    page = Paginator(both.prompts if everything else differing, SHOWN).get_page(request.GET.get("page"))
    context = {
        "section": "prompts",
        "trial": trial,
        "other": both.later if both.earlier == trial else both.earlier,
        "both": both,
        "settings": [(SETTINGS[name], (as_text(one), as_text(other))) for name, one, other in both.settings],
        "compared": sum(found.compared for found in both.counted),
        "differing": sum(found.differing for found in both.counted),
        "everything": everything,
        "prompts_differing": len(differing),
        "page": page,
        "rows": [both.row(places) for places in page],
        "query": query_of(request),
    }
    return render(request, "trials/beside.html", context)
