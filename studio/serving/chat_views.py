"""One question to one column of the playground, its answer streaming back as JSON lines."""

import json
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import orjson
from asgiref.sync import sync_to_async
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse

from studio.errors import UserError
from studio.serving import asking, blind
from studio.serving.columns import Column
from studio.serving.sampling import body_of, sampling
from studio.serving.side_by_side import client_named, side, sides
from studio.serving.subjects import Subject, subject_of
from studio.workspaces.models import Member

AT_ONCE = 8
"""Answers that one member may be waiting for: four columns, on two pages. The engine is everybody's."""
WAITING: Counter[int] = Counter()
LONGEST = 500_000
"""Bytes of a conversation."""
SILENT = "This one cannot answer now. Ask again, or begin another round."
"""All that is said of a column whose name nobody may know yet, where it cannot answer."""
HUSHED = "getting ready"
"""And while it is waited for: an adapter that is put on would give it away."""


async def chat(request: HttpRequest) -> HttpResponse | StreamingHttpResponse:
    """One answer as JSON lines: `{"state"}`, `{"delta"}`, then `{"done", "tokens", "seconds", "first"}` or `{"error"}`."""
    if request.content_type != "application/json":
        raise Http404
    if len(request.body) > LONGEST:
        return JsonResponse({"error": "The conversation is too long. Start a new one."}, status=413)
    try:
        subject, body, is_blind = await sync_to_async(question)(request)
    except UserError as problem:
        return JsonResponse({"error": problem.message, "fields": problem.fields}, status=422)
    return StreamingHttpResponse(
        in_turn(request.member.pk, subject, body, is_blind=is_blind),  # type: ignore[attr-defined]
        content_type="application/x-ndjson",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


def question(request: HttpRequest) -> tuple[Subject, dict[str, Any], bool]:
    """Who is asked, what, and whether nobody may know who it is; from what the page sent, and only what this member may reach."""
    member: Member = request.member  # type: ignore[attr-defined]
    try:
        sent = orjson.loads(request.body)  # refuses half characters, which could not be sent on
        target, token = str(sent["target"]), str(sent.get("round") or "")
        messages = [{"role": str(message["role"]), "content": str(message["content"])} for message in sent["messages"]]
        longest = int(sent["max_tokens"]) if "max_tokens" in sent else None
        client = client_named(request, sent.get("client"))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as problem:
        raise Http404 from problem
    column = hidden(request, target, token) if token else side(request, target)
    if client is not None:
        sides(request, [column.target], client=client)
    # a guest hears a release as it was shared with them
    chosen = {} if member.role == Member.Role.GUEST else sampling(sent.get("settings"))
    body = body_of(column, messages, chosen, longest=longest)
    try:
        return subject_of(column.thing), body, bool(token)
    except UserError as problem:
        raise UserError(SILENT if token else problem.message) from problem


def hidden(request: HttpRequest, target: str, token: str) -> Column:
    """The column of a blind round: its target is `blind:<place>`."""
    word, _, place = target.partition(":")
    targets = blind.opened(request.member, token).targets  # type: ignore[attr-defined]
    if word != "blind" or not place.isascii() or not place.isdecimal() or int(place) >= len(targets):
        raise Http404
    try:
        return side(request, targets[int(place)])
    except UserError as problem:
        raise UserError(SILENT) from problem


async def in_turn(member: int, subject: Subject, body: dict[str, Any], *, is_blind: bool = False) -> AsyncGenerator[bytes, None]:
    """The answer, unless this member waits for several already. Whoever leaves gives their place back."""
    if WAITING[member] >= AT_ONCE:
        yield written({"error": f"You are waiting for {AT_ONCE} answers already. Ask again once one of them has come."})
        return
    WAITING[member] += 1
    try:
        async with aclosing(told(subject, body, is_blind=is_blind)) as lines:
            async for line in lines:
                yield written(line)
    finally:
        WAITING[member] -= 1
        if not WAITING[member]:
            del WAITING[member]


async def told(subject: Subject, body: dict[str, Any], *, is_blind: bool) -> AsyncGenerator[dict[str, Any], None]:
    """What the page shows of the lines that the engine sends."""
    cut = False
    async with aclosing(asking.ask(subject, "chat", body)) as lines:
        async for line in lines:
            if "state" in line:
                yield {"state": HUSHED} if is_blind else line
            for choice in line.get("chunk", {}).get("choices", []):
                cut = cut or choice.get("finish_reason") == "length"
                if piece := choice.get("delta", {}).get("content"):
                    yield {"delta": piece}
            if took := line.get("done"):
                figures = {name: took[name] for name in ("seconds", "first", "waited")}
                yield {"done": True, "tokens": took["completion_tokens"], "cut": cut} | figures
            if problem := line.get("error"):
                yield {"error": SILENT if is_blind else problem["message"]}


def written(line: dict[str, Any]) -> bytes:
    return json.dumps(line).encode() + b"\n"
