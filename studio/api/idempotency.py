"""Answers a repeated POST with its first result. Knows nothing of what the request does."""

import hashlib
import re
from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from typing import Any, cast

import orjson
from django.core.files.uploadedfile import UploadedFile
from django.db import IntegrityError, transaction
from django.http import HttpRequest, HttpResponse
from django.utils import timezone

from studio.api.models import IdempotentAnswer
from studio.errors import UserError
from studio.workspaces.models import Client

KEPT = timedelta(days=7)
LONGEST_KEY = 200
SHOWN_ONCE = {"secret", "link"}
"""Fields of answers that open something: a new key, an invitation, a delivery. Of these only a hash is kept."""
UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
FORGOTTEN_AT_ONCE = 500
Run = Callable[..., HttpResponse]


def answer_once(run: Run) -> Run:
    """Wraps an operation: a POST with an `Idempotency-Key` is done once, however often and however many at a time it comes."""

    @wraps(run)
    def run_once(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        key = request.headers.get("Idempotency-Key")
        if request.method != "POST" or key is None:
            return run(request, *args, **kwargs)
        named = {"api_key": request.member.key, "key": checked(key)}  # type: ignore[attr-defined]
        digest = body_digest(request)
        if (known := IdempotentAnswer.objects.filter(**named).first()) is not None:
            return replay(known, request, digest)
        work = long_work if is_upload(request) else short_work
        return work(lambda: run(request, *args, **kwargs), request, named, digest)

    return run_once


def short_work(do: Callable[[], HttpResponse], request: HttpRequest, named: dict[str, Any], digest: str) -> HttpResponse:
    """The work and its answer in one transaction: a repeat at the same time waits for the row, and after a crash both are absent."""
    try:
        with transaction.atomic():
            row = IdempotentAnswer.objects.create(**named, path=request.path[:300], sha256=digest)
            response = do()
            keep(row, response)
        return response
    except IntegrityError:
        if (known := IdempotentAnswer.objects.filter(**named).first()) is None:
            raise
        return replay(known, request, digest)


def long_work(do: Callable[[], HttpResponse], request: HttpRequest, named: dict[str, Any], digest: str) -> HttpResponse:
    """A file is copied too long for a transaction. Storing the same file twice makes one version, so the answer is kept afterwards."""
    response = do()
    with transaction.atomic():
        row, is_first = IdempotentAnswer.objects.get_or_create(**named, defaults={"path": request.path[:300], "sha256": digest})
        if is_first:
            keep(row, response)
    return response if is_first else replay(row, request, digest)


def keep(row: IdempotentAnswer, response: HttpResponse) -> None:
    row.status, row.body = response.status_code, without_secrets(response.content)
    row.save(update_fields=["status", "body"])
    IdempotentAnswer.objects.filter(api_key=row.api_key, created_at__lt=timezone.now() - KEPT).delete()


def without_secrets(body: bytes) -> str:
    """What is shown once is not kept for a repeat: that is told null instead."""
    told = orjson.loads(body) if any(f'"{name}"'.encode() in body for name in SHOWN_ONCE) else None
    if not isinstance(told, dict) or told.keys().isdisjoint(SHOWN_ONCE):
        return body.decode()
    return orjson.dumps(told | dict.fromkeys(told.keys() & SHOWN_ONCE)).decode()


def replay(known: IdempotentAnswer, request: HttpRequest, digest: str) -> HttpResponse:
    if (known.path, known.sha256) != (request.path[:300], digest):
        raise UserError("This Idempotency-Key was used for another request. Take a new one.", code="idempotency_conflict")
    headers = {"Content-Type": "application/json; charset=utf-8", "Idempotent-Replay": "true"}
    return HttpResponse(known.body, status=known.status, headers=headers)


def checked(key: str) -> str:
    if not 0 < len(key) <= LONGEST_KEY or not key.isprintable():
        raise UserError(f"The Idempotency-Key must have 1 to {LONGEST_KEY} printable characters.")
    return key


def is_upload(request: HttpRequest) -> bool:
    return request.content_type == "multipart/form-data"


def body_digest(request: HttpRequest) -> str:
    """SHA-256 of the JSON body as it came, or of the fields and the file of a form."""
    if not is_upload(request):
        return hashlib.sha256(request.body).hexdigest()
    digest = hashlib.sha256(repr(sorted(request.POST.lists())).encode())
    for name in sorted(request.FILES):
        file = cast("UploadedFile[Any]", request.FILES[name])
        digest.update(repr((name, file.name, file.size)).encode())
        for piece in file.chunks():
            digest.update(piece)
    return digest.hexdigest()


def forget(client: Client, ids: set[str]) -> None:
    """A client is erased: what was answered about anything of it goes, and every refusal, for it may quote what was sent."""
    rows = IdempotentAnswer.objects.filter(api_key__member__workspace=client.workspace_id)
    rows = rows.exclude(path__endswith="/erase")
    told = [row.pk for row in rows.iterator() if row.status >= 400 or not ids.isdisjoint(UUID.findall(f"{row.path} {row.body}"))]
    for begin in range(0, len(told), FORGOTTEN_AT_ONCE):
        rows.filter(pk__in=told[begin : begin + FORGOTTEN_AT_ONCE]).delete()
