"""Mixing versions of a client into one: what each gives is shown while it is typed."""

from dataclasses import dataclass, field
from typing import Any

from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, QueryDict
from django.shortcuts import redirect, render

from studio.datasets import shaping
from studio.datasets.models import Dataset, DatasetVersion
from studio.datasets.pages.splits import number
from studio.datasets.shaping import Part, Planned
from studio.datasets.views import project_of
from studio.errors import UserError
from studio.workspaces.models import Project

MOST_DATASETS = 200
"""Datasets of a client that the page offers, the newest first."""


@dataclass
class Line:
    """One dataset as the form offers it, with what was typed for it."""

    dataset: Dataset
    versions: list[DatasetVersion]
    version: DatasetVersion
    chosen: bool = False
    unit: str = "times"
    amount: str = "1"
    most: str = ""

    @property
    def key(self) -> str:
        return str(self.dataset.pk)

    def part(self) -> Part:
        amount = number(self.amount, "parts", f"{self.dataset}: say how much of it, as a number such as 0.5 or 20.")
        most = int(number(self.most, "parts", f"{self.dataset}: at most how many rows, as a whole number.")) if self.most.strip() else None
        wanted = {"share": amount} if self.unit == "share" else {"times": amount}
        return Part(version=self.version, most=most, **wanted)


@dataclass
class MixForm:
    project: Project
    lines: list[Line]
    targets: list[Dataset]
    name: str = ""
    target: str = ""
    seed: str = "42"
    without_held_out: bool = True
    held_out: list[DatasetVersion] = field(default_factory=list)

    @classmethod
    def read(cls, request: HttpRequest, project: Project) -> "MixForm":
        """As it was sent; opened for the first time, with the versions that the address names as `part`."""
        seen = DatasetVersion.objects.for_action(request, "dataset.view").filter(
            dataset__project__client=project.client, dataset__held_out=False, facts__isnull=False
        )
        sent = request.POST
        form = cls(
            project,
            lines_of(seen, sent, request.GET.getlist("part")),
            list(Dataset.objects.for_action(request, "dataset.create").filter(project=project, held_out=False)),
            held_out=shaping.held_out_sets(project),
        )
        if request.method == "POST":
            form.name, form.target, form.seed = sent.get("name", ""), sent.get("target", ""), sent.get("seed", "")
            form.without_held_out = "without_held_out" in sent
        return form

    @property
    def parts(self) -> list[Part]:
        return [line.part() for line in self.lines if line.chosen]

    @property
    def dataset(self) -> Dataset | None:
        return next((dataset for dataset in self.targets if str(dataset.pk) == self.target), None)

    def plan(self) -> dict[str, Any]:
        """What the preview shows: the parts with what they give, or why these cannot be mixed."""
        if not any(line.chosen for line in self.lines):
            return {"planned": [], "total": None, "error": None}
        try:
            planned = shaping.planned(self.parts)
        except UserError as error:
            return {"planned": [], "total": None, "error": error}
        return {"planned": planned, "total": total_of(planned), "error": None}


def lines_of(seen: "QuerySet[DatasetVersion]", sent: QueryDict, named: list[str]) -> list[Line]:
    """The datasets that there are, each with its versions, the newest first."""
    by_dataset: dict[Any, list[DatasetVersion]] = {}
    for version in seen.select_related("dataset__project__client").order_by("-created_at"):
        by_dataset.setdefault(version.dataset_id, []).append(version)
    return [line_of(versions, sent, named) for versions in list(by_dataset.values())[:MOST_DATASETS]]


def line_of(versions: list[DatasetVersion], sent: QueryDict, named: list[str]) -> Line:
    line = Line(versions[0].dataset, versions, versions[0])
    asked = next((version for version in versions if str(version.pk) in named), None)
    if asked is not None:
        line.version, line.chosen = asked, True
    if sent:
        line.chosen = f"use_{line.key}" in sent
        line.version = next((version for version in versions if str(version.pk) == sent.get(f"version_{line.key}")), line.version)
        line.unit, line.amount = sent.get(f"unit_{line.key}", line.unit), sent.get(f"amount_{line.key}", line.amount)
        line.most = sent.get(f"most_{line.key}", "")
    return line


def total_of(planned: list[Planned]) -> dict[str, int]:
    train, validation = sum(one.taken.train for one in planned), sum(one.taken.validation for one in planned)
    return {"rows": train + validation, "train": train, "validation": validation}


def mix(request: HttpRequest) -> HttpResponse:
    project = project_of(request, "dataset.create", request.POST.get("project") or request.GET.get("project"))
    form = MixForm.read(request, project)
    refused = None
    if request.method == "POST":
        try:
            return redirect("datasets:version", pk=made(request, form).pk)
        except UserError as error:
            refused = error
    context = {"section": "projects", "project": project, "form": form, "refused": refused, **form.plan()}
    return render(request, "datasets/mix.html", context, status=422 if refused else 200)


def made(request: HttpRequest, form: MixForm) -> DatasetVersion:
    return shaping.mix(
        request.member,  # type: ignore[attr-defined]
        project=form.project,
        parts=form.parts,
        name=form.name,
        dataset=form.dataset,
        seed=int(number(form.seed, "seed", "Seed must be 0 to 4 294 967 295.")),
        without_held_out=form.without_held_out and bool(form.held_out),
    )


def preview(request: HttpRequest) -> HttpResponse:
    """What the parts give, as they are typed now."""
    project = project_of(request, "dataset.create", request.POST.get("project"))
    form = MixForm.read(request, project)
    return render(request, "datasets/mix.html#preview", {"project": project, "form": form, **form.plan()})
