"""Deliveries: the members' pages, and the one page that a link opens without the workspace around it."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.http import urlencode

from studio.artifacts.downloads import main_file
from studio.errors import UserError
from studio.releases import delivering
from studio.releases.bundling import built, bundle_of
from studio.releases.models import Delivery, Release
from studio.releases.running import ways
from studio.releases.sending import bundle_response
from studio.workspaces import throttle
from studio.workspaces.lists import page_of
from studio.workspaces.middleware import address_of
from studio.workspaces.models import Client, Member
from studio.workspaces.requests import caller

TOLD_NOWHERE = {"Referrer-Policy": "no-referrer", "X-Robots-Tag": "noindex, nofollow", "Cache-Control": "no-store, private"}
Opens = Callable[[HttpRequest, str], HttpResponseBase]

# ── The members' pages ──


def deliveries(request: HttpRequest) -> HttpResponse:
    rows = Delivery.objects.for_action(request, "delivery.view").select_related("release__project__client", "build", "created_by")
    clients = Client.objects.for_action(request, "client.view")
    chosen, release = None, None
    if request.GET.get("client"):
        chosen = clients.named(request.GET["client"])
        rows = rows.filter(release__project__client=chosen)
    if "release" in request.GET:
        release = Release.objects.for_action(request, "release.view").select_related("project__client").named(request.GET["release"])
        rows = rows.filter(release=release)
    if chosen is None and release is None:
        rows = rows.current()
    page = page_of(request, rows.defer("build__verification"))
    query = "".join(f"{name}={thing.pk}&" for name, thing in (("client", chosen), ("release", release)) if thing)
    context = {"section": "releases", "page": page, "clients": clients, "chosen": chosen, "release": release, "query": query}
    return render(request, "deliveries/list.html", context)


def delivery(request: HttpRequest, pk: str) -> HttpResponse:
    found = get_object_or_404(delivering.with_all(Delivery.objects.for_action(request, "delivery.view")), pk=pk)
    log = page_of(request, found.log.select_related("user"))
    return render(request, "deliveries/detail.html", {"section": "releases", "delivery": found, "release": found.release, "page": log})


def new(request: HttpRequest) -> HttpResponse:
    """The form; once it was sent, the link, which is on the answer to that very request and nowhere else."""
    releases = Release.objects.for_action(request, "delivery.create").select_related("project__client", "artifact__base_model")
    release = releases.named(request.POST.get("release") or request.GET.get("release"))
    member: Member = request.member  # type: ignore[attr-defined]
    files = delivering.files_of(member, release)
    chosen = request.POST.get("build") or (str(files[0].pk) if files else "")
    for build in files:
        build.is_chosen = str(build.pk) == chosen  # type: ignore[attr-defined]
    context: dict[str, Any] = {
        "section": "releases",
        "release": release,
        "client": release.project.client,
        "files": files,
        "typed": request.POST,
        "days": delivering.DAYS,
        "limits": delivering.LIMITS,
        "why_not": delivering.why_not(release),
        "can_build": delivering.is_buildable(release),
    }
    if request.method == "GET":
        return render(request, "deliveries/new.html", context)
    try:
        made, secret = delivering.create_delivery(
            member,
            release=release,
            build=named_file(files, request.POST.get("build", "")),
            recipient=request.POST.get("recipient", ""),
            days=number(request.POST.get("days", ""), "days"),
            limit=number(request.POST.get("limit", "0") or "0", "limit") or None,
            signed_in="signed_in" in request.POST,
        )
    except UserError as problem:
        return render(request, "deliveries/new.html", context | {"error": problem}, status=422)
    link = request.build_absolute_uri(reverse("delivery", args=[secret]))
    return render(request, "deliveries/made.html", {"section": "releases", "release": release, "delivery": made, "link": link})


def named_file(files: list[Any], typed: str) -> Any:
    found = next((build for build in files if str(build.pk) == typed), None)
    if found is None:
        raise UserError("Choose the file.", fields={"build": "Choose the file that is handed over."})
    return found


def number(typed: str, field: str) -> int:
    if not (typed.isascii() and typed.isdigit() and len(typed) < 10):
        raise UserError("The delivery cannot be made like this.", fields={field: "Choose one of the list."})
    return int(typed)


def revoke(request: HttpRequest, pk: str) -> HttpResponse:
    found = get_object_or_404(Delivery.objects.for_action(request, "delivery.create").select_related("release__project__client"), pk=pk)
    delivering.revoke_delivery(request.member, found)  # type: ignore[attr-defined]
    messages.success(request, "Revoked. The link answers nobody from now on.")
    return redirect("deliveries:detail", pk=found.pk)


def download(request: HttpRequest, pk: str) -> HttpResponseBase:
    """For those who are signed in; it counts as much as by the link."""
    found = get_object_or_404(delivering.with_all(Delivery.objects.for_action(request, "delivery.download")), pk=pk)
    response = bundle_response(request, found, member=request.member)  # type: ignore[attr-defined]
    if response is None:
        raise UserError("This delivery has ended, or was fetched as often as it could be. Ask for another one.")
    return response


# ── The link ──


def told_nowhere(view: Opens) -> Opens:
    """A link is a key: its page is told to no other site, and kept by no search engine and no cache."""

    @wraps(view)
    def answer(request: HttpRequest, token: str) -> HttpResponseBase:
        response = view(request, token)
        for name, value in TOLD_NOWHERE.items():
            response[name] = value
        return response

    return answer


@told_nowhere
def link(request: HttpRequest, token: str) -> HttpResponseBase:
    found = delivering.by_secret(token)
    if found is None or not found.is_open:
        return gone(request)
    if found.signed_in and not request.user.is_authenticated:
        return sign_in_first(request)
    if found.signed_in and delivering.member_for(request.user, found) is None:
        return gone(request)
    bundle = bundle_of(found)
    artifact = built(found.build)
    file = main_file(artifact)
    context = {
        "delivery": found,
        "release": found.release,
        "client": found.release.project.client,
        "bundle": bundle,
        "file": file,
        "sha256": artifact.files[file]["sha256"] if file else "",
        "ways": ways(found.release, found.build, file or ""),
        "file_url": reverse("delivery_file", args=[token]),
    }
    return render(request, "deliveries/link.html", context)


@told_nowhere
def link_file(request: HttpRequest, token: str) -> HttpResponseBase:
    found = delivering.by_secret(token)
    if found is None:
        return gone(request)
    if found.signed_in and not request.user.is_authenticated:
        return sign_in_first(request) if found.is_open else gone(request)
    member = delivering.member_for(request.user, found)
    if found.signed_in and member is None:
        return gone(request)
    if member is not None:
        member.ip = address_of(request)
    return bundle_response(request, found, member=member) or gone(request)


def gone(request: HttpRequest) -> HttpResponse:
    """One and the same answer to a link that is wrong, over, revoked, spent, or somebody else's; after many of them, 429.

    Only these are counted against an address: many people may share one, and what is theirs opens all the same.
    """
    address = caller(request)
    status = 429 if throttle.is_blocked("delivery", address) else 404
    throttle.failed("delivery", address)
    return render(request, "deliveries/gone.html", status=status)


def sign_in_first(request: HttpRequest) -> HttpResponse:
    return redirect(f"{reverse('login')}?{urlencode({'next': request.path})}")
