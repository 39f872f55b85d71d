"""What the arms of a comparison answered to the same prompts, beside each other, a few prompts at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.core.paginator import Page, Paginator

from studio.comparisons.marks import Mark, marks_of
from studio.comparisons.measured import Answer, Measured
from studio.comparisons.models import Arm, Comparison
from studio.training.scoring import KINDS

AT_ONCE = 5
"""Prompts on a page."""
MOST_COLUMNS = 6
"""Arms beside each other, unless others are asked for."""


@dataclass(frozen=True)
class Column:
    name: str
    arm: int
    """-1 and below for an untouched base model."""
    seed: int
    mark: Mark | None


@dataclass(frozen=True)
class Said:
    """None where it did not answer this prompt."""

    column: Column
    answer: Answer | None
    scores: list[tuple[str, float]]
    """Of its answer: what the metric is called, and from 0 to 1."""


@dataclass(frozen=True)
class Row:
    number: int
    shown: str
    expected: str
    said: list[Said]


@dataclass(frozen=True)
class SideBySide:
    page: Page[Any]
    rows: list[Row]
    columns: list[Column]
    seeds: list[int]
    seed: int

    @property
    def shown(self) -> list[int]:
        """Numbers of the arms that stand there."""
        return [column.arm for column in self.columns if column.mark]


def side_by_side(
    comparison: Comparison, measured: Measured, arms: Sequence[Arm], *, seed: str, page: str, wanted: Sequence[str]
) -> SideBySide:
    """`seed`, `page` and `wanted` (numbers of arms) as they were typed; what is not there is passed over."""
    seeds = sorted({key[1] for key in measured.keys if key[0] >= 0})
    chosen = int(seed) if seed.isdecimal() and len(seed) < 20 and int(seed) in seeds else (seeds[0] if seeds else 0)
    columns = columns_of(measured, arms, chosen, wanted)
    found = Paginator(range(len(measured.prompts)), AT_ONCE).get_page(page)
    answers = {column: {answer.prompt: answer for answer in measured.answers(column.arm, column.seed)} for column in columns}
    labels = {metric.get("name") or metric.get("kind"): label_of(metric) for metric in comparison.metrics}

    def said(column: Column, number: int) -> Said:
        answer = answers[column].get(number)
        return Said(column, answer, [(labels.get(name, name), score) for name, score in answer.scores.items()] if answer else [])

    rows = [
        Row(number + 1, measured.prompts[number].shown, measured.prompts[number].expected, [said(column, number) for column in columns])
        for number in found
    ]
    return SideBySide(found, rows, columns, seeds, chosen)


def label_of(metric: dict[str, Any]) -> str:
    """Its own name where it was given one, else that of its kind."""
    kind, name = metric.get("kind", ""), metric.get("name", "")
    return KINDS[kind].label if kind in KINDS and name in ("", kind) else name


def columns_of(measured: Measured, arms: Sequence[Arm], seed: int, wanted: Sequence[str]) -> list[Column]:
    """The base models as they were, then the arms that have a result with this seed."""
    marks = marks_of(arms)
    there = [arm for arm in arms if measured.result(arm.number, seed) is not None]
    shown = [arm for arm in there if str(arm.number) in wanted] or there[:MOST_COLUMNS]
    bases = {measured.base_of(arm.number): arm for arm in reversed(shown)}
    untouched = [
        Column(f"{arm.base_model.name}, untouched", number, 0, None)
        for number, arm in sorted(bases.items(), reverse=True)
        if measured.answers(number, 0)
    ]
    return untouched + [Column(arm.name, arm.number, seed, marks[arm.number]) for arm in shown]
