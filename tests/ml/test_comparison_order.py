"""The whole path of measuring once: what the worker is told, a worker process, and the verdict."""

import shutil

import pytest

from studio.comparisons import measuring_kind, services
from studio.comparisons.measured import Measured
from studio.comparisons.measuring_kind import FEWEST_ROWS
from studio.comparisons.models import Comparison
from studio.orders.kinds import KINDS
from studio.orders.models import Order
from tests.fixtures import make_artifact, make_comparison, make_version, work_off
from tests.ml.adapters import make_adapter
from tests.ml.conftest import make_tiny_model


@pytest.fixture
def trained(acme, tmp_path):
    """Two arms, an adapter and a whole model, that were trained; measuring is what comes next."""
    base = make_tiny_model(acme.base.folder)
    comparison = make_comparison(acme, state=Comparison.State.RUNNING)
    folders = [make_adapter(base, tmp_path / "adapter"), make_tiny_model(tmp_path / "full", seed=1)]
    for arm, folder, kind in zip(comparison.arms.all(), folders, ("adapter", "model"), strict=True):
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        made = make_artifact(arm.runs.get().run.order, acme.project, files, kind=kind, base_model=acme.base, dataset_version=acme.version)
        shutil.rmtree(folder)
        assert made.is_chattable
    return comparison


def test_what_a_worker_is_told_names_what_each_run_left(acme, trained):
    Comparison.objects.filter(pk=trained.pk).update(metrics=[{"kind": "f1"}, {"kind": "judge", "model": f"base:{acme.base.pk}"}])
    services.measure(acme.owner, trained)
    trained.refresh_from_db()
    told = KINDS["comparison"].payload(trained.order)
    lora, full = told["arms"]
    assert (lora["number"], full["number"]) == (0, 1)
    assert lora["base"]["base"] == lora["results"][0]["model"]["base"] == str(acme.base.folder)
    assert lora["results"][0]["model"]["adapter"].endswith(f"{trained.arms.first().runs.get().run.order_id}-1")
    assert full["results"][0]["model"]["adapter"] == ""
    assert (lora["results"][0]["gguf_adapter"], full["results"][0]["gguf_adapter"]) == (True, False)
    assert lora["results"][0]["gguf_size"] == full["results"][0]["gguf_size"] > 0
    assert lora["rows"] == str(acme.version.rows_path)
    assert told["judges"]["judge"]["name"] == acme.base.name
    assert told["probe"] == ""
    assert told["rows"] == FEWEST_ROWS  # its runs took no time
    assert KINDS["comparison"].memory(trained.order).bytes > acme.base.model_facts.parameters * 4


@pytest.mark.parametrize(("seconds", "rows"), [(1, 48), (10, 100), (3600, 200)])
def test_more_rows_are_measured_after_longer_runs(acme, trained, seconds, rows, monkeypatch):
    """Of the two results together ten rows are read in a second."""
    found = list(services.comparable(trained).select_related("arm__base_model", "arm__dataset_version", "run__order"))
    monkeypatch.setattr(measuring_kind, "tokens_of_row", lambda arm: 1000)
    monkeypatch.setattr(measuring_kind, "READ_IN_A_SECOND", 10 * 2 * 1000 * acme.base.model_facts.parameters)
    for number, each in enumerate(found):
        each.run.order.worked, each.run.order.started_at = seconds / (number + 1), None
    assert measuring_kind.rows_to_measure(found) == rows


def test_a_project_can_name_rows_of_its_own_for_what_is_forgotten(acme, trained):
    probe = make_version(acme.owner, acme.project, name="General")
    Comparison.objects.filter(pk=trained.pk).update(probe=probe)
    services.measure(acme.owner, Comparison.objects.get(pk=trained.pk))
    told = KINDS["comparison"].payload(Order.objects.get(kind="comparison"))
    assert (told["probe"], told["probe_name"]) == (str(probe.rows_path), str(probe))


def test_a_judge_that_is_gone_or_of_another_workspace_is_not_asked(acme, rival, trained):
    metrics = [
        {"kind": "judge", "name": name, "model": model}
        for name, model in (("theirs", f"base:{rival.base.pk}"), ("gone", f"release:{rival.release.pk}"))
    ]
    Comparison.objects.filter(pk=trained.pk).update(metrics=metrics)
    services.measure(acme.owner, Comparison.objects.get(pk=trained.pk))
    assert KINDS["comparison"].payload(Order.objects.get(kind="comparison"))["judges"] == {}


def test_the_whole_path_ends_with_a_verdict(acme, trained):
    Comparison.objects.filter(pk=trained.pk).update(metrics=[{"kind": "f1"}])
    services.measure(acme.owner, trained)
    trained.refresh_from_db()
    order = work_off(trained.order)
    assert (order.status, order.error) == ("succeeded", "")
    trained.refresh_from_db()
    assert trained.state == Comparison.State.DONE
    assert trained.verdict
    measured = Measured.of(trained)
    assert measured.keys == [(-1, 0), (0, 1), (1, 1)]
    assert len(measured.losses("held_out")[0, 1]) == 2  # its version holds out two rows
    assert len(measured.kl()[1, 1]) == 64
    assert (measured.facts.held_out, measured.facts.of) == (2, 2)
