"""The page "LoRA, QLoRA or full?", its panel on the form of a new run, and the survey that is started from it."""

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse

from studio.basemodels.models import BaseModel
from studio.comparisons import advising
from studio.comparisons.advice_charts import memory_chart, storage_chart
from studio.comparisons.advising import Advised, Alike
from studio.comparisons.models import Survey
from studio.datasets.models import DatasetVersion
from studio.datasets.views import project_of
from studio.errors import UserError
from studio.orders.pages import render_live
from studio.runs.views import address_with, choose_project
from studio.training import HostFacts
from studio.training.advicefacts import GOALS, Advice, Goal, Method
from studio.training.advisor import MOST_CLIENTS
from studio.training.form import as_text
from studio.training.literature import cited
from studio.workspaces.models import Project

MOST_NAMED = 100
"""Workers that an address may name."""


@dataclass(frozen=True)
class Chosen:
    """What the address asks about."""

    project: Project
    versions: list[DatasetVersion]
    models: list[BaseModel]
    version: DatasetVersion | None
    model: BaseModel | None
    goal: Goal
    clients: int
    there: list[Alike]
    """The workers that can be chosen among, by kind."""
    workers: list[str] | None
    """Those that count; None counts all."""
    gone: list[str]
    """Workers that the address names and that do not run now."""

    @classmethod
    def read(cls, request: HttpRequest, project: Project) -> "Chosen":
        """What the address names must be there; where it names nothing, the newest is taken."""
        told = request.GET if request.method == "GET" else request.POST
        seen = DatasetVersion.objects.for_action(request, "run.estimate").filter(dataset__project=project, facts__isnull=False)
        versions = list(seen.filter(dataset__held_out=False).select_related("dataset__project").order_by("-created_at")[:200])
        models = list(BaseModel.objects.for_action(request, "run.estimate").filter(facts__isnull=False).order_by("-created_at"))
        named_version, named_model = told.get("dataset_version"), told.get("base_model")
        of_project = DatasetVersion.objects.for_action(request, "run.estimate").filter(dataset__project=project)
        version = of_project.select_related("dataset__project").named(named_version) if named_version else next(iter(versions), None)
        model = BaseModel.objects.for_action(request, "run.estimate").named(named_model) if named_model else next(iter(models), None)
        goal, clients = told.get("goal", ""), told.get("clients", "")
        there = advising.workers_alike()
        running = {name for alike in there for name in alike.names}
        asked = list(dict.fromkeys(name[:120] for name in told.getlist("worker")[:MOST_NAMED] if name))
        return cls(
            project=project,
            versions=versions,
            models=models,
            version=version,
            model=model,
            goal=next((name for name in GOALS if name == goal), "task"),
            clients=min(max(1, int(clients)), MOST_CLIENTS) if clients.isascii() and clients.isdecimal() and len(clients) < 9 else 1,
            there=there,
            workers=[name for name in asked if name in running] or None,
            gone=[name for name in asked if name not in running],
        )

    @property
    def query(self) -> dict[str, str]:
        found = {"project": self.project, "dataset_version": self.version, "base_model": self.model}
        return {name: str(row.pk) for name, row in found.items() if row is not None}

    @property
    def address(self) -> str:
        more = {"goal": self.goal, "clients": str(self.clients)} | ({"worker": self.workers} if self.workers else {})
        return f"{reverse('advice:page')}?{urlencode(self.query | more, doseq=True)}"

    @property
    def kinds(self) -> list[tuple[HostFacts, int, bool]]:
        """(worker, how many more are like it, whether it counts) of each kind."""
        found = []
        for alike in self.there:
            counts = alike.among(self.workers)
            found.append((counts or alike.hosts[0], len(alike.hosts) - 1, counts is not None))
        return found

    def advised(self) -> Advised | None:
        if self.version is None or self.model is None:
            return None
        return advising.advice_for(base=self.model, version=self.version, goal=self.goal, clients=self.clients, on=self.workers)


def page(request: HttpRequest) -> HttpResponse:
    """Every method side by side, one proposal, and what it rests on. Follows what is chosen, and a survey that is on its way."""
    wanted = request.GET.get("project")
    if wanted is None:
        projects = Project.objects.for_action(request, "run.estimate").select_related("client")
        only = projects[:2]
        if len(only) == 1:
            return redirect(f"{request.path}?{address_with(request, only[0])}")
        return choose_project(request, projects)
    chosen = Chosen.read(request, project_of(request, "run.estimate", wanted))
    context: dict[str, Any] = {"section": "runs", "chosen": chosen, "goals": GOALS.items(), "project": chosen.project}
    try:
        found = chosen.advised()
    except UserError as refused:
        return render(request, "comparisons/advice.html", context | {"refused": refused})
    context |= context_of(chosen, found) if found else {}
    if request.GET.get("part") == "survey":
        return render_live(request, "comparisons/advice.html#survey", context, live=bool(found and found.live))
    return render(request, "comparisons/advice.html#answer" if request.headers.get("HX-Request") else "comparisons/advice.html", context)


def context_of(chosen: Chosen, found: Advised) -> dict[str, Any]:
    advice = found.advice
    return {
        "advised": found,
        "advice": advice,
        "best": advice.method(advice.recommendation.method),
        "reasons": [(reason.text, cited(reason.sources)) for reason in advice.recommendation.reasons],
        "cards": [(method, card_link(chosen, method)) for method in advice.methods],
        "rows": [(row, [row.cells.get(method.name, "") for method in advice.methods], cited(row.sources)) for row in advice.rows],
        "start": start_of(chosen, advice),
        "compare": compare_link(chosen, advice),
        "literature": cited(advice.sources),
        "memory": memory_chart(advice),
        "storage": storage_chart(advice),
    }


def card_link(chosen: Chosen, method: Method) -> str:
    """The form filled in for one of the methods; empty where no worker here could do it."""
    if method.verdict in ("no", "tight"):
        return ""
    return start_link(chosen, method.plugin, method.best.settings if method.best else method.settings)


def start_of(chosen: Chosen, advice: Advice) -> str:
    method = advice.method(advice.recommendation.method)
    return start_link(chosen, method.plugin, advice.recommendation.settings) if method else ""


def start_link(chosen: Chosen, plugin: str, settings: dict[str, Any]) -> str:
    """The form of a new run, filled in."""
    typed = {f"set_{name}": as_text(value) for name, value in settings.items()}
    return f"{reverse('runs:new')}?{urlencode(chosen.query | {'plugin': plugin} | typed)}"


def compare_link(chosen: Chosen, advice: Advice) -> str:
    """The form of a new comparison with the methods that fit as its arms; empty where fewer than two do. Rates are the usual ones, but
    where a range test found them to be too high.
    """
    fitting = [method for method in advice.methods if method.verdict in ("fits", "unknown")]
    if len(fitting) < 2:
        return ""
    shown = [method for method in fitting if method.name != "dora" or len(fitting) < 3]
    arms = [("ways", method.name) for method in shown]
    arms += [
        (f"rate_{method.name}", as_text(method.rates.high))
        for method in shown
        if method.rates and not method.rates.holds(method.learning_rate)
    ]
    return f"{reverse('comparisons:new')}?{urlencode([*chosen.query.items(), ('differs', 'method'), *arms])}"


def panel(request: HttpRequest) -> HttpResponse:
    """One sentence for the form of a new run; empty where there is nothing to say yet."""
    chosen = Chosen.read(request, project_of(request, "run.estimate", request.GET.get("project")))
    try:
        found = chosen.advised()
    except UserError:  # the form itself says so
        found = None
    return render(request, "comparisons/advice_panel.html", {"chosen": chosen, "advice": found.advice if found else None})


def survey(request: HttpRequest) -> HttpResponse:
    """Measures first."""
    chosen = Chosen.read(request, project_of(request, "run.create", request.POST.get("project")))
    if chosen.model is None or chosen.version is None:
        messages.info(request, "Choose a dataset and a base model.")
        return redirect(chosen.address)
    try:
        advising.begin_survey(request.member, base=chosen.model, version=chosen.version)  # type: ignore[attr-defined]
    except UserError as refused:
        messages.info(request, refused.message)
    return redirect(chosen.address)


def stop(request: HttpRequest, pk: str) -> HttpResponse:
    visible = Survey.objects.for_action(request, "run.create").select_related("order", "dataset_version__dataset", "base_model")
    found: Survey = get_object_or_404(visible, pk=pk)
    try:
        advising.stop_survey(request.member, found)  # type: ignore[attr-defined]
    except UserError as refused:
        messages.info(request, refused.message)
    asked = {
        "project": found.dataset_version.dataset.project_id,
        "dataset_version": found.dataset_version_id,
        "base_model": found.base_model_id,
    }
    return redirect(f"{reverse('advice:page')}?{urlencode(asked)}")
