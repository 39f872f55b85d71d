"""The pages of shared conversations, and of votes with what they add up to."""

from typing import Any

import orjson
from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse

from studio.errors import UserError
from studio.serving import blind, talks, votes
from studio.serving.columns import Column
from studio.serving.models import Talk
from studio.serving.sampling import sampling
from studio.serving.side_by_side import client_named, sides
from studio.streaming import read
from studio.workspaces.lists import page_of, query_of
from studio.workspaces.models import Client, Member


def refusal(problem: UserError) -> JsonResponse:
    return JsonResponse({"error": problem.message, "fields": problem.fields}, status=422)


def said(text: str) -> Any:
    try:
        return orjson.loads(text)
    except ValueError as problem:
        raise Http404 from problem


def columns_of(request: HttpRequest, targets: list[str]) -> list[Column]:
    """What was asked, where something may be changed for its client."""
    return sides(request, targets, client=client_named(request, request.POST.get("client")), action="prompts.edit")


# ── Shared conversations ──


def shared(request: HttpRequest) -> HttpResponse:
    """The list; sent to, it takes another conversation and answers with its address."""
    if request.method == "POST":
        return share(request)
    client = client_named(request, request.GET.get("client"))
    rows = talks.listed(Talk.objects.for_action(request, "prompts.view")).order_by("-created_at", "pk")
    page = page_of(request, rows.filter(client=client) if client else rows.current())
    context = {
        "section": "playground",
        "page": page,
        "query": query_of(request),
        "client": client,
        "clients": Client.objects.for_action(request, "client.view").current(),
    }
    return render(request, "serving/talks.html", context)


def share(request: HttpRequest) -> JsonResponse:
    member: Member = request.member  # type: ignore[attr-defined]
    try:
        made = talks.share(
            member,
            client=client_named(request, request.POST.get("client")),
            columns=columns_of(request, request.POST.getlist("column")),
            turns=said(request.POST.get("turns", "")),
            asked_with=sampling(said(request.POST.get("settings", "{}"))),
        )
    except UserError as problem:
        return refusal(problem)
    messages.success(request, "Shared. Everybody who sees this client's things can open this page.")
    return JsonResponse({"url": reverse("serving:talk", args=[made.pk])})


def talk(request: HttpRequest, pk: str) -> HttpResponse:
    found = get_object_or_404(Talk.objects.for_action(request, "prompts.view").select_related("client", "user"), pk=pk)
    turns = [(turn["prompt"], list(zip(found.columns, turn["answers"], strict=True))) for turn in found.turns]
    may_delete = talks.may_delete(request.member, found)  # type: ignore[attr-defined]
    return render(request, "serving/talk.html", {"section": "playground", "talk": found, "turns": turns, "may_delete": may_delete})


def delete(request: HttpRequest, pk: str) -> HttpResponse:
    found = get_object_or_404(Talk.objects.for_action(request, "prompts.edit").select_related("client"), pk=pk)
    talks.delete(request.member, found)  # type: ignore[attr-defined]
    messages.success(request, "Deleted the shared conversation.")
    return redirect("serving:talks")


# ── Votes ──


def cast(request: HttpRequest) -> JsonResponse:
    """One vote. In a blind round the answer tells, at last, who was who."""
    member: Member = request.member  # type: ignore[attr-defined]
    token, best = request.POST.get("round", ""), request.POST.get("best", "")
    try:
        if best and (not best.isascii() or not best.isdecimal() or len(best) > 2):
            raise UserError("There is no such column. Choose one of those that answered, or none.")
        drawn = blind.opened(member, token) if token else None
        found = columns_of(request, drawn.targets if drawn else request.POST.getlist("column"))
        made = votes.cast(
            member,
            client=client_named(request, request.POST.get("client")),
            columns=found,
            prompt=request.POST.get("prompt", ""),
            answers=request.POST.getlist("answer"),
            best=int(best) if best else None,
            round_pk=drawn.pk if drawn else None,
        )
    except UserError as problem:
        return refusal(problem)
    told = "Counted: none is better." if made.best is None else f"Counted: {found[made.best].title} is best."
    return JsonResponse({"told": told, "best": made.best, "columns": made.columns})


def cast_or_tally(request: HttpRequest) -> HttpResponse:
    return cast(request) if request.method == "POST" else tally(request)


def votes_for(request: HttpRequest) -> tuple[Any, Client | None, bool]:
    """The votes that the address asks for, and by which client and kind."""
    client, only_blind = client_named(request, request.GET.get("client")), request.GET.get("blind") == "1"
    return votes.wanted(request, client=client.pk if client else None, only_blind=only_blind), client, only_blind


def tally(request: HttpRequest) -> HttpResponse:
    rows, client, only_blind = votes_for(request)
    found = votes.standings(rows)
    context = {
        "section": "playground",
        "pairs": found.pairs,
        "count": found.count,
        "is_cut": found.is_cut,
        "client": client,
        "only_blind": only_blind,
        "query": query_of(request),
        "clients": Client.objects.for_action(request, "client.view").current(),
    }
    return render(request, "serving/votes.html", context)


def export(request: HttpRequest) -> StreamingHttpResponse:
    """The same votes as a file. Reading them changes nothing, so it is no record."""
    rows, _, _ = votes_for(request)
    headers = {"Content-Disposition": 'attachment; filename="votes.csv"', "X-Content-Type-Options": "nosniff"}
    return StreamingHttpResponse(read(votes.as_csv(rows)), content_type="text/csv; charset=utf-8", headers=headers)
