"""What Prometheus reads of a workspace, in its text format. Counters come from the database, so they never fall and are every process's."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from operator import itemgetter
from typing import Any

from django.db import connection, transaction
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from studio.basemodels.models import BaseModel
from studio.releases.models import Release
from studio.serving.models import Call, CallTotal, Deployment
from studio.serving.rollup import OF, sums_by
from studio.serving.steps import STEPS
from studio.serving.traffic import COUNTS, Sums
from studio.workspaces.models import Client, Member

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
LABELS = ("client", "deployment", "release", "canary")
BUCKETS = slice(0, len(STEPS), 4)
"""Every fourth step: a series for each bound is dear in Prometheus, and these still double at each."""
BOUNDS = (*STEPS[BUCKETS], "+Inf")
Key = tuple[Any, ...]
Names = tuple[str, ...]
"""A value for each of LABELS."""


def exposition(member: Member, engine: dict[str, Any] | None) -> bytes:
    """All of it, as far as this member may see; `engine` is what `asking.state` told."""
    registry = CollectorRegistry()
    registry.register(Told([*memory(member, engine)]))
    in_memory: bytes = generate_latest(registry)
    return traffic(labelled(sums_so_far(member))).encode() + in_memory


class Told(Collector):
    def __init__(self, families: list[Metric]):
        self.families = families

    def collect(self) -> Iterable[Metric]:
        return self.families


def sums_so_far(member: Member) -> dict[Key, Sums]:
    """By client, deployment, release and canary: the hours that were added up, and the calls that are not yet."""
    found: dict[Key, Sums] = defaultdict(Sums)
    added_up = CallTotal.objects.for_action(member, "traffic.view")
    with one_moment():
        for row in added_up.values(*OF, *COUNTS, "outcomes", "seconds", "first"):
            found[tuple(row[column] for column in OF)].add_hour(row)
        for key, sums in sums_by(Call.objects.for_action(member, "traffic.view").filter(counted_at=None), *OF).items():
            found[key].add(sums)
    return found


@contextmanager
def one_moment() -> Iterator[None]:
    """All queries inside see the same: an hour that is added up between two of them would stand in neither, and a counter would fall."""
    begins = not connection.in_atomic_block
    with transaction.atomic():
        if begins and connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield


def traffic(found: Iterable[tuple[Names, Sums]]) -> str:
    """By names. Deployments in thousands have a hundred thousand lines, for which the library's samples take twelve times as long."""
    requests = Lines("adapter_studio_requests_total", "counter", "Requests to the endpoint, by HTTP status.")
    tokens = Lines("adapter_studio_tokens_total", "counter", "Tokens read and written; cached ones are among those read.")
    seconds = Lines("adapter_studio_answer_seconds", "histogram", "From the request to the end of the answer.")
    first = Lines("adapter_studio_first_token_seconds", "histogram", "From the request to the first token.")
    for names, sums in found:
        labels = ",".join(f'{label}="{escaped(name)}"' for label, name in zip(LABELS, names, strict=True))
        for status, count in by_status(sums).items():
            requests.add(f'{labels},status="{status}"', count)
        for kind, count in (("read", sums.prompt_tokens), ("cached", sums.cached_tokens), ("written", sums.completion_tokens)):
            tokens.add(f'{labels},kind="{kind}"', count)
        seconds.add_histogram(labels, sums.seconds, sums.seconds_sum)
        first.add_histogram(labels, sums.first, sums.first_sum)
    return "".join(line for metric in (requests, tokens, seconds, first) for line in metric.lines)


class Lines:
    """One metric in Prometheus's text format 0.0.4. Labels come as they are written there, without braces."""

    def __init__(self, name: str, kind: str, about: str):
        self.name = name
        self.lines = [f"# HELP {name} {about}\n# TYPE {name} {kind}\n"]

    def add(self, labels: str, value: float) -> None:
        self.lines.append(f"{self.name}{{{labels}}} {value}\n")

    def add_histogram(self, labels: str, counts: list[int], total: float) -> None:
        """`counts` by step, the last one beyond all; a bucket is told as how many lasted at most as long as its bound."""
        within = [*accumulate(counts)]
        bucket = f'{self.name}_bucket{{{labels},le="'
        self.lines += [f'{bucket}{bound}"}} {count}\n' for bound, count in zip(BOUNDS, (*within[BUCKETS], within[-1]), strict=True)]
        self.lines.append(f"{self.name}_count{{{labels}}} {within[-1]}\n{self.name}_sum{{{labels}}} {total}\n")


def escaped(name: str) -> str:
    return name.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def labelled(found: dict[Key, Sums]) -> Iterator[tuple[Names, Sums]]:
    """By their names. Two of the same names, of which one's release is gone, are one series."""
    clients, deployments, releases = (
        dict(model._base_manager.filter(pk__in={key[place] for key in found if key[place]}).values_list("pk", name))
        for place, (model, name) in enumerate(((Client, "slug"), (Deployment, "slug"), (Release, "name")))
    )
    by_name: dict[Names, Sums] = {}
    for (client, deployment, release, canary), sums in found.items():
        names = clients.get(client, ""), deployments.get(deployment, ""), releases.get(release, ""), str(canary).lower()
        if names in by_name:
            by_name[names].add(sums)
        else:
            by_name[names] = sums
    yield from sorted(by_name.items(), key=itemgetter(0))


def by_status(sums: Sums) -> dict[str, int]:
    found: dict[str, int] = defaultdict(int)
    for outcome, count in sums.outcomes.items():
        found[outcome.split()[0]] += count
    return dict(sorted(found.items()))


def memory(member: Member, engine: dict[str, Any] | None) -> Iterator[Metric]:
    """What the engine has in memory for this workspace. Base models are the workspace's, so nobody of one client alone sees them."""
    yield GaugeMetricFamily("adapter_studio_engine_up", "Whether the process that answers can be reached.", value=float(engine is not None))
    if engine is None or member.client_ids() is not None:
        return
    mine = [model for model in engine["models"] if model["workspace"] == str(member.workspace_id)]
    names = dict(BaseModel.objects.filter(workspace=member.workspace_id).values_list("sha256", "name"))
    gauges = {
        "running": GaugeMetricFamily("adapter_studio_answers_running", "Answers that are being written.", labels=("model",)),
        "waiting": GaugeMetricFamily("adapter_studio_answers_waiting", "Requests that wait for a free slot.", labels=("model",)),
        "bytes": GaugeMetricFamily("adapter_studio_model_bytes", "Memory that a model takes with its adapters.", labels=("model",)),
        "adapters": GaugeMetricFamily("adapter_studio_model_adapters", "Adapters that are ready on a model.", labels=("model",)),
    }
    by_name: dict[str, list[dict[str, Any]]] = defaultdict(list)  # one may be there twice, as on a GPU and beside it
    for model in mine:
        by_name[names.get(model["base_sha256"], model["base_sha256"][:12])].append(model)
    for name, models in by_name.items():
        for column, gauge in gauges.items():
            gauge.add_metric([name], sum(amount(model[column]) for model in models))
    yield GaugeMetricFamily("adapter_studio_models_in_memory", "Models that are ready to answer.", value=float(len(mine)))
    yield from gauges.values()


def amount(told: Any) -> float:
    """A number, or how many there are."""
    return float(told) if isinstance(told, int | float) else float(len(told))
