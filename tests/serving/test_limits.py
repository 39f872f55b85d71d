"""A key asks the endpoint as often, as much and as many times at once as it may, whichever process it meets."""

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from studio.serving import counting, limits
from studio.serving.counting import Asked, Counter
from studio.serving.limits import InRedis, Limited, admit
from studio.workspaces.models import ApiKey
from tests.fixtures import redis_on_a_socket


@pytest.fixture(params=["in Redis", "while Redis is away"])
def anywhere(request: Any, redis_server: str, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.REDIS_URL = redis_server if request.param == "in Redis" else "unix:///nowhere/redis.sock"
    monkeypatch.setattr(limits, "AWAY_SINCE", limits.Away())


@pytest.fixture
def shared(redis_server: str, settings: Any, monkeypatch: pytest.MonkeyPatch) -> "redis.Redis":
    settings.REDIS_URL = redis_server
    monkeypatch.setattr(limits, "AWAY_SINCE", limits.Away())
    return redis.Redis.from_url(redis_server)


def a_key(**columns: int) -> ApiKey:
    return ApiKey(pk=uuid.uuid4(), name="shop", **columns)


def refused(key: ApiKey, *, tokens: int = 1) -> Limited:
    with pytest.raises(Limited) as found:
        admit(key, expected_tokens=tokens)
    return found.value


def test_without_limits_nothing_is_counted_or_said(anywhere: None) -> None:
    for key in (None, a_key()):
        place = admit(key, expected_tokens=10**9)
        assert place.headers == {}
        place.leave(10**9)


def test_so_many_requests_a_minute_and_no_more(anywhere: None) -> None:
    key = a_key(requests_per_minute=3)
    left = [admit(key, expected_tokens=5).headers["x-ratelimit-remaining-requests"] for _ in range(3)]
    assert left == ["2", "1", "0"]
    told = refused(key)
    assert told.message.startswith("This key may ask 3 times a minute. Try again in ")
    assert 19 < told.retry_after <= 20  # one of three comes back in a third of a minute
    assert told.headers["retry-after"] == "20"
    assert told.headers["x-ratelimit-limit-requests"] == "3"
    assert told.headers["x-ratelimit-remaining-requests"] == "0"
    assert told.headers["x-ratelimit-reset-requests"] == "1m0s" or told.headers["x-ratelimit-reset-requests"].startswith("59")


def test_after_the_time_that_was_told_the_next_request_is_let_in(anywhere: None) -> None:
    key = a_key(requests_per_minute=120)
    for _ in range(120):
        admit(key, expected_tokens=1)
    told = refused(key)
    assert told.retry_after <= 0.5
    time.sleep(told.retry_after + 0.01)
    admit(key, expected_tokens=1)


def test_tokens_are_held_by_what_is_expected_and_settled_by_what_was_used(anywhere: None) -> None:
    key = a_key(tokens_per_minute=1000)
    first = admit(key, expected_tokens=900)
    assert first.headers["x-ratelimit-remaining-tokens"] == "100"
    told = refused(key, tokens=200)
    assert told.message.startswith("This key may use 1,000 tokens a minute.")
    assert 5.5 < told.retry_after <= 6
    first.leave(100)
    assert int(admit(key, expected_tokens=200).headers["x-ratelimit-remaining-tokens"]) in (700, 701, 702, 703, 704, 705)


def test_more_than_was_expected_is_waited_for(anywhere: None) -> None:
    key = a_key(tokens_per_minute=600)
    admit(key, expected_tokens=10).leave(1200)
    told = refused(key)
    assert 59 < told.retry_after <= 61
    assert told.headers["x-ratelimit-remaining-tokens"] == "0"


def test_one_request_larger_than_the_limit_is_let_in_alone(anywhere: None) -> None:
    key = a_key(tokens_per_minute=100)
    place = admit(key, expected_tokens=5000)
    refused(key)
    place.leave(0)
    admit(key, expected_tokens=5000)


def test_a_place_is_free_once_it_is_left_and_only_once(anywhere: None) -> None:
    key = a_key(at_once=2)
    one, _ = admit(key, expected_tokens=1), admit(key, expected_tokens=1)
    told = refused(key)
    assert told.message == "This key may wait for 2 answers at once. Try again once one of them has come."
    assert told.headers["retry-after"] == "1"
    one.leave(1), one.leave(1)
    admit(key, expected_tokens=1)
    refused(key)


def test_a_refused_request_uses_nothing_up(anywhere: None) -> None:
    key = a_key(at_once=1, requests_per_minute=2, tokens_per_minute=100)
    place = admit(key, expected_tokens=10)
    for _ in range(5):
        refused(key, tokens=10)
    place.leave(10)
    assert admit(key, expected_tokens=10).headers["x-ratelimit-remaining-requests"] == "0"


def test_keys_do_not_share_what_they_may(anywhere: None) -> None:
    one, other = a_key(requests_per_minute=1), a_key(requests_per_minute=1)
    admit(one, expected_tokens=1), admit(other, expected_tokens=1)
    refused(one), refused(other)


def test_a_new_limit_holds_from_the_next_request_on(anywhere: None) -> None:
    key = a_key(requests_per_minute=1)
    admit(key, expected_tokens=1)
    refused(key)
    key.requests_per_minute = 3
    admit(key, expected_tokens=1), admit(key, expected_tokens=1)
    refused(key)


def test_threads_that_ask_at_the_same_moment_get_no_place_too_many(anywhere: None) -> None:
    key = a_key(at_once=5, requests_per_minute=1000)
    ready, places, full = threading.Barrier(20), [], []

    def ask() -> None:
        ready.wait()
        try:
            places.append(admit(key, expected_tokens=1))
        except Limited:
            full.append(1)

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(places), len(full)) == (5, 15)


ASKING = """
import sys, uuid, django
django.setup()
from studio.serving.counting import Asked
from studio.serving.limits import InRedis
asked = Asked(sys.argv[2], 30, 0, 0, 0)
print(sum(not InRedis(sys.argv[1]).take(asked, uuid.uuid4().hex).refused for _ in range(40)))
"""


def test_two_processes_share_one_count(redis_server: str) -> None:
    key, environment = str(uuid.uuid4()), os.environ | {"DJANGO_SETTINGS_MODULE": "studio.settings"}
    command = [sys.executable, "-c", ASKING, redis_server, key]
    begun = time.monotonic()
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    let_in = [int(process.communicate(timeout=60)[0]) for process in processes]
    came_back = int((time.monotonic() - begun) * 30 / 60) + 1
    assert 30 <= sum(let_in) <= 30 + came_back


def test_the_place_of_a_process_that_was_killed_becomes_free(shared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LEASE", 1)
    key = a_key(at_once=1)
    place = admit(key, expected_tokens=1)
    limits.KEEPER.forget(place)  # nobody renews it any more, as when its process is gone
    refused(key)
    time.sleep(1.1)
    admit(key, expected_tokens=1)


def test_a_long_answer_keeps_its_place(shared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LEASE", 1)
    monkeypatch.setattr(limits, "KEEPER", limits.Keeper(limits.AWAY_SINCE))
    key = a_key(at_once=1)
    place = admit(key, expected_tokens=1)
    time.sleep(2.5)
    refused(key)
    place.leave(1)
    admit(key, expected_tokens=1).leave(1)
    time.sleep(0.5)
    assert limits.KEEPER.thread is None or limits.KEEPER.places == {}


def test_renewing_brings_back_no_place_that_was_left(shared: Any) -> None:
    key = a_key(at_once=1)
    place = admit(key, expected_tokens=1)
    asked = place.asked
    place.leave(1)
    InRedis(limits.settings.REDIS_URL).stay(asked, place.name)
    admit(key, expected_tokens=1)


def test_a_flushed_redis_opens_the_door_and_never_shuts_it(shared: Any) -> None:
    key = a_key(requests_per_minute=1, tokens_per_minute=100, at_once=1)
    place = admit(key, expected_tokens=100)
    refused(key)
    shared.flushall()
    other = admit(key, expected_tokens=50)
    place.leave(3)  # gives back what nobody holds any more
    assert admit(a_key(tokens_per_minute=100), expected_tokens=1)
    other.leave(50)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda server, name: server.hset(name, mapping={"used": "inf", "at": "nan"}),
        lambda server, name: server.hset(name, mapping={"used": "1e300", "at": "0"}),
        lambda server, name: server.hset(name, mapping={"used": "5", "at": "99999999999"}),
        lambda server, name: server.hset(name, mapping={"used": "many", "at": ""}),
        lambda server, name: server.set(name, "no hash at all"),
    ],
)
def test_what_somebody_else_wrote_into_redis_shuts_nobody_out(shared: Any, spoil: Callable[[Any, str], None]) -> None:
    key = a_key(requests_per_minute=2, at_once=2)
    spoil(shared, f"limits:{{{key.pk}}}:requests")
    shared.zadd(f"limits:{{{key.pk}}}:places", {"a": 1e15, "b": 1e15})
    admit(key, expected_tokens=1), admit(key, expected_tokens=1)
    refused(key)


def test_what_is_not_used_any_more_leaves_no_trace(shared: Any) -> None:
    key = a_key(requests_per_minute=6000, tokens_per_minute=600_000, at_once=3)
    admit(key, expected_tokens=100).leave(0)
    names = [f"limits:{{{key.pk}}}:{what}" for what in ("requests", "tokens", "places")]
    assert all(shared.ttl(name) <= 3 or not shared.exists(name) for name in names[:2])
    assert not shared.exists(names[2])


def test_a_redis_that_goes_away_is_said_once_and_each_process_counts_on(
    settings: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "AWAY_SINCE", limits.Away())
    monkeypatch.setattr(limits, "AWAY", 0.0)
    monkeypatch.setattr(limits, "PATIENCE", 30)
    monkeypatch.setattr(limits, "KEEPER", limits.Keeper(limits.AWAY_SINCE))
    key = a_key(requests_per_minute=2, at_once=5)
    with redis_on_a_socket() as address:
        settings.REDIS_URL = address
        place = admit(key, expected_tokens=1)
    place.leave(1)  # is gone, and breaks nothing
    admit(key, expected_tokens=1), admit(key, expected_tokens=1)
    refused(key)
    assert len([record for record in caplog.records if "each process counts for itself" in record.message]) == 1


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and says nothing."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{folder}/redis.sock")
        server.listen(64)
        yield f"unix://{folder}/redis.sock"


def test_a_redis_that_hangs_delays_one_request_and_not_all(silent: str, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.REDIS_URL = silent
    monkeypatch.setattr(limits, "AWAY_SINCE", limits.Away())
    monkeypatch.setattr(limits, "PATIENCE", 0.3)
    key, begun = a_key(requests_per_minute=50), time.monotonic()
    for _ in range(50):
        admit(key, expected_tokens=1)
    assert time.monotonic() - begun < 3
    refused(key)


def test_a_process_remembers_no_more_keys_than_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "MOST", 100)
    counter, now = Counter(), time.monotonic()
    for number in range(100):
        counter.take(Asked(str(number), 5, 0, 1, 0), "one")
        counter.leave(Asked(str(number), 5, 0, 1, 0), "one", 0)
    monkeypatch.setattr(counting.time, "monotonic", lambda: now + 120)
    counter.take(Asked("next", 5, 0, 1, 0), "one")
    assert list(counter.keys) == ["next"]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0ms"), (0.02, "20ms"), (1.5, "1.5s"), (59.999, "1m0s"), (60, "1m0s"), (360, "6m0s"), (3700, "1h1m40s")]
)
def test_times_are_written_as_openai_writes_them(seconds: float, words: str) -> None:
    assert limits.lasting(seconds) == words
