"""One box for everything: the page of results, and the same as JSON for the palette."""

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils.http import urlencode

from studio.clients import search
from studio.workspaces.context import pages

IN_PALETTE, ON_PAGE, AT_FIRST = 6, 20, 5


def results(request: HttpRequest) -> HttpResponse:
    """What has every word of `q`."""
    typed, member = request.GET.get("q", ""), request.member  # type: ignore[attr-defined]
    if request.headers.get("Accept", "").startswith("application/json"):
        groups = search.search(member, typed, most=IN_PALETTE)
        things = [thing for group in groups for thing in group.things] if typed.strip() else search.newest(member, most=AT_FIRST)
        return JsonResponse({"things": things})
    groups = search.search(member, typed, most=ON_PAGE)
    more = {group.kind.word: f"{reverse(group.kind.more)}?{urlencode({'q': typed})}" for group in groups if group.more and group.kind.more}
    icons = {group.kind.word: render_to_string("components/icon.html", {"name": group.kind.icon}) for group in groups}
    words = typed.lower().split()
    fitting = [page for page in pages(member) if words and all(word in page["title"].lower() for word in words)]
    shown = {"section": "", "typed": typed, "groups": groups, "more": more, "icons": icons, "pages": fitting}
    return render(request, "clients/search.html", shown)
