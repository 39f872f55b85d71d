"""The form of a new comparison: what differs, what it would take, and Start. What may be is `services`'s."""

from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render

from studio.comparisons import metrics, services
from studio.comparisons.forms import SWEEPS, ComparisonForm, placeholders
from studio.comparisons.models import Comparison
from studio.datasets.views import project_of
from studio.errors import UserError
from studio.runs.models import Run
from studio.runs.queue import When
from studio.runs.views import address_with, choose_project
from studio.workspaces.models import Project

TEXTS = {
    Comparison.Differs.METHOD: "LoRA, QLoRA, DoRA or all weights",
    Comparison.Differs.RANK: "How wide the adapter is",
    Comparison.Differs.TARGETS: "Which layers get an adapter",
    Comparison.Differs.LEARNING_RATE: "How far each step goes",
    Comparison.Differs.BASE_MODEL: "What is taught",
    Comparison.Differs.DATASET_VERSION: "What it learns from",
    Comparison.Differs.SWEEP: "The best settings are searched for",
}
"""Under what can differ."""


def new(request: HttpRequest) -> HttpResponse:
    projects = Project.objects.for_action(request, "comparison.edit").select_related("client")
    like = like_of(request)
    wanted = request.POST.get("project") or (str(like.project_id) if like else request.GET.get("project"))
    if wanted is None:
        only = projects[:2]
        if len(only) == 1:
            return redirect(f"{request.path}?{address_with(request, only[0])}")
        return choose_project(request, projects, section="comparisons")
    form = ComparisonForm(request, project_of(request, "comparison.edit", wanted), like=like)
    refused = None
    if request.method == "POST":
        try:
            made = start(request, form)
        except UserError as error:
            refused = error
        else:
            return redirect("comparisons:detail", pk=made.pk)
    return render(request, "comparisons/new.html", context_of(form, refused), status=422 if refused else 200)


def like_of(request: HttpRequest) -> Run | None:
    """The run whose settings are taken over."""
    pk = request.POST.get("like") or request.GET.get("like")
    found: Run | None = Run.objects.for_action(request, "run.view").select_related("project__client").named(pk) if pk else None
    return found


def start(request: HttpRequest, form: ComparisonForm) -> Comparison:
    arms, sweep = form.arms()
    seeds, chosen = form.seeds, metrics.typed(form.sent)
    if form.errors:
        raise UserError("Some settings cannot be used.", fields=form.errors)
    return services.create_comparison(
        request.member,  # type: ignore[attr-defined]
        project=form.project,
        name=form.name,
        differs=form.differs,
        arms=arms,
        seeds=seeds,
        metrics=chosen,
        probe=form.probe(),
        sweep=sweep.model_dump(mode="json") if sweep else None,
        stops_hopeless=form.stops_hopeless,
        when=When.typed(request.POST, request.member.workspace),  # type: ignore[attr-defined]
        by_hand=True,
    )


def outlook(request: HttpRequest) -> HttpResponse:
    """The part of the form that follows what is typed; with `?part=search` what can be searched, which goes by how each arm is trained."""
    form = ComparisonForm(request, project_of(request, "comparison.edit", request.POST.get("project")), like=like_of(request))
    template = "comparisons/new_search.html" if request.GET.get("part") == "search" else "comparisons/new.html#answer"
    return render(request, template, context_of(form))


def context_of(form: ComparisonForm, refused: UserError | None = None) -> dict[str, Any]:
    found = form.outlook() if form.version and form.model else None
    form.errors |= {name: text for name, text in (refused.fields if refused else {}).items() if name not in form.errors}
    if form.is_sent:
        try:
            metrics.typed(form.sent)
        except UserError as problem:
            form.errors |= problem.fields
    return {
        "section": "comparisons",
        "form": form,
        "project": form.project,
        "like": form.like,
        "outlook": found,
        "refused": refused,
        "errors": form.errors,
        "usual": placeholders(form),
        "kinds": [(value, label, TEXTS[Comparison.Differs(value)]) for value, label in Comparison.Differs.choices],
        "sweeps": SWEEPS,
        "offers": form.offers(),
    }
