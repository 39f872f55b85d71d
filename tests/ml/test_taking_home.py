"""From the request to the bundle: a base model as it is, in two types, built by a worker and proved by llama.cpp."""

import io
import zipfile
from typing import Any

import pytest
from asgiref.sync import async_to_sync

from studio.artifacts import downloads, ladder, quantizations
from studio.artifacts.models import Build
from studio.artifacts.services import request_builds
from studio.ml.modelfacts import read_model_facts
from studio.orders.models import Order
from studio.storage import commit_folder
from tests.fixtures import World, work_off
from tests.ml.conftest import ModelMaker


@pytest.mark.django_db(transaction=True)
def test_a_base_model_as_it_is_is_taken_home_in_two_types(acme: World, slot: Any, tmp_path: Any, tiny_model_maker: ModelMaker) -> None:
    commit_folder(tiny_model_maker(tmp_path / "draft"), acme.base.folder)
    acme.base.facts = read_model_facts(acme.base.folder, acme.base.name).model_dump()
    acme.base.save()
    asked = request_builds(acme.owner, base_model=acme.base, quantizations=["f16", "q8_0"])
    assert work_off(asked[0].order).status == Order.Status.SUCCEEDED, asked[0].order.error
    steps = ladder.rungs(acme.owner, acme.base)
    assert [step.quantization for step in steps] == ["f16", "q8_0"]
    for build in Build.objects.filter(order=asked[0].order):
        assert build.passed, build.verification
        expected = quantizations.estimated_size(acme.base.model_facts, build.quantization)
        assert ladder.weights_size(build) == pytest.approx(expected, rel=0.1)  # of a tiny model the header is much
        stem = build.artifact.file_stem
        files = [(f"{stem}/{name}", build.artifact.folder / name) for name in build.artifact.files]
        content = async_to_sync(everything)(downloads.zip_bytes(files))
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            card = archive.read(f"{stem}/README.md").decode()
            assert archive.read(f"{stem}/Modelfile").startswith(f"FROM ./tiny-{build.quantization}.gguf\n\nTEMPLATE".encode())
        assert f"# Tiny · {build.quantization}" in card
        assert "| Mean KL divergence per token, nats | " in card


async def everything(pieces: Any) -> bytes:
    return b"".join([piece async for piece in pieces])
