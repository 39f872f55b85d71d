"""The matrix of a retraining: each release before and after, how far it is, what was measured, what its gate still asks. Reads only."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from uuid import UUID

from django.db.models import Prefetch

from studio.artifacts.models import Artifact
from studio.cells import cell
from studio.comparisons.models import Retrained, Retraining
from studio.orders.models import Order
from studio.releases.gates import Condition, judged
from studio.releases.models import Evaluation, Release
from studio.releases.standing import seen_of
from studio.releases.verdict import Verdict, signed, verdict
from studio.serving.models import Deployment
from studio.workspaces.models import Client, Member

OUTCOMES = {"worse": "Worse", "unsure": "Cannot be told", "same": "Not worse", "better": "Better"}
"""What an evaluation says of a release beside the old one, the worst first."""
READ = ("before__project__client", "before__base_model", "run__order", "after__artifact__dataset_version__dataset")
UNREAD = (
    *(f"run__{name}" for name in ("config", "estimate", "prompts", "correction", "measured", "order__latest", "order__result")),
    *("before__base_model__facts", "before__base_model__new_tokens"),
    *(f"after__artifact__{name}" for name in ("files", "lineage", "dataset_version__tokens", "dataset_version__origin")),
)
"""Large columns of which the matrix says nothing: it is read again every few seconds while something of it goes on."""


@dataclass(frozen=True)
class Line:
    """One release of it."""

    row: Retrained
    evaluation: Evaluation | None = None
    """The newest with a result."""
    measuring: Order | None = None
    """The newest evaluation's order, where it has left nothing: on its way, failed, or stopped."""
    margin: float = 0.0
    """Of the gate, per cent."""
    conditions: list[Condition] = field(default_factory=list)
    before_at: list[Deployment] = field(default_factory=list)
    """What answers with the old release."""
    after_at: list[Deployment] = field(default_factory=list)

    @property
    def client(self) -> Client:
        found: Client = self.row.before.project.client
        return found

    @property
    def state(self) -> str:
        """refused, waiting, training, failed, paused, stopped, trained."""
        run = self.row.run
        if run is None:
            return "refused" if self.row.problem else "waiting"
        status = run.order.status
        if status in Order.ACTIVE:
            return "training"
        return {Order.Status.SUCCEEDED: "trained", Order.Status.QUEUED: "waiting", Order.Status.RECOVERING: "waiting"}.get(status, status)  # type: ignore[call-overload]

    @property
    def is_live(self) -> bool:
        """Something of it goes on by itself."""
        if self.state in ("waiting", "training") or (self.measuring is not None and self.measuring.is_live):
            return True
        return self.state == "trained" and self.row.after_id is None and not self.row.problem

    @property
    def can_train_again(self) -> bool:
        return self.row.after_id is None and not self.is_live and (self.state != "trained" or bool(self.row.problem))

    @property
    def told(self) -> Verdict | None:
        return verdict(self.evaluation.result, margin=self.margin) if self.evaluation and self.evaluation.result else None

    @property
    def result(self) -> dict[str, Any]:
        return (self.evaluation.result or {}) if self.evaluation else {}

    @property
    def outcome(self) -> str:
        """One of OUTCOMES; empty where nothing was measured. Better is what is so with its whole interval."""
        if (told := self.told) is None:
            return ""
        if told.kind == "passed":
            return "better" if self.result["high"] < 0 else "same"
        return "worse" if told.kind == "worse" else "unsure"

    @property
    def outcome_words(self) -> str:
        return OUTCOMES.get(self.outcome, "")

    @property
    def change_words(self) -> str:
        """−3.2 % (−4.1 to −2.3)."""
        change, low, high = (self.result.get(name) for name in ("change", "low", "high"))
        if change is None:
            return ""
        return f"{signed(change)} %" + ("" if low is None or high is None else f" ({signed(low)} to {signed(high)})")

    @property
    def unmet(self) -> list[Condition]:
        return [condition for condition in self.conditions if not condition.met]

    @property
    def awaits_approval(self) -> bool:
        """Its gate asks for nothing more: a person can approve it."""
        after = self.row.after
        return after is not None and after.stage == Release.Stage.CANDIDATE and not self.unmet and not self.is_live

    @property
    def kinds(self) -> set[str]:
        """Which filters show it."""
        found = {self.outcome} if self.outcome else set()
        if self.is_live:
            found.add("going")
        if self.row.problem or self.state in ("failed", "stopped", "paused"):
            found.add("problems")
        if self.awaits_approval:
            found.add("ready")
        return found


FILTERS = {
    "": "All",
    "worse": "Worse",
    "unsure": "Cannot be told",
    "same": "Not worse",
    "better": "Better",
    "going": "On the way",
    "ready": "Ready to approve",
    "problems": "Problems",
}


@dataclass(frozen=True)
class Matrix:
    """What one member sees of a retraining."""

    retraining: Retraining
    lines: list[Line]

    @classmethod
    def of(cls, retraining: Retraining, member: Member) -> "Matrix":
        visible = Retrained.objects.for_action(member, "retraining.view").filter(retraining=retraining)
        rows = list(
            visible.select_related(*READ)
            .defer(*UNREAD)
            .prefetch_related(Prefetch("run__order__artifacts", Artifact.objects.defer("files", "lineage")))
            .order_by("before__project__client__name", "before__project__client", "before__name")
        )
        for row in rows:
            row.retraining = retraining
            if row.after is not None:
                row.after.project = row.before.project  # for it is proposed where the old one stands
        releases = [row.after for row in rows if row.after is not None]
        seen, orders = seen_of(releases), newest_orders(releases)
        places = places_of(member, [pk for row in rows for pk in (row.before_id, row.after_id) if pk])
        lines = []
        for row in rows:
            told: dict[str, Any] = {"before_at": places.get(row.before_id, []), "after_at": places.get(row.after_id, [])}
            if row.after is not None:
                found = seen[row.after.pk]
                order = orders.get(row.after.pk)
                finished = order is not None and found.evaluation is not None and found.evaluation.order_id == order.pk
                told |= {"evaluation": found.evaluation, "measuring": None if finished else order, "margin": found.gate.margin}
                told["conditions"] = judged(row.after, found)
            lines.append(Line(row, **told))
        return cls(retraining, lines)

    @property
    def is_live(self) -> bool:
        return any(line.is_live for line in self.lines)

    @cached_property
    def counts(self) -> "Counter[str]":
        """By filter, and by state."""
        found = Counter(kind for line in self.lines for kind in line.kinds)
        found.update(f"is {line.state}" for line in self.lines)
        return found

    @property
    def filters(self) -> list[tuple[str, str, int]]:
        """(name, words, how many) of those that show something."""
        counts = {"": len(self.lines)} | {name: self.counts[name] for name in FILTERS if name}
        return [(name, words, counts[name]) for name, words in FILTERS.items() if counts[name] or not name]

    @property
    def trained(self) -> int:
        return self.counts["is trained"]

    @property
    def sentence(self) -> str:
        """14 of 20 are trained: 9 better, 3 not worse, 2 worse."""
        many = len(self.lines)
        begun = f"{self.trained} of {many} {'is' if many == 1 else 'are'} trained"
        parts = [f"{self.counts[name]} {words}" for name, words in SAID.items() if self.counts[name]]
        measured = sum(self.counts[name] for name in OUTCOMES)
        if parts and (open_ := self.trained - measured) > 0:
            parts.append(f"{open_} not measured")
        return f"{begun}: {', '.join(parts)}." if parts else f"{begun}."

    def shown(self, *, only: str = "", sort: str = "") -> list[Line]:
        found = [line for line in self.lines if not only or only in line.kinds]
        return worst_first(found) if sort == "worse" else found


SAID = {"better": "better", "same": "not worse", "worse": "worse", "unsure": "that cannot be told"}


def worst_first(lines: Iterable[Line]) -> list[Line]:
    """What was measured by how much it changed, the worst first; the rest behind it, as it stood."""

    def key(line: Line) -> tuple[int, float]:
        change = line.result.get("change")
        return (1, 0.0) if change is None else (0, -change)

    return sorted(lines, key=key)


def newest_orders(releases: Sequence[Release]) -> dict[UUID, Order]:
    rows = (
        Evaluation.objects.filter(release__in=releases)
        .select_related("order")
        .defer("result", "order__latest", "order__result")
        .order_by("created_at")
    )
    return {evaluation.release_id: evaluation.order for evaluation in rows}


def places_of(member: Member, releases: Sequence[UUID]) -> dict[UUID | None, list[Deployment]]:
    rows = Deployment.objects.for_action(member, "deployment.view").filter(archived_at=None, release__in=releases)
    found: dict[UUID | None, list[Deployment]] = {}
    for place in rows.select_related("client").order_by("slug"):
        found.setdefault(place.release_id, []).append(place)
    return found


COLUMNS = (
    "client", "project", "task", "before", "base_before", "state", "problem", "after", "stage", "loss_before", "loss_after", "unit",
    "change_percent", "low", "high", "outcome", "missing", "answers_with_before", "answers_with_after",
)  # fmt: skip


def cells(line: Line) -> list[Any]:
    before, after, result = line.row.before, line.row.after, line.result
    return [
        line.client.name, before.project.name, before.task, before.name, before.base_model.name if before.base_model else "",
        line.state, line.row.problem, after.name if after else "", after.stage if after else "",
        result.get("before"), result.get("loss"), result.get("unit"), result.get("change"), result.get("low"), result.get("high"),
        line.outcome, " ".join(condition.why for condition in line.unmet),
        ", ".join(map(str, line.before_at)), ", ".join(map(str, line.after_at)),
    ]  # fmt: skip


def as_csv(lines: Iterable[Line]) -> Iterator[bytes]:
    yield row_of(COLUMNS)
    for line in lines:
        yield row_of([value if isinstance(value, float) else cell(value) for value in cells(line)])


def row_of(values: Sequence[Any]) -> bytes:
    file = io.StringIO()
    csv.writer(file).writerow(values)
    return file.getvalue().encode()
