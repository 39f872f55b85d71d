"""A page that watches an order: it refreshes a part of itself while the order lives, and all of itself when it has ended."""

from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render


def render_live(request: HttpRequest, template: str, context: dict[str, Any], *, live: bool) -> HttpResponse:
    """The page. A refresh that finds the order ended asks htmx for a whole new page, since its actions have changed too."""
    if request.headers.get("HX-Request") and not live:
        return HttpResponse(headers={"HX-Refresh": "true"})
    return render(request, template, context)
