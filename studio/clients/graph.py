"""What came of what around one thing: all that it was made of, and all that was made of it. How that is drawn is `picture`'s.

Every row is asked for as the one who looks may see it, and within the client alone. Each kind takes one query, save for what is made of
its own kind (versions, artifacts), which takes one a generation.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db.models import Q
from django.urls import reverse

from studio.artifacts.models import Artifact
from studio.basemodels.models import BaseModel
from studio.datasets.models import DatasetVersion
from studio.errors import UserError
from studio.releases.models import Delivery, Release
from studio.runs.models import Run
from studio.serving.models import Deployment
from studio.workspaces.models import Client, Member

Thing = DatasetVersion | Run | Artifact | Release
MOST = 2000
"""Things of one kind that are followed further, the newest first."""
GENERATIONS = 50


@dataclass(frozen=True)
class Kind:
    name: str
    title: str
    """Of its group, for many."""
    icon: str
    column: int


KINDS = {
    kind.name: kind
    for kind in (
        Kind("base_model", "Base models", "base-model", 0),
        Kind("version", "Dataset versions", "dataset", 0),
        Kind("run", "Runs", "runs", 1),
        Kind("artifact", "Adapters and models", "adapter", 2),
        Kind("build", "Builds", "gguf", 3),
        Kind("release", "Releases", "check", 4),
        Kind("deployment", "Deployments", "send", 5),
        Kind("delivery", "Deliveries", "download", 5),
    )
}


@dataclass(frozen=True)
class Node:
    pk: UUID
    kind: str
    name: str
    note: str
    url: str
    at: datetime
    short: str
    """The name where there is little room."""

    @property
    def about(self) -> Kind:
        return KINDS[self.kind]


@dataclass
class Graph:
    here: UUID | None = None
    """The thing that is looked at."""
    nodes: dict[UUID, Node] = field(default_factory=dict)
    edges: set[tuple[UUID, UUID]] = field(default_factory=set)
    tried: set[tuple[UUID, UUID]] = field(default_factory=set)
    """The edges of canaries: that release answers a share only."""
    cut: bool = False
    """There was more of a kind than MOST."""

    def of(self, *kinds: str) -> list[Node]:
        """The nodes of these kinds, the newest first."""
        found = [node for node in self.nodes.values() if node.kind in kinds]
        return sorted(found, key=lambda node: (node.at, str(node.pk)), reverse=True)

    def before(self, pk: UUID) -> list[Node]:
        """What a node was made of."""
        return [self.nodes[one] for one, other in self.edges if other == pk]

    def distances(self) -> dict[UUID, int]:
        """How many steps each node is away from the one that is looked at."""
        beside: dict[UUID, set[UUID]] = defaultdict(set)
        for one, other in self.edges:
            beside[one].add(other)
            beside[other].add(one)
        far: dict[UUID, int] = {self.here: 0} if self.here else {}
        edge = list(far)
        while edge:
            steps = far[edge[0]] + 1
            edge = [pk for pk in dict.fromkeys(pk for known in edge for pk in beside[known]) if pk not in far]
            far.update(dict.fromkeys(edge, steps))
        return far


def around(member: Member, thing: Thing) -> Graph:
    """The lineage of one thing, both ways."""
    walk = Walk(member, thing.audit_client)
    return walk.both_ways(thing)


def made_of(member: Member, client: Client, *, runs: Iterable[Run]) -> Graph:
    """All that came of these runs, and the runs."""
    walk = Walk(member, client)
    walk.runs = {run.pk: run for run in runs}
    walk.follow_runs()
    return walk.graph(None)


class Walk:
    """Gathers the rows of one lineage by kind, then tells nodes and edges of them."""

    def __init__(self, member: Member, client: Client):
        self.member, self.client, self.cut = member, client, False
        self.bases: dict[UUID, BaseModel] = {}
        self.versions: dict[UUID, DatasetVersion] = {}
        self.runs: dict[UUID, Run] = {}
        self.artifacts: dict[UUID, Artifact] = {}
        self.releases: dict[UUID, Release] = {}
        self.deployments: dict[UUID, Deployment] = {}
        self.deliveries: dict[UUID, Delivery] = {}

    def both_ways(self, thing: Thing) -> Graph:
        match thing:
            case DatasetVersion():
                self.versions[thing.pk] = thing
                self.older_versions([thing])
                older = set(self.versions) - {thing.pk}
                self.newer_versions([thing])
                learnt = [pk for pk in self.versions if pk not in older]
                self.take(self.runs, self.rows(Run, "run.view").filter(dataset_version__in=learnt))
                self.take(self.artifacts, self.without_run().filter(dataset_version__in=learnt))
                self.follow_runs()
            case Run():
                self.take(self.runs, self.rows(Run, "run.view").filter(pk=thing.pk))
                self.sources_of_runs()
                self.follow_runs()
            case Artifact():
                self.take(self.artifacts, self.rows(Artifact, "artifact.view").filter(pk=thing.pk))
                self.follow_artifacts([thing.pk])
                self.sources_of_artifacts([thing.pk])
            case Release():
                self.take(self.releases, self.rows(Release, "release.view").filter(pk=thing.pk))
                self.follow_releases()
                self.take(self.artifacts, self.rows(Artifact, "artifact.view").filter(pk=thing.artifact_id))
                self.sources_of_artifacts([thing.artifact_id])
        return self.graph(thing.pk)

    def rows(self, model: Any, action: str) -> Any:
        """The client's rows of a kind that the one who looks may see, the newest first, each with what its node says."""
        found = model.objects.for_action(self.member, action).filter(**{model.CLIENT: self.client}).order_by("-created_at", "-pk")
        beside = BESIDE[model]
        return found.select_related(*beside.joined).prefetch_related(*beside.fetched).defer(*beside.left)

    def without_run(self) -> Any:
        """Artifacts that name a version and came of no run and no build here: they were trained elsewhere."""
        return self.rows(Artifact, "artifact.view").filter(order__run__isnull=True, parents__isnull=True)

    def take(self, known: dict[UUID, Any], rows: Any) -> list[UUID]:
        """Adds what is new of `rows`; the ids of it."""
        found = list(rows[: MOST + 1])
        self.cut |= len(found) > MOST
        new = {row.pk: row for row in found[:MOST] if row.pk not in known}
        known.update(new)
        return [*new]

    # from what was made to what it was made of

    def older_versions(self, begin: list[DatasetVersion]) -> None:
        for _ in range(GENERATIONS):
            wanted = {pk for version in begin for pk in parents_of(version)} - set(self.versions)
            if not wanted:
                return
            new = self.take(self.versions, self.rows(DatasetVersion, "dataset.view").filter(pk__in=wanted))
            begin = [self.versions[pk] for pk in new]

    def sources_of_runs(self) -> None:
        wanted = {run.dataset_version_id for run in self.runs.values()}
        new = self.take(self.versions, self.rows(DatasetVersion, "dataset.view").filter(pk__in=wanted))
        self.older_versions([self.versions[pk] for pk in new])
        self.take_bases({run.base_model_id for run in self.runs.values()})

    def take_bases(self, wanted: set[UUID]) -> None:
        if wanted:
            for base in BaseModel.objects.for_action(self.member, "base_model.view").filter(pk__in=wanted):
                self.bases[base.pk] = base

    def sources_of_artifacts(self, begin: list[UUID]) -> None:
        """Upwards from artifacts that were taken already."""
        above = [*begin]
        for _ in range(GENERATIONS):
            begin = self.take(self.artifacts, self.rows(Artifact, "artifact.view").filter(children__in=begin).distinct())
            above += begin
            if not begin:
                break
        trained = [self.artifacts[pk] for pk in above if pk in self.artifacts]
        self.take(self.runs, self.rows(Run, "run.view").filter(order__in=[artifact.order_id for artifact in trained]))
        self.sources_of_runs()
        ran = {run.order_id for run in self.runs.values()}
        roots = [artifact for artifact in trained if artifact.order_id not in ran and not artifact.was_built]
        elsewhere = {artifact.dataset_version_id for artifact in roots} - {None}
        new = self.take(self.versions, self.rows(DatasetVersion, "dataset.view").filter(pk__in=elsewhere)) if elsewhere else []
        self.older_versions([self.versions[pk] for pk in new])
        built = [artifact for artifact in trained if artifact.was_built and not self.made_here(artifact)]
        self.take_bases({artifact.base_model_id for artifact in (*roots, *built) if artifact.base_model_id})

    def made_here(self, artifact: Artifact) -> bool:
        return any(parent.pk in self.artifacts for parent in artifact.parents.all())

    # from what there is to what was made of it

    def newer_versions(self, begin: list[DatasetVersion]) -> None:
        """By one look at all versions of the client that were made of others: a mix names its parts in a JSON field."""
        made = DatasetVersion.objects.for_action(self.member, "dataset.view").filter(dataset__project__client=self.client)
        made = made.filter(Q(parent__isnull=False) | Q(origin__kind__in=["mix", "split"]))
        children: dict[UUID, set[UUID]] = defaultdict(set)
        for child in made.only("parent_id", "origin"):
            for parent in parents_of(child):
                children[parent].add(child.pk)
        wanted, edge = set[UUID](), [version.pk for version in begin]
        while edge:
            edge = [child for pk in edge for child in children[pk] if child not in wanted]
            wanted.update(edge)
        if wanted:
            self.take(self.versions, self.rows(DatasetVersion, "dataset.view").filter(pk__in=wanted))

    def follow_runs(self) -> None:
        orders = [run.order_id for run in self.runs.values()]
        begin = [*self.artifacts, *self.take(self.artifacts, self.rows(Artifact, "artifact.view").filter(order__in=orders))]
        self.follow_artifacts(begin)

    def follow_artifacts(self, begin: list[UUID]) -> None:
        below = [*begin]
        for _ in range(GENERATIONS):
            if not begin:
                break
            begin = self.take(self.artifacts, self.rows(Artifact, "artifact.view").filter(parents__in=begin).distinct())
            below += begin
        self.take(self.releases, self.rows(Release, "release.view").filter(artifact__in=below))
        self.follow_releases()

    def follow_releases(self) -> None:
        wanted = [*self.releases]
        answering = Q(release__in=wanted) | Q(canary__in=wanted)
        self.take(self.deployments, self.rows(Deployment, "deployment.view").filter(answering))
        self.take(self.deliveries, self.rows(Delivery, "delivery.view").filter(release__in=wanted))

    # nodes and edges

    def graph(self, here: UUID | None) -> Graph:
        graph = Graph(here, cut=self.cut)
        kinds = (self.bases, self.versions, self.runs, self.artifacts, self.releases, self.deployments, self.deliveries)
        for rows in kinds:
            graph.nodes.update({pk: node_of(row) for pk, row in rows.items()})
        graph.tried = {(row.canary_id, row.pk) for row in self.deployments.values() if row.canary_id in self.releases}
        graph.edges = {(one, other) for one, other in self.pairs() if one in graph.nodes and other in graph.nodes} | graph.tried
        return graph

    def pairs(self) -> Iterator[tuple[Any, UUID]]:
        for version in self.versions.values():
            yield from ((parent, version.pk) for parent in parents_of(version))
        trained = {run.order_id: run for run in self.runs.values()}
        for run in self.runs.values():
            yield from ((run.dataset_version_id, run.pk), (run.base_model_id, run.pk))
        for artifact in self.artifacts.values():
            yield from self.sources(artifact, trained.get(artifact.order_id))
        for release in self.releases.values():
            yield release.artifact_id, release.pk
        for deployment in self.deployments.values():
            yield deployment.release_id, deployment.pk
        for delivery in self.deliveries.values():
            yield from ((delivery.release_id, delivery.pk), (delivery.build.artifact_id, delivery.pk))

    def sources(self, artifact: Artifact, run: Run | None) -> Iterator[tuple[Any, UUID]]:
        parents = [parent.pk for parent in artifact.parents.all()]
        yield from ((parent, artifact.pk) for parent in parents)
        if run is not None:
            yield run.pk, artifact.pk
        elif not parents:
            yield from ((artifact.dataset_version_id, artifact.pk), (artifact.base_model_id, artifact.pk))


@dataclass(frozen=True)
class Beside:
    """What the node of a kind says beyond its own row, and which of its columns it can do without."""

    joined: tuple[str, ...] = ()
    fetched: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


BESIDE: dict[Any, Beside] = {
    DatasetVersion: Beside(("dataset", "order"), left=("tokens", "mapping")),
    Run: Beside(("order",), left=("config", "prompts", "estimate")),
    Artifact: Beside(fetched=("parents",), left=("files",)),
    Release: Beside(left=("asked_with", "notes")),
    Deployment: Beside(("client",)),
    Delivery: Beside(("build", "release__project__client")),
}


def parents_of(version: DatasetVersion) -> set[UUID]:
    """The versions that a version was made of: edited from, split anew from, or mixed of."""
    found = {version.parent_id} if version.parent_id else set()
    for part in version.origin.get("parts", []):
        try:
            found.add(UUID(str(part.get("version"))))
        except ValueError:
            continue  # a part that names no version
    return found


def node_of(row: Any) -> Node:
    kind, name, note, view = words_of(row)
    short = f"{row.version} {row.task}" if isinstance(row, Release) else name  # what differs stands at the end of a long name
    return Node(row.pk, kind, name, note, reverse(view, args=[row.pk]), row.created_at, short)


def words_of(row: Any) -> tuple[str, str, str, str]:
    """(kind, name, note, address) of a row's node."""
    match row:
        case BaseModel():
            return "base_model", row.name, "Base model", "basemodels:detail"
        case DatasetVersion():
            return "version", str(row), rows_in(row), "datasets:version"
        case Run():
            return "run", row.name, f"Run · {row.order.get_status_display().lower()}", "runs:detail"
        case Artifact():
            return ("build" if row.was_built else "artifact"), row.name, kind_of(row), "artifacts:detail"
        case Release():
            return "release", row.name, f"Release · {row.get_stage_display().lower()}", "releases:detail"
        case Deployment():
            return "deployment", str(row), "Deployment" + (" · archived" if row.archived_at else ""), "deployments:detail"
        case Delivery():
            return "delivery", row.recipient or row.release.name, "Delivery", "deliveries:detail"
    raise UserError(f"{row} has no lineage.")


def rows_in(version: DatasetVersion) -> str:
    return f"Dataset · {version.facts['rows']:,} rows" if version.facts else f"Dataset · {version.status}"


def kind_of(artifact: Artifact) -> str:
    quantization = artifact.lineage.get("quantization", "")
    kind = "Merged weights" if artifact.was_built and artifact.kind == Artifact.Kind.MODEL else artifact.get_kind_display()
    return f"{kind} · {quantization}" if quantization else kind
