"""How much of a request's body is received, decided before any of it is. Django would write all of it to the disk and ask then.

Only an upload may be large, and only from somebody who may upload; everything else ends at a megabyte.
"""

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from io import BytesIO
from typing import Any

from channels.db import database_sync_to_async
from django.conf import settings
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpResponse
from django.shortcuts import redirect
from django.urls import Resolver404, resolve
from django.utils.html import format_html

from studio.workspaces.logos import LARGEST_FILE
from studio.workspaces.middleware import api_error, member_by_cookie, member_by_key, refused_in_json, wants_json
from studio.workspaces.openai_errors import speaks_openai
from studio.workspaces.policy import ROUTES

UPLOADS = ("datasets:new", "datasets:version_new", "api:dataset_versions", "api:artifacts")
PIECES = ("uploads:piece", "api:upload")
LOGOS = ("clients:logo", "api:client_logo")
PIECE = 64 << 20
"""Bytes of the largest piece of a file that arrives in pieces."""
AROUND = 64 << 10
"""Bytes of a multipart body that are not its contents."""
COPIES = 3
"""Of an upload there are at once: the body, the file taken out of it, and the studio's own."""
SPARE = 1 << 30
LINGER, PATIENCE = 1 << 20, 0.5
"""Bytes that are still taken in before a refusal is said, and seconds that each may let wait."""
LEFT = "studio.left"
"""In the scope of a request: an event that is set once its caller has hung up. A view that waits for others can be told by it; what Django
cancels then is lost where a thread of the middleware is just at work."""

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class TooLarge(Exception):
    """More came than was announced or than is received here."""


class Intake:
    """Stands before Django: counts what comes in, and lets no stranger fill the disk."""

    def __init__(self, app: App):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request, announced = ASGIRequest(scope, BytesIO()), announced_size(scope)
        limit = settings.DATA_UPLOAD_MAX_MEMORY_SIZE + AROUND
        largest = largest_upload(request)
        if largest and (announced is None or announced > limit):
            refusal = await database_sync_to_async(refusal_of)(request, announced or 0)
            if refusal is not None:
                await answer(refusal, send)
                return
            limit = largest + AROUND
        if announced is not None and announced > limit:
            await answer(too_large(request, limit), send)
            return
        left = asyncio.Event()
        try:
            await self.app(scope | {LEFT: left}, counted(receive, limit, left), send)
        except TooLarge:  # raised while the body is read, so nothing has been answered yet
            await linger(receive)
            await answer(too_large(request, limit), send)


def announced_size(scope: Scope) -> int | None:
    lengths = [value for name, value in scope["headers"] if name == b"content-length"]
    return int(lengths[0]) if len(lengths) == 1 and lengths[0].isdigit() and len(lengths[0]) < 20 else None


def counted(receive: Receive, limit: int, gone: asyncio.Event) -> Receive:
    left = limit

    async def count() -> Mapping[str, Any]:
        nonlocal left
        message = await receive()
        if message["type"] == "http.disconnect":
            gone.set()
        left -= len(message.get("body", b""))
        if left < 0:
            raise TooLarge
        return message

    return count


async def linger(receive: Receive) -> None:
    """Takes in a little of what is under way: hanging up on unread bytes resets the connection, and the answer is lost with it."""
    left = LINGER
    with suppress(TimeoutError):
        while left > 0:
            message = await asyncio.wait_for(receive(), PATIENCE)
            if message["type"] != "http.request" or not message.get("more_body"):
                return
            left -= len(message.get("body", b""))


def largest_upload(request: ASGIRequest) -> int:
    """Bytes of the largest file, or piece of one, that is received here; 0 where none is."""
    sizes = {("POST", UPLOADS): settings.MAX_UPLOAD, ("POST", LOGOS): LARGEST_FILE, ("PATCH", PIECES): PIECE}
    try:
        name = resolve(request.path_info).view_name
    except Resolver404:
        return 0
    return next((size for (method, names), size in sizes.items() if method == request.method and name in names), 0)


def refusal_of(request: ASGIRequest, size: int) -> HttpResponse | None:
    """Why this caller's upload is not received; None where it is."""
    member = member_by_key(request) if wants_json(request) else member_by_cookie(request.COOKIES.get(settings.SESSION_COOKIE_NAME))
    if member is None:
        return (
            api_error(401, "unauthorized", "Send a valid API key as Authorization: Bearer <key>.") if wants_json(request) else to_sign_in()
        )
    if not member.may(ROUTES[resolve(request.path_info).view_name][request.method or ""]):
        return refused(request, 404, "not_found", "There is no such thing here.")
    free = shutil.disk_usage(settings.DATA_DIR).free - SPARE
    if COPIES * size > free:
        sentence = f"The server's disk has no room for {size >> 20} MB: while a file arrives it takes {COPIES} times its size. "
        return refused(request, 413, "too_large", f"{sentence}{max(0, free) >> 20} MB are left. Ask whoever runs the server to make room.")
    return None


def to_sign_in() -> HttpResponse:
    return redirect("login")


def too_large(request: ASGIRequest, limit: int) -> HttpResponse:
    words = f"At most {limit >> 20} MB are received here."
    takes_files = not largest_upload(request) and not speaks_openai(request.path)
    return refused(request, 413, "too_large", f"{words} Send files as multipart form data." if takes_files else words)


def refused(request: ASGIRequest, status: int, code: str, sentence: str) -> HttpResponse:
    if wants_json(request):
        return refused_in_json(request, status, code, sentence)
    return HttpResponse(format_html("<!doctype html><title>Refused</title><p data-error-text>{}</p>", sentence), status=status)


async def answer(response: HttpResponse, send: Send) -> None:
    """Sends it, and hangs up: whatever else the caller still sends is not read."""
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in response.items()]
    headers.append((b"content-length", str(len(response.content)).encode()))
    await send({"type": "http.response.start", "status": response.status_code, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": response.content})
