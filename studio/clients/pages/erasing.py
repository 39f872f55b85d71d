"""The pages on which a client is erased, and the certificate that is left."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.http import content_disposition_header

from studio.clients import erasing
from studio.clients.exporting import contents
from studio.clients.life import live_orders
from studio.errors import UserError
from studio.workspaces.models import Client


def erase(request: HttpRequest, pk: str) -> HttpResponse:
    client = get_object_or_404(Client.objects.for_action(request, "client.erase").select_related("workspace"), pk=pk)
    error = None
    typed, reason = request.POST.get("name", ""), request.POST.get("reason", "")
    if request.method == "POST":
        try:
            made = erasing.erase(request.member, client, typed=typed, reason=reason)  # type: ignore[attr-defined]
        except UserError as problem:
            error = problem
        else:
            return redirect("clients:certificate", pk=made.pk)
    context = {
        "section": "clients",
        "client": client,
        "holds": contents(client, to_erase=True),
        "live": live_orders(client).count(),
        "error": error,
        "typed": typed,
        "reason": reason,
        "kept": [*erasing.KEPT.values(), erasing.TRACKED, erasing.ELSEWHERE],
    }
    return render(request, "clients/erase.html", context, status=422 if error else 200)


def certificate(request: HttpRequest, pk: str) -> HttpResponse:
    erasure = get_object_or_404(erasing.certificates(request), pk=pk)
    return render(request, "clients/certificate.html", {"section": "clients", "erasure": erasure, "told": erasure.certificate})


def certificate_file(request: HttpRequest, pk: str) -> HttpResponse:
    """The very bytes that the certificate's hash is of."""
    erasure = get_object_or_404(erasing.certificates(request).filter(finished_at__isnull=False), pk=pk)
    headers = {
        "Content-Disposition": content_disposition_header(True, f"certificate-{str(erasure.pk)[:8]}.json") or "attachment",
        "X-Content-Type-Options": "nosniff",
    }
    return HttpResponse(erasing.canonical(erasure.certificate), content_type="application/json", headers=headers)
