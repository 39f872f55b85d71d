"""Whether a canary does worse than the release beside it, in one sentence."""

from dataclasses import dataclass
from math import sqrt

from studio.serving.traffic import Sums

ENOUGH = 20
"""Requests to each, below which nobody can tell."""
SURE = 2.0
"""Standard errors by which two shares must differ to be called different."""
SLOWER = 1.3
"""Times as long; the steps by which seconds are counted are too wide to tell less."""


@dataclass(frozen=True)
class Verdict:
    level: str
    """warning, success or info"""
    text: str


def verdict(release: Sums, canary: Sums) -> Verdict:
    if min(release.calls, canary.calls) < ENOUGH:
        fewer = "canary" if canary.calls <= release.calls else "release"
        return Verdict("info", f"The {fewer} has had too few requests in this time to tell whether the canary does worse.")
    worse = []
    if surely_more(canary, release):
        worse.append(f"it fails {share(canary)} of its requests, the release {share(release)}")
    for name, mine, other in (("answer", canary.p95, release.p95), ("first token", canary.first_p95, release.first_p95)):
        if mine and other and mine >= SLOWER * other:
            worse.append(f"95 % of its {name}s take up to {mine / other:.1f} times as long")
    if worse:
        return Verdict("warning", f"The canary does worse: {', and '.join(worse)}.")
    return Verdict("success", "The canary fails no more often than the release, and is no slower.")


def surely_more(one: Sums, other: Sums) -> bool:
    """More errors than chance explains, by the two shares' standard error."""
    together = (one.errors + other.errors) / (one.calls + other.calls)
    error = sqrt(together * (1 - together) * (1 / one.calls + 1 / other.calls))
    return one.errors / one.calls - other.errors / other.calls > SURE * error


def share(sums: Sums) -> str:
    percent = 100 * sums.errors / sums.calls
    return f"{percent:.0f} %" if percent >= 10 or not percent else f"{percent:.1f} %"
