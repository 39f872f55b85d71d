"""Turns what django-ninja refuses into the studio's own sentences. The middleware makes the answer of every error."""

from typing import Any, NoReturn

from django.http import Http404, HttpRequest, HttpResponse
from django.views.defaults import server_error
from ninja import NinjaAPI
from ninja.errors import HttpError, ValidationError

from studio.errors import UserError
from studio.workspaces.middleware import refused_in_json, wants_json

WRAPPERS = ("payload", "details", "filters")
"""Names of the views' own arguments: no part of what the caller wrote."""
SENTENCES = {
    "missing": "This is needed.",
    "extra_forbidden": "There is no such field.",
    "string_pattern_mismatch": "Line breaks and control characters cannot stand here.",
    "uuid_parsing": "This is not an id.",
    "uuid_type": "This is not an id.",
}


def install(api: NinjaAPI) -> None:
    api.add_exception_handler(Exception, fly)
    api.add_exception_handler(Http404, fly)
    api.add_exception_handler(ValidationError, refuse_values)
    api.add_exception_handler(HttpError, refuse_request)


def fly(request: HttpRequest, error: Any) -> NoReturn:
    raise error


def bug(request: HttpRequest) -> HttpResponse:
    """The answer to a mistake of the studio, in the form that the caller expects. The log has the mistake itself."""
    if wants_json(request):
        return refused_in_json(request, 500, "bug", "The studio made a mistake. The server's log has it.")
    return server_error(request)


def refuse_values(request: HttpRequest, error: Any) -> NoReturn:
    fields: dict[str, str] = {}
    for fault in error.errors:
        fields.setdefault(field_name(fault["loc"]), sentence(fault))
    raise UserError("Some values cannot be used.", fields=fields, code="invalid")


def refuse_request(request: HttpRequest, error: Any) -> NoReturn:
    # ninja hides what the parser said behind a sentence of its own.
    if isinstance(error.__cause__, UserError):
        raise error.__cause__
    raise UserError(f"{error.message.rstrip('.')}.", code="bad_request") from error


def field_name(place: tuple[Any, ...]) -> str:
    """Where in the caller's own request: `changes.rank`, not `body.payload.changes.rank`."""
    parts = [str(part) for part in place[1:]]
    if parts and parts[0] in WRAPPERS:
        parts = parts[1:]
    return ".".join(parts) or "body"


def sentence(fault: dict[str, Any]) -> str:
    return SENTENCES.get(fault["type"]) or f"{fault['msg'].rstrip('.')}."
