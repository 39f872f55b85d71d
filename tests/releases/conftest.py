"""A project with two adapters, and the people who make and approve releases."""

from typing import Any

import pytest

from studio.artifacts.models import Artifact
from studio.datasets.models import DatasetVersion
from studio.releases.models import Evaluation, Release
from studio.workspaces.models import Member
from tests.fixtures import World, make_artifact, make_member, make_order, make_version

FIGURES: dict[str, Any] = {
    "rows": 100, "of": 100, "tokens": 900, "unit": "token", "loss": 1.0, "before": None, "change": None, "low": None, "high": None,
    "learnt": 0, "unknown": [], "cut": 0, "samples": [{"prompt": "Hi?", "answer": "Hello.", "before": "Hm.", "expected": "Hello!"}],
}  # fmt: skip


def trained(world: World, name: str = "Again", **columns: Any) -> Artifact:
    """Another adapter of the project."""
    order = make_order(world.owner, kind="train", client=world.client)
    columns = {"base_model": world.base, "dataset_version": world.version, "lineage": {"config": {"rank": 32}}} | columns
    return make_artifact(order, world.project, {"adapter_model.safetensors": name.encode() * 9}, name=name, **columns)


def measured(
    world: World, release: Release, *, against: Release | None = None, version: DatasetVersion | None = None, **figures: Any
) -> Evaluation:
    """An evaluation that has ended with these figures."""
    order = make_order(world.owner, kind="evaluation", client=world.client)
    made: Evaluation = Evaluation.objects.create(
        release=release, against=against, dataset_version=version or world.version, order=order, result=FIGURES | figures
    )
    return made


def held_out(world: World, name: str = "Gate") -> DatasetVersion:
    """A dataset of the client's that is held out."""
    version = make_version(world.owner, world.project, name=name)
    type(version.dataset).objects.filter(pk=version.dataset_id).update(held_out=True)
    version.dataset.refresh_from_db()
    return version


@pytest.fixture
def max_(acme: World) -> Member:
    """An admin, who made nothing."""
    return make_member(acme.workspace, role="admin", email="max@example.com")


@pytest.fixture
def gus(acme: World) -> Member:
    """A guest of the client."""
    return make_member(acme.workspace, role="guest", email="gus@client.example", clients=[acme.client])
