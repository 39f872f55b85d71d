"""Answers "who are you" and "may you be here" before any view runs, and turns a UserError into a page."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from django.contrib.auth import get_user
from django.contrib.sessions.backends.db import SessionStore
from django.core.exceptions import RequestDataTooBig, SuspiciousOperation
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseNotAllowed, JsonResponse, QueryDict
from django.http.multipartparser import MultiPartParserError
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.cache import patch_vary_headers

from studio.errors import UserError
from studio.workspaces.choosing import go_to, is_elsewhere, member_by_session
from studio.workspaces.models import ApiKey, Member
from studio.workspaces.openai_errors import openai_refusal, speaks_openai
from studio.workspaces.policy import PUBLIC, ROUTES, SIGNED_IN
from studio.workspaces.requests import address_of
from studio.workspaces.sessions import is_session_key
from studio.workspaces.signing_in import must_add_factor

Get = Callable[[HttpRequest], HttpResponse]
READ_IN_A_BROWSER = ("/api/v1/docs", "/api/v1/openapi.json")
"""Addresses of the API that a session opens, too. They only describe it."""
CONFLICTS = {"not_verified", "idempotency_conflict", "in_progress", "quota"}
"""Codes of errors that answer 409: the request is right, but not now."""
SAFE = ("GET", "HEAD", "OPTIONS")
NOT_THERE_ANY_MORE = "You are not in that workspace any more, so nothing was done. Go home, and you are in another one of yours."


def wants_json(request: HttpRequest) -> bool:
    return request.path.startswith("/api/") or speaks_openai(request.path)


def api_error(status: int, code: str, message: str, fields: dict[str, str] | None = None) -> JsonResponse:
    """The one shape that every refusal of the API has."""
    return JsonResponse({"error": {"code": code, "message": message, "fields": fields or {}}}, status=status)


def refused_in_json(request: HttpRequest, status: int, code: str, message: str, fields: dict[str, str] | None = None) -> JsonResponse:
    """In the shape that the caller's library reads: the studio's own below /api/, OpenAI's below /v1/."""
    if speaks_openai(request.path):
        return openai_refusal(request, status, code, message)
    return api_error(status, code, message, fields)


def api_failure(request: HttpRequest, error: Exception) -> JsonResponse | None:
    """What the API answers to an error that its caller can mend; None for a bug."""
    match error:
        case UserError():
            status = 409 if error.code in CONFLICTS else 422 if error.fields else 400
            return refused_in_json(request, status, error.code, error.message, error.fields)
        case Http404():
            return refused_in_json(request, 404, "not_found", "There is no such thing here.")
        case RequestDataTooBig():
            return refused_in_json(request, 413, "too_large", too_large_words(request))
        case SuspiciousOperation() | MultiPartParserError():
            return refused_in_json(
                request, 400, "bad_request", "The request cannot be read. Send JSON, or multipart form data with one file."
            )
    return None


def too_large_words(request: HttpRequest) -> str:
    return "The request is too large." if speaks_openai(request.path) else "The request is too large. Send files as multipart form data."


def refusal(request: HttpRequest, error: UserError, *, status: int) -> HttpResponse:
    """What a page answers to an error that its reader can mend."""
    if request.headers.get("HX-Request"):
        return render(request, "components/notice.html", {"level": "error", "text": error.message}, status=422)
    return render(request, "refused.html", {"error": error}, status=status)


def member_by_key(request: HttpRequest) -> Member | None:
    scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secret:
        return None
    rows = ApiKey.objects.select_related("member__user", "member__workspace")
    key = rows.filter(sha256=ApiKey.hash(secret.strip()), member__user__is_active=True).first()
    if key is None or not key.is_valid:
        return None
    now = timezone.now()
    if key.used_at is None or (now - key.used_at).total_seconds() > 60:  # not a write for every request
        ApiKey.objects.filter(pk=key.pk).update(used_at=now)
    member: Member = key.member
    member.key = key
    return member


def member_by_cookie(session_key: str | None) -> Member | None:
    """As `member_by_session`, for those who stand outside Django's middleware: sockets, and the door for uploads."""
    if not is_session_key(session_key or ""):
        return None
    session = SessionStore(session_key)
    member = member_by_session(get_user(SimpleNamespace(session=session)), session)  # type: ignore[arg-type]
    return None if member is None or must_add_factor(member) or is_elsewhere(member, session) else member


class MemberMiddleware:
    """Sets `request.member`: who acts, in which workspace; None for a stranger."""

    def __init__(self, get_response: Get):
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        member = member_by_key(request) if wants_json(request) else member_by_session(request.user, request.session)
        if member is None and request.path in READ_IN_A_BROWSER:
            member = member_by_session(request.user, request.session)
        if member is not None:
            member.ip = address_of(request)
            member.asks_once = True
        request.member = member  # type: ignore[attr-defined]
        response = self.get_response(request)
        if member is not None and not response.has_header("Cache-Control"):
            response["Cache-Control"] = "no-store, private"
            patch_vary_headers(response, ["Cookie", "HX-Request"])
        return response


class PolicyMiddleware:
    """Lets a request through only where the policy table has its route, its method and its role."""

    def __init__(self, get_response: Get):
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_view(self, request: HttpRequest, view: Any, args: Any, kwargs: Any) -> HttpResponse | None:
        name = request.resolver_match.view_name if request.resolver_match else ""
        methods = ROUTES.get(name)
        if methods is None:
            return self.refuse(request)
        asked = "GET" if request.method == "HEAD" and not wants_json(request) else request.method or ""
        action = methods.get(asked)
        if action == PUBLIC:
            return None
        member: Member | None = request.member  # type: ignore[attr-defined]
        if member is None and not (request.user.is_authenticated and not wants_json(request)):
            if wants_json(request):
                return refused_in_json(request, 401, "unauthorized", "Send a valid API key as Authorization: Bearer <key>.")
            return redirect(f"/login/?next={request.path}" if request.method == "GET" else "/login/")
        if action is None:
            return self.refuse_method(request, [*methods])
        if member is not None and member.key is None and is_elsewhere(member, request.session):
            if request.method in SAFE:
                go_to(request, member)
            elif action != SIGNED_IN:
                return refusal(request, UserError(NOT_THERE_ANY_MORE), status=409)
        closed = action != SIGNED_IN or request.path in READ_IN_A_BROWSER
        if closed and member is not None and must_add_factor(member):
            return self.lead_to_account(request)
        if action == SIGNED_IN or (member is not None and member.may(action)):
            return None
        if speaks_openai(request.path):
            return refused_in_json(request, 403, "forbidden", "This key may not ask models. Use one with the scope inference.")
        if member is None and name == "home":  # signed in, and of no workspace
            return redirect("workspaces:nowhere")
        return self.refuse(request)

    def lead_to_account(self, request: HttpRequest) -> HttpResponse:
        """Where a second factor is added, without which this workspace stays closed."""
        address = reverse("account:index")
        if request.headers.get("HX-Request"):
            return HttpResponse(status=204, headers={"HX-Redirect": address})
        return redirect(address)

    def refuse_method(self, request: HttpRequest, allowed: list[str]) -> HttpResponse:
        if not wants_json(request):
            return HttpResponseNotAllowed(allowed)
        answer = refused_in_json(request, 405, "method_not_allowed", f"{request.method} is not answered here, but {', '.join(allowed)}.")
        answer["Allow"] = ", ".join(allowed)
        return answer

    def refuse(self, request: HttpRequest) -> HttpResponse:
        if wants_json(request):
            return refused_in_json(request, 404, "not_found", "There is no such thing here.")
        raise Http404


def holds_nul(typed: QueryDict) -> bool:
    """PostgreSQL can neither store nor look for it, in a text or in JSON."""
    return any("\x00" in text for _, texts in typed.lists() for text in texts)


def without_nul(query: QueryDict) -> QueryDict:
    """With the sign for what cannot be read instead: nothing is found by it, as nothing could have a NUL."""
    cleaned = query.copy()
    for name, texts in query.lists():
        cleaned.setlist(name, [text.replace("\x00", "\ufffd") for text in texts])
    return cleaned


class UserErrorMiddleware:
    """What the reader can mend becomes a sentence, in the API as JSON; all else stays a bug."""

    def __init__(self, get_response: Get):
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_view(self, request: HttpRequest, view: Any, args: Any, kwargs: Any) -> HttpResponse | None:
        if wants_json(request):
            return None
        if holds_nul(request.GET):
            request.GET = without_nul(request.GET)  # type: ignore[assignment]
        if not holds_nul(request.POST):
            return None
        return self.process_exception(request, UserError("The form holds a NUL character. Remove it, then send the form again."))

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        if wants_json(request):
            return api_failure(request, error)
        return refusal(request, error, status=400) if isinstance(error, UserError) else None
