"""Callers of the endpoint who leave: their place is soon free, it is on the record, and nobody else's answer is cut."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest
from asgiref.sync import async_to_sync

from studio.serving import asking
from studio.serving.openai import lines, streaming, views
from studio.workspaces.models import ApiKey
from tests.serving.openai_house import House, calls, engine_at, tiny_models
from tests.web.conftest import Server, server  # noqa: F401  # a fixture, by its name

pytestmark = pytest.mark.torch
ENDLESS: dict[str, Any] = {
    "model": "acme/support",
    "messages": [{"role": "user", "content": "Go on."}],
    "max_tokens": 1900,
    "temperature": 0,
    "logit_bias": {"0": -100, "2": -100},  # so that it does not end by itself
}
AT_ONCE = 2.0
"""Seconds within which a place is free again."""
SOON = 15.0
"""The same where web server, callers and models share few processors with everything else."""
STREAMS = 50


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def house(server: Server, settings: Any, data_folder: Path, models: dict[str, Path]) -> Iterator[House]:  # noqa: F811
    with engine_at(settings, data_folder):
        made = House.made(server.address, models)
        made.deployment(made.release())
        with made.openai() as client:  # the model is in memory
            client.chat.completions.create(model="acme/support", messages=ENDLESS["messages"], max_tokens=1)
        yield made


def running() -> int:
    """Answers that the engine has under way."""
    told = async_to_sync(asking.state)()
    assert told is not None
    return sum(model["running"] + model["waiting"] for model in told["models"])


def seconds_until(count: int) -> float:
    """How long it takes until so many answers are under way."""
    begun = time.monotonic()
    while running() != count:
        assert time.monotonic() - begun < 20, f"{running()} under way"
        time.sleep(0.05)
    return time.monotonic() - begun


def leaving_at_the_first_word(house: House, sent: dict[str, Any]) -> int:
    """Streams, and hangs up after some words."""
    told = 0
    with house.plain() as http, http.stream("POST", "/v1/chat/completions", json=sent | {"stream": True}) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            told += line.startswith("data: ")
            if told == 3:
                return told
    return told


def test_who_leaves_a_stream_frees_the_slot(house: House):
    leaving_at_the_first_word(house, ENDLESS)
    assert seconds_until(0) < AT_ONCE
    call = calls(2)[1]
    assert (call.status, call.error, call.streamed) == (499, "left", True)
    assert call.completion_tokens > 0 and call.prompt_tokens > 0 and call.first is not None


def test_who_leaves_while_the_whole_answer_is_made_frees_the_slot(house: House):
    with closing(HTTPConnection(house.address.removeprefix("http://"))) as caller:
        headers = {"Authorization": f"Bearer {house.key()}", "Content-Type": "application/json"}
        caller.request("POST", "/v1/chat/completions", json.dumps(ENDLESS | {"n": 8}), headers)
        seconds_until(lines.AT_ONCE)
    assert seconds_until(0) < SOON
    call = calls(2)[1]
    assert (call.status, call.error, call.streamed) == (499, "left", False)
    assert call.seconds > 0


def test_all_answers_of_one_request_are_let_go_of(house: House):
    leaving_at_the_first_word(house, ENDLESS | {"n": 8})
    assert seconds_until(0) < SOON


def test_who_leaves_gives_their_place_under_the_keys_limit_back(house: House):
    secret = house.key(at_once=1)
    key = {"Authorization": f"Bearer {secret}"}
    short = ENDLESS | {"max_tokens": 1}
    with house.plain() as http:
        http.headers.update(key)
        with http.stream("POST", "/v1/chat/completions", json=ENDLESS | {"stream": True}) as answer:
            told = answer.iter_lines()  # held on to: httpx hangs up when nobody does
            next(told)
            refused = http.post("/v1/chat/completions", json=short)
            assert refused.status_code == 429 and refused.json()["error"]["code"] == "rate_limit_exceeded"
        until = time.monotonic() + SOON
        while (again := http.post("/v1/chat/completions", json=short)).status_code == 429:
            assert time.monotonic() < until
            time.sleep(0.1)
        assert again.status_code == 200
    assert ApiKey.objects.filter(sha256=ApiKey.hash(secret)).get().calls.filter(status=499).count() == 1


def test_a_key_that_may_wait_for_one_answer_at_once_gets_those_of_a_request_one_after_another(house: House):
    with house.plain() as http:
        http.headers["Authorization"] = f"Bearer {house.key(at_once=1)}"
        whole = http.post("/v1/chat/completions", json=ENDLESS | {"n": 3, "max_tokens": 2}).json()
        assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
        with http.stream("POST", "/v1/chat/completions", json=ENDLESS | {"n": 8, "stream": True}) as answer:
            told = (line for line in answer.iter_lines() if line.startswith("data: "))
            events = [json.loads(next(told).removeprefix("data: ")) for _ in range(40)]
            assert {event["choices"][0]["index"] for event in events} == {0}
            assert running() <= 1


def test_who_reads_nothing_is_let_go_of_in_the_end(house: House, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lines, "STALLED", 1.0)
    monkeypatch.setattr(lines, "AHEAD", 4)
    logprobs = {"stream": True, "logprobs": True, "top_logprobs": 20}  # so much that no buffer holds it
    with house.plain() as http, http.stream("POST", "/v1/chat/completions", json=ENDLESS | logprobs | {"n": 8}) as answer:
        assert answer.status_code == 200
        time.sleep(1)
        assert seconds_until(0) < 20
    assert calls(2)[1].status == 499


def test_a_comment_is_sent_while_nothing_is_said(house: House, monkeypatch: pytest.MonkeyPatch):
    """The model of another release is not in memory yet; its stream begins all the same."""
    monkeypatch.setattr(views, "PATIENCE", 0.0)
    monkeypatch.setattr(streaming, "HEARTBEAT", 0.01)
    sent = ENDLESS | {"model": house.release("second", version=2).name, "max_tokens": 2, "stream": True}
    with house.plain() as http, http.stream("POST", "/v1/chat/completions", json=sent) as answer:
        assert answer.status_code == 200
        text = answer.read().decode()
    assert text.startswith(": ") and text.endswith("data: [DONE]\n\n")


def test_an_error_after_the_beginning_is_the_last_event(house: House, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(views, "PATIENCE", 0.0)
    long = ENDLESS | {"messages": [{"role": "user", "content": "Go on. " * 5000}], "stream": True}
    with house.plain() as http, http.stream("POST", "/v1/chat/completions", json=long) as answer:
        assert answer.status_code == 200
        blocks = [block for block in answer.read().decode().split("\n\n") if block and not block.startswith(":")]
    assert len(blocks) == 1 and blocks[0].startswith("event: error\ndata: ")
    assert json.loads(blocks[0].partition("data: ")[2])["error"]["code"] == "context_length_exceeded"
    assert (calls(2)[1].status, calls(2)[1].error) == (400, "context_length_exceeded")


def test_fifty_streams_half_of_which_vanish(house: House):
    """The others' answers are whole, and what they would have been alone."""
    asked = ENDLESS | {"max_tokens": 40}

    def whole(http: httpx.Client) -> str:
        with http.stream("POST", "/v1/chat/completions", json=asked | {"stream": True}) as answer:
            assert answer.status_code == 200
            events = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
        assert events.pop() == "[DONE]"
        told = [json.loads(event)["choices"][0] for event in events]
        assert told[-1]["finish_reason"] == "length"
        return "".join(choice["delta"].get("content", "") for choice in told)

    key = {"Authorization": f"Bearer {house.key()}"}
    limits = httpx.Limits(max_connections=STREAMS)
    together = threading.Barrier(STREAMS)
    with httpx.Client(base_url=house.address, headers=key, timeout=240, limits=limits) as http:
        alone = whole(http)

        def one(number: int) -> str:
            together.wait()
            if number % 2:
                return whole(http)
            with http.stream("POST", "/v1/chat/completions", json=ENDLESS | {"n": 2, "stream": True}) as answer:
                assert answer.status_code == 200
                return next(line for line in answer.iter_lines() if line)

        with ThreadPoolExecutor(STREAMS) as people:
            told = list(people.map(one, range(STREAMS)))
    assert "data: [DONE]" not in told[::2]
    assert told[1::2] == [alone] * (STREAMS // 2)
    assert seconds_until(0) < SOON
    ended = sorted(call.status for call in calls(STREAMS + 2, patience=SOON))
    assert ended == [200] * (STREAMS // 2 + 2) + [499] * (STREAMS // 2)
