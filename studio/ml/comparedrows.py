"""Which rows a comparison is measured on: held-out and general ones that no arm was trained on, and beginnings of those that one was."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studio import rowfile
from studio.ml.batches import spread
from studio.ml.evaluating import fitting, refuse_none
from studio.ml.heldout import Question, held_out_of, most_rows, questions
from studio.ml.memorising import Beginning, beginning_of
from studio.ml.releasedmodel import tokenizer_of
from studio.ml.rowlosses import Row
from studio.training.job import Job
from studio.training.orders import ComparisonPayload, EvaluatedModel

PROBE_FILE, PROBE_NAME = Path(__file__).with_name("probe.jsonl"), "General questions of the studio"
MOST_BEGINNINGS = 5000
"""Training rows that beginnings are chosen from."""
MANY_SHARED = 8
"""Rows in common that are enough to ask all results for the same."""


@dataclass(frozen=True)
class Chosen:
    """What every result is measured on."""

    held_out: list[Row]
    probe: list[Row]
    questions: list[Question]
    beginnings: dict[str, list[Beginning]]
    """By the rows.parquet that they stand in."""
    of: int
    """Held-out rows that there are."""
    left_out: int
    probe_name: str
    common: bool
    """Whether all results are given the same beginnings."""

    @property
    def units(self) -> int:
        """Rows, prompts and beginnings of one result."""
        most = max((len(each) for each in self.beginnings.values()), default=0)
        return len(self.held_out) + len(self.probe) + len(self.questions) + most


def chosen(order: ComparisonPayload, models: Sequence[EvaluatedModel], *, job: Job) -> Chosen:
    """What all `models` are asked. Raises UserError where no row was held out that nobody was trained on."""
    versions = [Path(path) for path in dict.fromkeys(arm.rows for arm in order.arms)]
    largest = max(arm.base.parameters for arm in order.arms)
    most = most_rows(largest)
    found = held_out_of(versions, split="validation", learnt_from=versions, most=min(order.rows, most))
    refuse_none(found.of, learnt=found.learnt)
    trained = {version: trained_rows(version, job=job) for version in versions}
    if order.probe:
        general = held_out_of([Path(order.probe)], split="", learnt_from=versions, most=min(order.general, most))
        probe, learnt = general.rows, general.learnt
    else:
        probe, learnt = without(brought_along()[: order.general], trained.values())
    fits = fitting(one_per_tokenizer(models), room=order.answer_tokens)
    each, common = beginnings_of(trained, limit=order.beginnings)
    return Chosen(
        found.rows,
        probe,
        questions(found.rows, limit=order.prompts, fits=fits),
        {str(version): part for version, part in each.items()},
        of=found.of,
        left_out=found.learnt + learnt,
        probe_name=order.probe_name or PROBE_NAME,
        common=common,
    )


def one_per_tokenizer(models: Sequence[EvaluatedModel]) -> list[EvaluatedModel]:
    """Of the models that read alike, the first."""
    return list({(tokenizer_of(model), model.system, model.context): model for model in reversed(models)}.values())


@dataclass
class Trained:
    """What is kept of a version's training rows."""

    beginnings: dict[str, Beginning] = field(default_factory=dict)
    """By the row as JSON."""
    texts: set[int] = field(default_factory=set)
    """A hash of each row as JSON, to tell whether one was trained on."""


def trained_rows(version: Path, *, job: Job) -> Trained:
    found = Trained()
    for number, row in enumerate(rowfile.read(version, split="train")):
        if number % 1000 == 0:
            job.raise_if_stopped()
        key = as_json(row)
        found.texts.add(hash(key))
        if len(found.beginnings) < MOST_BEGINNINGS and (begun := beginning_of(row)) is not None:
            found.beginnings[key] = begun
    return found


def as_json(row: Row) -> str:
    return json.dumps(row, sort_keys=True)


def brought_along() -> list[Row]:
    return [json.loads(line) for line in PROBE_FILE.read_text(encoding="utf-8").splitlines()]


def without(rows: list[Row], trained: Any) -> tuple[list[Row], int]:
    """The rows that nobody was trained on, and how many were left out."""
    kept = [row for row in rows if not any(hash(as_json(row)) in each.texts for each in trained)]
    return kept, len(rows) - len(kept)


def beginnings_of(trained: dict[Path, Trained], *, limit: int) -> tuple[dict[Path, list[Beginning]], bool]:
    """Those of rows that all arms were trained on, where there are enough; else each arm's own."""
    several = [each.beginnings for each in trained.values()]
    shared = [begun for key, begun in several[0].items() if all(key in other for other in several[1:])]
    common = len(several) == 1 or len(shared) >= min(limit, MANY_SHARED)
    sources = {version: shared if common else list(each.beginnings.values()) for version, each in trained.items()}
    return {version: [source[place] for place in spread(len(source), limit=limit)] for version, source in sources.items()}, common
