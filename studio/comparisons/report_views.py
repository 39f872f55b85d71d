"""The report as a page, as a file and as a PDF, and all figures as CSV. What they say is decided by `report`."""

import re
from pathlib import Path

from django.contrib.staticfiles import finders
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404, render
from django.templatetags.static import static
from django.utils.http import content_disposition_header

from studio.comparisons.figures_csv import as_csv
from studio.comparisons.models import Comparison
from studio.comparisons.pdf import pdf_of
from studio.comparisons.report import Report, report_of
from studio.comparisons.taken import costs_of
from studio.streaming import sent


def reported(request: HttpRequest, pk: str) -> Report:
    return report_of(found_for(request, pk), request.member)  # type: ignore[attr-defined]


def found_for(request: HttpRequest, pk: str) -> Comparison:
    visible = Comparison.objects.for_action(request, "comparison.view").select_related("project__client__workspace", "order")
    found: Comparison = get_object_or_404(visible, pk=pk)
    return found


def report(request: HttpRequest, pk: str) -> HttpResponse:
    """As a page; with `?save=1` as one file that needs no server: the stylesheet stands in it then."""
    told = reported(request, pk)
    saved = "save" in request.GET
    answer = render(request, "comparisons/report.html", {"report": told, "verdict": told.verdict, "saved": saved})
    if saved:
        link = f'<link rel="stylesheet" href="{static("studio.css")}">'.encode()
        answer.content = answer.content.replace(link, b"<style>" + stylesheet() + b"</style>", 1)
        answer["Content-Disposition"] = disposition(told, "html")
    return answer


def stylesheet() -> bytes:
    path = finders.find("studio.css")
    assert isinstance(path, str)  # it is a part of the studio
    # its faces and what charts of other pages need lie beside it, where a saved page does not find them
    return re.sub(rb"@font-face \{[^}]*\}|@import[^;]*;", b"", Path(path).read_bytes())


def report_pdf(request: HttpRequest, pk: str) -> HttpResponse:
    told = reported(request, pk)
    headers = {"Content-Disposition": disposition(told, "pdf")}
    return HttpResponse(pdf_of(told), content_type="application/pdf", headers=headers)


def figures(request: HttpRequest, pk: str) -> HttpResponseBase:
    comparison = found_for(request, pk)
    costs = costs_of(comparison, request.member)  # type: ignore[attr-defined]
    headers = {"Content-Disposition": content_disposition_header(True, "figures.csv") or "attachment"}
    return StreamingHttpResponse(sent(as_csv(comparison, costs)), content_type="text/csv; charset=utf-8", headers=headers)


def disposition(told: Report, ending: str) -> str:
    return content_disposition_header(True, f"{told.file_name}.{ending}") or "attachment"
