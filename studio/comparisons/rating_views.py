"""The pages of blind rating: two answers without names, for members and a client's guests alike, and what their ratings come to."""

import csv
import io
from dataclasses import dataclass
from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.http import urlencode
from django.utils.text import slugify

from studio.cells import cell
from studio.comparisons import rating as services
from studio.comparisons.models import Comparison
from studio.comparisons.preferred import Preference
from studio.comparisons.rated import Rated, is_open
from studio.comparisons.rating import Question
from studio.errors import UserError
from studio.workspaces.models import Member

HEADINGS = ("at", "by", "guest", "prompt", "left", "left_seed", "right", "right_seed", "better")


@dataclass(frozen=True)
class Shown:
    """A question as the page has it: nothing in it tells whose answers they are."""

    token: str
    prompt: str
    expected: str
    answers: tuple[str, str]


def rate(request: HttpRequest, pk: str) -> HttpResponse:
    """The next question; what was said of the one before, where it is posted."""
    member: Member = request.member  # type: ignore[attr-defined]
    comparison = found_for(request, "comparison.rate", pk)
    if request.method != "POST":
        return asked(request, comparison, token=request.GET.get("question", ""))
    again = ""
    try:
        if "undo" in request.POST:
            again = services.sealed(member, comparison, services.undo(member, comparison))
        else:
            services.cast(member, comparison, token=request.POST.get("question", ""), better=request.POST.get("better", ""))
    except UserError as problem:
        return asked(request, comparison, error=problem)
    if request.headers.get("HX-Request"):
        return asked(request, comparison, token=again)
    return redirect(f"{request.path}?{urlencode({'question': again})}" if again else request.path)


def asked(request: HttpRequest, comparison: Comparison, *, token: str = "", error: UserError | None = None) -> HttpResponse:
    """The page, or for htmx its part with the question. `token` holds one that was taken back."""
    member: Member = request.member  # type: ignore[attr-defined]
    rated = Rated.of(comparison)
    question = question_of(member, comparison, rated, token) if rated else None
    context = {
        "section": "home" if member.role == Member.Role.GUEST else "comparisons",
        "comparison": comparison,
        "client": comparison.project.client,
        "guest": member.role == Member.Role.GUEST,
        "rated": rated,
        "question": shown(member, rated, question) if rated and question else None,
        "left": len(services.left_for(member, rated)) if rated else 0,
        "all": len(rated.counted) if rated else 0,
        "mine": sum(each.user_id == member.user_id for each in rated.counted) if rated else 0,
        "more": rated.scores.more if rated else 0,
        "can_undo": services.last_of(member, comparison) is not None,
        "error": error,
    }
    template = "comparisons/rating.html" if request.headers.get("HX-Request") else "comparisons/rate.html"
    response = render(request, template, context, status=422 if error else 200)
    response["Cache-Control"] = "no-store"  # who goes back sees the question that is open, not one that they have answered
    return response


def question_of(member: Member, comparison: Comparison, rated: Rated, token: str) -> Question | None:
    if token:
        try:
            again = services.opened(member, comparison, token)
        except UserError:
            again = None
        if again and (again.pair, again.prompt) in services.left_for(member, rated):
            return again
    return services.next_question(member, rated)


def shown(member: Member, rated: Rated, question: Question) -> Shown:
    prompt, expected = rated.prompts[question.prompt]
    answers = (
        rated.texts[question.left, question.left_seed][question.prompt],
        rated.texts[question.right, question.right_seed][question.prompt],
    )
    return Shown(services.sealed(member, rated.comparison, question), prompt, expected, answers)


def share(request: HttpRequest, pk: str) -> HttpResponse:
    """Lets the client's guests rate, or no longer."""
    comparison = found_for(request, "comparison.edit", pk)
    client = comparison.project.client
    try:
        if request.POST.get("shared") == "off":
            services.unshare(request.member, comparison)  # type: ignore[attr-defined]
            messages.success(request, f"{client}'s people no longer see it. What they rated stays.")
        else:
            services.share(request.member, comparison)  # type: ignore[attr-defined]
            messages.success(request, f"{client}'s people can rate its answers now.")
    except UserError as problem:
        messages.error(request, problem.message)
    response = redirect("comparisons:detail", pk=comparison.pk)
    response["Location"] += "#ratings"
    return response


def download(request: HttpRequest, pk: str) -> HttpResponse:
    """Every rating that counts, as CSV, the oldest first."""
    comparison = found_for(request, "comparison.view", pk)
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(HEADINGS)
    for each in services.ratings_of(comparison).select_related("left", "right", "user").order_by("created_at", "pk"):
        by = each.user.email if each.user else ""
        sides = (each.left.name, each.left_seed, each.right.name, each.right_seed)
        told = (each.created_at.isoformat(), by, "yes" if each.by_guest else "no", each.prompt + 1, *sides, each.better)
        writer.writerow([cell(value) for value in told])
    headers = {
        "Content-Disposition": f"attachment; filename={slugify(comparison.name)[:60] or 'comparison'}-ratings.csv",
        "X-Content-Type-Options": "nosniff",
    }
    return HttpResponse(file.getvalue(), content_type="text/csv; charset=utf-8", headers=headers)


def found_for(request: HttpRequest, action: str, pk: str) -> Comparison:
    visible = Comparison.objects.for_action(request, action).select_related("project__client__workspace", "order")
    found: Comparison = get_object_or_404(visible, pk=pk)
    return found


def ratings_context(comparison: Comparison, member: Member) -> dict[str, Any]:
    """What `comparisons/ratings.html` shows."""
    rated = Rated.of(comparison)
    active = comparison.project.client.archived_at is None
    told = {
        "is_open": is_open(comparison),
        "rated": rated,
        "preference": Preference(rated) if rated else None,
        "left": len(services.left_for(member, rated)) if rated else 0,
        "more": rated.scores.more if rated else 0,
        "may_rate": active and member.may("comparison.rate"),
        "may_share": active and member.may("comparison.edit"),
    }
    return {"ratings": told}
