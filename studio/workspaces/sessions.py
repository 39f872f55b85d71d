"""Where a person is signed in: the sessions that they see and end, and when each was last used."""

import logging
import re
from collections.abc import Callable
from typing import Any

from allauth.usersessions.models import UserSession
from django.conf import settings
from django.contrib.auth import HASH_SESSION_KEY, SESSION_KEY
from django.contrib.sessions.models import Session
from django.core.cache import cache
from django.http import HttpRequest, HttpResponse
from django.utils import timezone

from studio.workspaces.models import User

log = logging.getLogger("studio.workspaces")
SEEN_EVERY = 5 * 60
"""Seconds after which a request is written down as the last use of its session; not a write for every request."""
# The first that matches names it: an Edge also calls itself Chrome, a Chrome also Safari.
BROWSERS = (
    ("Edge", r"Edg(e|A|iOS)?/"),
    ("Opera", r"OPR/"),
    ("Samsung Internet", r"SamsungBrowser/"),
    ("Firefox", r"Firefox/|FxiOS/"),
    ("Chrome", r"Chrome/|CriOS/|Chromium/"),
    ("Safari", r"Safari/"),
    ("curl", r"^curl/"),
    ("Python", r"^python"),
)
SYSTEMS = (
    ("iPhone", r"iPhone"),
    ("iPad", r"iPad"),
    ("Android", r"Android"),
    ("Windows", r"Windows"),
    ("ChromeOS", r"CrOS"),
    ("Mac", r"Macintosh|Mac OS X"),
    ("Linux", r"Linux"),
)


def device(user_agent: str) -> str:
    """What a person calls it: "Firefox on Linux"."""
    browser = next((name for name, sign in BROWSERS if re.search(sign, user_agent)), "")
    system = next((name for name, sign in SYSTEMS if re.search(sign, user_agent)), "")
    return " on ".join(part for part in (browser, system) if part) or "Unknown device"


def sessions_of(user: User, current: str | None) -> list[dict[str, Any]]:
    """Open sessions, this one first, then the last used; those that ended otherwise are dropped from the list on the way. Three queries,
    where allauth's own list makes some for each session.
    """
    rows = list(UserSession.objects.filter(user=user))
    is_open = open_keys(user, [row.session_key for row in rows])
    if ended := [row.pk for row in rows if row.session_key not in is_open]:
        UserSession.objects.filter(pk__in=ended).delete()
    told = [
        {
            "pk": row.pk,
            "device": device(row.user_agent),
            "ip": "" if row.ip == "0.0.0.0" else row.ip,
            "since": row.created_at,
            "seen": row.last_seen_at,
            "current": row.session_key == current,
        }
        for row in rows
        if row.session_key in is_open
    ]
    return sorted(told, key=lambda row: (not row["current"], -row["seen"].timestamp()))


def open_keys(user: User, keys: list[str]) -> set[str]:
    """Those of sessions that have not run out, and that no change of password has ended."""
    mine = {user.get_session_auth_hash(), *user.get_session_auth_fallback_hash()}
    found = {row.session_key: row.get_decoded() for row in Session.objects.filter(session_key__in=keys, expire_date__gt=timezone.now())}
    return {key for key, data in found.items() if data.get(SESSION_KEY) == str(user.pk) and data.get(HASH_SESSION_KEY) in mine}


def note_session(request: HttpRequest, user: User) -> None:
    """Writes down that this session is used, and makes its row where it has none yet."""
    key = request.session.session_key
    if not key or not cache.add(f"session-seen:{key}", 1, SEEN_EVERY):
        return
    UserSession.objects.create_from_request(request, user=user)


def on_signed_in(sender: object, request: HttpRequest, user: User, **kwargs: Any) -> None:
    cache.delete(f"session-seen:{request.session.session_key}")
    note_session(request, user)


def or_logged(work: Callable[[], None]) -> Callable[[], None]:
    """Django drops what goes wrong while an answer is closed; the log has it at least."""

    def run() -> None:
        try:
            work()
        except Exception:
            log.exception("Something that waited for the end of an answer went wrong.")
            raise

    return run


def is_session_key(text: str) -> bool:
    """Whether Django may have made it; no database is asked for what cannot be one."""
    return re.fullmatch("[a-z0-9]{32}", text) is not None


class CookieMiddleware:
    """Drops a session's cookie that holds no key of a session, before anything looks for it."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]):
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if not is_session_key(request.COOKIES.get(settings.SESSION_COOKIE_NAME, "")):
            request.COOKIES.pop(settings.SESSION_COOKIE_NAME, None)
        return self.get_response(request)


class SessionsMiddleware:
    """Keeps "last seen" of sessions, and does what waits for the end of an answer (`signing_in.after_answer`)."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]):
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if request.user.is_authenticated:
            note_session(request, request.user)
        response = self.get_response(request)
        # Closed by the server when the last byte is sent; a file or a stream is closed in the same way.
        response._resource_closers.extend(or_logged(work) for work in getattr(request, "after_answer", ()))  # type: ignore[attr-defined]
        return response
