"""How a version's rows are split, splitting them again, and keeping a dataset out of all training."""

from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render

from studio.datasets import shaping
from studio.datasets.models import Dataset, DatasetVersion
from studio.datasets.pages.frame import about, version_for
from studio.errors import UserError


def split(request: HttpRequest, pk: str) -> HttpResponse:
    """The page; sent, it makes the dataset's next version."""
    found = version_for(request, "dataset.create" if request.method == "POST" else "dataset.view", pk)
    if not found.is_ready:
        return redirect("datasets:version", pk=found.pk)
    if request.method != "POST":
        return render(request, "datasets/split.html", shown(found))
    try:
        made = shaping.split_again(
            request.member,  # type: ignore[attr-defined]
            found,
            percent=number(request.POST.get("validation_percent"), "validation_percent", "Must be from 0 to 50 per cent."),
            seed=int(number(request.POST.get("seed"), "seed", "Seed must be 0 to 4 294 967 295.")),
            near_duplicates="near_duplicates" in request.POST,
        )
    except UserError as error:
        return render(request, "datasets/split.html", shown(found) | {"error": error, "typed": request.POST}, status=422)
    return redirect("datasets:version", pk=made.pk)


def number(typed: str | None, field: str, sentence: str) -> float:
    """A number as people type it. Raises UserError with the sentence beside the field."""
    plain = (typed or "").strip()
    if not (plain.isascii() and plain.replace(".", "", 1).isdecimal() and len(plain) <= 12):
        raise UserError("Some values cannot be used.", fields={field: sentence})
    return float(plain)


def shown(found: DatasetVersion) -> dict[str, Any]:
    facts = found.facts or {}
    strata = [stratum | {"rows": stratum["train"] + stratum["validation"]} for stratum in facts.get("strata", [])]
    return about(found) | {
        "tab": "split",
        "share": round(100 * facts["split"]["validation"] / facts["rows"], 1) if facts["rows"] else 0,
        "strata": [stratum | {"share": round(100 * stratum["validation"] / stratum["rows"], 1)} for stratum in strata],
        "parts": [part | {"first": part["begin"] + 1} for part in facts.get("parts", [])],
        "near_duplicates": found.rules.get("near_duplicates", True),
        "typed": {
            "validation_percent": f"{found.validation_percent:g}",
            "seed": str(found.seed),
            "near_duplicates": found.rules.get("near_duplicates", True),
        },
    }


def hold_out(request: HttpRequest, pk: str) -> HttpResponse:
    """Keeps runs from training on a dataset, or lets them again (`held_out` is missing)."""
    writable = Dataset.objects.for_action(request, "dataset.create")
    found = get_object_or_404(writable.select_related("project__client"), pk=pk)
    held_out = request.POST.get("held_out") == "true"
    try:
        shaping.update_dataset(request.member, found, held_out=held_out)  # type: ignore[attr-defined]
    except UserError as error:
        messages.info(request, error.message)
    else:
        messages.success(request, "Held out. No run trains on it." if held_out else "Runs may train on it again.")
    newest = found.newest
    return redirect("datasets:split", pk=newest.pk) if newest else redirect("datasets:detail", pk=found.pk)


def license(request: HttpRequest, pk: str) -> HttpResponse:
    """Says on what terms the rows of a dataset may be used."""
    writable = Dataset.objects.for_action(request, "dataset.create")
    found = get_object_or_404(writable.select_related("project__client"), pk=pk)
    try:
        shaping.update_dataset(request.member, found, license=request.POST.get("license", ""))  # type: ignore[attr-defined]
    except UserError as error:
        messages.info(request, error.message)
    else:
        messages.success(request, "Saved the licence.")
    newest = found.newest
    return redirect("datasets:version", pk=newest.pk) if newest else redirect("datasets:detail", pk=found.pk)


def leave_out(request: HttpRequest, pk: str) -> HttpResponse:
    """The next version, without the rows that a held-out set has too."""
    found = version_for(request, "dataset.create", pk)
    try:
        made = shaping.leave_out_held_out(request.member, found)  # type: ignore[attr-defined]
    except UserError as error:
        messages.info(request, error.message)
        return redirect("datasets:version", pk=found.pk)
    return redirect("datasets:version", pk=made.pk)
