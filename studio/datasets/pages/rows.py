"""The Rows tab: a version's rows to page, search and filter, with what is drafted about them. What a form changes is `pages.drafts`'s."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import urlencode

import numpy as np
import numpy.typing as npt
from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render

from studio.datasets import drafting, marking, rows
from studio.datasets.changing import Changes, Fate, Row, within
from studio.datasets.flags import BY_NAME, CHANGES, Finding, Flag, findings_in, flag_named
from studio.datasets.models import DatasetVersion, Draft, RowMark
from studio.datasets.pages.frame import about, version_for
from studio.errors import UserError
from studio.workspaces.models import Member

PAGE = 50
SEARCHED = 250_000
"""Rows that one search looks at: about a quarter of a second. It can be continued."""
SHORT = 240
"""Characters of a question or an answer in the table."""
SHOWN_ADDED = 100
LONGEST_QUERY = 200
SPLITS: dict[str, Literal["train", "validation"]] = {"train": "train", "validation": "validation"}


@dataclass(frozen=True)
class Filters:
    """Which rows the address asks for, and from where on."""

    q: str = ""
    split: str = ""
    finding: str = ""
    mark: str = ""
    change: str = ""
    draft: str = ""
    after: int = -1
    before: int | None = None

    @classmethod
    def read(cls, query: Mapping[str, str]) -> "Filters":
        """What is not known is passed over: an address may be years old. `row` is a number as people count."""
        before, row = typed_number(query.get("before")), typed_number(query.get("row"))
        after = row - 2 if row else typed_number(query.get("after"))
        return cls(
            q=query.get("q", "").strip()[:LONGEST_QUERY],
            split=query.get("split", "") if query.get("split") in SPLITS else "",
            finding=query.get("finding", "") if query.get("finding") in BY_NAME else "",
            mark=query.get("mark", "") if query.get("mark") in RowMark.Mark.values else "",
            change=query.get("change", "") if query.get("change") in CHANGES else "",
            draft="1" if query.get("draft") else "",
            after=-1 if after is None or before is not None else after,
            before=before,
        )

    @property
    def are_set(self) -> bool:
        return bool(self.items)

    @property
    def flags(self) -> list[Flag]:
        return [flag for name in (self.finding, self.change) if name and (flag := flag_named(name)) is not None]

    @property
    def items(self) -> list[tuple[str, str]]:
        """The filters that are set."""
        return [(name, value) for name in ("q", "split", "finding", "mark", "change", "draft") if (value := getattr(self, name))]

    @property
    def query(self) -> str:
        """All of the address, as a query that is ours however it came in."""
        place = {"before": self.before} if self.before is not None else {"after": self.after} if self.after >= 0 else {}
        return "&".join(part for part in (urlencode(self.items), urlencode(place)) if part)

    def at(self, *, after: int | None = None, before: int | None = None) -> str:
        return replace(self, after=-1 if after is None else after, before=before).query


@dataclass(frozen=True)
class Shown:
    """A row in the table."""

    index: int
    line: int
    split: str
    question: str
    answer: str
    findings: list[Finding]
    marks: set[str]
    fate: Fate
    was: str
    """What a version did to it: added, changed, or nothing."""

    @property
    def number(self) -> int:
        return self.index + 1


@dataclass(frozen=True)
class Desk:
    """What one person has drafted about a version."""

    draft: Draft | None
    changes: Changes
    counts: drafting.Counts
    saving: DatasetVersion | None
    newer: DatasetVersion | None

    @classmethod
    def of(cls, member: Member, version: DatasetVersion) -> "Desk":
        draft = drafting.draft_of(member, version)
        changes = drafting.changes_of(draft)
        newer = drafting.newer_than(version)
        return cls(draft, changes, drafting.counts_of(version, changes), drafting.saved_as(draft), newer)

    @property
    def may_change(self) -> bool:
        return self.saving is None or not self.saving.order.is_live


def table(request: HttpRequest, pk: str) -> HttpResponse:
    version = version_for(request, "dataset.view", pk)
    if not version.is_ready:
        return redirect("datasets:version", pk=version.pk)
    return draw_table(request, version, Filters.read(request.GET.dict()))


def ready(request: HttpRequest, action: str, pk: str) -> DatasetVersion:
    """The version, for what can be done only with rows that are there."""
    version = version_for(request, action, pk)
    if not version.is_ready:
        raise UserError("This version has no rows yet. Wait until it has been read.")
    return version


def draw_table(request: HttpRequest, version: DatasetVersion, filters: Filters, *, status: int = 200, **more: Any) -> HttpResponse:
    context: dict[str, Any] = about(version) | {"tab": "rows", "filters": filters} | more
    context |= found_rows(request.member, version, filters)  # type: ignore[attr-defined]
    if request.headers.get("HX-Request"):
        context["said"] = list(messages.get_messages(request))[:1]
    return render(request, "datasets/rows.html", context, status=status)


def found_rows(member: Member, version: DatasetVersion, filters: Filters) -> dict[str, Any]:
    desk = Desk.of(member, version)
    wanted = wanted_rows(version, filters, desk.changes)
    found = rows.search(
        version.rows_path,
        split=SPLITS.get(filters.split),
        after=filters.after,
        before=filters.before,
        limit=PAGE + 1,
        flags=int(filters.flags[0]) if filters.flags else 0,
        wanted=wanted,
        query=filters.q,
        most=SEARCHED,
    )
    backwards = filters.before is not None
    page = found.rows[-PAGE:] if backwards else found.rows[:PAGE]
    more = len(found.rows) > PAGE or (found.full and found.reached is None)
    marks = marking.marks_of(version, [row["hash"] for row in page])
    first, last = (page[0]["index"], page[-1]["index"]) if page else (filters.before or 0, filters.after)
    facts = version.facts or {}
    return {
        "desk": desk,
        "rows": [shown(row, facts["shape"], desk.changes, marks.get(row["hash"], set())) for row in page],
        "added": drafted_rows(desk.changes, facts["shape"]) if filters.draft or not filters.are_set else [],
        "total": found.total,
        "reached": found.reached,
        "go_on": filters.at(before=found.reached) if backwards else filters.at(after=found.reached),
        "earlier": filters.at(before=first) if (more if backwards else filters.after >= 0) else None,
        "later": filters.at(after=last) if (page if backwards else more) else None,
        "choices": choices(facts),
        "rule": desk.changes.rule_for(filters.finding) if filters.finding else None,
        "finding": BY_NAME.get(filters.finding),
        "first": page[0]["index"] + 1 if page else None,
        "last": last + 1,
    }


def wanted_rows(version: DatasetVersion, filters: Filters, changes: Changes) -> npt.NDArray[np.int64] | None:
    """Indices of the rows that a mark, the draft or a second finding leaves; None: any."""
    kept: list[npt.NDArray[np.int64]] = []
    if filters.mark:
        kept.append(marking.marked(version, filters.mark))
    if filters.draft:
        kept.append(drafted_indices(version, changes))
    if len(filters.flags) > 1:
        kept.append(np.flatnonzero(rows.known_column(version.rows_path, "flags") & np.uint32(filters.flags[1])))
    if not kept:
        return None
    wanted = kept[0]
    for other in kept[1:]:
        wanted = np.intersect1d(wanted, other)
    return wanted


def drafted_indices(version: DatasetVersion, changes: Changes) -> npt.NDArray[np.int64]:
    if changes.rules:
        changed, dropped = changes.touched(rows.known_column(version.rows_path, "flags"))
        return np.union1d(changed, dropped)
    return within(changes.edited.keys() | changes.dropped, (version.facts or {})["rows"])


def shown(row: dict[str, Any], shape: str, changes: Changes, marks: set[str]) -> Shown:
    fate, becomes = changes.fate(row["index"], row["flags"], row["row"], shape)
    question, answer = gist(becomes)
    was = next((name for name, flag in CHANGES.items() if row["flags"] & flag), "")
    return Shown(row["index"], row["line"], row["split"], question, answer, findings_in(row["flags"]), marks, fate, was)


def drafted_rows(changes: Changes, shape: str) -> list[dict[str, Any]]:
    """The rows that a draft adds, each with its question and answer."""
    return [
        {"number": number, "question": question, "answer": answer}
        for number, (question, answer) in enumerate(gist(row) for row in changes.added[:SHOWN_ADDED])
    ]


def gist(row: Row) -> tuple[str, str]:
    """The last question and its answer, shortened; a text stands in the first place alone."""
    if "text" in row:
        return _short(row["text"]), ""
    asked = row["messages"] if "messages" in row else row["prompt"]
    answers = row["messages"] if "messages" in row else row.get("chosen") or row["rejected"]
    question = _last(asked, "user")
    answer = _last(answers, "assistant")
    return _short(question.get("content") or ""), _short(answer.get("content") or _calls(answer))


def _last(said: list[dict[str, Any]], role: str) -> dict[str, Any]:
    return next((message for message in reversed(said) if message["role"] == role), {})


def _calls(message: dict[str, Any]) -> str:
    return ", ".join(str(call["function"]["name"]) + "()" for call in message.get("tool_calls") or ())


def _short(text: str) -> str:
    words = " ".join(text[: 2 * SHORT].split())
    return words if len(words) <= SHORT and len(text) <= 2 * SHORT else words[:SHORT] + "…"


def choices(facts: dict[str, Any]) -> dict[str, Any]:
    """What the filters offer: only what this version has."""
    found = facts.get("findings", {})
    return {
        "findings": [(finding, found[finding.name]) for finding in BY_NAME.values() if found.get(finding.name)],
        "marks": RowMark.Mark.choices,
        "changes": [(name, facts["changes"][name]) for name in CHANGES if facts.get("changes", {}).get(name)],
    }


def typed_number(typed: str | None) -> int | None:
    text = (typed or "").strip().replace(",", "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 16 else None


def row(request: HttpRequest, pk: str) -> HttpResponse:
    """One row, whole: `row` counts as people do; `added` counts the rows that the draft adds."""
    version = ready(request, "dataset.view", pk)
    desk = Desk.of(request.member, version)  # type: ignore[attr-defined]
    filters = Filters.read(request.GET.dict() | {"row": ""})
    context = about(version) | {"tab": "rows", "desk": desk, "filters": filters}
    added = typed_number(request.GET.get("added"))
    if added is not None and added < len(desk.changes.added):
        context |= {"added": added, "parts": parts_of(desk.changes.added[added]), "title": "A row that you add"}
        return render(request, "datasets/row.html", context)
    found = drafting.row_of(version, (typed_number(request.GET.get("row")) or 1) - 1)
    shape = (version.facts or {})["shape"]
    fate, becomes = desk.changes.fate(found["index"], found["flags"], found["row"], shape)
    marks = marking.marks_of(version, [found["hash"]]).get(found["hash"], set())
    context |= {
        "found": found,
        "shown": shown(found, shape, desk.changes, marks),
        "fate": fate,
        "parts": parts_of(becomes),
        "title": f"Row {found['index'] + 1:,}",
    }
    return render(request, "datasets/row.html", context)


NAMES = {"messages": "", "prompt": "", "chosen": "better answer", "rejected": "worse answer"}


def parts_of(whole: Row) -> list[dict[str, str]]:
    """A row as a page shows it, message by message: who says it, and what."""
    if "text" in whole:
        return [{"role": "text", "text": whole["text"]}]
    told = []
    for name, words in NAMES.items():
        for message in whole.get(name, ()):
            role = f"{words} · {message['role']}" if words and message["role"] != "assistant" else words or message["role"]
            told.append({"role": role, "text": message.get("content") or "", "calls": _calls(message)})
    return told
