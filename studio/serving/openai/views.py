"""The OpenAI-compatible endpoint: reads what is asked, has it answered by whom `model` names, and says so as OpenAI does."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import orjson
from asgiref.sync import sync_to_async
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.views.decorators.csrf import csrf_exempt

from studio.releases.models import Release
from studio.serving.models import LEFT, Call
from studio.serving.openai import composing, listing
from studio.serving.openai.answers import Answers, Chats, Completions, Embeddings, Head, Streamed, Usage
from studio.serving.openai.calls import Under, begin
from studio.serving.openai.errors import Refused, invalid
from studio.serving.openai.lines import Lines
from studio.serving.openai.requests import Asking, ChatRequest, CompletionRequest, EmbeddingRequest, Sampled, read
from studio.serving.openai.streaming import Conversation, Events, Telling
from studio.workspaces.intake import LEFT as LEFT_EVENT

PATIENCE = 3.0
"""Seconds that a stream waits for its first word, so that what is refused at once is refused by its status."""


@dataclass(frozen=True)
class Kind:
    """What differs between the three ways to ask."""

    route: str
    request: type[Asking]
    asked_in: str
    """The field that holds what the model reads."""
    bodies: Callable[[Any, Release], list[composing.Body]]
    answers: Callable[[Any, Head, Usage], Answers]
    conversation: Callable[[Any], Conversation]
    """What is kept of the question where the project keeps answers."""


CHAT = Kind(
    Call.Route.CHAT,
    ChatRequest,
    "messages",
    composing.chat_bodies,
    lambda asked, head, usage: Chats(head, usage, logprobs=bool(asked.logprobs)),
    lambda asked: composing.conversation(asked, ""),
)
COMPLETION = Kind(
    Call.Route.COMPLETION,
    CompletionRequest,
    "prompt",
    composing.completion_bodies,
    lambda asked, head, usage: Completions(head, usage, logprobs=asked.logprobs is not None, echoes=echoes(asked)),
    lambda asked: [{"role": "user", "content": asked.prompts[0]}],
)
EMBEDDING = Kind(
    Call.Route.EMBEDDING,
    EmbeddingRequest,
    "input",
    lambda asked, release: composing.embedding_bodies(asked),
    lambda asked, head, usage: Embeddings(head, usage, as_base64=asked.encoding_format == "base64"),
    lambda asked: [],
)


def echoes(asked: CompletionRequest) -> list[str]:
    return [prompt for prompt in asked.prompts for _ in range(asked.n or 1)] if asked.echo else []


@csrf_exempt
async def chat_completions(request: HttpRequest) -> HttpResponse | StreamingHttpResponse:
    return await answered(request, CHAT)


@csrf_exempt
async def completions(request: HttpRequest) -> HttpResponse | StreamingHttpResponse:
    return await answered(request, COMPLETION)


@csrf_exempt
async def embeddings(request: HttpRequest) -> HttpResponse | StreamingHttpResponse:
    return await answered(request, EMBEDDING)


@csrf_exempt
def models(request: HttpRequest) -> HttpResponse:
    return JsonResponse({"object": "list", "data": listing.models_for(request.member)})  # type: ignore[attr-defined]


@csrf_exempt
def model(request: HttpRequest, name: str) -> HttpResponse:
    try:
        return JsonResponse(listing.model_for(request.member, name))  # type: ignore[attr-defined]
    except Refused as refused:
        return refused.response()


@csrf_exempt
def nowhere(request: HttpRequest) -> NoReturn:
    """An unknown address below /v1/ is refused as OpenAI does."""
    raise Http404


async def answered(request: HttpRequest, kind: Kind) -> HttpResponse | StreamingHttpResponse:
    try:
        sent = sent_in(request)
        under = await found(request, sent["model"], kind.route)
    except Refused as refused:
        return refused.response()
    try:
        return await answer(under, kind, sent, left=getattr(request, "scope", {}).get(LEFT_EVENT))
    except Refused as refused:
        await sync_to_async(under.end)(refused.status, refused.code)
        response: HttpResponse = refused.response()
    except asyncio.CancelledError:  # the caller has left
        await sync_to_async(under.end)(LEFT, "left")
        raise
    except Exception:  # a bug, which flies on; but it is on the record, and its place is free
        await sync_to_async(under.end)(500, "bug")
        raise
    return with_limits(response, under)


async def found(request: HttpRequest, model: str, route: str) -> Under:
    """Also on the record is whoever leaves while it is looked for."""
    looking = asyncio.ensure_future(sync_to_async(begin)(request.member, model, route))  # type: ignore[attr-defined]
    try:
        return await asyncio.shield(looking)
    except asyncio.CancelledError:
        await sync_to_async((await looking).end)(LEFT, "left")
        raise


def sent_in(request: HttpRequest) -> dict[str, Any]:
    """The JSON object of the request, with a `model` that is text. Raises Refused."""
    if request.content_type != "application/json":
        raise Refused(415, "unsupported_media_type", "Send JSON, with the header Content-Type: application/json.")
    try:
        sent = orjson.loads(request.body)  # refuses half characters, which could not be sent on
    except ValueError as problem:
        raise invalid(f"We could not parse the JSON body of your request: {str(problem)[:200]}.", None, code="invalid_json") from problem
    if not isinstance(sent, dict):
        raise invalid("The body must be a JSON object.", None, code="invalid_type")
    if "model" not in sent:
        raise invalid("You must provide a model parameter.", "model", code="missing_required_parameter")
    if not isinstance(sent["model"], str):
        raise invalid("Invalid type for 'model': expected a string.", "model", code="invalid_type")
    return sent


async def answer(under: Under, kind: Kind, sent: dict[str, Any], *, left: asyncio.Event | None) -> HttpResponse | StreamingHttpResponse:
    under.streamed = sent.get("stream") is True
    asked = read(kind.request, sent)

    def prepare() -> tuple[dict[str, str], list[composing.Body]]:
        release = under.choose(asked.user)
        bodies = kind.bodies(asked, release)
        subject = under.subject(asked.model)
        usage = under.usage
        usage.each = asked.n or 1 if isinstance(asked, Sampled) else 1
        usage.prompts = composing.prompts(bodies, each=usage.each)
        under.admit(composing.expected_tokens(bodies, each=usage.each))
        return subject, bodies

    subject, bodies = await sync_to_async(prepare)()
    if left is not None and left.is_set():
        raise asyncio.CancelledError
    lines = Lines(subject, kind.route, bodies, left=left, side_by_side=under.side_by_side)
    try:
        answers = kind.answers(asked, Head(under.pk, asked.model, fingerprint(under)), under.usage)
        telling = Telling(under, lines, answers, model=asked.model, asked_in=kind.asked_in)
        if isinstance(asked, Sampled) and asked.stream and isinstance(answers, Streamed):
            return await streamed(telling, answers, usage_wanted=asked.usage_wanted, conversation=kind.conversation(asked))
        told = await telling.whole()
    except BaseException:  # also where the caller has left
        lines.close()
        raise
    said = answers.said
    await sync_to_async(under.end)(200, said=(kind.conversation(asked), said) if said else None)
    return with_limits(JsonResponse(told), under)


async def streamed(telling: Telling, answers: Streamed, *, usage_wanted: bool, conversation: Conversation) -> StreamingHttpResponse:
    await telling.lines.look_ahead(patience=PATIENCE)
    if (ahead := telling.lines.kept) is not None and "error" in ahead[1]:
        telling.take(*ahead)
    events = Events(telling, answers, usage_wanted=usage_wanted, conversation=conversation)
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    response = StreamingHttpResponse(events, content_type="text/event-stream; charset=utf-8", headers=headers)
    with_limits(response, telling.under)
    return response


def fingerprint(under: Under) -> str:
    assert under.release is not None
    return f"fp_{under.release.artifact.sha256[:12]}"


def with_limits(response: Any, under: Under) -> Any:
    response["x-request-id"] = under.pk.hex
    for name, value in (under.place.headers if under.place else {}).items():
        response[name] = value
    return response
