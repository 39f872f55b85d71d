"""How long the text for Prometheus takes to write, against prometheus_client's own samples of the same sums.

    python benchmarks/metrics.py [--deployments 2000] [--rounds 7]

Both write the same series in one process, in turns; both texts are parsed and compared first. Printed are the median seconds of processor
time of each and their ratio. What the database takes to tell the sums comes on top, alike for both: benchmarks/pages.py has it.
"""

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deployments", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["STUDIO_DATA_DIR"] = folder
        os.environ["DJANGO_SETTINGS_MODULE"] = "studio.settings"
        import django

        django.setup()
        measure(given)


def measure(given: argparse.Namespace) -> None:
    from studio.serving.metrics import traffic

    found = sums(given.deployments)
    ways: dict[str, Callable[[], str]] = {"prometheus_client": lambda: by_library(found), "the studio": lambda: traffic(found)}
    assert parsed(ways["the studio"]()) == parsed(ways["prometheus_client"]()), "they differ"
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(given.rounds):
        for name, write in ways.items():
            started = time.process_time()
            write()
            times[name].append(time.process_time() - started)
    library, own = (statistics.median(taken) for taken in times.values())
    print(f"{traffic(found).count(chr(10))} lines: prometheus_client {library:.3f} s, the studio {own:.3f} s, ratio {own / library:.3f}")


def sums(deployments: int) -> list[tuple[tuple[str, ...], Any]]:
    from studio.serving.steps import COUNT
    from studio.serving.traffic import Sums

    chance = random.Random(7)

    def steps() -> list[int]:
        return [chance.randrange(3) for _ in range(COUNT + 1)]

    def told() -> Any:
        return Sums(9, 1, 400, 80, 900, chance.random() * 99, chance.random(), {"200": 8, "503 busy": 1}, steps(), steps())

    return [((f"client-{row // 10}", f"slot-{row % 10}", f"release-{row}-v1.0.0", "false"), told()) for row in range(deployments)]


def by_library(found: list[tuple[tuple[str, ...], Any]]) -> str:
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily

    from studio.serving.metrics import BUCKETS, LABELS, by_status
    from studio.serving.steps import STEPS

    def buckets(counts: list[int]) -> list[tuple[str, float]]:
        steps = range(len(STEPS))[BUCKETS]
        return [*((str(STEPS[number]), float(sum(counts[: number + 1]))) for number in steps), ("+Inf", float(sum(counts)))]

    requests = CounterMetricFamily("adapter_studio_requests", "Requests.", labels=(*LABELS, "status"))
    tokens = CounterMetricFamily("adapter_studio_tokens", "Tokens.", labels=(*LABELS, "kind"))
    seconds = HistogramMetricFamily("adapter_studio_answer_seconds", "To the end.", labels=LABELS)
    first = HistogramMetricFamily("adapter_studio_first_token_seconds", "To the first token.", labels=LABELS)
    for names, told in found:
        for status, count in by_status(told).items():
            requests.add_metric([*names, status], count)
        for kind, count in (("read", told.prompt_tokens), ("cached", told.cached_tokens), ("written", told.completion_tokens)):
            tokens.add_metric([*names, kind], count)
        seconds.add_metric(names, buckets(told.seconds), told.seconds_sum)
        first.add_metric(names, buckets(told.first), told.first_sum)

    class Told:
        def collect(self) -> list[Any]:
            return [requests, tokens, seconds, first]

    registry = CollectorRegistry()
    registry.register(Told())  # type: ignore[arg-type]
    return generate_latest(registry).decode()


def parsed(text: str) -> dict[tuple[Any, ...], float]:
    from prometheus_client.parser import text_string_to_metric_families

    families = text_string_to_metric_families(text)
    return {(family.type, sample.name, *sorted(sample.labels.items())): sample.value for family in families for sample in family.samples}


if __name__ == "__main__":
    main()
