"""What stays loaded is not looked through for garbage with each request that waits for it."""

import gc
from collections.abc import Iterator

import pytest

from studio.asgi import Warming


@pytest.fixture
def warming() -> Iterator[Warming]:
    """The only one that hears of collections, of which there are none but those that are asked for."""
    before = gc.callbacks[:]
    gc.disable()
    gc.callbacks[:] = [warming := Warming(2)]
    yield warming
    gc.callbacks[:] = before
    gc.enable()


def test_what_is_there_after_a_full_collection_is_left_out_of_the_next(warming: Warming) -> None:
    before = gc.get_freeze_count()
    first_visit = [[number] for number in range(10_000)]
    gc.collect(1)
    assert gc.get_freeze_count() == before
    gc.collect()
    assert gc.get_freeze_count() >= before + len(first_visit)


def test_that_is_over_after_some(warming: Warming) -> None:
    gc.collect()
    assert warming in gc.callbacks
    gc.collect()
    assert warming not in gc.callbacks
    after = gc.get_freeze_count()
    later = [[number] for number in range(10_000)]
    gc.collect()
    assert gc.get_freeze_count() < after + len(later)
