"""Home, a project, and runs from the form to the result."""

import inspect
from collections.abc import Iterable
from datetime import timedelta
from functools import partial
from typing import Any

from django.contrib import messages
from django.db.models import Case, Count, QuerySet
from django.db.models import When as Whenever
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone

from studio.artifacts.models import Artifact
from studio.basemodels import services as base_services
from studio.basemodels.models import BaseModel
from studio.datasets.models import Dataset
from studio.datasets.services import with_newest
from studio.datasets.views import project_of
from studio.errors import UserError
from studio.orders.models import Event, Order, Slot
from studio.orders.states import kept_until
from studio.releases.models import Release
from studio.releases.shared_views import portal
from studio.runs import services
from studio.runs.choices import RunForm, in_order, parts, way_out
from studio.runs.models import Run
from studio.runs.pages_of_a_run import is_thinned, shown_events, steps_between
from studio.runs.queue import QUEUE, When, words_for
from studio.runs.recipe import recipe_of
from studio.runs.services import Forecast
from studio.runs.summary import summary_of
from studio.training import Estimate
from studio.training.form import form_fields
from studio.training.registry import load_plugins
from studio.workspaces.lists import options, page_of, query_of
from studio.workspaces.models import Client, Project
from studio.workspaces.needs import needs_of
from studio.workspaces.searching import matching, words_of

LOG_PIECE = 64 << 10
RELEASES_SHOWN = 8
SPARK = 48
"""Losses in the small line beside a run."""
NEEDED = timedelta(days=7)
"""How long a failed run asks for somebody on the home page."""
JOINED = ("order", "project__client", "base_model", "dataset_version__dataset")
ROW = (
    "name", "created_at", "project__name", "project__client__colour", "base_model__name", "dataset_version__number",
    "dataset_version__dataset__name", "order__status", "order__latest", "order__worked", "order__started_at", "order__ended_at",
)  # fmt: skip
"""All that the table shows of a run: what the joined rows know of models and datasets is long."""


def home(request: HttpRequest) -> HttpResponse:
    """What is running now, what needs me, what was done lately; for a newcomer, the next step. A client's guests have a page of theirs."""
    if not request.member.may("run.view"):  # type: ignore[attr-defined]
        return portal(request)
    runs = Run.objects.for_action(request, "run.view").current().select_related("order", "project__client", "base_model")
    projects = Project.objects.for_action(request, "project.view").current().select_related("client")
    models = BaseModel.objects.for_action(request, "base_model.view")
    orders = Order.objects.for_action(request, "run.view").current().filter(kind="train")
    ended = orders.filter(ended_at__isnull=False).order_by("-ended_at")
    failed = of_orders(runs, ended.filter(status=Order.Status.FAILED, ended_at__gte=timezone.now() - NEEDED), 5)
    lately = of_orders(runs, ended.exclude(status__in=Order.LIVE), 8 + len(failed))
    context = {
        "section": "home",
        "live": with_points(of_orders(runs, at_work_first(orders.filter(status__in=Order.LIVE)), 20)),
        "failed": failed,
        "recent": [run for run in lately if run not in failed][:8],
        "projects": with_counts(projects[:12]),
        "has_model": models.filter(facts__isnull=False).exists(),
        "coming_model": models.filter(facts__isnull=True, order__status__in=Order.LIVE).first(),
        "offered": base_services.PACKAGES,
        "has_dataset": Dataset.objects.for_action(request, "dataset.view").exists(),
        "has_run": runs.exists(),
        "workers": [slot for slot in Slot.objects.all() if slot.is_alive],
        "needs": needs_of(request.member),  # type: ignore[attr-defined]
    }
    return render(request, "runs/home.html", context)


def with_counts(projects: Iterable[Project]) -> list[Project]:
    """The projects, each with its `dataset_count` and `run_count`; counted apart, for joined they would multiply each other."""
    found = list(projects)
    datasets, runs = (
        dict(model.objects.filter(project__in=found).order_by().values_list("project").annotate(number=Count("pk")))
        for model in (Dataset, Run)
    )
    for each in found:
        each.dataset_count, each.run_count = datasets.get(each.pk, 0), runs.get(each.pk, 0)  # type: ignore[attr-defined]
    return found


def at_work_first(orders: QuerySet[Order]) -> QuerySet[Order]:
    """What a worker holds before what waits; of each the newest first."""
    return orders.order_by(Case(Whenever(status__in=Order.ACTIVE, then=0), default=1), "-created_at")


def of_orders(runs: QuerySet[Run], orders: QuerySet[Order], count: int) -> list[Run]:
    """The runs of the first of these orders: by what became of them they are found faster than by way of every run."""
    pks = list(orders.values_list("pk", flat=True)[:count])
    found = {run.order_id: run for run in runs.filter(order__in=pks)}
    return [found[pk] for pk in pks if pk in found]


def with_points(runs: Iterable[Run]) -> list[Run]:
    """The runs, each with the newest losses of its order as `points`, for a line in its row."""
    found = list(runs)
    for run in found:
        newest = Event.objects.filter(order=run.order_id, attempt=run.order.attempt, type="metric", body__has_key="loss").order_by("-seq")[
            :SPARK
        ]
        run.points = ",".join(str(event.body["loss"]) for event in reversed(newest))  # type: ignore[attr-defined]
    return found


def project(request: HttpRequest, pk: str) -> HttpResponse:
    found = get_object_or_404(Project.objects.for_action(request, "project.view").select_related("client"), pk=pk)
    rows = Run.objects.for_action(request, "run.view").filter(project=found).select_related(*JOINED).only(*JOINED, *ROW)
    context = {
        "section": "projects",
        "project": found,
        "datasets": with_newest(Dataset.objects.for_action(request, "dataset.view").filter(project=found)),
        "runs": rows,
        "artifacts": Artifact.objects.for_action(request, "artifact.view")
        .filter(project=found)
        .select_related("project__client", "base_model"),
        "releases": Release.objects.for_action(request, "release.view").filter(project=found)[:RELEASES_SHOWN],
        "siblings": Project.objects.for_action(request, "project.view").filter(client=found.client),
        "has_model": BaseModel.objects.for_action(request, "base_model.view").filter(facts__isnull=False).exists(),
    }
    return render(request, "runs/project.html", context)


def runs(request: HttpRequest) -> HttpResponse:
    rows = Run.objects.for_action(request, "run.view").select_related(*JOINED).only(*JOINED, *ROW)
    clients = Client.objects.for_action(request, "client.view").values_list("pk", "name")
    chosen = next((pk for pk, _ in clients if str(pk) == request.GET.get("client")), None)
    status = request.GET.get("status", "")
    rows = rows.filter(project__client=chosen) if chosen else rows.current()
    if status in Order.Status.values:
        rows = rows.filter(order__status=status)
    typed = request.GET.get("q", "")
    rows = rows.filter(matching(Run, words_of(typed), names=("name", "project__name", "project__client__name", "base_model__name")))
    page = page_of(request, rows)
    context = {
        "section": "runs",
        "page": page,
        "query": query_of(request),
        "typed": typed,
        "clients": options(clients, chosen),
        "chosen": chosen,
        "status": status,
        "statuses": Order.Status.choices,
    }
    return render(request, "runs/list.html", context)


def choose_project(request: HttpRequest, projects: Any, *, section: str = "runs") -> HttpResponse:
    """Where a run is to stand, or a comparison of several, with all that the address says besides."""
    typed = request.GET.get("q", "")
    page = page_of(request, projects.filter(matching(Project, words_of(typed), names=("name", "client__name"))))
    kept = [(name, value) for name, value in request.GET.items() if name not in ("q", "page")]
    choices = [(project, address_with(request, project)) for project in page.object_list]
    context = {"section": section, "choices": choices, "page": page, "query": query_of(request), "typed": typed, "kept": kept}
    return render(request, "runs/choose_project.html", context)


def new(request: HttpRequest) -> HttpResponse:
    """What to learn from, what to start from, how: and what it will take."""
    projects = Project.objects.for_action(request, "run.create").select_related("client")
    like = None
    if "from" in request.GET:
        like = Run.objects.for_action(request, "run.view").named(request.GET["from"])
    wanted = request.POST.get("project") or (str(like.project_id) if like else request.GET.get("project"))
    if wanted is None:
        only = projects[:2]
        if len(only) == 1:
            return redirect(f"{request.path}?{address_with(request, only[0])}")
        return choose_project(request, projects)
    form = RunForm.read(request, project_of(request, "run.create", wanted), like=like)
    refused = None
    if request.method == "POST":
        try:
            run = start(request, form)
        except UserError as error:
            refused = error
        else:
            return redirect("runs:detail", pk=run.pk)
    context = {"section": "runs", "like": like} | form.context(refused)
    return render(request, "runs/new.html", context, status=422 if refused else 200)


def address_with(request: HttpRequest, project: Project) -> str:
    """What the address asks for, such as a way to train, with the project that it is for."""
    query = request.GET.copy()
    for mine in ("q", "page"):  # of the list that it is chosen from
        query.pop(mine, None)
    query["project"] = str(project.pk)
    return query.urlencode()


def start(request: HttpRequest, form: RunForm) -> Run:
    config, errors = form.parse()
    if errors:
        raise UserError("Some settings cannot be used.", fields=errors)
    if form.version is None or form.model is None:
        raise UserError("Choose a dataset and a base model.")
    return services.create_run(
        request.member,  # type: ignore[attr-defined]
        project=form.project,
        name=form.name,
        plugin_name=form.plugin_name,
        config=config.model_dump(mode="json"),
        base=form.model,
        version=form.version,
        prompts=[line.strip()[:500] for line in form.prompts.splitlines() if line.strip()],
        when=When.typed(request.POST, request.member.workspace),  # type: ignore[attr-defined]
        by_hand=True,
    )


def estimate(request: HttpRequest) -> HttpResponse:
    """The part of the form that follows what is typed."""
    form = RunForm.read(request, project_of(request, "run.estimate", request.POST.get("project")))
    form.follow(request.POST.get("filled", ""))
    return render(request, "runs/new.html#answer", form.context())


def detail(request: HttpRequest, pk: str) -> HttpResponse:
    visible = Run.objects.for_action(request, "run.view")
    run = get_object_or_404(visible.select_related("order", "project__client", "base_model", "dataset_version__dataset"), pk=pk)
    # The row is read before the events, so that nothing falls between page and socket.
    after = run.order.last_seq
    predicted = Estimate.model_validate(run.estimate) if run.estimate else None
    context: dict[str, Any] = {
        "section": "runs",
        "run": run,
        "order": run.order,
        "project": run.project,
        "after": after,
        "plugin": load_plugins().get(run.plugin),
        "pausable": services.is_pausable(run),
        "predicted": predicted,
        "parts": parts(Forecast([], predicted)),
        "settings": changed_settings(run),
        "recipe": partial(recipe_of, run),
        "waiting": words_for(run.order),
        "states_kept_until": kept_until(run.order),
        "worker_there": services.training_host() is not None,
    }
    part = request.GET.get("part") if request.headers.get("HX-Request") else None
    if part == "live":
        return render(request, "runs/detail.html#live", context)
    events = shown_events(run.order, upto=after)
    summary = summary_of(run, events, costs=request.member.may("usage.view"))  # type: ignore[attr-defined]
    context |= {"events": events, "thinned": is_thinned(run.order, upto=after), "summary": summary}
    return render(request, "runs/detail.html#outcome" if part == "outcome" else "runs/detail.html", context)


def steps(request: HttpRequest, pk: str) -> HttpResponse:
    """The figures of some steps, whole where the page was sent a few of them: `{events}`."""
    run = get_object_or_404(Run.objects.for_action(request, "run.view").select_related("order"), pk=pk)
    first, last = (int(typed) if (typed := request.GET.get(name, "")).isdecimal() and len(typed) < 10 else 0 for name in ("first", "last"))
    return JsonResponse({"events": steps_between(run.order, first=first, last=last)})


def changed_settings(run: Run) -> list[dict[str, Any]]:
    """The config as a table, what differs from the default first."""
    loaded = load_plugins().get(run.plugin)
    known = {field.name: field for field in form_fields(loaded.plugin.Config)} if loaded and loaded.plugin else {}
    rows = []
    for name, value in run.config.items():
        field = known.get(name)
        rows.append(
            {
                "name": field.label if field else name,
                "value": value,
                "changed": bool(field and field.default != value),
                "default": field.text if field else "",
                "help": field.help if field else "",
            }
        )
    return sorted(rows, key=lambda row: not row["changed"])


def log(request: HttpRequest, pk: str) -> HttpResponse:
    """A piece of the log from a byte on: `{text, next, live}`."""
    run = get_object_or_404(Run.objects.for_action(request, "run.view").select_related("order"), pk=pk)
    typed = request.GET.get("after", "0")
    after = int(typed) if typed.isdecimal() and len(typed) < 15 else 0
    text, following = "", after
    if run.order.log_file.is_file():
        with run.order.log_file.open("rb") as file:
            file.seek(after)
            piece = file.read(LOG_PIECE)
        text, following = piece.decode("utf-8", errors="replace"), after + len(piece)
    return JsonResponse({"text": text, "next": following, "live": run.order.is_live})


def stop(request: HttpRequest, pk: str) -> HttpResponse:
    run = get_object_or_404(Run.objects.for_action(request, "run.stop").select_related("order"), pk=pk)
    discard = request.POST.get("discard") == "1"
    try:
        services.stop_run(request.member, run, discard=discard)  # type: ignore[attr-defined]
    except UserError as error:
        messages.info(request, error.message)
    else:
        messages.success(request, "Discarding the run." if discard else "Stopping. What was learnt so far is kept.")
    return redirect("runs:detail", pk=run.pk)


def pause(request: HttpRequest, pk: str) -> HttpResponse:
    run = get_object_or_404(Run.objects.for_action(request, "run.pause").select_related("order"), pk=pk)
    try:
        services.pause_run(request.member, run)  # type: ignore[attr-defined]
    except UserError as error:
        messages.info(request, error.message)
    else:
        messages.success(request, "Pausing. The worker is free once the state is saved.")
    return redirect("runs:detail", pk=run.pk)


def resume(request: HttpRequest, pk: str) -> HttpResponse:
    run = get_object_or_404(Run.objects.for_action(request, "run.resume").select_related("order"), pk=pk)
    try:
        services.resume_run(request.member, run)  # type: ignore[attr-defined]
    except UserError as error:
        messages.info(request, error.message)
    else:
        messages.success(request, "Resumed. It goes on as soon as a worker is free.")
    return redirect("runs:detail", pk=run.pk)


def plugins(request: HttpRequest) -> HttpResponse:
    found = [{"loaded": loaded, "obstacle": services.obstacle(loaded)} for loaded in in_order(load_plugins().values())]
    return render(request, "runs/plugins.html", {"section": "plugins", "plugins": found})


def plugin(request: HttpRequest, name: str) -> HttpResponse:
    loaded = load_plugins().get(name)
    if loaded is None:
        raise Http404
    fields = form_fields(loaded.plugin.Config) if loaded.plugin else []
    written = (inspect.getdoc(type(loaded.plugin)) or "") if loaded.plugin else ""
    description = [" ".join(paragraph.split()) for paragraph in written.split("\n\n")]
    obstacle = services.obstacle(loaded)
    context = {"section": "plugins", "loaded": loaded, "fields": fields, "description": description, "obstacle": obstacle}
    return render(request, "runs/plugin.html", context | ({"out": way_out(obstacle)} if obstacle else {}))


def workers(request: HttpRequest) -> HttpResponse:
    queued = Order.objects.for_action(request, "run.view").filter(status=Order.Status.QUEUED, queue=QUEUE).count()
    held = {order.worker: order for order in Order.objects.for_action(request, "run.view").filter(status__in=Order.ACTIVE)}
    slots = [{"slot": slot, "order": held.get(slot.name)} for slot in Slot.objects.all() if slot.is_alive]
    return render(request, "runs/workers.html", {"section": "workers", "slots": slots, "queued": queued})
