"""A model that full fine-tuning made, from the run's order to the playground and a GGUF that passed."""

from typing import Any

import pytest
from django.test import Client as Browser
from django.urls import reverse

from studio.artifacts.models import Artifact
from studio.artifacts.services import request_builds
from studio.ml.modelfacts import read_model_facts
from studio.orders.models import Order
from studio.runs.services import create_run
from studio.storage import commit_folder
from tests.fixtures import World, work_off
from tests.ml.conftest import ModelMaker

SETTINGS = {"max_steps": 8, "learning_rate": 0.003, "max_length": 64, "precision": "fp32"}


@pytest.fixture
def made(acme: World, slot: Any, tmp_path: Any, tiny_model_maker: ModelMaker) -> Artifact:
    """What a run over a tiny model left, trained by a worker."""
    commit_folder(tiny_model_maker(tmp_path / "draft"), acme.base.folder)
    acme.base.facts = read_model_facts(acme.base.folder, acme.base.name).model_dump()
    acme.base.save()
    run = create_run(
        acme.owner, project=acme.project, name="Ours", plugin_name="full_finetune", config=SETTINGS, base=acme.base, version=acme.version
    )
    assert work_off(run.order).status == Order.Status.SUCCEEDED, run.order.error
    return Artifact.objects.get(order=run.order)


@pytest.mark.django_db(transaction=True)
def test_a_run_that_trains_every_weight_leaves_a_model_to_talk_to_and_to_take_home(acme, made):
    assert (made.kind, made.base_model) == (Artifact.Kind.MODEL, acme.base)
    assert "model.safetensors" in made.files and "config.json" in made.files
    assert made.answering == {"base": str(made.folder), "adapter": ""}
    ana = Browser()
    ana.force_login(acme.owner.user)
    page = ana.get(reverse("serving:playground"), {"artifact": made.pk}).content.decode()
    assert f'data-target="model:{made.pk}"' in page and "method-full" in page
    for name in ("artifacts:detail", "runs:detail"):
        page = ana.get(reverse(name, args=[made.pk if name == "artifacts:detail" else made.order.run.pk])).content.decode()
        assert f"/playground/?artifact={made.pk}" in page
    build = request_builds(acme.owner, source=made, quantizations=["f16"])[0]
    assert work_off(build.order).status == Order.Status.SUCCEEDED, build.order.error
    build.refresh_from_db()
    assert build.passed, build.verification
    assert build.artifact is not None and list(build.artifact.parents.all()) == [made]
    assert build.artifact.lineage["model_sha256"] == made.sha256
    assert "a model of its own" in ana.get(reverse("builds:detail", args=[build.pk])).content.decode()
