"""The page on which a person chooses the format and spelling in which to take a version's rows home."""

from typing import Any

from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render

from studio.datasets.downloads import export_response
from studio.datasets.exporting import FORMATS, SPELLINGS
from studio.datasets.models import DatasetVersion
from studio.datasets.pages.frame import about, version_for
from studio.errors import UserError

FORMAT_WORDS = {
    "jsonl": "One row a line. What most training programs read.",
    "parquet": "Small and typed, for pandas, DuckDB or Spark.",
    "csv": "For spreadsheets. A cell that would be a formula there gets a ' in front.",
}
SPELLING_WORDS = {
    "openai": "messages with role and content. Says everything.",
    "sharegpt": "conversations with from and value.",
    "alpaca": "instruction, input and output; earlier turns as history. No tool calls or weights.",
}

DEFAULTS = {"format": "jsonl", "spelling": "openai", "split": ""}


def export(request: HttpRequest, pk: str) -> HttpResponse:
    """The page that asks for format and spelling."""
    found = version_for(request, "dataset.export", pk)
    if not found.is_ready:
        return redirect("datasets:version", pk=found.pk)
    return render(request, "datasets/export.html", shown(found, request.GET.dict()))


def shown(found: DatasetVersion, asked: dict[str, str], error: UserError | None = None) -> dict[str, Any]:
    chosen = DEFAULTS | asked
    split = (found.facts or {})["split"]
    return about(found) | {
        "tab": "export",
        "formats": choices(FORMATS, FORMAT_WORDS, chosen["format"]),
        "spellings": choices(SPELLINGS, SPELLING_WORDS, chosen["spelling"]),
        "splits": [
            ("", f"All {split['train'] + split['validation']:,}"),
            ("train", f"{split['train']:,} to train on"),
            ("validation", f"{split['validation']:,} for validation"),
        ],
        "asked": chosen,
        "error": error,
    }


def choices(titles: dict[str, str], words: dict[str, str], chosen: str) -> list[dict[str, Any]]:
    return [{"value": value, "title": title, "text": words[value], "checked": value == chosen} for value, title in titles.items()]


def file(request: HttpRequest, pk: str) -> HttpResponseBase:
    found = version_for(request, "dataset.export", pk)
    if not found.is_ready:
        raise Http404
    asked = {name: request.GET.get(name, default) for name, default in DEFAULTS.items()}
    try:
        return export_response(found, **asked)
    except UserError as error:
        return render(request, "datasets/export.html", shown(found, asked, error), status=422)
