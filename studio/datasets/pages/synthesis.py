"""Rows that a model writes: asking for them, watching them come, and deciding about each by keyboard."""

from itertools import groupby
from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse

from studio.datasets import synthesis as services
from studio.datasets.models import DatasetVersion, RowMark, Synthesis, SyntheticRow
from studio.datasets.pages.drafts import form_parts, rearranged, typed_row
from studio.datasets.pages.frame import about, version_for
from studio.datasets.pages.rows import typed_number
from studio.datasets.writers import writers_for
from studio.errors import UserError
from studio.orders.pages import render_live

State = SyntheticRow.State
ROLES = ("system", "user", "assistant")


def new(request: HttpRequest, pk: str) -> HttpResponse:
    """The form that asks for rows after those of a version; and what was asked for before."""
    version = version_for(request, "dataset.create", pk)
    error = None
    if request.method == "POST":
        try:
            made = services.begin(request.member, version, wish_of(request))  # type: ignore[attr-defined]
        except UserError as problem:
            error = problem
        else:
            return redirect("datasets:synthesis", pk=made.pk)
    context = about(version) | {"tab": "synthesis", "error": error, "typed": request.POST} | choices(request, version)
    return render(request, "datasets/synthesis_new.html", context, status=422 if error else 200)


def choices(request: HttpRequest, version: DatasetVersion) -> dict[str, Any]:
    writers = writers_for(request.member, version.audit_client)  # type: ignore[attr-defined]
    return {
        "writers": [(group, list(found)) for group, found in groupby(writers, key=lambda writer: writer.group)],
        "endpoints": any(writer.connection for writer in writers),
        "starred": RowMark.objects.filter(dataset=version.dataset_id, mark=RowMark.Mark.STAR).count(),
        "earlier": Synthesis.objects.filter(dataset=version.dataset_id).select_related("order")[:20],
    }


def wish_of(request: HttpRequest) -> services.Wish:
    form, wrong = request.POST, {}
    numbers: dict[str, float] = {}
    for name, default in (("target", "20"), ("seeds", "12"), ("temperature", "0.9")):
        typed = form.get(name, default).strip()
        try:
            numbers[name] = float(typed) if typed.isascii() and len(typed) < 12 else float("nan")
        except ValueError:
            numbers[name] = float("nan")
        if numbers[name] != numbers[name] or (name != "temperature" and not numbers[name].is_integer()):
            wrong[name] = "Write a number." if name == "temperature" else "Write a whole number."
    if wrong:
        raise UserError("The rows cannot be asked for like this.", fields=wrong)
    return services.Wish(
        writer=form.get("writer", ""),
        instruction=form.get("instruction", ""),
        target=int(numbers["target"]),
        seeds=int(numbers["seeds"]),
        starred=form.get("starred") == "on",
        temperature=numbers["temperature"],
        model=form.get("model", "").strip()[:200],
    )


def found(request: HttpRequest, action: str, pk: str) -> Synthesis:
    visible = Synthesis.objects.for_action(request, action)
    related = ("order", "connection", "version", "dataset__project__client")
    synthesis: Synthesis = get_object_or_404(visible.select_related(*related), pk=pk)
    return synthesis


def review(request: HttpRequest, pk: str) -> HttpResponse:
    """How far it is; then one row after another to decide about."""
    synthesis = found(request, "dataset.view", pk)
    return render_live(request, "datasets/synthesis.html", shown(request, synthesis), live=synthesis.order.is_live)


def shown(request: HttpRequest, synthesis: Synthesis) -> dict[str, Any]:
    rows = list(synthesis.rows.all())
    typed = typed_number(request.GET.get("row"))
    waiting = next((row for row in rows if row.state == State.WAITING), None)
    current = next((row for row in rows if row.number == typed), waiting)
    place = rows.index(current) if current else -1
    counts = services.counts(synthesis)
    return {
        "section": "projects",
        "synthesis": synthesis,
        "dataset": synthesis.dataset,
        "project": synthesis.dataset.project,
        "order": synthesis.order,
        "result": synthesis.order.result or {},
        "rows": rows,
        "current": current,
        "before": rows[place - 1] if place > 0 else None,
        "after": rows[place + 1] if 0 <= place < len(rows) - 1 else None,
        "counts": counts,
        "decided": counts["accepted"] + counts["rejected"] + counts["saved"],
        "editing": request.GET.get("edit") == "on",
        "parts": form_parts(current.row, synthesis.settings["shape"], None) if current else [],
        "roles": ROLES,
    }


def stop(request: HttpRequest, pk: str) -> HttpResponse:
    synthesis = found(request, "dataset.create", pk)
    services.stop(request.member, synthesis)  # type: ignore[attr-defined]
    return redirect("datasets:synthesis", pk=synthesis.pk)


def decide(request: HttpRequest, pk: str) -> HttpResponse:
    """One row (`row` and `do`), or all that wait (`all`). Goes on to the next that waits, or stays where a decision is taken back."""
    synthesis = found(request, "dataset.create", pk)
    member, do = request.member, request.POST.get("do", "")  # type: ignore[attr-defined]
    number = typed_number(request.POST.get("row"))
    try:
        if request.POST.get("all"):
            services.decide_all(member, synthesis, do=do)
        else:
            services.decide(member, synthesis, number or 0, do=do)
    except UserError as problem:
        messages.error(request, problem.message)
    return redirect(address(synthesis, number if do == "wait" else after(synthesis, number)))


def edit(request: HttpRequest, pk: str) -> HttpResponse:
    """A row in fields; keeping it accepts it."""
    synthesis = found(request, "dataset.create", pk)
    number = typed_number(request.POST.get("row")) or 0
    try:
        row = services.row_of(synthesis, number)
    except UserError as problem:
        messages.error(request, problem.message)
        return redirect(address(synthesis, None))
    shape, do = synthesis.settings["shape"], request.POST.get("do", "save")
    typed = typed_row(request.POST, row.row, shape)
    error = None
    if do == "save":
        try:
            services.edit(request.member, synthesis, number, typed)  # type: ignore[attr-defined]
            return redirect(address(synthesis, after(synthesis, number)))
        except UserError as problem:
            error = problem
    else:
        typed = rearranged(typed, do)
    row.row = typed
    context = shown(request, synthesis) | {
        "current": row,
        "editing": True,
        "error": error,
        "parts": form_parts(typed, shape, error),
    }
    return render(request, "datasets/synthesis.html", context, status=422 if error else 200)


def save(request: HttpRequest, pk: str) -> HttpResponse:
    synthesis = found(request, "dataset.create", pk)
    try:
        made = services.save(request.member, synthesis, note=request.POST.get("note", ""))  # type: ignore[attr-defined]
    except UserError as problem:
        messages.error(request, problem.message)
        return redirect(address(synthesis, None))
    return redirect("datasets:version", pk=made.pk)


def after(synthesis: Synthesis, number: int | None) -> int | None:
    """The next row that waits behind this one, or the first of all."""
    waiting = list(synthesis.rows.filter(state=State.WAITING).values_list("number", flat=True))
    return next((other for other in waiting if other > (number or 0)), next(iter(waiting), None))


def address(synthesis: Synthesis, number: int | None) -> str:
    path = reverse("datasets:synthesis", args=[synthesis.pk])
    return f"{path}?row={number}" if number else path
