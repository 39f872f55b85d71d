"""Charts of traffic over time, as shares of a picture of any width. Drawn by templates/components/bars.html."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from studio.serving.periods import Period
from studio.serving.reading import Traffic
from studio.serving.traffic import Sums
from studio.workspaces.templatetags.studio import count, seconds

EACH = 100
"""Of the picture's own units: the width of a part, and the height of all."""
GAP = 16
Figure = Callable[[Sums], float | None]


@dataclass(frozen=True)
class Chart:
    title: str
    legend: list[tuple[str, int]]
    """(name, place among the colours)"""
    columns: list[dict[str, Any]]
    """One for each part: where it stands, its pieces from the bottom, and its words."""
    most: float
    most_text: str
    labels: list[str]
    words: str
    lines: list[dict[str, Any]] = field(default_factory=list)
    bar: int = EACH - GAP

    @property
    def width(self) -> int:
        return len(self.columns) * EACH

    @property
    def is_empty(self) -> bool:
        return self.most <= 0


def requests_chart(traffic: Traffic) -> Chart:
    figures: list[tuple[str, int, Figure]] = [
        ("Answered", 0, lambda sums: sums.calls - sums.errors),
        ("Failed", 5, lambda sums: sums.errors),
    ]
    return stacked("Requests", traffic, figures, count)


def tokens_chart(traffic: Traffic) -> Chart:
    read: Figure = lambda sums: sums.prompt_tokens  # noqa: E731
    return stacked("Tokens", traffic, [("Read", 1, read), ("Written", 2, lambda sums: sums.completion_tokens)], count)


def stacked(title: str, traffic: Traffic, figures: Sequence[tuple[str, int, Figure]], said: Callable[[Any], str]) -> Chart:
    """Pieces on top of each other, the first at the bottom."""
    most = max(sum(figure(sums) or 0 for _, _, figure in figures) for sums in traffic.parts)
    columns = []
    for number, sums in enumerate(traffic.parts):
        pieces, top = [], float(EACH)
        for _, place, figure in figures:
            if value := figure(sums):
                height = round(value / most * EACH, 2)
                top -= height
                pieces.append({"place": place, "y": round(top, 2), "height": height})
        told = ", ".join(f"{said(figure(sums))} {name.lower()}" for name, _, figure in figures)
        columns.append(column(traffic.period, number, told, pieces))
    legend = [(name, place) for name, place, _ in figures]
    return Chart(title, legend, columns, most, said(most), labels_of(traffic.period), words_of(title, columns))


def times_chart(title: str, traffic: Traffic, p50: Figure, p95: Figure) -> Chart:
    """Two dots of each part that had an answer, joined where parts follow each other."""
    figures = (("half within", 0, p50), ("95 % within", 4, p95))
    most = max((p95(sums) or 0 for sums in traffic.parts), default=0)
    columns = [
        column(traffic.period, number, ", ".join(f"{name} {seconds(figure(sums))}" for name, _, figure in figures), [])
        for number, sums in enumerate(traffic.parts)
    ]
    lines = (
        [{"place": place, "points": points} for _, place, figure in figures for points in runs_of(traffic.parts, figure, most)]
        if most
        else []
    )
    legend = [(name.capitalize(), place) for name, place, _ in figures]
    return Chart(title, legend, columns, most, seconds(most), labels_of(traffic.period), words_of(title, columns), lines)


def runs_of(parts: Sequence[Sums], figure: Figure, most: float) -> list[str]:
    """The points of each line; a part without an answer breaks it. A lone point becomes a dash as wide as its part."""
    found: list[list[str]] = [[]]
    for number, sums in enumerate(parts):
        value = figure(sums)
        if value is None:
            found.append([])
        else:
            found[-1].append(f"{number * EACH + EACH // 2},{round(EACH - value / most * EACH, 2)}")
    return [" ".join(points if len(points) > 1 else dash(points[0])) for points in found if points]


def dash(point: str) -> list[str]:
    x, y = point.split(",")
    return [f"{int(x) - 40},{y}", f"{int(x) + 40},{y}"]


def column(period: Period, number: int, told: str, pieces: list[dict[str, Any]]) -> dict[str, Any]:
    when = period.label(number) if period.of_days else f"{period.label(number)} to {period.label(number + 1)}"
    return {"left": number * EACH, "x": number * EACH + GAP // 2, "pieces": pieces, "words": f"{when}: {told}"}


def labels_of(period: Period) -> list[str]:
    """At the left end, in the middle and at the right end, which is now."""
    return [period.label(0), period.label(period.parts // 2), "now"]


def words_of(title: str, columns: list[dict[str, Any]]) -> str:
    return f"{title}. " + "; ".join(column["words"] for column in columns)
