"""The page of the playground: up to four columns of one client's models, and what good answers become."""

import json
from typing import Any

import orjson
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render

from studio.datasets import drafting
from studio.datasets.models import Dataset
from studio.datasets.services import with_newest
from studio.errors import UserError
from studio.serving import blind
from studio.serving.columns import MOST, Column, client_of
from studio.serving.models import Talk
from studio.serving.sampling import own_settings
from studio.serving.side_by_side import client_named, named_by, offered, side, sides
from studio.workspaces.models import Client, Member
from studio.workspaces.searching import words_of


def playground(request: HttpRequest) -> HttpResponse:
    member: Member = request.member  # type: ignore[attr-defined]
    client, talk = client_named(request, request.GET.get("client")), None
    if pk := request.GET.get("talk"):
        talk = Talk.objects.for_action(request, "prompts.view").select_related("client").named(pk)
        columns, turns = going_on(request, talk)
    else:
        columns, turns = named_by(request, request.GET, client=client), []
    client = client or (talk.client if talk else None) or client_of(columns)
    clients = list(Client.objects.for_action(request, "client.view").current())
    if client is None and clients:
        client = clients[0]
    is_blind = member.may("prompts.edit") and "blind" in request.GET and len(columns) > 1 and talk is None
    context = {
        "section": "playground",
        "client": client,
        "clients": clients if client is None or client in clients else [client, *clients],
        "columns": [] if is_blind else [drawn(request, column) for column in columns],
        "sealed": blind.sealed(member, columns) if is_blind else "",
        "places": range(len(columns)) if is_blind else [],
        "any": bool(columns),
        "most": MOST,
        "talk": talk,
        "turns": turns,
        "left_out": len(talk.columns) - len(columns) if talk else 0,
        "settings": json.dumps(talk.asked_with) if talk else "",
        "datasets": keepers(request, client),
    }
    return render(request, "serving/playground.html", context)


def going_on(request: HttpRequest, talk: Talk) -> tuple[list[Column], list[dict[str, Any]]]:
    """The columns of a shared conversation that still answer, and its turns with their answers alone."""
    found: dict[int, Column] = {}
    for place, kept in enumerate(talk.columns):
        try:
            found[place] = side(request, kept["target"])
        except (Http404, UserError):
            continue
    turns = [{"prompt": turn["prompt"], "answers": [turn["answers"][place] for place in found]} for turn in talk.turns]
    return list(found.values()), turns


def drawn(request: HttpRequest, column: Column) -> dict[str, Any]:
    """What one column's head shows."""
    word, _, pk = column.target.partition(":")
    found: dict[str, Any] = {"column": column, "own": " ".join(own_settings(column))}
    if word == "deployment":
        found |= {"deployment": pk, "snippet": snippet(request.build_absolute_uri("/v1/chat/completions"), column.title)}
    return found


def snippet(address: str, model: str) -> str:
    """How a program asks a deployment."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Where is my parcel?"}]}, indent=2)
    return f'curl {address} \\\n  -H "Authorization: Bearer $KEY" \\\n  -H "Content-Type: application/json" \\\n  -d \'{body}\''


def column(request: HttpRequest) -> HttpResponse:
    """One column more, as the page puts it beside the others."""
    client = client_named(request, request.GET.get("client"))
    (found,) = sides(request, [request.GET.get("column", "")], client=client)
    return render(request, "components/answer_column.html", drawn(request, found) | {"tools": True})


def choices(request: HttpRequest) -> JsonResponse:
    """What could stand in another column, by what is typed."""
    client = client_named(request, request.GET.get("client"))
    groups = offered(request, client, words_of(request.GET.get("q", "")))
    return JsonResponse(
        {"groups": [{"title": title, "things": [each.kept for each in found], "more": more} for title, found, more in groups]}
    )


def keepers(request: HttpRequest, client: Client | None) -> list[Dataset]:
    """The datasets of conversations that a good answer may be kept in: those of the client whose models answer."""
    found = Dataset.objects.for_action(request, "dataset.create").filter(held_out=False).select_related("project__client")
    if client is not None:
        found = found.filter(project__client=client)
    return [dataset for dataset, version in with_newest(found) if version and version.is_ready and (version.facts or {})["shape"] == "chat"]


def keep(request: HttpRequest) -> JsonResponse:
    """A conversation whose last answer somebody marked good, as a row that their draft of a dataset adds."""
    dataset = Dataset.objects.for_action(request, "dataset.create").select_related("project__client").named(request.POST.get("dataset"))
    client, target = client_named(request, request.POST.get("client")), request.POST.get("target", "")
    if client is not None and client != dataset.project.client:  # the conversation may hold what this client's models said
        raise Http404
    if not target.startswith("base:"):  # what a client's model says stays with that client
        said_by = side(request, target)
        if said_by.client != dataset.project.client:
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
