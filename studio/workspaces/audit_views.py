"""Settings → Audit log: what was done, found by client, person, object, act and day, and as a file."""

import json
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render

from studio.audit import files
from studio.audit.finding import Wanted, seen_lately
from studio.audit.models import AuditRecord
from studio.audit.services import history
from studio.errors import UserError
from studio.streaming import read
from studio.workspaces.models import Client, Member
from studio.workspaces.people import people

PAGE = 50
LONGEST_VALUE = 160
FILTERS = ("client", "person", "kind", "object", "verb", "since", "until")


@dataclass(frozen=True)
class Asked:
    """The filters as the address has them."""

    typed: dict[str, str]
    wanted: Wanted
    errors: dict[str, str]

    @classmethod
    def read(cls, request: HttpRequest) -> "Asked":
        typed = {name: text for name in FILTERS if (text := request.GET.get(name, "").replace("\x00", "").strip()[:100])}
        errors: dict[str, str] = {}
        since, until = (day_typed(typed.get(name, ""), name, errors) for name in ("since", "until"))
        zone = request.member.workspace.zone  # type: ignore[attr-defined]
        try:
            wanted = Wanted(
                client=UUID(typed["client"]) if "client" in typed else None,
                user=int(typed["person"][:18]) if "person" in typed else None,
                kind=typed.get("kind", ""),
                object=typed.get("object", ""),
                verb=typed.get("verb", ""),
                since=datetime.combine(since, time(), zone) if since else None,
                until=datetime.combine(until + timedelta(days=1), time(), zone) if until else None,
            )
        except ValueError as problem:
            raise Http404 from problem
        return cls(typed, wanted, errors)

    @property
    def query(self) -> str:
        """What stands before another part of an address."""
        return f"{urlencode(self.typed)}&" if self.typed else ""


def day_typed(text: str, field: str, errors: dict[str, str]) -> date | None:
    if not text:
        return None
    try:
        day = date.fromisoformat(text)
    except ValueError:
        errors[field] = "Give a day, such as 2030-01-31."
        return None
    if not 2000 <= day.year <= 2100:
        errors[field] = "Give a day from 2000 to 2100."
        return None
    return day


def records(request: HttpRequest, wanted: Wanted) -> Any:
    member: Member = request.member  # type: ignore[attr-defined]
    return wanted.of(history(member), workspace=member.workspace_id)


@dataclass(frozen=True)
class Line:
    """A record with what it changed in words."""

    record: AuditRecord
    changes: list[tuple[str, str, str, str]]
    """(field, before, after, all of it where that was cut)."""


def lines(rows: list[AuditRecord]) -> list[Line]:
    return [Line(row, [described(field, value) for field, value in row.change.items()]) for row in rows]


def described(field: str, value: Any) -> tuple[str, str, str, str]:
    """`[before, after]` as two texts; what only says something, or was nothing before, as one."""
    name = field.replace("_", " ")
    if isinstance(value, list) and len(value) == 2 and value[0] is None:
        value = value[1]
    elif isinstance(value, list) and len(value) == 2:
        before, after = (in_words(part) for part in value)
        return name, short(before), short(after), f"{before} → {after}" if len(before) > LONGEST_VALUE or len(after) > LONGEST_VALUE else ""
    told = in_words(value)
    return name, "", short(told), told if len(told) > LONGEST_VALUE else ""


def in_words(value: Any) -> str:
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list) and all(isinstance(part, str | int | float) for part in value):
        return ", ".join(map(str, value)) or "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def short(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"


def audit(request: HttpRequest) -> HttpResponse:
    """The newest records that fit; older ones by the id of the last that was shown."""
    asked = Asked.read(request)
    member: Member = request.member  # type: ignore[attr-defined]
    rows = records(request, asked.wanted) if not asked.errors else AuditRecord.objects.none()
    shown, newer, older = page_of(rows.prefetch_related("client"), request)
    kinds, verbs = seen_lately(history(member))
    context = {
        "section": "settings",
        "asked": asked,
        "lines": lines(shown),
        "newer": newer,
        "older": older,
        "clients": named(shown, asked, "client", Client.objects.for_action(request, "client.view").values_list("pk", "name")),
        "people": named(shown, asked, "person", people(request, "member.view").values_list("user", "user__email")),
        "kinds": kinds,
        "verbs": verbs,
        "label": shown[0].label if shown and asked.wanted.object else "",
        "since_start": "before" not in request.GET and "after" not in request.GET,
    }
    return render(request, "workspaces/audit.html", context, status=422 if asked.errors else 200)


def page_of(rows: Any, request: HttpRequest) -> tuple[list[AuditRecord], int | None, int | None]:
    """The records of a page, newest first; the ids that the pages before and after it go by, None where there is none."""
    before, after = (number(request.GET.get(name, "")) for name in ("before", "after"))
    if after is not None:
        found = list(rows.filter(pk__gt=after).order_by("id")[: PAGE + 1])
        shown = found[:PAGE][::-1]
        return shown, shown[0].pk if len(found) > PAGE else None, shown[-1].pk if shown else None
    found = list((rows.filter(pk__lt=before) if before is not None else rows).order_by("-id")[: PAGE + 1])
    shown = found[:PAGE]
    return shown, shown[0].pk if before is not None and shown else None, shown[-1].pk if len(found) > PAGE else None


def number(typed: str) -> int | None:
    return int(typed) if typed.isascii() and typed.isdigit() and len(typed) < 19 else None


def named(shown: list[AuditRecord], asked: Asked, name: str, offered: Any) -> list[tuple[str, str, bool]]:
    """What a select offers. Whoever or whatever is gone, and is asked for, stands there by the name that its records have."""
    choices = [(str(pk), label) for pk, label in offered]
    wanted = asked.typed.get(name, "")
    if wanted and wanted not in (pk for pk, _ in choices):
        gone = next((record.client_name if name == "client" else record.user_email for record in shown), "")
        choices.append((wanted, gone or "Somebody else" if name == "person" else gone or "Another client"))
    return [(pk, label, pk == wanted) for pk, label in choices]


def file(request: HttpRequest) -> HttpResponseBase:
    """What the filters find, as CSV or JSON. Reading the log is no change, so this writes no record, as the page and the API write none."""
    asked, format = Asked.read(request), request.GET.get("format", "csv")
    if asked.errors:
        raise UserError("The days cannot be used.", fields=asked.errors)
    if format not in files.TYPES:
        raise UserError("There is no such file.", fields={"format": f"Choose from {', '.join(files.TYPES)}."})
    headers = {
        "Content-Disposition": f'attachment; filename="audit.{format}"',
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox; default-src 'none'",
    }
    return StreamingHttpResponse(
        read(files.pieces(records(request, asked.wanted), format)), content_type=files.TYPES[format], headers=headers
    )
