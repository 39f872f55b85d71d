"""The process that answers the playground: it streams, says why it cannot, and comes out of what a hostile model does to it."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from studio.errors import UserError
from studio.ml import chattemplate
from studio.ml.chattemplate import ChatTemplate, Endless
from studio.ml.tokens import encode_row, load_tokenizer
from studio.storage import commit_folder, read_manifest
from tests.ml.conftest import CHATML, ModelMaker

ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}"
HELLO = [{"role": "user", "content": "Hello"}]


class Process:
    """The engine as the supervisor starts it; after `patience` seconds without a sign of life it ends, also on a machine that is slow."""

    def __init__(self, root: Path, *, patience: int = 60):
        self.socket = root / "e.sock"
        command = [sys.executable, "-m", "studio.serving.engine", "--socket", str(self.socket), "--root", str(root)]
        command += ["--stillness", str(patience), "--silence", str(patience)]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not self.socket.exists():
            assert self.process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)

    def client(self) -> httpx.Client:
        return httpx.Client(transport=httpx.HTTPTransport(uds=str(self.socket)), base_url="http://engine", timeout=30)

    def ask(self, base: Path, messages: list[dict[str, str]], **more: Any) -> list[dict[str, Any]]:
        with self.client() as client, client.stream("POST", "/chat", json={"base": str(base), "messages": messages, **more}) as answer:
            return [json.loads(line) for line in answer.iter_lines()]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engine")


@pytest.fixture(scope="module")
def tiny(root: Path, tiny_model_maker: ModelMaker) -> Path:
    return sealed(root, "tiny", tiny_model_maker)


@pytest.fixture
def engine(root: Path, request: pytest.FixtureRequest) -> Iterator[Process]:
    process = Process(root, patience=getattr(request, "param", 60))
    yield process
    process.process.kill()
    process.process.wait()
    process.socket.unlink()


def sealed(root: Path, name: str, maker: ModelMaker, **options: Any) -> Path:
    commit_folder(maker(root / f"{name}-draft", **options), root / name)
    return root / name


def test_an_answer_streams_piece_by_piece(engine: Process, tiny: Path):
    lines = engine.ask(tiny, HELLO, max_tokens=6)
    assert [line["state"] for line in lines if "state" in line][-1] == "answering"
    assert lines[-1]["done"] is True
    assert lines[-1]["tokens"] == 6


def test_a_conversation_that_is_too_long_is_refused_in_words(engine: Process, tiny: Path):
    last = engine.ask(tiny, [{"role": "user", "content": "Hello again. " * 3000}])[-1]
    assert last["error"].endswith("tokens, and 512 fit. Shorten it, or start a new one.")


def test_who_leaves_frees_the_engine(engine: Process, tiny: Path):
    for _ in range(3):
        with engine.client() as client:
            question = {"base": str(tiny), "messages": HELLO, "max_tokens": 4096}
            with client.stream("POST", "/chat", json=question) as answer:
                next(line for line in answer.iter_lines() if "delta" in line)
    started = time.monotonic()
    assert engine.ask(tiny, HELLO, max_tokens=2)[-1]["done"] is True
    assert time.monotonic() - started < 5


def test_no_folder_outside_the_data_folder_is_opened(engine: Process, root: Path, tiny_model: Path):
    for folder in (tiny_model, root / "tiny" / ".." / "..", Path("/etc")):
        assert "not here any more" in engine.ask(folder, HELLO)[0]["error"]


@pytest.mark.parametrize("engine", [4], indirect=True, ids=["impatient"])
@pytest.mark.parametrize("when", [(3, 3), (7, 7)], ids=["loading", "answering"])
def test_a_model_whose_template_never_ends_takes_no_other_along_for_long(engine: Process, root: Path, tiny_model_maker: Any, when: Any):
    """Where it hangs as the model is loaded, nobody else gets an answer meanwhile; where it does later, others do."""
    messages, seed = when
    late = f"{{% if messages|length > {messages - 1} %}}{ENDLESS}{{% endif %}}{CHATML}"
    base = sealed(root, f"late{messages}", tiny_model_maker, template=late, seed=seed)
    with pytest.raises(httpx.HTTPError):
        engine.ask(base, HELLO * messages)
    assert engine.process.wait(timeout=20) == 1  # the supervisor starts it again


def test_a_template_that_never_ends_is_broken_off(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chattemplate, "LONGEST_RENDERING", 0.3)
    started = time.monotonic()
    with pytest.raises(Endless, match="does not end within"):
        ChatTemplate(source=ENDLESS, tokens={}, control=()).render(HELLO)
    assert time.monotonic() - started < 10
    assert ChatTemplate(source="{{ messages[0].content }}", tokens={}, control=()).render(HELLO) == "Hello"


def test_rows_are_not_written_with_a_template_that_never_ends(tmp_path: Path, tiny_model_maker: ModelMaker, monkeypatch: Any):
    monkeypatch.setattr(chattemplate, "LONGEST_RENDERING", 0.3)
    tokenizer = load_tokenizer(tiny_model_maker(tmp_path / "endless", template=ENDLESS + CHATML))
    with pytest.raises(UserError, match="Choose another model"):
        encode_row(tokenizer, {"messages": [*HELLO, {"role": "assistant", "content": "Hi"}]}, max_length=None)


def test_an_erased_model_leaves_the_memory_and_its_file_is_not_held_open(engine: Process, root: Path, tiny: Path):
    assert engine.ask(tiny, HELLO, max_tokens=2)[-1]["done"] is True
    name = str(read_manifest(tiny)["sha256"])[:16]
    assert held_open(engine, name)
    with engine.client() as client:
        assert client.post("/forget", json={"names": ["0" * 16]}).json() == {"forgotten": 0}
        assert client.post("/forget", json={"names": [name]}).json() == {"forgotten": 1}
        assert client.post("/forget", json={"names": ["*"]}).status_code == 422
    assert not held_open(engine, name)
    assert engine.ask(tiny, HELLO, max_tokens=2)[-1]["done"] is True


def held_open(engine: Process, name: str) -> bool:
    return name in Path(f"/proc/{engine.process.pid}/maps").read_text()
