"""Traffic for scripts: the API's figures, and what Prometheus reads. Its own parser says whether the text is right."""

import pytest
from prometheus_client.metrics_core import HistogramMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from studio.serving import metrics, rollup
from studio.serving.steps import STEPS
from studio.serving.traffic import Sums
from tests.fixtures import Api, make_call, make_deployment, make_key, make_member
from tests.serving.test_traffic import ago

pytestmark = pytest.mark.usefixtures("nobody_answers")


@pytest.fixture
def nobody_answers(settings, tmp_path):
    settings.ENGINE_SOCKET = str(tmp_path / "nobody.sock")


@pytest.fixture
def deployment(acme):
    return make_deployment(acme.project, acme.release)


def read(api):
    """`{(name, labels): value}` of all samples."""
    answer = api.get("metrics")
    assert answer.status_code == 200 and answer["Content-Type"].startswith("text/plain; version=0.0.4")
    families = text_string_to_metric_families(answer.content.decode())
    return {(sample.name, *sorted(sample.labels.items())): sample.value for family in families for sample in family.samples}


def one(samples, name, **labels):
    """The value of the one series of this name that has these labels."""
    (found,) = [value for (series, *own), value in samples.items() if series == name and labels.items() <= dict(own).items()]
    return found


def test_prometheus_reads_requests_tokens_and_times(acme, deployment):
    make_call(deployment, seconds=2.0)
    make_call(deployment, status=429, error="rate_limit_exceeded", first=None)
    samples = read(acme.api)
    assert one(samples, "adapter_studio_requests_total", status="200", release=deployment.release.name) == 1
    assert one(samples, "adapter_studio_requests_total", status="429") == 1
    assert one(samples, "adapter_studio_tokens_total", kind="read") == 20
    assert one(samples, "adapter_studio_answer_seconds_count") == 1
    assert one(samples, "adapter_studio_answer_seconds_sum") == 2.0
    assert one(samples, "adapter_studio_first_token_seconds_count", deployment="support", client="in-house", canary="false") == 1
    assert one(samples, "adapter_studio_engine_up") == 0


def test_a_histograms_buckets_only_grow_and_end_with_all(acme, deployment):
    for seconds in (0.01, 0.5, 2.0, 700.0):
        make_call(deployment, seconds=seconds)
    bounds = {
        float(dict(own)["le"]): value
        for (series, *own), value in read(acme.api).items()
        if series == "adapter_studio_answer_seconds_bucket"
    }
    counts = [bounds[bound] for bound in sorted(bounds)]
    assert counts == sorted(counts) and counts[-1] == 4 and counts[-2] == 3


def test_what_is_written_is_what_the_library_would_write():
    counts = [number % 3 for number in range(len(STEPS) + 1)]
    names = ('a"b', "", "c\\d\ne", "true")
    text = metrics.traffic([(names, Sums(seconds=counts, seconds_sum=1e-7, first_sum=123456789.5))])
    bounds = [(str(bound), float(sum(counts[: STEPS.index(bound) + 1]))) for bound in STEPS[::4]]
    library = HistogramMetricFamily("adapter_studio_answer_seconds", "From the request to the end of the answer.", labels=metrics.LABELS)
    library.add_metric(names, [*bounds, ("+Inf", float(sum(counts)))], 1e-7)
    (written,) = [family for family in text_string_to_metric_families(text) if family.name == library.name]
    assert (written.type, written.documentation) == (library.type, library.documentation)
    assert [sample[:3] for sample in written.samples] == [sample[:3] for sample in library.samples]
    assert 'adapter_studio_first_token_seconds_sum{client="a\\"b",deployment="",release="c\\\\d\\ne",canary="true"} 123456789.5' in text


def test_no_counter_ever_falls_while_calls_are_added_up_and_deleted(acme, deployment):
    for days in (40, 1):
        make_call(deployment, at=ago(days=days))
    make_call(deployment)
    before = read(acme.api)
    rollup.roll_up()
    make_call(deployment)
    after = read(acme.api)
    assert all(after[series] >= value for series, value in before.items())
    assert one(after, "adapter_studio_requests_total", status="200") == one(before, "adapter_studio_requests_total", status="200") + 1


def test_a_key_reads_only_what_it_may_see(acme, rival, deployment):
    make_call(deployment)
    assert not [series for series, *_ in read(rival.api) if series == "adapter_studio_requests_total"]
    bound = Api(make_key(make_member(acme.workspace, role="viewer", email="eve@people.example", clients=[]), scopes=["read"]))
    assert one(read(bound), "adapter_studio_requests_total") == 1
    typist = Api(make_key(acme.owner, name="typist", scopes=["inference"]))
    assert typist.get("metrics").status_code == 404


def test_only_the_workspaces_own_models_in_memory_are_told(acme, rival):
    base = {"base_sha256": acme.base.sha256, "adapters": ["a", "b"], "bytes": 300, "running": 2, "waiting": 1, "idle": 0.0}
    mine = base | {"workspace": str(acme.workspace.pk)}
    engine = {"models": [mine, mine | {"adapters": []}, base | {"workspace": "another"}]}
    families = text_string_to_metric_families(metrics.exposition(acme.owner, engine).decode())
    samples = {sample.name: sample for family in families for sample in family.samples}
    assert samples["adapter_studio_models_in_memory"].value == 2
    assert samples["adapter_studio_answers_running"].labels == {"model": acme.base.name}
    assert samples["adapter_studio_answers_running"].value == 4
    assert samples["adapter_studio_model_adapters"].value == 2
    assert b"models_in_memory 0.0" in metrics.exposition(rival.owner, engine)


def test_a_name_with_quotes_is_still_one_label(acme, deployment):
    key = (deployment.client_id, deployment.pk, deployment.release_id, False)
    type(deployment.release).objects.filter(pk=deployment.release_id).update(name='a"b\\c\nd')
    ((labels, _),) = metrics.labelled({key: Sums(calls=1)})
    assert labels[2] == 'a"b\\c\nd'
    make_call(deployment)
    assert one(read(acme.api), "adapter_studio_requests_total", release='a"b\\c\nd') == 1


def test_the_api_tells_traffic_by_the_hour(acme, deployment):
    make_call(deployment, at=ago(hours=3), seconds=4.0)
    make_call(deployment, status=503, error="no_memory", first=None)
    rollup.roll_up()
    told = acme.api.get(f"traffic?deployment={deployment.pk}").json()
    assert (told["total"]["requests"], told["total"]["errors"], len(told["items"])) == (2, 1, 24)
    assert told["total"]["outcomes"] == {"200": 1, "503 no_memory": 1}
    assert told["total"]["seconds"]["p95"] == pytest.approx(4.0, rel=0.1)
    assert told["items"][-4]["requests"] == told["items"][-1]["errors"] == 1
    assert told["releases"][0]["name"] == deployment.release.name


def test_the_api_tells_traffic_by_the_day_of_the_workspace(acme, deployment):
    acme.workspace.time_zone = "Pacific/Auckland"
    acme.workspace.save()
    make_call(deployment, at=ago(days=2))
    told = acme.api.get("traffic?by=day").json()
    assert len(told["items"]) == 30 and told["items"][-3]["requests"] == 1


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("from=2026-01-02T00:00:00Z&until=2026-01-01T00:00:00Z", "from"),
        ("from=2026-01-01T00:00:00Z&until=2026-03-01T00:00:00Z", "from"),
        ("from=2026-01-01T00:00:00", "from"),
        ("by=minute", "by"),
        ("model=x", "model"),
    ],
)
def test_the_api_refuses_a_time_that_it_cannot_tell(acme, query, field):
    answer = acme.api.get(f"traffic?{query}")
    assert answer.status_code in (400, 422)
    assert field in answer.json()["error"]["fields"]


def test_the_api_tells_nothing_of_another_workspace(acme, rival, deployment):
    for name, row in (("deployment", deployment.pk), ("client", deployment.client_id)):
        assert rival.api.get(f"traffic?{name}={row}").status_code == 404
        assert acme.api.get(f"traffic?{name}={row}").status_code == 200
