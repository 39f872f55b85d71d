"""What one takes home of a run: its settings as YAML, and all that it reported as lines of JSON. For the pages and the API."""

from collections.abc import AsyncIterator
from uuid import UUID

import orjson
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404
from django.utils.http import content_disposition_header

from studio.orders.models import Event
from studio.runs.models import Run
from studio.runs.recipe import recipe_of

PIECE = 1000
"""Events that are read and sent at once."""


def recipe(request: HttpRequest, pk: str) -> HttpResponse:
    """The run's file; `?download=1` saves it."""
    related = ("project__client", "base_model", "dataset_version__dataset")
    run = get_object_or_404(Run.objects.for_action(request, "run.view").select_related(*related), pk=pk)
    return recipe_response(run, download="download" in request.GET)


def events(request: HttpRequest, pk: str) -> HttpResponseBase:
    return events_response(get_object_or_404(Run.objects.for_action(request, "run.view").select_related("order"), pk=pk))


def recipe_response(run: Run, *, download: bool) -> HttpResponse:
    """The run's file, to be kept or to be looked at. A browser shows it as plain text and as nothing else."""
    headers = {"X-Content-Type-Options": "nosniff"}
    if download:
        headers["Content-Disposition"] = content_disposition_header(True, "run.yaml") or "attachment"
    kind = "application/yaml" if download else "text/plain"
    return HttpResponse(recipe_of(run), content_type=f"{kind}; charset=utf-8", headers=headers)


def events_response(run: Run) -> HttpResponseBase:
    """Every event up to now, one object a line, in order and without gaps. Sent piece by piece: a long run has a hundred thousand."""
    headers = {"Content-Disposition": content_disposition_header(True, "events.jsonl") or "attachment", "X-Content-Type-Options": "nosniff"}
    lines = event_lines(run.order_id, upto=run.order.last_seq)
    return StreamingHttpResponse(lines, content_type="application/x-ndjson", headers=headers)


async def event_lines(order: UUID, *, upto: int) -> AsyncIterator[bytes]:
    """Asked for by number, so that a slow reader holds no cursor open and a live run is no endless download."""
    seen = 0
    while seen < upto:
        events = [event async for event in Event.objects.filter(order=order, seq__gt=seen, seq__lte=upto).order_by("seq")[:PIECE]]
        if not events:
            return
        yield b"".join(orjson.dumps(event.wire(), option=orjson.OPT_APPEND_NEWLINE) for event in events)
        seen = events[-1].seq
