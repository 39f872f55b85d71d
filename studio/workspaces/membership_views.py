"""Joining a workspace by a link, going from one of one's own to another, and making a new one."""

from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views.decorators.cache import never_cache

from studio.errors import UserError
from studio.workspaces import inviting, people, services, throttle
from studio.workspaces.choosing import go_to
from studio.workspaces.models import Invitation, Member
from studio.workspaces.requests import address_of, caller
from studio.workspaces.signing_in import sign_in


@never_cache
def invitation(request: HttpRequest, token: str) -> HttpResponse:
    """Whoever is signed in joins with a click; somebody new makes an account. A link that opens nothing says so, and not why."""
    address = caller(request)
    try:
        if throttle.is_blocked("invitation", address):
            raise inviting.Gone
        found = inviting.invitation_of(token)
        if request.method == "POST":
            return join(request, token, found)
    except inviting.Gone:
        throttle.failed("invitation", address)
        return render(request, "workspaces/invitation_gone.html", status=404)
    return offer(request, found)


def join(request: HttpRequest, token: str, found: Invitation) -> HttpResponse:
    signed_in, email = request.user.is_authenticated, request.POST.get("email", "")
    try:
        if signed_in:
            member = inviting.accept(token, request.user, ip=address_of(request))  # type: ignore[arg-type]
        else:
            member = inviting.accept_as_new(token, email=email, password=request.POST.get("password", ""), ip=address_of(request))
    except UserError as error:
        return offer(request, found, error=error, email=email)
    if not signed_in:
        sign_in(request, member.user)
    go_to(request, member)
    messages.success(request, f"You are in {member.workspace}.")
    return redirect("home")


def offer(request: HttpRequest, found: Invitation, *, error: UserError | None = None, email: str = "") -> HttpResponse:
    """What the link offers to the one who opened it."""
    user: Any = request.user
    if error is None and user.is_authenticated:
        try:
            inviting.refuse_who_cannot(found, user)
        except UserError as problem:
            error = problem
    context = {
        "invitation": found,
        "clients": people.clients_of(found),
        "words": people.ROLE_WORDS[found.role],
        "email": found.email or email,
        "has_account": error is not None and error.code == "has_account",
        "sign_in_url": f"{reverse('login')}?{urlencode({'next': request.path})}",
        "error": error,
    }
    return render(request, "workspaces/invitation.html", context, status=422 if request.method == "POST" else 200)


def switch(request: HttpRequest) -> HttpResponse:
    """To another workspace of one's own: to its home, since what was open is not there."""
    try:
        pk = UUID(request.POST.get("workspace", ""))
    except ValueError as problem:
        raise Http404 from problem
    go_to(request, get_object_or_404(Member, user=request.user.pk, workspace=pk))
    return redirect("home")


def nowhere(request: HttpRequest) -> HttpResponse:
    """For somebody who is signed in and in no workspace."""
    if request.member is not None:  # type: ignore[attr-defined]
        return redirect("home")
    return render(request, "workspaces/nowhere.html")


def workspace_new(request: HttpRequest) -> HttpResponse:
    if not people.may_make_workspace(people.memberships_of(request.user)):
        raise Http404
    error, name = None, request.POST.get("name", "")
    if request.method == "POST":
        try:
            member = services.create_workspace(user=request.user, name=services.plain_name(name), ip=address_of(request))  # type: ignore[arg-type]
        except UserError as problem:
            error = problem
        else:
            go_to(request, member)
            messages.success(request, f"Made {member.workspace}.")
            return redirect("home")
    frame = "base.html" if request.member else "base_plain.html"  # type: ignore[attr-defined]
    return render(request, "workspaces/workspace_new.html", {"error": error, "name": name, "frame": frame}, status=422 if error else 200)
