"""Which releases can be trained anew on another base model, from what recipe, and what that would take. Nothing here changes anything."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal
from uuid import UUID

from django.db.models import Exists, OuterRef, Prefetch, Q, QuerySet, Subquery
from pydantic import BaseModel as Schema
from pydantic import ConfigDict

from studio.basemodels.models import BaseModel
from studio.comparisons.models import Retrained, Retraining
from studio.datasets.models import DatasetVersion
from studio.orders.models import Order
from studio.releases.models import Release
from studio.releases.proposing import same_base
from studio.runs.accuracy import Figure, accuracy_on, corrected
from studio.runs.costs import Tariff, tariff_of
from studio.runs.models import Run
from studio.runs.services import shape_issues, training_host
from studio.serving.models import Deployment
from studio.training import DatasetFacts, Estimate, HostFacts, Span, TrainingPlugin
from studio.training.asking import estimate_of, issues_of
from studio.training.carrying import carry
from studio.training.defaults import Suggestion, suggest
from studio.training.form import as_text, check_config, form_fields
from studio.training.registry import load_plugins, missing_packages
from studio.workspaces.models import Client, Member

MOST = 500
"""Releases of one retraining, and that a form offers."""
TAKEN_OVER = ("learning_rate", "max_length")
"""The settings that a base model has an opinion about; everything else of a recipe is about the task."""
MADE_BY = {
    "adapter": "It was uploaded, so nobody here knows how it was trained.",
    "extraction": "It was taken out of a fully trained model. Retrain that model, then extract it again.",
}


class Options(Schema):
    """What is chosen for all releases of a retraining."""

    model_config = ConfigDict(extra="forbid")

    settings: Literal["keep", "suits"] = "keep"
    """`suits` takes learning rate and max length as the new base model is advised to have them."""
    rows: Literal["same", "newest"] = "same"
    """`newest` takes the newest version of each dataset."""
    priority: Literal[0, 1, 2] = 0
    at_night: bool = False


@dataclass
class Offered:
    """A release, and what training it anew would be. `why_not` is a sentence where it cannot be."""

    release: Release
    run: Run | None
    why_not: str = ""
    version: DatasetVersion | None = None
    plugin: TrainingPlugin | None = None
    config: dict[str, Any] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)
    """What is not as it was in its recipe, in sentences."""
    warnings: list[str] = field(default_factory=list)
    estimate: Estimate | None = None
    is_proposed: bool = True
    """Whether a form ticks it at first: of one task, what is in use, else the newest."""

    @property
    def client(self) -> Client:
        found: Client = self.release.project.client
        return found

    @property
    def places(self) -> list[Deployment]:
        """What answers with it now."""
        return list(self.release.answering)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Total:
    """What the chosen ones would take, one after the other on one worker."""

    runs: int
    clients: int
    seconds: Span | None
    """None where nobody can say."""
    unknown: int
    """Runs of which nobody can say how long they take."""
    cost: str
    """In words; empty where no price is set."""


@dataclass
class Portfolio:
    """The releases of a member that could move to a base model, judged with the same options."""

    member: Member
    base: BaseModel
    options: Options
    client: Client | None = None
    only: Collection[UUID] | None = None
    """The releases that are asked about; None asks about all that are in use or the newest of their task."""
    but: Retraining | None = None
    """The retraining that asks: that a release waits in this one is no reason against it."""

    @cached_property
    def host(self) -> HostFacts | None:
        return training_host()

    @cached_property
    def tariff(self) -> Tariff | None:
        return tariff_of(self.member.workspace, self.host)

    @cached_property
    def _found(self) -> list[Release]:
        """One more than MOST where there are more."""
        rows = readable(Release.objects.for_action(self.member, "retraining.edit"))
        rows = rows.filter(pk__in=self.only) if self.only is not None else rows.filter(worth_it())
        if self.client is not None:
            rows = rows.filter(project__client=self.client)
        rows = rows.exclude(base_model=self.base).order_by("project__client__name", "project__client", "task", "-major", "-minor", "-patch")
        return [release for release in rows[: MOST + 1] if not same_base(release.base_model, self.base)]

    @property
    def is_cut(self) -> bool:
        return len(self._found) > MOST

    @cached_property
    def offered(self) -> list[Offered]:
        releases = self._found[:MOST]
        busy = self._under_way([release.pk for release in releases])
        newest = self._newest([release.artifact.order.run for release in releases if hasattr(release.artifact.order, "run")])
        found = [self._judged(release, busy=busy, newest=newest) for release in releases]
        used = {(each.release.project_id, each.release.task) for each in found if each.places}
        for each in found:
            each.is_proposed = bool(each.places) or (each.release.project_id, each.release.task) not in used
        return found

    @property
    def groups(self) -> list[tuple[Client, list[Offered]]]:
        """By client."""
        found: dict[UUID, tuple[Client, list[Offered]]] = {}
        for each in self.offered:
            found.setdefault(each.client.pk, (each.client, []))[1].append(each)
        return list(found.values())

    def total(self, chosen: Iterable[Offered]) -> Total:
        runs = [each for each in chosen if not each.why_not]
        known = [each.estimate.seconds for each in runs if each.estimate]
        seconds = Span(low=sum(span.low for span in known), high=sum(span.high for span in known)) if known else None
        cost = self.tariff.words(seconds) if self.tariff and seconds else ""
        return Total(len(runs), len({each.client.pk for each in runs}), seconds, len(runs) - len(known), cost)

    def _under_way(self, releases: list[UUID]) -> dict[UUID, str]:
        """Of these, the name of the retraining that trains each on this very base model now."""
        rows = Retrained.objects.filter(before__in=releases, retraining__base_model=self.base, after=None, problem="")
        rows = rows.filter(Q(run__order__status__in=Order.LIVE) | Q(run=None))
        if self.but is not None:
            rows = rows.exclude(retraining=self.but)
        return dict(rows.values_list("before", "retraining__name"))

    def _newest(self, runs: list[Run]) -> dict[UUID, DatasetVersion]:
        """The newest version that is ready, by dataset."""
        if self.options.rows != "newest":
            return {}
        datasets = {run.dataset_version.dataset_id for run in runs}
        rows = DatasetVersion.objects.filter(dataset__in=datasets, facts__isnull=False).select_related("dataset").order_by("number")
        return {version.dataset_id: version for version in rows}

    def _judged(self, release: Release, *, busy: dict[UUID, str], newest: dict[UUID, DatasetVersion]) -> Offered:
        order = release.artifact.order
        run: Run | None = getattr(order, "run", None)
        if run is None:
            return Offered(release, None, MADE_BY.get(order.kind, "Nobody kept how it was trained."))
        version = newest.get(run.dataset_version.dataset_id, run.dataset_version)
        each = Offered(release, run, version=version)
        if release.pk in busy:
            each.why_not = f"It is being trained on {self.base.name} already, in {busy[release.pk]}."
            return each
        loaded = load_plugins().get(run.plugin)
        if loaded is None or loaded.plugin is None:
            each.why_not = f"It was trained with {run.plugin}, which {'is broken' if loaded else 'is not installed any more'}."
            return each
        if not version.is_ready:
            each.why_not = f"The rows of {version} are not here."
        elif version.dataset.held_out:
            each.why_not = f"{version.dataset} is held out by now, so no run may train on it."
        else:
            each.plugin = loaded.plugin
            self._fill(each, run, loaded.plugin, version)
        return each

    def _fill(self, each: Offered, run: Run, plugin: TrainingPlugin, version: DatasetVersion) -> None:
        """The settings as they would be, what speaks against them, and what they would take."""
        data = version.dataset_facts(self.base)
        carried = carry(run.config, old=plugin, new=plugin)
        each.config, each.changes = carried.values, list(carried.notices)
        if version.pk != run.dataset_version_id:
            each.changes.append(f"It learns from {version} instead of version {run.dataset_version.number}.")
        if self.options.settings == "suits":
            self._suit(each, plugin, data)
        config, errors = check_config(plugin.Config, each.config)
        if config is None:
            each.why_not = " ".join(f"{label_of(plugin, name)}: {text}" if name else text for name, text in errors.items())[:300]
            return
        issues = shape_issues(plugin, version)
        if self.host is not None:
            case = (config, self.base.model_facts, data, self.host)
            issues += issues_of(plugin, case)
            estimate, _ = estimate_of(plugin, case)
            each.estimate = corrected(estimate, self._correction(plugin.name)) if estimate else None
            if missing := missing_packages(plugin, self.host.packages):
                each.warnings.append(f"It waits for a worker that has {', '.join(missing)}.")
        if wrong := next((issue for issue in issues if issue.level == "error"), None):
            known = wrong.field in plugin.Config.model_fields
            each.why_not = f"{label_of(plugin, wrong.field)}: {wrong.message}" if known else wrong.message
            if wrong.field in TAKEN_OVER and self.options.settings == "keep":
                each.why_not += " Take what suits the new base instead."
        each.warnings += [issue.message for issue in issues if issue.level == "warning"]

    def _suit(self, each: Offered, plugin: TrainingPlugin, data: DatasetFacts) -> None:
        base = self.base.model_facts
        suggested = suggest(plugin, base=base, data=data, host=self.host)
        if (
            "max_length" not in suggested and each.config.get("max_length", 0) > base.context_length
        ):  # the usual would fit, the recipe's does not
            suggested["max_length"] = Suggestion(base.context_length, f"since {base.name} reads no more")
        for name, suggestion in suggested.items():
            if name in TAKEN_OVER and each.config.get(name) != suggestion.value:
                was = as_text(each.config[name]) if name in each.config else "as it comes"
                each.changes.append(f"{label_of(plugin, name)} was {was}; it becomes {suggestion.sentence}")
                each.config[name] = suggestion.value

    def _correction(self, plugin: str) -> dict[Figure, float]:
        """What earlier runs on the worker have taught, asked once for each way to train."""
        if plugin not in self._corrections and self.host is not None:
            self._corrections[plugin] = accuracy_on(self.host.name, plugin=plugin, workspace=self.member.workspace).correction
        return self._corrections.get(plugin, {})

    @cached_property
    def _corrections(self) -> dict[str, dict[Figure, float]]:
        return {}


def label_of(plugin: TrainingPlugin, name: str) -> str:
    return next((each.label for each in form_fields(plugin.Config) if each.name == name), name)


def worth_it() -> Q:
    """In use, or approved and the highest version of its task that is."""
    answering = Deployment.objects.filter(archived_at=None, release=OuterRef("pk"))
    of_task = Release.objects.filter(project=OuterRef("project"), task=OuterRef("task"), stage=Release.Stage.APPROVED)
    newest = of_task.order_by("-major", "-minor", "-patch").values("pk")[:1]
    return Q(Exists(answering)) | Q(stage=Release.Stage.APPROVED, pk=Subquery(newest))


def readable(rows: "QuerySet[Release]") -> "QuerySet[Release]":
    """With the recipe of each, and what answers with it as `answering`, in a constant number of queries."""
    answering = Deployment.objects.filter(archived_at=None).select_related("client")
    run = "artifact__order__run"
    return rows.select_related(
        "project__client", "base_model", "artifact__order", f"{run}__dataset_version__dataset", f"{run}__base_model"
    ).prefetch_related(Prefetch("deployments", answering, to_attr="answering"))
