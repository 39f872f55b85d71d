"""The picture of a lineage: a column for each kind, a box for each thing, a curve from what was there to what was made of it.

Boxes have one size, so that the page's boxes and the curves behind them meet without a measurement. What is far from the thing that
is looked at is summed up in one box for each column.
"""

from dataclasses import dataclass
from uuid import UUID

from studio.clients.graph import KINDS, Graph, Node

WIDTH, HEIGHT, ACROSS, BETWEEN = 136, 56, 28, 12
"""Of a box, and between boxes, in pixels: the same as in studio.css."""
SHOWN = 6
"""Boxes in a column; where there are more things, the last box sums them up."""
BULGE = 16
"""How far a curve between two boxes of one column stands out to the left."""


@dataclass(frozen=True)
class Box:
    node: Node | None
    """None for the box that sums up the rest."""
    more: int = 0
    group: str = ""
    """The kind in whose list below the rest stands."""
    current: bool = False


@dataclass(frozen=True)
class Curve:
    path: str
    tried: bool


@dataclass(frozen=True)
class Picture:
    columns: list[list[Box]]
    curves: list[Curve]
    width: int
    height: int


@dataclass(frozen=True)
class Place:
    column: int
    row: int


def picture(graph: Graph) -> Picture:
    far = graph.distances()
    columns, places = list[list[Box]](), dict[UUID, Place]()
    for number, nodes in enumerate(by_column(graph)):
        kept, rest = nearest(graph, nodes, far)
        kept = in_line(graph, kept, places)
        boxes = [Box(node, current=node.pk == graph.here) for node in kept]
        for row, node in enumerate(kept):
            places[node.pk] = Place(number, row)
        for node in rest:
            places[node.pk] = Place(number, len(kept))
        if rest:
            boxes.append(Box(None, more=len(rest), group=rest[0].kind))
        columns.append(boxes)
    height = max((tall(boxes) for boxes in columns), default=0)
    tops = [(height - tall(boxes)) // 2 for boxes in columns]
    lines = {(places[one], places[other], (one, other) in graph.tried) for one, other in graph.edges}
    drawn = sorted(
        (line for line in lines if line[0] != line[1]), key=lambda line: (line[0].column, line[0].row, line[1].column, line[1].row)
    )
    curves = [Curve(path_of(one, other, tops), tried) for one, other, tried in drawn]
    return Picture(columns, curves, len(columns) * WIDTH + max(0, len(columns) - 1) * ACROSS, height)


def by_column(graph: Graph) -> list[list[Node]]:
    """The nodes of each column that has any, those of one kind together, the oldest first."""
    found = []
    for column in sorted({kind.column for kind in KINDS.values()}):
        kinds = [kind.name for kind in KINDS.values() if kind.column == column]
        if nodes := [node for kind in kinds for node in reversed(graph.of(kind))]:
            found.append(nodes)
    return found


def nearest(graph: Graph, nodes: list[Node], far: dict[UUID, int]) -> tuple[list[Node], list[Node]]:
    """Those that are shown, in the same order, and the rest. What is near goes first, then what led to something, then the newest."""
    if len(nodes) <= SHOWN:
        return nodes, []
    led = {one for one, _ in graph.edges}
    ranked = sorted(nodes, key=lambda node: (far.get(node.pk, 1 << 30), node.pk not in led, -node.at.timestamp()))
    kept = {node.pk for node in ranked[: SHOWN - 1]}
    return [node for node in nodes if node.pk in kept], [node for node in nodes if node.pk not in kept]


def in_line(graph: Graph, nodes: list[Node], places: dict[UUID, Place]) -> list[Node]:
    """The nodes of a column in the order of what they come from, so that few curves cross."""

    def height(node: Node) -> float:
        rows = [places[before.pk].row for before in graph.before(node.pk) if before.pk in places]
        return sum(rows) / len(rows) if rows else 0.0

    return sorted(nodes, key=height)


def tall(boxes: list[Box]) -> int:
    return len(boxes) * HEIGHT + max(0, len(boxes) - 1) * BETWEEN


def path_of(one: Place, other: Place, tops: list[int]) -> str:
    """An SVG path: from the right side of a box to the left side of another, or around the left of two in one column."""
    y1, y2 = (tops[place.column] + place.row * (HEIGHT + BETWEEN) + HEIGHT // 2 for place in (one, other))
    x2 = other.column * (WIDTH + ACROSS)
    if one.column == other.column:
        return f"M{x2} {y1}C{x2 - BULGE} {y1} {x2 - BULGE} {y2} {x2} {y2}"
    x1 = one.column * (WIDTH + ACROSS) + WIDTH
    middle = (x2 - x1) // 2 if other.column == one.column + 1 else ACROSS
    return f"M{x1} {y1}C{x1 + middle} {y1} {x2 - middle} {y2} {x2} {y2}"
