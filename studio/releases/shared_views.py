"""A client's own people: what was shared with them, what waits for their sign-off, and what they may take home."""

from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone

from studio.errors import UserError
from studio.releases import gates
from studio.releases.models import Approval, Delivery, Release
from studio.workspaces.lists import page_of
from studio.workspaces.models import Client, Member, ScopedQuerySet
from studio.workspaces.portal import asked_of

ON_A_PAGE = 30
WORDS = {
    Release.Stage.DRAFT: "is still being worked on",
    Release.Stage.CANDIDATE: "is ready for you to try",
    Release.Stage.APPROVED: "is approved",
    Release.Stage.RETIRED: "is retired: a newer one took its place, or it is not used any more",
}
"""Each stage, as somebody outside the workshop would say it."""


def portal(request: HttpRequest) -> HttpResponse:
    """A guest's home."""
    member: Member = request.member  # type: ignore[attr-defined]
    releases = Release.objects.for_action(request, "shared.view").select_related("project__client")
    waiting = releases.filter(stage=Release.Stage.CANDIDATE).exclude(approvals__user=member.user_id)
    context = {
        "section": "home",
        "clients": Client.objects.filter(pk__in=member.client_ids() or []).order_by("name"),
        "waiting": waiting.order_by("-shared_at"),
        "asked": asked_of(member),
        "deliveries": open_deliveries(request),
        "page": page_of(request, releases.order_by("-shared_at", "-created_at"), per=ON_A_PAGE),
    }
    return render(request, "shared/home.html", context)


def open_deliveries(request: HttpRequest) -> list[Delivery]:
    found: ScopedQuerySet = Delivery.objects.for_action(request, "delivery.download").filter(revoked_at=None, expires_at__gt=timezone.now())
    rows = found.select_related("release__project__client", "build__artifact").defer("build__verification").order_by("expires_at")
    return [delivery for delivery in rows if delivery.is_open]


def release(request: HttpRequest, pk: str, *, error: UserError | None = None) -> HttpResponse:
    """What it is, in plain words; members see it as the client does."""
    found = get_object_or_404(Release.objects.for_action(request, "shared.view").select_related("project__client", "artifact"), pk=pk)
    member: Member = request.member  # type: ignore[attr-defined]
    evaluation = gates.latest_evaluation(found)
    context: dict[str, Any] = {
        "section": "home" if member.role == Member.Role.GUEST else "releases",
        "release": found,
        "client": found.project.client,
        "words": WORDS[Release.Stage(found.stage)],
        "evaluation": evaluation,
        "samples": gates.samples_of(evaluation),
        "deliveries": [delivery for delivery in open_deliveries(request) if delivery.release_id == found.pk],
        "mine": Approval.objects.filter(release=found, user=member.user_id).first(),
        "can_sign": member.may("release.sign_off") and found.stage == Release.Stage.CANDIDATE,
        "can_chat": found.artifact.is_chattable,
        "side": {"target": f"release:{found.pk}", "title": found.version, "method": "lora"},
        "preview": member.role != Member.Role.GUEST,
        "error": error,
        "comment": request.POST.get("comment", ""),
    }
    return render(request, "shared/release.html", context, status=422 if error else 200)


def sign_off(request: HttpRequest, pk: str) -> HttpResponse:
    found = get_object_or_404(Release.objects.for_action(request, "release.sign_off").select_related("project__client"), pk=pk)
    said, comment = request.POST.get("say", ""), request.POST.get("comment", "")
    try:
        if said not in ("approve", "change"):
            raise UserError("Choose whether you approve it.")
        if said == "change" and not comment.strip():
            raise UserError("Say what is to change.", fields={"comment": "Say in a sentence what is to change."})
        seen = request.POST.get("evaluation")
        gates.say(request.member, found, approves=said == "approve", comment=comment, evaluation=seen)  # type: ignore[attr-defined]
    except UserError as problem:
        return release(request, pk, error=problem)
    text = f"You approved {found.version}." if said == "approve" else f"You asked for changes to {found.version}."
    messages.success(request, text)
    return redirect("shared:release", pk=found.pk)
