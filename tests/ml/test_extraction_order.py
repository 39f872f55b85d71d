"""The whole path once: adapters are asked for, a worker process takes them out, and one of them is built and released like any other."""

import shutil
from pathlib import Path

import pytest

from studio.artifacts import buildable
from studio.artifacts.models import Build
from studio.comparisons import extracting, extraction_pages
from studio.ml.modelfacts import read_model_facts
from studio.releases.releasing import create_release
from tests.fixtures import make_full_model, make_version, work_off
from tests.ml.test_extracting import trained


@pytest.fixture
def source(acme, tiny_model, tmp_path):
    """A model that was trained from the workspace's base, which is a real one, on a version with enough rows to hold some out."""
    shutil.copytree(tiny_model, acme.base.folder)
    facts = read_model_facts(tiny_model, "Tiny").model_dump(mode="json")
    type(acme.base).objects.filter(pk=acme.base.pk).update(facts=facts)
    acme.base.refresh_from_db()
    folder = trained(acme.base.folder, tmp_path / "model", linears_alone=False, steps=20)
    made = make_full_model(acme, {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()})
    made.dataset_version = make_version(acme.owner, acme.project, name="Longer", count=60)
    made.save(update_fields=["dataset_version"])
    return made


def test_adapters_are_extracted_measured_and_released(acme, source):
    extraction = extracting.request(acme.owner, source, ranks=[8, 0], keeps_tables=True)
    order = work_off(extraction.order)
    assert (order.status, order.error) == ("succeeded", "")
    extraction.refresh_from_db()
    assert extraction.result["rows"] == 10  # those of the version's validation split
    eighth, full = extraction_pages.table(extraction)
    assert eighth.artifact.size < full.artifact.size
    assert {each["part"] for each in extraction.result["rest"]} == {"words", "norms"}
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md"} == set(eighth.artifact.files)
    assert (eighth.artifact.folder / "README.md").read_text().count("rank 8") == 1
    assert "layers that were trained in full" in buildable.merged_only(eighth.artifact)
    release = create_release(acme.owner, project=acme.project, artifact=eighth.artifact)
    assert release.artifact.parents.get() == source


def test_an_extracted_adapter_is_built_as_one_that_llama_cpp_swaps(acme, source):
    from studio.artifacts.services import request_builds

    extraction = extracting.request(acme.owner, source, ranks=[0])
    assert work_off(extraction.order).status == "succeeded"
    adapter = extraction.order.artifacts.get()
    (build,) = request_builds(acme.owner, source=adapter, kind=Build.Kind.GGUF_ADAPTER, quantizations=["f32"])
    assert work_off(build.order).error == ""
    build.refresh_from_db()
    assert build.passed, build.verification


def test_an_extraction_that_fails_says_why(acme, source):
    (source.folder / "model.safetensors").unlink()
    extraction = extracting.request(acme.owner, source, ranks=[8])
    order = work_off(extraction.order)
    assert order.status == "failed"
    assert "model.safetensors is missing" in order.error
    assert not order.artifacts.exists()
