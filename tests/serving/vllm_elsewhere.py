"""vLLM servers that somebody else has started, on ports of this machine."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving.vllm_machine import STANDIN


class Elsewhere:
    """A server that somebody else has started."""

    def __init__(self, base: Path, *options: str, port: int, environment: dict[str, str] | None = None):
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, str(STANDIN), "serve", str(base), "--port", str(port), *options]
        self.process = subprocess.Popen(command, env={**os.environ, **(environment or {})})
        deadline = time.monotonic() + 30
        while True:
            with suppress(httpx.HTTPError):
                httpx.get(f"{self.url}/health", trust_env=False)
                return
            assert self.process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)

    def figures(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.url}/metrics", trust_env=False).json()
        return found

    def names(self) -> list[str]:
        found = httpx.get(f"{self.url}/v1/models", trust_env=False).json()
        return [model["id"] for model in found["data"]]


MAY_LOAD = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_STANDIN_PAUSE": "0.02"}


@pytest.fixture
def elsewhere() -> Iterator[Callable[..., Elsewhere]]:
    """`elsewhere(folder, *options)` starts one."""
    started: list[Elsewhere] = []

    def start(base: Path, *options: str, environment: dict[str, str] | None = None) -> Elsewhere:
        started.append(Elsewhere(base, *options, port=free_port(), environment=MAY_LOAD if environment is None else environment))
        return started[-1]

    yield start
    for server in started:
        server.process.kill()
        server.process.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
