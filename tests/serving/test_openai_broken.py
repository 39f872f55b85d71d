"""Streams that break by themselves: they are on the record as what they were, and not as callers who left."""

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from studio.releases.models import Release
from tests.fixtures import make_key, make_release, make_world
from tests.serving.openai_house import calls
from tests.web.conftest import Server, server  # noqa: F401  # a fixture, by its name

WORD = {"chunk": {"choices": [{"index": 0, "delta": {"content": "Hello"}}]}}
NONSENSE = {"chunk": {"choices": [7]}}


@pytest.fixture
def engine_that_raves(settings: Any, tmp_path: Path) -> Iterator[None]:
    """A process at the engine's address that says a word, and then what no engine says."""
    settings.ENGINE_SOCKET = str(tmp_path / "e.sock")
    told = "".join(json.dumps(line) + "\n" for line in (WORD, NONSENSE))

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1 << 20)
            connection.sendall(f"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{told}".encode())

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(settings.ENGINE_SOCKET)
        listener.listen()
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield
        thread.join(10)


def test_a_bug_in_the_midst_of_a_stream_is_recorded_as_one(server: Server, engine_that_raves: None):  # noqa: F811
    world = make_world()
    release = make_release(world.owner, world.artifact, stage=Release.Stage.APPROVED)
    headers = {"Authorization": f"Bearer {make_key(world.owner, scopes=['inference'])}"}
    sent = {"model": release.name, "messages": [{"role": "user", "content": "Hello"}], "stream": True}
    with (
        httpx.Client(base_url=server.address, headers=headers, timeout=60) as http,
        pytest.raises(httpx.RemoteProtocolError),
        http.stream("POST", "/v1/chat/completions", json=sent) as answer,
    ):
        assert answer.status_code == 200
        told = answer.iter_lines()
        assert "Hello" in next(told)
        list(told)
    (call,) = calls(1)
    assert (call.status, call.error, call.streamed) == (500, "bug", True)
