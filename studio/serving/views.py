"""The playground: one question to the base model and to what was made of it, side by side, answers streaming."""

import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson
from asgiref.sync import sync_to_async
from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.shortcuts import render

from studio.artifacts.models import Artifact
from studio.basemodels.models import BaseModel
from studio.datasets import drafting
from studio.datasets.models import Dataset
from studio.datasets.services import with_newest
from studio.errors import UserError
from studio.releases.models import Release
from studio.workspaces.searching import matching, words_of

TIMEOUT = httpx.Timeout(600, connect=5)
AT_ONCE = 4
"""Answers that one member may be waiting for: both columns, on two pages. The engine is everybody's."""
WAITING: Counter[int] = Counter()
OFFERED = 100
"""Adapters and models that the playground offers at once; others are searched for."""


def playground(request: HttpRequest) -> HttpResponse:
    answering = Artifact.objects.for_action(request, "chat.use").filter(kind__in=[Artifact.Kind.ADAPTER, Artifact.Kind.MODEL])
    artifacts = answering.select_related("project__client", "base_model")
    models = BaseModel.objects.for_action(request, "chat.use").filter(facts__isnull=False)
    wanted, typed = request.GET.get("artifact", ""), request.GET.get("q", "")
    chosen = artifacts.named(wanted) if wanted and not typed else None
    base = chosen.base_model if chosen else next((model for model in models if str(model.pk) == request.GET.get("base_model")), None)
    names = ("name", "project__name", "project__client__name", "base_model__name")
    offered = list(artifacts.filter(matching(Artifact, words_of(typed), names=names, hashes=("sha256",)))[: OFFERED + 1])
    if base is None:
        chosen = offered[0] if offered else None
        base = chosen.base_model if chosen else models.first()
    others = [artifact for artifact in offered[:OFFERED] if chosen is None or artifact.pk != chosen.pk]
    context = {
        "section": "playground",
        "artifacts": [chosen, *others] if chosen else others,
        "many": len(offered) > OFFERED or bool(typed),
        "typed": typed,
        "models": models,
        "chosen": chosen,
        "chosen_id": str(chosen.pk) if chosen else "",
        "method": "full" if chosen and chosen.kind == Artifact.Kind.MODEL else "lora",
        "base": base,
        "base_id": str(base.pk) if base else "",
        "datasets": keepers(request, chosen),
    }
    return render(request, "serving/playground.html", context)


def keepers(request: HttpRequest, chosen: Artifact | None) -> list[Dataset]:
    """The datasets of conversations that a good answer may be kept in: beside a client's own model, those of that client."""
    found = Dataset.objects.for_action(request, "dataset.create").filter(held_out=False).select_related("project__client")
    if chosen is not None:
        found = found.filter(project__client=chosen.project.client_id)
    return [dataset for dataset, version in with_newest(found) if version and version.is_ready and (version.facts or {})["shape"] == "chat"]


def keep(request: HttpRequest) -> JsonResponse:
    """A conversation whose last answer somebody marked good, as a row that their draft of a dataset adds."""
    dataset = Dataset.objects.for_action(request, "dataset.create").select_related("project__client").named(request.POST.get("dataset"))
    kind, _, pk = request.POST.get("target", "").partition(":")
    if kind == "adapter":  # what a client's model says stays with that client
        artifact = Artifact.objects.for_action(request, "chat.use").select_related("project").named(pk)
        if artifact.project.client_id != dataset.project.client_id:
            raise Http404
    try:
        messages = orjson.loads(request.POST.get("messages", ""))
    except ValueError as problem:
        raise Http404 from problem
    version = dataset.versions.filter(facts__isnull=False).order_by("-number").first()
    try:
        if version is None or (version.facts or {})["shape"] != "chat":
            raise UserError("The dataset has no conversations yet that it could be added to.")
        drafting.add_row(request.member, version, {"messages": messages})  # type: ignore[attr-defined]
    except UserError as problem:
        return JsonResponse({"error": next(iter(problem.fields.values()), problem.message)}, status=422)
    added = len(drafting.changes_of(drafting.draft_of(request.member, version)).added)  # type: ignore[attr-defined]
    rows = f"{added} rows wait" if added > 1 else "It waits"
    return JsonResponse({"kept": f"Kept for {dataset.name}. {rows} in your draft of its rows."})


def question(request: HttpRequest) -> dict[str, Any]:
    """What the engine is asked, from what the page sent; only what this member may reach."""
    try:
        sent = orjson.loads(request.body)  # refuses half characters, which could not be sent on
        kind, _, pk = str(sent["target"]).partition(":")
        messages = [{"role": str(message["role"]), "content": str(message["content"])} for message in sent["messages"]]
        limit, warmth = int(sent.get("max_tokens", 256)), float(sent.get("temperature", 0))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as problem:
        raise Http404 from problem
    rows = {"adapter": Artifact, "base": BaseModel, "release": Release}.get(kind)
    if rows is None:
        raise Http404
    found = rows.objects.for_action(request, "chat.use").named(pk)
    if isinstance(found, Release):
        return as_released(found, messages, longest=max(1, min(limit, 2048)))
    if isinstance(found, Artifact):
        if not found.is_chattable:
            raise Http404
        folders = found.answering
    else:
        folders = {"base": str(found.folder), "adapter": ""}
    return folders | {"messages": messages, "max_tokens": max(1, min(limit, 2048)), "temperature": max(0.0, min(warmth, 2.0))}


def as_released(release: Release, messages: list[dict[str, str]], *, longest: int) -> dict[str, Any]:
    """A release answers with its own system prompt and settings, whatever else the page sends; an answer can only be shorter."""
    if not release.artifact.is_chattable:
        raise Http404
    settings = release.asked_with
    told = [{"role": "system", "content": settings["system"]}] if settings.get("system") else []
    asked = {name: settings[name] for name in ("temperature", "top_p", "stop") if settings.get(name) is not None}
    said = [message for message in messages if message["role"] != "system"]
    limit = min(settings.get("max_tokens") or longest, longest)
    return release.artifact.answering | {"messages": told + said, "max_tokens": limit, "temperature": 0.0} | asked


async def chat(request: HttpRequest) -> HttpResponse | StreamingHttpResponse:
    """One answer as JSON lines: `{"state"}`, `{"delta"}`, then `{"done", "tokens", "seconds", "first"}` or `{"error"}`."""
    if request.content_type != "application/json":
        raise Http404
    if len(request.body) > 500_000:
        return JsonResponse({"error": "The conversation is too long. Start a new one."}, status=413)
    ask = await sync_to_async(question)(request)
    return StreamingHttpResponse(
        in_turn(request.member.pk, ask),  # type: ignore[attr-defined]
        content_type="application/x-ndjson",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def in_turn(member: int, ask: dict[str, Any]) -> AsyncIterator[bytes]:
    """The answer, unless this member waits for several already. Whoever leaves gives their place back."""
    if WAITING[member] >= AT_ONCE:
        yield json.dumps({"error": f"You are waiting for {AT_ONCE} answers already. Ask again once one of them has come."}).encode() + b"\n"
        return
    WAITING[member] += 1
    try:
        async for piece in answer(ask):
            yield piece
    finally:
        WAITING[member] -= 1
        if not WAITING[member]:
            del WAITING[member]


async def answer(ask: dict[str, Any]) -> AsyncIterator[bytes]:
    transport = httpx.AsyncHTTPTransport(uds=settings.ENGINE_SOCKET)
    try:
        async with (
            httpx.AsyncClient(transport=transport, timeout=TIMEOUT) as client,
            client.stream("POST", "http://engine/chat", json=ask) as response,
        ):
            if response.status_code != 200:
                await response.aread()
                yield json.dumps({"error": response.json().get("error", "The model could not answer.")}).encode() + b"\n"
                return
            async for piece in response.aiter_bytes():
                yield piece
    except httpx.ConnectError:
        yield (
            json.dumps({"error": "The process that answers is not running. It starts with the server; try again in a moment."}).encode()
            + b"\n"
        )
    except httpx.HTTPError:
        yield json.dumps({"error": "The answer broke off. Ask again."}).encode() + b"\n"
