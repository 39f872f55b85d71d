"""The forms that change a version's rows: one row in fields, many at once, marks, and saving all of it as a new version."""

import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlencode

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, QueryDict
from django.shortcuts import redirect, render
from django.urls import reverse

from studio.datasets import drafting, marking, rows
from studio.datasets.changing import Row
from studio.datasets.models import DatasetVersion
from studio.datasets.pages.frame import about
from studio.datasets.pages.rows import Filters, draw_table, ready, typed_number
from studio.datasets.typed import FIELDS
from studio.errors import UserError

MOST_MESSAGES = 120
"""Messages that a form shows: a request has at most 500 fields."""
LONGEST_FORM = 500_000
"""Characters of a row that a form can send back: a request has at most a megabyte."""
FIELD = re.compile(r"(messages|prompt|chosen|rejected)-(\d{1,3})-content")
EMPTY: dict[str, Row] = {
    "chat": {"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}]},
    "text": {"text": ""},
    "preference": {
        "prompt": [{"role": "user", "content": ""}],
        "chosen": [{"role": "assistant", "content": ""}],
        "rejected": [{"role": "assistant", "content": ""}],
    },
}
ROLES = ("system", "user", "assistant")
LEGENDS = {"messages": "Messages", "prompt": "Before the answers", "chosen": "Better answer", "rejected": "Worse answer"}


def row_edit(request: HttpRequest, pk: str) -> HttpResponse:
    """A row in fields: one of the version's (`row`), one that the draft adds (`added`), a copy of one (`copy`), or an empty one."""
    version = ready(request, "dataset.create", pk)
    shape = (version.facts or {})["shape"]
    subject, before = subject_of(request, version, shape)
    error, typed = None, before
    if request.method == "POST":
        typed = typed_row(request.POST, before, shape)
        do = request.POST.get("do", "save")
        if do == "save":
            try:
                keep(request, version, subject, typed)
                messages.success(request, "Kept in your draft.")
                return back(request, version, row=subject.get("row"))
            except UserError as problem:
                error = problem
        else:
            typed = rearranged(typed, do)
    context = about(version) | {
        "tab": "rows", "subject": subject, "error": error, "back": Filters.read(_given(request)).query,
        "address": urlencode(subject), "parts": form_parts(typed, shape, error), "text": typed.get("text"),
        "too_long": too_long(before), "tools": before.get("tools"), "roles": ROLES,
    }  # fmt: skip
    return render(request, "datasets/row_edit.html", context, status=422 if error else 200)


def subject_of(request: HttpRequest, version: DatasetVersion, shape: str) -> tuple[dict[str, int], Row]:
    """What the form is about, as the address says it, and the row as it stands."""
    changes = drafting.changes_of(drafting.draft_of(request.member, version))  # type: ignore[attr-defined]
    for name in ("row", "copy"):
        if (number := typed_number(request.GET.get(name))) is not None:
            found = drafting.row_of(version, number - 1)
            _, becomes = changes.fate(found["index"], found["flags"], found["row"], shape)
            return {name: number}, becomes
    added = typed_number(request.GET.get("added"))
    if added is not None and added < len(changes.added):
        return {"added": added}, changes.added[added]
    return {}, EMPTY[shape]


def keep(request: HttpRequest, version: DatasetVersion, subject: dict[str, int], typed: Row) -> None:
    member = request.member  # type: ignore[attr-defined]
    if "row" in subject:
        drafting.edit_row(member, version, subject["row"] - 1, typed)
    elif "added" in subject:
        drafting.edit_added(member, version, subject["added"], typed)
    else:
        drafting.add_row(member, version, typed)


def typed_row(form: QueryDict, before: Row, shape: str) -> Row:
    """The row that a form holds. What it has no field for, such as an answer's weight, stays with its message."""
    if shape == "text":
        return {"text": _typed_text(form.get("text", ""), before.get("text", ""))}
    row: Row = {name: [] for name in FIELDS[shape] if name in before}
    numbers = sorted((int(found[2]), found[1]) for name in form if (found := FIELD.fullmatch(name)))
    for number, name in numbers[:MOST_MESSAGES]:
        if name in row:
            row[name].append(_typed_message(form, f"{name}-{number}", before.get(name, [])))
    return row | ({"tools": before["tools"]} if "tools" in before else {})


def _typed_message(form: QueryDict, field: str, before: list[dict[str, Any]]) -> dict[str, Any]:
    role, place = form.get(f"{field}-role", ""), typed_number(form.get(f"{field}-from"))
    old = before[place] if place is not None and place < len(before) else {}
    text = _typed_text(form.get(f"{field}-content", ""), old.get("content") or "")
    return (old if old.get("role") == role else {}) | {"role": role, "content": text}


def _typed_text(text: str, before: str) -> str:
    """A browser sends every end of a line as two characters; where nothing else differs, the text is as it was."""
    plain = text.replace("\r\n", "\n")
    return before if before.replace("\r\n", "\n") == plain else plain


def rearranged(row: Row, do: str) -> Row:
    """With one message more or less: `add:messages`, `remove:messages-2`."""
    act, _, place = do.partition(":")
    name, _, number = place.partition("-")
    if name not in LEGENDS or name not in row:
        return row
    said = list(row[name])
    if act == "add" and len(said) < MOST_MESSAGES:
        said.append({"role": "assistant" if said and said[-1]["role"] == "user" else "user", "content": ""})
    elif act == "remove" and number.isdecimal() and int(number) < len(said):
        del said[int(number)]
    return row | {name: said}


def form_parts(row: Row, shape: str, error: UserError | None) -> list[dict[str, Any]]:
    """The fields of each list of messages, with the error beside the one that it is about."""
    told = error.fields if error else {}
    return [
        {
            "name": name,
            "legend": LEGENDS[name],
            "error": told.get(f"{name}-0") if not row.get(name) else "",
            "messages": [
                {"field": f"{name}-{number}", "number": number + 1, "place": number, "error": told.get(f"{name}-{number}", "")} | message
                for number, message in enumerate(row.get(name, ()))
            ],
        }
        for name in FIELDS[shape]
        if name in LEGENDS and name in row
    ]


def too_long(row: Row) -> bool:
    count = sum(len(value) for value in row.values() if isinstance(value, list))
    return count > MOST_MESSAGES or sum(map(len, rows.said(row))) > LONGEST_FORM


def rows_changed(request: HttpRequest, pk: str) -> HttpResponse:
    """Drops rows, or brings them back: the ones whose boxes are ticked, or the one whose button was pressed."""
    version = ready(request, "dataset.create", pk)
    act, _, one = request.POST.get("do", "").partition(":")
    member = request.member  # type: ignore[attr-defined]
    indices = [number - 1 for number in _numbers([one] if one else request.POST.getlist("chosen"))]
    try:
        if act == "drop":
            drafting.drop_rows(member, version, indices)
        elif act == "restore":
            drafting.restore_rows(member, version, indices)
        elif act == "drop-added":
            drafting.drop_added(member, version, indices[0] + 1 if indices else -1)
        else:
            raise UserError("Choose what to do with the rows.")
    except UserError as problem:
        messages.error(request, problem.message)
    return back(request, version)


def rule(request: HttpRequest, pk: str) -> HttpResponse:
    """Drops, fixes or keeps all rows with a finding. `value_NAME` fills the placeholder NAME."""
    version = ready(request, "dataset.create", pk)
    values = {name.removeprefix("value_"): str(text) for name, text in request.POST.items() if name.startswith("value_") and text}
    finding, do = request.POST.get("finding", ""), request.POST.get("do", "")
    try:
        drafting.set_rule(request.member, version, finding=finding, do=do, values=values)  # type: ignore[attr-defined]
    except UserError as problem:
        messages.error(request, next(iter(problem.fields.values()), problem.message))
    return back(request, version, otherwise={"finding": finding})


def save(request: HttpRequest, pk: str) -> HttpResponse:
    """The draft as a new version. Where another one was made meanwhile, that is said first."""
    version = ready(request, "dataset.create", pk)
    newer = drafting.newer_than(version)
    filters = Filters.read(_given(request))
    note = request.POST.get("note", "")
    if newer is not None and typed_number(request.POST.get("newer")) != newer.number:
        return draw_table(request, version, filters, status=422, warned=True, note=note)
    try:
        made = drafting.save(request.member, version, note=note)  # type: ignore[attr-defined]
    except UserError as problem:
        return draw_table(request, version, filters, status=422, problem=problem, note=note)
    return redirect("datasets:version", pk=made.pk)


def discard(request: HttpRequest, pk: str) -> HttpResponse:
    version = ready(request, "dataset.create", pk)
    try:
        drafting.discard(request.member, version)  # type: ignore[attr-defined]
        messages.success(request, "Your changes were discarded.")
    except UserError as problem:
        messages.error(request, problem.message)
    return back(request, version)


def mark(request: HttpRequest, pk: str) -> HttpResponse:
    """Marks rows, or takes the mark off: `star:17`, `unstar:17`, or `star` for those that are ticked."""
    version = ready(request, "dataset.create", pk)
    act, _, one = request.POST.get("do", "").partition(":")
    numbers = _numbers([one] if one else request.POST.getlist("chosen"))
    try:
        hashes = [drafting.row_of(version, number - 1)["hash"] for number in numbers[:100]]
        name = act.removeprefix("un")
        marking.mark_rows(request.member, version, hashes, mark=name, on=act == name)  # type: ignore[attr-defined]
    except UserError as problem:
        messages.error(request, problem.message)
    return back(request, version)


def restore(request: HttpRequest, pk: str) -> HttpResponse:
    """An older version's rows as the newest version."""
    version = ready(request, "dataset.create", pk)
    made = drafting.restore(request.member, version, note=request.POST.get("note", ""))  # type: ignore[attr-defined]
    return redirect("datasets:version", pk=made.pk)


def back(request: HttpRequest, version: DatasetVersion, *, row: int | None = None, otherwise: dict[str, str] | None = None) -> HttpResponse:
    """To the rows as they were looked at. The address is put together anew, so that no form leads elsewhere."""
    filters = Filters.read(_given(request) or otherwise or {})
    address = f"{reverse('datasets:rows', args=[version.pk])}?{filters.query}"
    return redirect(f"{address}#row-{row}" if row else address)


def _given(request: HttpRequest) -> dict[str, str]:
    return {name: str(text) for name, text in QueryDict(request.POST.get("back") or request.GET.get("back", "")).items()}


def _numbers(typed: Iterable[str]) -> list[int]:
    return [number for text in typed if (number := typed_number(text)) is not None]
