"""Whether an evaluation shows that a release is not worse than another by more than a margin, or that nobody can tell."""

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Verdict:
    kind: Literal["passed", "worse", "unsure"]
    sentence: str


def verdict(result: dict[str, Any], *, margin: float) -> Verdict:
    """Of a comparison: it passed only where the whole interval of the change stays within the margin, in per cent."""
    change, low, high, rows = result.get("change"), result.get("low"), result.get("high"), result["rows"]
    if change is None and result.get("before") is None:
        return Verdict("unsure", "It was compared with nothing.")
    if change is None:
        return Verdict("unsure", "What it was compared with is never wrong on these rows, so no change can be told. Hold out harder rows.")
    if low is None or high is None:
        return Verdict("unsure", f"Its loss is {signed(change)} %, but {rows_of(rows)} are too few to tell. Hold out more rows.")
    told = f"Its loss is {signed(change)} % ({signed(low)} to {signed(high)}) on {rows_of(rows)}"
    if high <= margin:
        return Verdict("passed", f"{told}: {'better' if high < 0 else 'not worse'}.")
    if low > margin:
        return Verdict("worse", f"{told}: worse by more than {plain(margin)} %.")
    return Verdict("unsure", f"{told}: nobody can tell whether that is more than {plain(margin)} % worse. Hold out more rows.")


def signed(change: float) -> str:
    """+1.3, −0.4, 0: as people write a difference."""
    rounded = round(change, 1)
    if rounded == 0:
        return "±0"
    return f"{'+' if rounded > 0 else '−'}{abs(rounded):.1f}"


def plain(number: float) -> str:
    return f"{number:g}"


def rows_of(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"
