"""The pages of trials: asking a whole prompt set, watching it being answered, and the table. What may be is `trials`'s."""

from collections.abc import Callable, Iterator
from typing import Any

from django.contrib import messages
from django.core.paginator import Paginator
from django.db.models import Q
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.text import slugify

from studio.errors import UserError
from studio.orders.pages import render_live
from studio.serving import trial_table as tables
from studio.serving import trials as services
from studio.serving.columns import MOST, Column, column_of, offered
from studio.serving.models import Deployment, PromptSet, Trial
from studio.serving.prompt_views import IN_USE, chosen_client, clients_of
from studio.serving.trial_beside import comparable
from studio.streaming import sent
from studio.training.form import as_text
from studio.workspaces.lists import page_of, query_of
from studio.workspaces.models import Client
from studio.workspaces.searching import matching, words_of

SHOWN = 10
"""Prompts of a table on a page."""
OFFERED = 200
"""Prompt sets that a form offers."""
SETTINGS = ("temperature", "top_p", "max_tokens", "seed")
HEAVY = ("prompts", "answers", "asked_with")
"""What lists do not read."""
FORMATS: dict[str, tuple[str, Callable[[Trial], Iterator[bytes]]]] = {
    "csv": ("text/csv; charset=utf-8", tables.as_csv),
    "jsonl": ("application/jsonl", tables.as_jsonl),
}


def trials(request: HttpRequest) -> HttpResponse:
    visible = Trial.objects.for_action(request, "prompts.view")
    chosen = chosen_client(request)
    typed = request.GET.get("q", "")
    rows = visible.filter(client=chosen) if chosen else visible.filter(IN_USE)
    rows = rows.filter(matching(Trial, words_of(typed), names=("name", "client__name"))).order_by("-created_at", "-pk")
    page = page_of(request, rows.select_related("client", "order", "order__created_by").defer(*HEAVY))
    context = {
        "section": "prompts",
        "page": page,
        "query": query_of(request),
        "clients": clients_of(request, "prompts.view"),
        "chosen": chosen,
        "typed": typed,
        "any_live": any(trial.order.is_live for trial in page),
    }
    return render(request, "trials/list.html", context)


def new(request: HttpRequest) -> HttpResponse:
    """Which set, of which client's models, with what. A trial can be named instead of a set, to ask the same once more."""
    action, error = "prompts.edit", None
    chosen = source(request)
    clients = clients_of(request, action)
    wanted = request.POST.get("client") or request.GET.get("client") or ""
    client = clients.named(wanted) if wanted else None
    if chosen is not None and chosen.client is not None:
        client = chosen.client
    columns: list[Column] = []
    if request.method == "POST":
        try:
            columns = typed_columns(request)
            if chosen is None:
                raise UserError("Choose a prompt set.", fields={"set": "Choose a prompt set."})
            made = services.begin(request.member, prompts=chosen, columns=columns, asked_with=typed_settings(request))  # type: ignore[attr-defined]
        except UserError as problem:
            error = problem
            columns = columns or services.columns_again(request.member, request.POST.getlist("column"))[:MOST]  # type: ignore[attr-defined]
        else:
            return redirect("trials:detail", pk=made.pk)
    else:
        columns = columns_of(request, chosen)
        if client is None and "client" not in request.GET:
            client = next((column.client for column in columns if column.client), None) or only(clients)
        columns = [column for column in columns if column.client in (None, client)]  # another client may just have been chosen
    groups, sets = offered(request, client, action=action), sets_of(request, client)
    context = {
        "section": "prompts",
        "source": chosen,
        "again": isinstance(chosen, Trial),
        "sets": sets,
        "any": bool(chosen or sets or sets_of(request, None)),
        "clients": clients,
        "client": client,
        "client_id": str(client.pk) if client else "",
        "fixed": chosen is not None and chosen.client is not None,
        "groups": with_chosen(groups, columns),
        "places": [columns[place].target if place < len(columns) else "" for place in range(MOST)],
        "error": error,
        "typed": request.POST if request.method == "POST" else defaults(chosen),
        "longest": services.LONGEST_ANSWER,
    }
    return render(request, "trials/new.html", context, status=422 if error else 200)


def source(request: HttpRequest) -> PromptSet | Trial | None:
    sent = request.POST if request.method == "POST" else request.GET
    found: PromptSet | Trial | None = None
    if pk := sent.get("trial"):
        found = Trial.objects.for_action(request, "prompts.edit").select_related("client").named(pk)
    elif pk := sent.get("set"):
        found = PromptSet.objects.for_action(request, "prompts.edit").select_related("client").named(pk)
    return found


def typed_columns(request: HttpRequest) -> list[Column]:
    try:
        return [column_of(request, target, action="prompts.edit") for target in request.POST.getlist("column") if target]
    except UserError as problem:  # a deployment at which nothing answers any more
        raise UserError("Choose who is asked.", fields={"columns": problem.message}) from problem


def columns_of(request: HttpRequest, chosen: PromptSet | Trial | None) -> list[Column]:
    """Those of the address, or of the trial that is asked again, as far as they still answer."""
    targets = request.GET.getlist("column") or ([column["target"] for column in chosen.columns] if isinstance(chosen, Trial) else [])
    return services.columns_again(request.member, targets)[:MOST]  # type: ignore[attr-defined]


def only(clients: Any) -> Client | None:
    few = list(clients[:2])
    return few[0] if len(few) == 1 else None


def sets_of(request: HttpRequest, client: Client | None) -> list[PromptSet]:
    """The sets that may be asked: those of the workspace, and of the client where one is chosen."""
    mine = PromptSet.objects.for_action(request, "prompts.edit").filter(IN_USE)
    if client is not None:
        mine = mine.filter(Q(client__isnull=True) | Q(client=client))
    return list(mine.select_related("client").defer("prompts").order_by("name", "pk")[:OFFERED])


def with_chosen(groups: list[tuple[str, list[Column]]], columns: list[Column]) -> list[tuple[str, list[Column]]]:
    """What is chosen stays a choice, also where it is too old to be offered by itself."""
    there = {column.target for _, found in groups for column in found}
    missing = [column for column in columns if column.target not in there]
    return [("Chosen", missing), *groups] if missing else groups


def defaults(chosen: PromptSet | Trial | None) -> dict[str, Any]:
    asked: dict[str, Any] = services.asked_of({}).model_dump()
    told = asked | (chosen.asked_with if isinstance(chosen, Trial) else {})
    return {name: as_text(value) for name, value in told.items()}


def typed_settings(request: HttpRequest) -> services.AskedOf:
    told: dict[str, Any] = {name: request.POST[name].strip() for name in SETTINGS if request.POST.get(name, "").strip()}
    return services.asked_of(told | {"system": request.POST.get("system", "").strip()})


def found_for(request: HttpRequest, action: str, pk: str) -> Trial:
    visible = Trial.objects.for_action(request, action).select_related("client", "order", "order__created_by")
    found: Trial = get_object_or_404(visible, pk=pk)
    return found


def detail(request: HttpRequest, pk: str) -> HttpResponse:
    """How far it is, and the table: all of it, or as much as has been answered so far."""
    trial = found_for(request, "prompts.view", pk)
    category, typed = request.GET.get("category", ""), request.GET.get("q", "")
    table = tables.table_of(trial)
    answered = tables.has_answers(table)
    summaries = tables.summaries(trial, table) if answered else []
    there = tables.places(trial, table, category=category, words=words_of(typed))
    page = Paginator(there, SHOWN).get_page(request.GET.get("page"))
    context: dict[str, Any] = {
        "section": "prompts",
        "trial": trial,
        "order": trial.order,
        "answered": answered,
        "summaries": summaries,
        "fastest": max((found.speed or 0 for found in summaries), default=0),
        "moved": moved(request, trial),
        "comparable": comparable(trial, Trial.objects.for_action(request, "prompts.view")).exists(),
        "page": page,
        "rows": [tables.row_of(trial, table, place) for place in page] if answered else [],
        "categories": list(dict.fromkeys(prompt["category"] for prompt in trial.prompts if prompt["category"])),
        "category": category,
        "typed": typed,
        "query": query_of(request),
        "questions": sum(len(prompt["turns"]) for prompt in trial.prompts) * len(trial.columns),
    }
    return render_live(request, "trials/detail.html", context, live=trial.order.is_live)


def moved(request: HttpRequest, trial: Trial) -> dict[str, str]:
    """What answers now at those deployments among the columns that have another release than the one that was asked."""
    asked = {column["target"].partition(":")[2]: column["release"] for column in trial.columns if "release" in column}
    if not asked:
        return {}
    slots = Deployment.objects.for_action(request, "deployment.view").filter(pk__in=asked, release__isnull=False, archived_at=None)
    known = {str(slot.pk): slot.release for slot in slots.select_related("release") if slot.release}
    return {f"deployment:{pk}": release.version for pk, release in known.items() if str(release.pk) != asked[pk]}


def stop(request: HttpRequest, pk: str) -> HttpResponse:
    trial = found_for(request, "prompts.edit", pk)
    services.stop(request.member, trial)  # type: ignore[attr-defined]
    return redirect("trials:detail", pk=trial.pk)


def delete(request: HttpRequest, pk: str) -> HttpResponse:
    trial = found_for(request, "prompts.edit", pk)
    services.delete_trial(request.member, trial)  # type: ignore[attr-defined]
    messages.success(request, f"Deleted the trial of {trial.name}.")
    return redirect("trials:list")


def download(request: HttpRequest, pk: str) -> HttpResponseBase:
    """The whole table: `format` is csv or jsonl."""
    trial = found_for(request, "prompts.view", pk)
    form = request.GET.get("format", "csv")
    if form not in FORMATS:
        raise Http404
    content_type, pieces = FORMATS[form]
    name = f"{slugify(trial.name)[:60] or 'trial'}.{form}"
    headers = {"Content-Disposition": f"attachment; filename={name}", "X-Content-Type-Options": "nosniff"}
    return StreamingHttpResponse(sent(pieces(trial)), content_type=content_type, headers=headers)
