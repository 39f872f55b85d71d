"""The whole path once: a release is asked to be evaluated, a worker process does it, and the gate knows."""

import shutil

import pytest

from studio.releases.evaluating import request_evaluation
from studio.releases.gates import conditions, latest_evaluation
from studio.releases.models import Gate
from studio.releases.releasing import create_release
from studio.releases.staging import move
from tests.fixtures import make_artifact, make_deployment, make_order, make_version, work_off
from tests.ml.adapters import make_adapter


@pytest.fixture
def adapters(acme, tiny_model, tmp_path):
    """Two adapters of the workspace's base, which is a real one."""
    shutil.copytree(tiny_model, acme.base.folder)
    found = []
    for seed in (1, 2):
        folder = make_adapter(acme.base.folder, tmp_path / f"adapter-{seed}", seed=seed)
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        order = make_order(acme.owner, kind="train", client=acme.client)
        columns = {"name": f"Try {seed}", "base_model": acme.base, "dataset_version": acme.version}
        found.append(make_artifact(order, acme.project, files, **columns))
    return found


def test_a_release_is_evaluated_beside_the_one_in_production(acme, adapters):
    first, second = (
        create_release(acme.owner, project=acme.project, artifact=artifact, asked_with={"system": f"You are number {number}."})
        for number, artifact in enumerate(adapters)
    )
    make_deployment(acme.project, first)
    held_out = make_version(acme.owner, acme.project, name="Gate", count=60).dataset
    type(held_out).objects.filter(pk=held_out.pk).update(held_out=True)
    Gate.objects.create(project=acme.project, evaluated=True, held_out=held_out, margin=100)
    move(acme.owner, second, to="candidate")
    order = work_off(request_evaluation(acme.owner, second).order)
    assert (order.status, order.error) == ("succeeded", "")
    found = latest_evaluation(second)
    assert (found.against, found.dataset_version.dataset) == (first, held_out)
    result = found.result
    assert (result["learnt"], result["of"], result["rows"], result["unknown"]) == (10, 50, 50, [])  # ten of the first rows were trained on
    assert result["low"] < result["change"] < result["high"]
    assert len(result["samples"]) == 5
    assert {"prompt", "answer", "before", "expected"} == set(result["samples"][0])
    (condition,) = conditions(second)
    assert condition.met
    assert "on 50 rows" in condition.why
    move(acme.owner, second, to="approved")


def test_an_evaluation_that_fails_says_why(acme, adapters):
    release = create_release(acme.owner, project=acme.project, artifact=adapters[0])
    (acme.base.folder / "tokenizer.json").unlink()
    order = work_off(request_evaluation(acme.owner, release).order)
    assert (order.status, order.error) == ("failed", "tokenizer.json is missing. Choose a model with a fast tokenizer.")
    assert latest_evaluation(release) is None
