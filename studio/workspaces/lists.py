"""Lists that may be long: a page of rows at a time, and what its links keep of the address."""

from collections.abc import Iterable
from functools import cached_property
from typing import Any

from django.core.paginator import Page, Paginator
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html_join

ROWS = 50
"""On a page."""
COUNTED = 10_000
"""Rows up to which somebody counts; beyond that a list says "more than"."""


class Pages(Paginator):
    """Of rows that may be very many: counted up to a point, and read a page at a time."""

    def __init__(self, rows: "QuerySet[Any]", per: int) -> None:
        super().__init__(rows, per)
        self.rows = rows

    @cached_property
    def count(self) -> int:
        return self.rows.order_by()[: COUNTED + 1].count()

    @property
    def is_beyond(self) -> bool:
        """There are more than were counted."""
        return self.count > COUNTED

    def page(self, number: Any) -> "Page[Any]":
        number = self.validate_number(number)
        return Page(some(self.rows, self.per_page, after=(number - 1) * self.per_page), number, self)


def some(rows: "QuerySet[Any]", count: int, *, after: int = 0) -> list[Any]:
    """`rows[after : after + count]`, sorted by their ids alone: a database that sorts whole rows with all that is joined reads them all."""
    pks = list(rows.values_list("pk", flat=True)[after : after + count])
    found = {row.pk: row for row in rows.filter(pk__in=pks)}
    return [found[pk] for pk in pks if pk in found]


def page_of(request: HttpRequest, rows: "QuerySet[Any]", *, per: int = ROWS, named: str = "page") -> "Page[Any]":
    """The page that the address asks for, or the nearest there is. `named` is what the address calls it, for a second list on a page."""
    return Pages(rows, per).get_page(request.GET.get(named))


def query_of(request: HttpRequest) -> str:
    """What stands before page= in the links of a list: the filters as they are."""
    kept = request.GET.copy()
    kept.pop("page", None)
    return f"{kept.urlencode()}&" if kept else ""


def options(choices: Iterable[tuple[Any, str]], chosen: Any) -> str:
    """Of a select. They may be thousands, so no template goes through them. Nothing where there is no choice."""
    parts = ((value, " selected" if value == chosen else "", said) for value, said in choices)
    return format_html_join("", '<option value="{}"{}>{}</option>', parts)


def options_of_projects(projects: "QuerySet[Any]", chosen: Any = None) -> str:
    """The same of projects by client and name; `chosen` is the id of one."""
    rows = projects.order_by("client__name", "name").values_list("pk", "client__name", "name")
    return options(((pk, f"{client} · {name}") for pk, client, name in rows), chosen)
