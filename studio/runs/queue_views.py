"""The page of the queue, and what can be changed on it. Each change answers with the list as it then stands."""

from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.template.loader import render_to_string
from django.utils.html import format_html_join

from studio.errors import UserError
from studio.orders.models import Order
from studio.runs import queue
from studio.runs.models import Run
from studio.workspaces.models import Client


def page(request: HttpRequest) -> HttpResponse:
    """What works, what waits and for what; a refresh asks for the list alone."""
    if request.headers.get("HX-Request"):
        return listed(request)
    member = request.member  # type: ignore[attr-defined]
    context = {
        "rules": queue.Rules.of(member.workspace),
        "zones": zones(member.workspace.time_zone),
        "clients": Client.objects.for_action(request, "queue.edit").filter(archived_at=None),
        "whole": member.client_ids() is None,
    }
    return render(request, "runs/queue.html", context | queue_context(request))


def queue_context(request: HttpRequest) -> dict[str, Any]:
    member = request.member  # type: ignore[attr-defined]
    return {
        "section": "runs",
        "queue": queue.Queue.seen_by(member),
        "priorities": {chosen: priorities(chosen) for chosen in Order.Priority.values},
        "icons": {name: render_to_string("components/icon.html", {"name": name}) for name in ("menu", "time", "chevron-down")},
        "workspace": member.workspace,
    }


def picked(is_chosen: bool) -> str:
    return " selected" if is_chosen else ""


def priorities(chosen: int) -> str:
    """The options of a select, which are the same in hundreds of rows."""
    choices = Order.Priority.choices
    return format_html_join("", '<option value="{}"{}>{}</option>', ((value, picked(value == chosen), said) for value, said in choices))


def zones(chosen: str) -> str:
    """The options of a select; they are hundreds, so no template goes through them."""
    return format_html_join("", "<option{}>{}</option>", ((picked(zone == chosen), zone) for zone in queue.zones()))


def listed(request: HttpRequest, *, said: str = "", level: str = "") -> HttpResponse:
    return render(request, "runs/queue.html#list", queue_context(request) | {"said": said, "level": level})


def answer(request: HttpRequest, *, said: str = "", refused: str = "") -> HttpResponse:
    """The list for a script; for a form without one, the page, with what is to be said on it."""
    if request.headers.get("HX-Request"):
        return listed(request, said=refused or said, level="error" if refused else "success")
    if refused:
        messages.error(request, refused)
    elif said:
        messages.success(request, said)
    return redirect("runs:queue")


def waiting(request: HttpRequest, pk: object) -> Run:
    run: Run = Run.objects.for_action(request, "run.queue").select_related("order", "project__client").named(pk)
    return run


def move(request: HttpRequest, pk: str) -> HttpResponse:
    """`before` names the run that it is to stand before; empty puts it last."""
    run, before = waiting(request, pk), request.POST.get("before", "")
    try:
        why = queue.move(request.member, run, before=waiting(request, before) if before else None)  # type: ignore[attr-defined]
    except UserError as error:
        return answer(request, refused=error.message)
    return answer(request, said=why or f"{run.name} was moved.")


def when(request: HttpRequest, pk: str) -> HttpResponse:
    run = waiting(request, pk)
    member = request.member  # type: ignore[attr-defined]
    try:
        queue.change_when(member, run, queue.When.typed(request.POST, member.workspace))
    except UserError as error:
        return answer(request, refused=" ".join([error.message, *error.fields.values()]))
    return answer(request, said=f"{run.name} was changed.")


def rules(request: HttpRequest) -> HttpResponse:
    """The rules of the workspace, or where `client` is given, the limit of that client."""
    member = request.member  # type: ignore[attr-defined]
    try:
        if named := request.POST.get("client"):
            client = Client.objects.for_action(request, "queue.edit").named(named)
            queue.change_client_limit(member, client, queue.limit_typed(request.POST.get("run_limit", ""), field="run_limit"))
        else:
            queue.change_rules(member, queue.Rules.typed(request.POST))
    except UserError as error:
        messages.error(request, " ".join([error.message, *error.fields.values()]))
    else:
        messages.success(request, "Saved.")
    return redirect("runs:queue")


def discard(request: HttpRequest, pk: str) -> HttpResponse:
    run = get_object_or_404(Run.objects.for_action(request, "run.stop").select_related("order"), pk=pk)
    try:
        queue.discard_run(request.member, run)  # type: ignore[attr-defined]
    except UserError as error:
        messages.info(request, error.message)
    else:
        messages.success(request, "Discarded. It cannot be resumed any more.")
    return redirect("runs:detail", pk=run.pk)
