"""Kept answers as people work with them: found, judged, corrected, and added to a dataset's rows. How they are kept is `keeping`'s."""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Any

from django.db import transaction
from django.db.models import Case, Q, QuerySet, When
from django.http import Http404, HttpRequest
from django.utils import timezone

from studio.audit.services import record
from studio.datasets import drafting
from studio.datasets.models import Dataset, DatasetVersion
from studio.datasets.services import with_newest
from studio.errors import UserError
from studio.releases.models import Release
from studio.serving.keeping import plain
from studio.serving.models import Deployment, KeptAnswer
from studio.serving.words import Found, beginnings
from studio.workspaces.models import Member, Project, ScopedQuerySet, hold

GOOD, BAD, UNJUDGED = 1, -1, 0
LONGEST_CORRECTION = 100_000
AT_ONCE = 1000
"""Answers that are added to a draft at once."""
SHAPES = {"good": Q(thumb=GOOD), "bad": Q(thumb=BAD), "corrected": ~Q(correction=""), "open": Q(thumb=UNJUDGED, correction="")}
USABLE = Q(thumb=GOOD) | ~Q(correction="")
"""What may teach a model something: good answers, and what bad ones should have been."""


def as_pk(name: str) -> uuid.UUID:
    """Of an id as it is, or as the endpoint gave it to its caller: `chatcmpl-…` and `cmpl-…`. What is no id is not found."""
    try:
        return uuid.UUID(name.removeprefix("chat").removeprefix("cmpl-"))
    except ValueError as problem:
        raise Http404 from problem


@dataclass(frozen=True)
class Wanted:
    """Which kept answers somebody looks at."""

    project: Project | None = None
    deployment: Deployment | None = None
    release: Release | None = None
    judged: str = ""
    typed: str = ""
    since: date | None = None
    until: date | None = None

    @classmethod
    def read(cls, request: HttpRequest) -> "Wanted":
        """As an address says it. What is another's, or no id at all, is not found."""
        asked = request.GET
        deployments = Deployment.objects.for_action(request, "answer.view").select_related("client", "project__client")
        deployment = deployments.named(asked["deployment"]) if asked.get("deployment") else None
        projects = Project.objects.for_action(request, "answer.view").select_related("client")
        project = projects.named(asked["project"]) if asked.get("project") else deployment.project if deployment else None
        release = Release.objects.for_action(request, "answer.view").named(asked["release"]) if asked.get("release") else None
        judged = asked.get("judged", "")
        days = (typed_day(asked.get(name, "")) for name in ("since", "until"))
        return cls(project, deployment, release, judged if judged in SHAPES else "", asked.get("q", ""), *days)

    def of(self, rows: "QuerySet[Any]", member: Member) -> "QuerySet[KeptAnswer]":
        """Those of `rows`, the newest first."""
        where = Q()
        for name in ("project", "deployment", "release"):
            if (row := getattr(self, name)) is not None:
                where &= Q(**{name: row})
        if self.judged:
            where &= SHAPES[self.judged]
        if self.typed.strip():
            words = beginnings(self.typed)
            where &= Q(Found(*words)) if words else Q(pk__in=[])
        zone = member.workspace.zone
        if self.since:
            where &= Q(at__gte=datetime.combine(self.since, time(), zone))
        if self.until:
            where &= Q(at__lt=datetime.combine(self.until + timedelta(days=1), time(), zone))
        return rows.filter(where).order_by("-at", "-pk")

    @property
    def is_narrow(self) -> bool:
        return any((self.deployment, self.release, self.judged, self.typed.strip(), self.since, self.until))


def typed_day(text: str) -> date | None:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        return None
    return day if 2000 <= day.year <= 2100 else None


def in_time(who: HttpRequest | Member, action: str) -> ScopedQuerySet:
    """Those that may still be read: whose time is over is nobody's any more, whenever it is swept away."""
    found: ScopedQuerySet = KeptAnswer.objects.for_action(who, action).filter(until__gt=timezone.now())
    return found


def visible(who: HttpRequest | Member, action: str) -> ScopedQuerySet:
    found = in_time(who, action)
    found = found.annotate(is_corrected=Case(When(correction="", then=False), default=True))
    return found.select_related("project__client", "deployment__client", "release", "judged_by", "key", "dataset_version__dataset")


def beside(rows: "QuerySet[KeptAnswer]", kept: KeptAnswer) -> tuple[uuid.UUID | None, uuid.UUID | None]:
    """The ids of the newer and the older neighbour among `rows`."""
    newer = rows.filter(Q(at__gt=kept.at) | Q(at=kept.at, pk__gt=kept.pk)).order_by("at", "pk").values_list("pk", flat=True).first()
    older = rows.filter(Q(at__lt=kept.at) | Q(at=kept.at, pk__lt=kept.pk)).order_by("-at", "-pk").values_list("pk", flat=True).first()
    return newer, older


def judge(member: Member, kept: KeptAnswer, *, thumb: int | None = None, correction: str | None = None) -> bool:
    """Says of an answer whether it is good, what it should have been, or both; None leaves one as it is. False where it is so already."""
    if thumb is not None and thumb not in (GOOD, BAD, UNJUDGED):
        raise UserError("The thumb cannot be used.", fields={"thumb": "Use 1 for good, -1 for bad, 0 for neither."})
    if correction is not None:
        correction = plain(correction).strip()
        if len(correction) > LONGEST_CORRECTION:
            raise UserError("The correction is too long.", fields={"correction": f"At most {LONGEST_CORRECTION:,} characters."})
    with transaction.atomic():
        hold(kept)
        kept.refresh_from_db(fields=["thumb", "correction"])
        change: dict[str, Any] = {}
        if thumb is not None and thumb != kept.thumb:
            change["thumb"] = [kept.thumb, thumb]
            kept.thumb = thumb
        if correction is not None and correction != kept.correction:
            change["corrected"] = [bool(kept.correction), bool(correction)]  # no text stands in the audit log
            kept.correction = correction
        if not change:
            return False
        kept.judged_by, kept.judged_at = member.user, timezone.now()
        kept.save(update_fields=["thumb", "correction", "judged_by", "judged_at"])
        record(member, "answer.judge", kept, change=change)
    return True


def datasets_for(member: Member, client: Any) -> list[Dataset]:
    """The datasets of conversations of this client that a member may add rows to."""
    found = Dataset.objects.for_action(member, "dataset.create").filter(held_out=False, project__client=client).select_related("project")
    return [dataset for dataset, version in with_newest(found) if version and version.is_ready and (version.facts or {})["shape"] == "chat"]


def row_of(kept: KeptAnswer) -> dict[str, Any]:
    """The conversation with its answer, or with what that should have been, as a row of a dataset."""
    answer = {"role": "assistant", "content": kept.correction} if kept.correction else {"role": "assistant"} | kept.answer
    said = {name: value for name, value in answer.items() if name in ("role", "content", "tool_calls") and value is not None}
    return {"messages": [*kept.messages, said]}


def newest_of(dataset: Dataset) -> DatasetVersion:
    version = dataset.versions.filter(facts__isnull=False).order_by("-number").first()
    if version is None or (version.facts or {})["shape"] != "chat":
        raise UserError("The dataset has no conversations yet that it could be added to.")
    return version


def add(member: Member, dataset: Dataset, kept: KeptAnswer) -> None:
    """One answer, as a row that the member's draft of the dataset adds. Raises UserError where it can be no row, or is one already."""
    version = newest_of(dataset)
    refuse_other_client(dataset, kept)
    row = drafting.judged(row_of(kept), version)
    with transaction.atomic():
        drafting.add_rows(member, version, [row])
        KeptAnswer.objects.filter(pk=kept.pk).update(dataset_version=version)


def refuse_other_client(dataset: Dataset, kept: KeptAnswer) -> None:
    """What a client's model was asked and said stays with that client."""
    if kept.project.client_id != dataset.project.client_id:
        raise Http404


@dataclass(frozen=True)
class Added:
    rows: int
    unusable: int
    """Answers of which no row could be made."""
    left: int
    """That wait for another time, for so many are added at once."""

    def as_words(self, dataset: Dataset) -> str:
        told = f"Added {self.rows:,} row{'s' if self.rows != 1 else ''} to your draft of {dataset.name}."
        if self.unusable:
            told += f" {self.unusable:,} could not be rows."
        return told + (f" {self.left:,} are left. Add again." if self.left else "")


def add_all(member: Member, dataset: Dataset, rows: "QuerySet[KeptAnswer]") -> Added:
    """The good and the corrected ones among `rows` that the dataset does not have yet, the newest first."""
    version = newest_of(dataset)
    known = Q(dataset_version__dataset=dataset.pk)
    if not drafting.changes_of(drafting.draft_of(member, version)).added:  # what was added to this version was discarded since
        known &= ~Q(dataset_version=version)
    wanted = rows.filter(USABLE, project__client=dataset.project.client_id).exclude(pk__in=rows.filter(known).values("pk"))
    total = wanted.count()
    made, used, unusable = [], [], 0
    for kept in in_order(list(wanted.values_list("pk", flat=True)[:AT_ONCE])):
        try:
            made.append(drafting.judged(row_of(kept), version))
        except UserError:
            unusable += 1
        else:
            used.append(kept.pk)
    if not made:
        raise UserError("None of these answers is good or corrected and not added yet. Judge some first.")
    with transaction.atomic():
        count = drafting.add_rows(member, version, made)
        KeptAnswer.objects.filter(pk__in=used).update(dataset_version=version)
    return Added(count, unusable, max(0, total - AT_ONCE))


def in_order(pks: list[uuid.UUID]) -> Iterable[KeptAnswer]:
    """A few at a time, for each may be a megabyte."""
    for begin in range(0, len(pks), 20):
        found = KeptAnswer.objects.defer("words").in_bulk(pks[begin : begin + 20])
        yield from (found[pk] for pk in pks[begin : begin + 20] if pk in found)
