"""What the pages of extractions show: the choice of ranks, the chart of what is kept by size, the recommendation and the table."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from studio.artifacts.chart import DOT, LETTER, NARROW, WIDE, Box, Point, label_boxes, size_scale, size_ticks
from studio.artifacts.models import Artifact
from studio.comparisons.models import Extraction
from studio.training.extraction import FULL, called, expected_size, highest_rank
from studio.workspaces.templatetags.studio import filesize

OFFERED = (4, 8, 16, 32, 64, 128, FULL)
WORDS = {
    4: "The smallest. Enough where the model learnt little more than a tone or a format.",
    8: "Small. Enough for a narrow task.",
    16: "The usual size of an adapter that was trained as one.",
    32: "Holds more of what was learnt, at twice the size.",
    64: "For a task that changed the model a good deal.",
    128: "Where nothing smaller keeps enough.",
    FULL: "Everything that the linear layers learnt. Larger than the model itself: to see that nothing else is missing.",
}
ENOUGH = 0.98
"""Share of the gain that an adapter should keep."""
STEPS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Between two lines of the chart; the first that makes at most five."""
PARTS = {
    "words": "The table that words are read with",
    "output": "The table that words are chosen with",
    "norms": "Norms",
    "biases": "Biases",
    "other": "Other weights",
}


@dataclass(frozen=True)
class Choice:
    rank: int
    title: str
    text: str
    size: int
    chosen: bool


def choices(source: Artifact, *, chosen: Iterable[int]) -> list[Choice]:
    """The ranks that this model's layers have, with what each would take."""
    assert source.base_model is not None  # else there is an obstacle
    facts = source.base_model.model_facts
    highest, chosen = highest_rank(facts), set(chosen)
    found = [rank for rank in OFFERED if rank < highest]
    return [Choice(rank, called(rank).capitalize(), WORDS[rank], expected_size(facts, rank), rank in chosen) for rank in found]


@dataclass(frozen=True)
class Taken:
    """One rank as its row shows it."""

    title: str
    rank: int
    size: int
    energy: float
    loss: float | None
    kept: float | None
    low: float | None
    high: float | None
    why: str
    artifact: Artifact | None
    recommended: bool = False

    @property
    def kept_words(self) -> str:
        return f"{self.kept * 100:.1f} %" if self.kept is not None else "–"

    @property
    def interval_words(self) -> str:
        return f"{self.low * 100:.1f} to {self.high * 100:.1f} %" if self.low is not None and self.high is not None else ""

    @property
    def share_words(self) -> str:
        """Of the linear layers' change."""
        return f"{math.floor(self.energy * 1000) / 10:.1f} %"


@dataclass(frozen=True)
class Advice:
    """Which of them to take, and why."""

    sentence: str
    reason: str
    taken: Taken | None


def table(extraction: Extraction) -> list[Taken]:
    """A row for each rank, from the smallest; nothing before it has ended."""
    if not extraction.result:
        return []
    artifacts = {artifact.lineage["extracted"]["rank"]: artifact for artifact in extraction.order.artifacts.all()}
    best = _best(extraction.result["ranks"])
    names = ("rank", "size", "energy", "loss", "kept", "low", "high", "why")
    return [
        Taken(
            title=called(each["rank"]).capitalize(),
            **{name: each[name] for name in names},
            artifact=artifacts.get(each["rank"]),
            recommended=best is not None and each["rank"] == best["rank"],
        )
        for each in extraction.result["ranks"]
    ]


def _best(ranks: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The smallest of which even the low end keeps enough; where there is none, the smallest that does by itself."""
    kept = sorted((each for each in ranks if each["kept"] is not None), key=lambda each: each["size"])
    sure = [each for each in kept if each["low"] is not None and each["low"] >= ENOUGH]
    likely = [each for each in kept if each["kept"] >= ENOUGH]
    return next(iter(sure or likely), None)


def advice(extraction: Extraction, rows: Sequence[Taken]) -> Advice:
    """In plain words, with what speaks against it."""
    result = extraction.result or {}
    if not result.get("rows"):
        why = "There are no held-out rows of the dataset that the model was trained on, so only the share of the change is known."
        return Advice("What they keep was not measured", why, None)
    if result["base_loss"] <= result["full_loss"]:
        why = "On the held-out rows the model is no better than its base, so there is no gain to keep. Look at its run first."
        return Advice("There is nothing to keep", why, None)
    found = next((row for row in rows if row.recommended), None)
    if found is None:
        known = [row for row in rows if row.kept is not None]
        most = max(known, key=lambda row: row.kept or 0, default=None)
        if most is None:
            return Advice("What they keep was not measured", next((row.why for row in rows if row.why), ""), None)
        reason = f"{most.title} keeps the most, {most.kept_words}. {_next_step(extraction, most)}"
        return Advice(f"None of them keeps {ENOUGH:.0%} of what the model learnt".replace("%", " %"), reason, None)
    smaller = f"{filesize(found.size)}, where the model takes {filesize(result['source_size'])}"
    if found.low is not None and found.low >= ENOUGH:
        reason = f"It keeps {found.kept_words} of the gain on {result['rows']:,} held-out rows ({found.interval_words}), in {smaller}."
    else:
        between = f": it may be {found.interval_words}" if found.interval_words else ""
        few = f"{result['rows']:,} held-out rows are too few to be sure of that{between}."
        reason = f"It keeps {found.kept_words} of the gain in {smaller}. {few}"
    return Advice(f"Take {found.title.lower()}", reason, found)


def _next_step(extraction: Extraction, most: Taken) -> str:
    rest = {each["part"]: each for each in (extraction.result or {}).get("rest", [])}
    tables = [each for part, each in rest.items() if part in ("words", "output") and not each["kept"]]
    if most.rank == FULL and tables:
        return "What is missing lies outside of the linear layers: take them out again with the tables of words."
    if most.rank == FULL:
        return "What is missing lies outside of the linear layers, where no adapter reaches. Use the model as it is."
    return "Take out higher ranks, or use the model as it is."


def kept_chart(rows: Sequence[Taken]) -> dict[str, Any] | None:
    """Size across, what is kept upwards, and how sure that is; None of less than two measured ones."""
    known = [row for row in rows if row.kept is not None and row.size > 0]
    if len(known) < 2:
        return None
    points = [Point(row.title, row.size, row.kept or 0.0, recommended=row.recommended) for row in known]
    across = size_scale(points)
    ticks = _ticks(known)
    low, high = ticks[0], ticks[-1]

    def up(value: float) -> float:
        return round((min(max(value, low), high) - low) / (high - low), 4)

    spots = [(across.at(row.size), up(row.kept or 0.0)) for row in known]
    ranges = [
        (up(row.low), up(row.high)) if row.low is not None and row.high is not None else (y, y)
        for row, (_, y) in zip(known, spots, strict=True)
    ]
    wide, narrow = (_label_sides(known, spots, ranges, picture=picture) for picture in (WIDE, NARROW))
    return {
        "points": [
            {"row": row, "x": x, "y": y, "wide": one, "narrow": other, "words": _words(row), "recommended": row.recommended}
            for row, (x, y), one, other in zip(known, spots, wide, narrow, strict=True)
        ],
        "line": " ".join(f"{100 * x:.2f},{100 - 100 * y:.2f}" for x, y in spots),
        "whiskers": [
            {"x": f"{100 * x:.2f}", "from": f"{100 - 100 * up(row.low):.2f}", "to": f"{100 - 100 * up(row.high):.2f}"}
            for row, (x, _) in zip(known, spots, strict=True)
            if row.low is not None and row.high is not None
        ],
        "sizes": [{"at": across.at(size), "text": filesize(size)} for size in size_ticks(across)],
        "shares": [{"at": up(tick), "text": f"{tick * 100:.0f} %"} for tick in ticks],
    }


def _label_sides(
    rows: Sequence[Taken], spots: Sequence[tuple[float, float]], ranges: Sequence[tuple[float, float]], *, picture: tuple[int, int]
) -> list[str]:
    """Where each label stands, on no other label, point or interval; hidden where there is no room. The recommended one chooses first."""
    width, height = picture
    taken = [Box(x * width - DOT / 2, y * height - DOT / 2, DOT, DOT) for x, y in spots]
    taken += [Box(x * width - 1, low * height, 2, (high - low) * height) for (x, _), (low, high) in zip(spots, ranges, strict=True)]
    sides = ["hidden"] * len(rows)
    for place in sorted(range(len(rows)), key=lambda place: not rows[place].recommended):
        x, y = spots[place]
        boxes = label_boxes(len(rows[place].title) * LETTER, x * width, y * height)
        free = [side for side, box in boxes.items() if not box.leaves(picture) and not any(box.touches(other) for other in taken)]
        if free:
            sides[place] = free[0]
            taken.append(boxes[free[0]])
    return sides


def _ticks(rows: Sequence[Taken]) -> list[float]:
    """Round shares around all intervals and the whole gain."""
    ends = [end for row in rows for end in (row.kept, row.low, row.high) if end is not None]
    low, high = min(*ends, 1.0), max(*ends, 1.0)
    step = next((step for step in STEPS if (high - low) / step <= 4), STEPS[-1])
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 4) for number in range(first, max(last, first + 1) + 1)]


def _words(row: Taken) -> str:
    interval = f" ({row.interval_words})" if row.interval_words else ""
    return f"{row.title}: {filesize(row.size)}, keeps {row.kept_words}{interval}"


def rest_rows(extraction: Extraction) -> list[dict[str, Any]]:
    """What changed outside of the linear layers, the most first."""
    found = (extraction.result or {}).get("rest", [])
    return [
        {"title": PARTS[each["part"]], "share": f"{each['share'] * 100:.2g} %", "kept": each["kept"]}
        for each in sorted(found, key=lambda each: -each["share"])
    ]


def by_kind(extraction: Extraction) -> list[dict[str, Any]]:
    """How much of its change each kind of layer keeps at each rank: all `q_proj` together."""
    result = extraction.result or {}
    sums: dict[str, list[float]] = {}
    for layer in result.get("layers", []):
        row = sums.setdefault(layer["name"].rpartition(".")[2], [0.0] * (1 + len(layer["held"])))
        for place, held in enumerate([1.0, *layer["held"]]):
            row[place] += layer["share"] * held
    return [
        {"name": name, "share": f"{row[0] * 100:.1f} %", "held": [f"{100 * held / row[0]:.1f} %" if row[0] else "–" for held in row[1:]]}
        for name, row in sorted(sums.items(), key=lambda entry: -entry[1][0])
    ]
