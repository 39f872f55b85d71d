"""A workspace with two clients and one that is archived, and another workspace; what nobody may notice has a name easy to find."""

from dataclasses import dataclass

import pytest
from django.core.cache import cache

from studio.workspaces.services import archive_client, create_client, create_project
from tests.fixtures import World, make_artifact, make_build, make_run, make_version, make_world

GLOBEX, RIVAL, ARCHIVED = "Globexsecret", "Rivalsecret", "Archivedsecret"
"""In every name of the second client, of the other workspace, and of the client that is archived."""


@dataclass
class Town:
    acme: World
    globex: World
    """The same workspace's other client."""
    rival: World
    """Another workspace."""
    archived: World
    """A client of the first workspace that is archived."""


def world_of_another_client(world: World, word: str = GLOBEX) -> World:
    """Another client of the workspace with one of everything; the base model is shared."""
    owner = world.owner
    client = create_client(owner, name=f"{word} client")
    project = create_project(owner, client=client, name=f"{word} project")
    version = make_version(owner, project)
    run = make_run(owner, project, world.base, version)
    artifact = make_artifact(run.order, project, {"adapter_config.json": b"{}"}, base_model=world.base, dataset_version=version)
    return World(owner, world.api, client, project, world.base, version, run, artifact, make_build(owner, artifact))


def name_everything(world: World, word: str) -> None:
    for thing in (world.client, world.project, world.version.dataset, world.run, world.artifact):
        thing.name = f"{word} {type(thing).__name__.lower()}"
        thing.save(update_fields=["name"])


@pytest.fixture(autouse=True)
def no_earlier_tries():
    """The throttle counts in the cache of the process."""
    cache.clear()


def make_town(acme: World) -> Town:
    rival = make_world("zoe@rivalsecret.example", f"{RIVAL} workspace")
    name_everything(rival, RIVAL)
    rival.base.name = f"{RIVAL} base"
    rival.base.save()
    globex = world_of_another_client(acme)
    name_everything(globex, GLOBEX)
    archived = world_of_another_client(acme, ARCHIVED)
    name_everything(archived, ARCHIVED)
    archive_client(acme.owner, archived.client)
    for world in (acme, globex, rival, archived):
        assert world.release.shared_at  # what a guest may see of each
        assert world.logo
    return Town(acme, globex, rival, archived)


@pytest.fixture
def town(acme, slot):
    return make_town(acme)
