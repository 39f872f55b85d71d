"""The page of what is in memory, in a browser: it follows what happens by itself, at a desk, on a phone and in the dark."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from studio.serving.subjects import subject_of
from tests.fixtures import World, make_world
from tests.serving.engine_process import engine_process
from tests.serving.test_models_in_memory import adapter_of, said, with_files
from tests.serving.vllm_machine import gpu_machine
from tests.visits import Visit
from tests.web.conftest import SLOW, Do

pytestmark = pytest.mark.browser


@pytest.fixture
def engine(world: World, settings: Any, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    settings.ENGINE_SOCKET = str(tmp_path_factory.mktemp("s") / "e.sock")
    machine = gpu_machine(tmp_path_factory.mktemp("machine"))
    with engine_process(tmp_path, Path(settings.ENGINE_SOCKET), environment=machine):
        yield


def test_the_page_follows_what_comes_into_memory(browse: Callable[[str, Do], None], world: World, engine: None) -> None:
    base = with_files(world.base, "a" * 64, size=1 << 30)
    adapters = [adapter_of(world, base, name) for name in ("Support replies", "Polite refunds in two languages")]
    rival = make_world("ray@example.com", "Rival")
    theirs = subject_of(with_files(rival.base, "b" * 64))

    def watch(page: Page) -> None:
        seen = Visit(page, name="models-in-memory")
        expect(page.get_by_text("None of your models is in memory")).to_be_visible()
        seen.look("empty", everywhere=True)
        for subject in (*map(subject_of, adapters), theirs):
            with ThreadPoolExecutor(1) as somebody:  # the browser's driver has an event loop in this thread
                assert "done" in somebody.submit(said, subject).result()[-1]
        expect(page.get_by_role("row", name="Tiny")).to_be_visible(timeout=SLOW)
        expect(page.get_by_text("Others: models of other workspaces")).to_be_visible()
        seen.look("loaded", everywhere=True)
        assert seen.mistakes == []

    browse("/playground/memory/", watch)


def test_where_nobody_answers_the_page_says_so(browse: Callable[[str, Do], None], settings: Any, tmp_path: Path) -> None:
    settings.ENGINE_SOCKET = str(tmp_path / "nobody.sock")

    def look(page: Page) -> None:
        seen = Visit(page, name="no-engine")
        expect(page.get_by_text("The process that answers is not running.")).to_be_visible()
        seen.look("none")
        assert seen.mistakes == []

    browse("/playground/memory/", look)
