"""The chart of a ladder: size against difference, as shares of a picture of any width. Drawn by templates/components/ladder_chart.html."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from studio.workspaces.templatetags.studio import filesize, number

LEAST_LOSS = 1e-6
"""Nats per token; whatever is less is drawn here: below it, float32 itself makes the difference."""
STEPS = (1, 1.5, 2, 3, 5, 7)
"""What the labels of sizes are multiples of, times a power of ten."""
MOST_STEPS = 5
WIDE, NARROW = (440, 264), (264, 224)
"""Pixels of the plot where it is laid out for a desk, and on a phone. Labels that do not touch in these touch in no larger one."""
LETTER, LINE, DOT = 6.8, 16, 12
"""Pixels of a letter, of a line of text and of a point."""


@dataclass(frozen=True)
class Point:
    label: str
    size: int
    """Bytes."""
    loss: float
    """Mean KL divergence, nats per token."""
    careful: bool = False
    recommended: bool = False

    @property
    def drawn_loss(self) -> float:
        return max(self.loss, LEAST_LOSS)

    @property
    def words(self) -> str:
        careful = ", rounded with care" if self.careful else ""
        return f"{self.label}{careful}: {filesize(self.size)}, difference {number(self.loss)}"


@dataclass(frozen=True)
class Scale:
    """Logarithmic: the low end is 0, the high end 1."""

    low: float
    high: float

    def at(self, value: float) -> float:
        return round(math.log(value / self.low) / math.log(self.high / self.low), 4)


@dataclass(frozen=True)
class Box:
    """A rectangle in the picture, from its lower left corner."""

    left: float
    bottom: float
    width: float
    height: float

    def touches(self, other: "Box") -> bool:
        beside = self.left + self.width <= other.left or other.left + other.width <= self.left
        above = self.bottom + self.height <= other.bottom or other.bottom + other.height <= self.bottom
        return not (beside or above)

    def leaves(self, picture: tuple[int, int]) -> bool:
        """True where a part of it lies outside the picture and the margin around it."""
        width, height = picture
        return self.left < -12 or self.left + self.width > width + 12 or self.bottom < 0 or self.bottom + self.height > height + 16


def ladder_chart(points: Sequence[Point]) -> dict[str, Any] | None:
    """What the template draws: points from the smallest, the line of those that nothing beats, and both scales; None of less than two."""
    points = sorted((point for point in points if point.size > 0), key=lambda point: (point.size, point.loss))
    if len(points) < 2:
        return None
    across, up = size_scale(points), loss_scale(points)
    spots = [(across.at(point.size), up.at(point.drawn_loss)) for point in points]
    wide, narrow = (label_sides(points, spots, picture=picture) for picture in (WIDE, NARROW))
    best = front(points)
    return {
        "points": [
            {"point": point, "x": x, "y": y, "wide": on_a_desk, "narrow": on_a_phone}
            for point, (x, y), on_a_desk, on_a_phone in zip(points, spots, wide, narrow, strict=True)
        ],
        "line": " ".join(f"{100 * x:.2f},{100 - 100 * y:.2f}" for point, (x, y) in zip(points, spots, strict=True) if point in best),
        "sizes": [{"at": across.at(size), "text": filesize(size)} for size in size_ticks(across)],
        "losses": [{"at": up.at(loss), "text": f"{loss:.10f}".rstrip("0").rstrip(".")} for loss in decades(up)],
        "careful": any(point.careful for point in points),
    }


def front(points: Sequence[Point]) -> list[Point]:
    """Those that no smaller one comes closer than, of points from the smallest."""
    found: list[Point] = []
    for point in points:
        if not found or point.loss < found[-1].loss:
            found.append(point)
    return found


def size_scale(points: Sequence[Point]) -> Scale:
    sizes = [point.size for point in points]
    return Scale(min(sizes) / 1.12, max(sizes) * 1.12)


def loss_scale(points: Sequence[Point]) -> Scale:
    """Whole powers of ten, two at least."""
    losses = [point.drawn_loss for point in points]
    low, high = math.floor(math.log10(min(losses)) + 1e-9), math.ceil(math.log10(max(losses)) - 1e-9)
    return Scale(10.0 ** (low - (high == low)), 10.0 ** (high + (high - low < 2)))


def decades(scale: Scale) -> list[float]:
    return [10.0**power for power in range(round(math.log10(scale.low)), round(math.log10(scale.high)) + 1)]


def size_ticks(scale: Scale) -> list[float]:
    """Round sizes within the scale, far enough apart to be read on a phone."""
    powers = range(math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high)) + 1)
    round_ones = [step * 10.0**power for power in powers for step in STEPS if scale.low <= step * 10.0**power <= scale.high]
    found: list[float] = []
    for size in round_ones:
        if not found or scale.at(size) - scale.at(found[-1]) >= 1 / MOST_STEPS:
            found.append(size)
    return found


def label_sides(points: Sequence[Point], spots: Sequence[tuple[float, float]], *, picture: tuple[int, int]) -> list[str]:
    """Where each label stands, above its point, below, right or left of it, so that none lies on another; hidden where there is no room.

    The recommended one has the first choice.
    """
    width, height = picture
    taken = [Box(x * width - DOT / 2, y * height - DOT / 2, DOT, DOT) for x, y in spots]
    sides = ["hidden"] * len(points)
    for place in sorted(range(len(points)), key=lambda place: not points[place].recommended):
        x, y = spots[place]
        places = label_boxes(len(points[place].label) * LETTER, x * width, y * height)
        free = [side for side, box in places.items() if not box.leaves(picture) and not any(box.touches(other) for other in taken)]
        if free:
            sides[place] = free[0]
            taken.append(places[free[0]])
    return sides


def label_boxes(wide: float, x: float, y: float) -> dict[str, Box]:
    return {
        "above": Box(x - wide / 2, y + DOT / 2, wide, LINE),
        "right": Box(x + DOT / 2, y - LINE / 2, wide, LINE),
        "below": Box(x - wide / 2, y - DOT / 2 - LINE, wide, LINE),
        "left": Box(x - DOT / 2 - wide, y - LINE / 2, wide, LINE),
    }
