"""Where a row is: the versions of its client that hold it, the runs that learnt from it or were measured on it, and what came of those.

A row is found by the 64-bit hash that each version's file keeps of it, then compared word by word. Reading the hashes of a million rows
takes about 50 ms and 8 MB, and nothing is kept: the versions of a client are read two at a time, the newest first, up to MOST_ROWS rows.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from studio.clients.graph import Graph, Node, made_of
from studio.datasets import rows
from studio.datasets.drafting import row_of
from studio.datasets.flags import Flag
from studio.datasets.models import DatasetVersion
from studio.datasets.revising import BEFORE, DROPPED
from studio.releases.models import Evaluation
from studio.runs.models import Run
from studio.serving.models import Deployment
from studio.workspaces.models import Member

MOST_ROWS = 50_000_000
"""Rows of all versions together whose hashes are read for one answer: about three seconds."""
MOST_COPIES = 20
"""Copies of a row in one version that are told one by one."""
AT_ONCE = 2


@dataclass(frozen=True)
class Place:
    """A version that holds the row."""

    version: DatasetVersion
    indices: list[int]
    """Of its first MOST_COPIES copies."""
    copies: int
    split: str
    """train, validation, or both."""

    @property
    def numbers(self) -> list[int]:
        return [index + 1 for index in self.indices]

    @property
    def is_learnt(self) -> bool:
        return self.split != "validation"

    @property
    def is_measured(self) -> bool:
        return self.split != "train"


@dataclass(frozen=True)
class Fate:
    """What a version that was made of one with the row did to it."""

    version: DatasetVersion
    parent: DatasetVersion
    what: str
    """dropped, edited, or left out of a mix or another split."""
    becomes: int | None = None
    """Index of the row that it was edited into."""

    @property
    def number(self) -> int | None:
        return None if self.becomes is None else self.becomes + 1


@dataclass(frozen=True)
class Former:
    """The row that this one was edited from."""

    version: DatasetVersion
    index: int

    @property
    def number(self) -> int:
        return self.index + 1


@dataclass(frozen=True)
class Whereabouts:
    version: DatasetVersion
    row: dict[str, Any]
    """As `rows.page` gives it."""
    places: list[Place]
    fates: list[Fate]
    former: Former | None
    unread: list[DatasetVersion]
    """Versions that were not looked at: there are too many rows, or their file is gone."""
    learnt: list[Run]
    measured: list[Run]
    evaluated: list[Evaluation]
    """Looks at releases for a gate, on a held-out version with this row."""
    graph: Graph
    """What came of the runs that learnt from it."""
    live: list[Deployment]

    @property
    def number(self) -> int:
        return int(self.row["index"]) + 1

    @property
    def releases(self) -> list[Node]:
        return self.graph.of("release")

    @property
    def sentence(self) -> str:
        """The answer to the question that brought somebody here."""
        releases = self.releases
        if releases:
            return f"{counted(len(releases), 'release')} learnt from this row; {self._live_words(len(releases))}"
        if self.learnt:
            of = "it" if len(self.learnt) == 1 else "them"
            return f"{counted(len(self.learnt), 'run')} learnt from this row; no release came of {of}."
        if self.measured:
            was = "was" if len(self.measured) == 1 else "were"
            return f"No run learnt from this row; {counted(len(self.measured), 'run')} {was} measured on it."
        return "No run has read this row."

    def _live_words(self, releases: int) -> str:
        if not self.live:
            return "it is not live anywhere." if releases == 1 else "none of them is live."
        names = ", ".join(str(deployment) for deployment in self.live[:5]) + (" and others" if len(self.live) > 5 else "")
        answering = {pk for one in self.live for pk in (one.release_id, one.canary_id)} & {node.pk for node in self.releases}
        if releases == 1:
            return f"it is live in {names}."
        share = f"{len(answering)} of them" if len(answering) < releases else "both" if releases == 2 else "all of them"
        return f"{share} {'is' if len(answering) == 1 else 'are'} live in {names}."


def counted(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def whereabouts(member: Member, version: DatasetVersion, index: int) -> Whereabouts:
    """Raises UserError where the version has no such row."""
    row = row_of(version, index)
    places, unread = places_of(member, version, row)
    holding = [place.version.pk for place in places]
    runs = Run.objects.for_action(member, "run.view").filter(dataset_version__in=holding, project__client=version.audit_client)
    learnt, measured = list[Run](), list[Run]()
    splits = {place.version.pk: place for place in places}
    for run in runs.select_related("order", "dataset_version__dataset").order_by("-created_at", "-pk"):
        place = splits[run.dataset_version_id]
        if place.is_learnt:
            learnt.append(run)
        if place.is_measured:
            measured.append(run)
    graph = made_of(member, version.audit_client, runs=learnt)
    releases = {node.pk for node in graph.of("release")}
    deployments = Deployment.objects.for_action(member, "deployment.view").filter(pk__in=[node.pk for node in graph.of("deployment")])
    return Whereabouts(
        version=version,
        row=row,
        places=places,
        fates=list(fates_of(member, places)),
        former=former_of(version, row),
        unread=unread,
        learnt=learnt,
        measured=measured,
        evaluated=evaluated_on(member, places),
        graph=graph,
        live=[one for one in deployments.filter(archived_at=None).select_related("client") if {one.release_id, one.canary_id} & releases],
    )


def places_of(member: Member, version: DatasetVersion, row: dict[str, Any]) -> tuple[list[Place], list[DatasetVersion]]:
    """Every version of the client with this row, by dataset and number; and those that nobody looked at."""
    visible = DatasetVersion.objects.for_action(member, "dataset.view").filter(
        dataset__project__client=version.audit_client, facts__isnull=False
    )
    chosen, unread, room = list[DatasetVersion](), list[DatasetVersion](), MOST_ROWS
    for candidate in visible.select_related("dataset__project__client").defer("tokens").order_by("-created_at"):
        size = (candidate.facts or {})["rows"]
        if candidate.pk == version.pk or (size <= room and candidate.rows_path.exists()):
            room -= size
            chosen.append(candidate)
        else:
            unread.append(candidate)
    with ThreadPoolExecutor(AT_ONCE) as pool:  # most of the time goes by outside of the interpreter's lock
        found = [place for place in pool.map(lambda one: place_in(one, row), chosen) if place is not None]
    return sorted(found, key=lambda place: (place.version.dataset.name, place.version.dataset_id, place.version.number)), unread


def place_in(version: DatasetVersion, row: dict[str, Any]) -> Place | None:
    """Where a version holds the row, if it does. Asks no database: it runs in a thread."""
    held = np.flatnonzero(rows.column(version.rows_path, "hash") == np.uint64(row["hash"]))
    if not len(held):
        return None
    same = [found for found in rows.page(version.rows_path, wanted=held, limit=MOST_COPIES) if found["row"] == row["row"]]
    if not same:  # another row of the same hash
        return None
    splits = {found["split"] for found in same}
    return Place(version, [found["index"] for found in same], len(held), splits.pop() if len(splits) == 1 else "both")


def fates_of(member: Member, places: list[Place]) -> Iterator[Fate]:
    """What became of the row in the versions that were made of one that has it, and do not have it as it was."""
    holding = {place.version.pk: place for place in places}
    visible = DatasetVersion.objects.for_action(member, "dataset.view").filter(parent__in=[*holding], facts__isnull=False)
    for child in visible.exclude(pk__in=[*holding]).select_related("dataset").order_by("created_at"):
        place = holding[child.parent_id]  # type: ignore[index]  # only those with such a parent were asked for
        becomes = edited_into(child, place.indices)
        what = "edited" if becomes is not None else "dropped" if is_dropped(child, place.indices) else "left out"
        yield Fate(child, place.version, what, becomes)


def is_dropped(child: DatasetVersion, indices: list[int]) -> bool:
    return bool(np.isin(indices, places_written(child, DROPPED)).any())


def edited_into(child: DatasetVersion, indices: list[int]) -> int | None:
    """Index of the row that the first of these was edited into. The former texts stand in the order of the rows that changed."""
    order = np.flatnonzero(np.isin(places_written(child, BEFORE), indices))
    if not len(order):
        return None
    return int(changed_rows(child)[order[0]])


def former_of(version: DatasetVersion, row: dict[str, Any]) -> Former | None:
    """The row of the version before that this one was edited from."""
    if not row["flags"] & Flag.CHANGED or version.parent is None:
        return None
    order = int(np.searchsorted(changed_rows(version), row["index"]))
    written = places_written(version, BEFORE)
    return Former(version.parent, int(written[order])) if order < len(written) else None


def changed_rows(version: DatasetVersion) -> Any:
    return np.flatnonzero(rows.column(version.rows_path, "flags") & np.uint32(Flag.CHANGED))


def places_written(version: DatasetVersion, name: str) -> Any:
    """The indices, in the version before, of the rows that a file of a revision holds; none where it has no such file."""
    path = version.folder / name
    return pq.ParquetFile(path).read(columns=["line"])["line"].to_numpy() if path.exists() else np.zeros(0, np.int64)


def evaluated_on(member: Member, places: list[Place]) -> list[Evaluation]:
    """An evaluation reads all rows of a held-out set, and of another version those that were held back."""
    holding = [place.version.pk for place in places if place.is_measured or place.version.dataset.held_out]
    found = Evaluation.objects.for_action(member, "release.view").filter(dataset_version__in=holding)
    return list(found.select_related("release", "dataset_version__dataset")[:100])
