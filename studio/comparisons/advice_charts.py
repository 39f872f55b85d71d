"""The advisor's two charts as shares of a picture of any width: memory against the machine's, and storage as clients are added."""

from dataclasses import dataclass
from typing import Any

from studio.training.advicefacts import Advice, Method
from studio.training.advisor import storage_for
from studio.training.recommending import size

WIDEST = 2.0
"""Times the machine's memory that the picture shows; what is more goes on beyond its edge."""
FEWEST = 20
"""Clients that the line goes up to at least."""


@dataclass(frozen=True)
class Bar:
    """The estimate of one method, from its lower to its upper end, as shares of the picture's width."""

    method: Method
    left: float
    width: float
    text: str
    over: bool


@dataclass(frozen=True)
class MemoryChart:
    bars: list[Bar]
    limit: float
    """Where the machine's memory ends, as a share."""
    limit_text: str
    host: str


def memory_chart(advice: Advice) -> MemoryChart | None:
    """On the worker with the most memory; None where no worker is known, or nothing could be estimated."""
    if not advice.hosts:
        return None
    host = advice.hosts[0]
    found = [(method, fit.estimate) for method in advice.methods for fit in method.fits if fit.host == host and fit.estimate]
    if not found:
        return None
    available = found[0][1].available
    most = max(available, *(estimate.memory.high for _, estimate in found))
    scale = min(most, WIDEST * available) * 1.04
    bars = []
    for method, estimate in found:
        low, high = (min(1.0, value / scale) for value in (estimate.memory.low, estimate.memory.high))
        text = f"{size(estimate.memory.low)} – {size(estimate.memory.high)}"
        bars.append(Bar(method, round(min(low, 0.98), 4), round(max(high - low, 0.02), 4), text, estimate.memory.high > available))
    return MemoryChart(bars, round(available / scale, 4), size(available), host)


@dataclass(frozen=True)
class StorageChart:
    lines: list[dict[str, Any]]
    """`{"kind", "title", "points", "end"}`"""
    most: str
    clients: int
    words: str


def storage_chart(advice: Advice) -> StorageChart | None:
    """`base + N · adapter` against `N · model` (Hu et al. 2021, section 4.2); None where there are not both."""
    adapter = advice.method("lora") or next((method for method in advice.methods if method.kind == "lora"), None)
    full = advice.method("full")
    if adapter is None or full is None:
        return None
    clients = max(FEWEST, advice.clients)
    shown = [(method, method.kind == "lora") for method in (adapter, full)]
    ends = [
        [storage_for(number, variant=method.variant_size, base_size=advice.base_size, shares=shares) for number in (1, clients)]
        for method, shares in shown
    ]
    most = max(end for _, end in ends)
    lines = [
        {"kind": method.kind, "title": method.title, "end": size(last), "points": f"0,{height(first, most)} 100,{height(last, most)}"}
        for (method, _), (first, last) in zip(shown, ends, strict=True)
    ]
    words = "; ".join(f"{line['title']} {line['end']}" for line in lines)
    return StorageChart(lines, size(most), clients, f"Storage for {clients} clients: {words}")


def height(value: float, most: float) -> float:
    return round(100 - 100 * value / most, 2)
