"""How much each retrained release changed, with its interval, as a picture of any width. Drawn by templates/retraining/chart.html."""

from collections.abc import Iterable
from dataclasses import dataclass

from studio.comparisons.retraining_matrix import Line, worst_first
from studio.releases.verdict import signed

EACH = 10
"""Of the picture's own units: the width of one release; its height is 100."""
FURTHEST = 100.0
"""Per cent beyond which an interval is cut off, so that one broken release does not flatten all others."""


@dataclass(frozen=True)
class Whisker:
    x: float
    top: float
    """Where the interval ends; the same as `bottom` where there is none."""
    bottom: float
    y: float
    outcome: str
    words: str


@dataclass(frozen=True)
class Chart:
    whiskers: list[Whisker]
    zero: float
    """How far down the line stands at which nothing changed."""
    highest: str
    lowest: str

    @property
    def width(self) -> int:
        return len(self.whiskers) * EACH

    @property
    def words(self) -> str:
        return "; ".join(whisker.words for whisker in self.whiskers)


def chart_of(lines: Iterable[Line]) -> Chart | None:
    """The worst first; None where nothing was measured beside another."""
    measured = [line for line in worst_first(lines) if line.result.get("change") is not None]
    if not measured:
        return None
    spans = [span(line) for line in measured]
    lowest, highest = min(0.0, *(low for low, _, _ in spans)), max(0.0, *(high for _, _, high in spans))
    room = (highest - lowest or 1.0) * 0.06
    low, high = lowest - room, highest + room

    def down(value: float) -> float:
        return round((high - value) / (high - low) * 100, 2)

    whiskers = [
        Whisker(
            x=place * EACH + EACH / 2,
            top=down(ends[2]),
            bottom=down(ends[0]),
            y=down(ends[1]),
            outcome=line.outcome,
            words=f"{line.row.before.name}: {line.change_words}, {line.outcome_words.lower()}",
        )
        for place, (line, ends) in enumerate(zip(measured, spans, strict=True))
    ]
    return Chart(whiskers, down(0.0), f"{signed(highest)} %", f"{signed(lowest)} %")


def span(line: Line) -> tuple[float, float, float]:
    """(low, change, high), cut off at FURTHEST."""
    change = float(line.result["change"])
    low, high = line.result.get("low"), line.result.get("high")
    ends = (change if low is None else low, change, change if high is None else high)
    low_, change_, high_ = (min(max(value, -FURTHEST), FURTHEST) for value in ends)
    return low_, change_, high_
