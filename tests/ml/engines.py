"""The process that answers, as the supervisor starts it, asked as the web process asks it; and sealed models for it."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from studio.storage import commit_folder, sealed_sha256
from tests.ml.conftest import ModelMaker

HELLO = [{"role": "user", "content": "Hello"}]


class Process:
    """The engine, in whose folder the models are."""

    def __init__(self, root: Path, *words: str):
        self.root, self.socket = root, root / "e.sock"
        self.socket.unlink(missing_ok=True)
        command = [sys.executable, "-m", "studio.serving.engine", "--socket", str(self.socket), "--root", str(root)]
        self.process = subprocess.Popen([*command, *words])
        deadline = time.monotonic() + 60
        while not self.socket.exists():
            assert self.process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)

    def client(self) -> httpx.Client:
        return httpx.Client(transport=httpx.HTTPTransport(uds=str(self.socket)), base_url="http://engine", timeout=120)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        with self.client() as client:
            found: dict[str, Any] = client.post(path, json=body).json()
        return found

    def state(self) -> dict[str, Any]:
        with self.client() as client:
            found: dict[str, Any] = client.get("/state").json()
        return found

    def subject(self, base: Path, adapter: Path | None = None, *, workspace: str = "1") -> dict[str, str]:
        found = {"workspace": workspace, "base": str(base), "base_sha256": hash_of(base)}
        return found | ({"adapter": str(adapter), "adapter_sha256": hash_of(adapter)} if adapter else {})

    def lines(self, subject: dict[str, str], route: str = "chat", **body: Any) -> Iterator[dict[str, Any]]:
        if route == "chat":
            body = {"messages": HELLO, "temperature": 0, "max_tokens": 16} | body
        asked = {"subject": subject, "route": route, "body": body}
        with self.client() as client, client.stream("POST", "/ask", json=asked) as answer:
            for line in answer.iter_lines():
                yield json.loads(line)

    def ask(self, base: Path, adapter: Path | None = None, *, workspace: str = "1", **body: Any) -> list[dict[str, Any]]:
        return list(self.lines(self.subject(base, adapter, workspace=workspace), **body))

    def servers(self) -> list[psutil.Process]:
        """Those of llama.cpp that have a model in memory."""
        return [child for child in psutil.Process(self.process.pid).children() if ".gguf" in Path(f"/proc/{child.pid}/maps").read_text()]

    def is_held_open(self, name: str) -> bool:
        return any(name in Path(f"/proc/{child.pid}/maps").read_text() for child in psutil.Process(self.process.pid).children())

    def wait_until_idle(self, *, seconds: float) -> float:
        """How long it took until nobody was answered and nobody waited."""
        began = time.monotonic()
        while any(model["running"] or model["waiting"] for model in self.state()["models"]):
            assert time.monotonic() - began < seconds, self.state()
            time.sleep(0.05)
        return time.monotonic() - began

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def running(root: Path, *words: str) -> Iterator[Process]:
    process = Process(root, *words)
    try:
        yield process
    finally:
        process.end()


def hash_of(path: Path) -> str:
    """An odd one for what was never sealed: whoever asks could say anything."""
    try:
        return sealed_sha256(path)
    except FileNotFoundError:
        return "0" * 64


def text_of(lines: list[dict[str, Any]]) -> str:
    """The whole answer. What ended otherwise than with one fails the test."""
    assert "done" in lines[-1], lines[-1]
    choices = [choice for line in lines if "chunk" in line for choice in line["chunk"]["choices"]]
    return "".join((choice["delta"].get("content") if "delta" in choice else choice["text"]) or "" for choice in choices)


def sealed(root: Path, name: str, maker: ModelMaker, **options: Any) -> Path:
    commit_folder(maker(root / f"{name}-draft", **options), root / name)
    return root / name
