"""The process that answers the playground: it streams, says why it cannot, and comes out of what a hostile model does to it."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from studio.errors import UserError
from studio.ml import chattemplate
from studio.ml.chattemplate import ChatTemplate, Endless
from studio.ml.gguf.exporting import export
from studio.ml.tokens import encode_row, load_tokenizer
from studio.storage import commit_folder, read_manifest, sealed_sha256
from tests.ml.conftest import CHATML, ModelMaker
from tests.ml.engines import HELLO, Process, running, sealed, text_of

ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}"
LONG = [{"role": "user", "content": "Hello again. " * 3000}]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engine")


@pytest.fixture(scope="module")
def tiny(root: Path, tiny_model_maker: ModelMaker) -> Path:
    return sealed(root, "tiny", tiny_model_maker)


@pytest.fixture
def engine(root: Path, request: pytest.FixtureRequest) -> Iterator[Process]:
    with running(root, *getattr(request, "param", ())) as process:
        yield process


def error_of(lines: list[dict[str, Any]]) -> tuple[str, str]:
    return lines[-1]["error"]["code"], lines[-1]["error"]["message"]


def test_an_answer_streams_piece_by_piece(engine: Process, tiny: Path):
    lines = engine.ask(tiny, max_tokens=6)
    assert [line["state"] for line in lines if "state" in line][-1] == "answering"
    assert len([line for line in lines if "chunk" in line]) > 3 and str(tiny.parent) not in str(lines)
    done = lines[-1]["done"]
    assert done["completion_tokens"] == 6 and done["prompt_tokens"] > 6 and done["seconds"] > 0
    assert 0 < done["waited"] < done["first"]
    assert engine.ask(tiny, max_tokens=6)[-1]["done"]["cached_tokens"] > 6  # the same question is not read twice


def test_a_text_is_gone_on_with_and_a_vector_is_made_of_it(engine: Process, tiny: Path):
    assert text_of(engine.ask(tiny, route="completion", prompt="Hello", max_tokens=6, temperature=0))
    lines = engine.ask(tiny, route="embedding", input=["Hello", "Where is my order?"])
    vectors = [each["embedding"] for line in lines if "chunk" in line for each in line["chunk"]["data"]]
    assert len(vectors) == 2 and len(vectors[0]) == 64 and vectors[0] != vectors[1]
    assert lines[-1]["done"]["prompt_tokens"] > 2


def test_tokens_are_those_of_the_models_own_tokenizer(engine: Process, tiny: Path):
    own = load_tokenizer(tiny)
    found = engine.post("/tokenize", {"subject": engine.subject(tiny), "text": "Where is my order?"})["tokens"]
    assert found == own.encode("Where is my order?", add_special_tokens=False)
    chat = engine.post("/tokenize", {"subject": engine.subject(tiny), "messages": HELLO})["tokens"]
    assert len(chat) == engine.ask(tiny, max_tokens=1)[-1]["done"]["prompt_tokens"]


def test_a_conversation_that_is_too_long_is_refused_in_words(engine: Process, tiny: Path):
    code, message = error_of(engine.ask(tiny, messages=LONG))
    assert code == "too_long" and message.endswith("tokens, and 512 fit. Shorten it, or start a new one.")


def test_tools_are_refused_where_the_template_would_leave_them_out(engine: Process, tiny: Path):
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}
    lines = engine.ask(tiny, tools=[tool])
    assert error_of(lines)[0] == "unsupported" and "tools" in lines[-1]["error"]["fields"]


def test_a_value_that_llama_cpp_refuses_is_told(engine: Process, tiny: Path):
    code, message = error_of(engine.ask(tiny, response_format={"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}))
    assert code == "invalid" and "nonsense" in message


def test_who_leaves_frees_the_engine(engine: Process, tiny: Path):
    for _ in range(3):
        lines = engine.lines(engine.subject(tiny), max_tokens=4096)
        next(line for line in lines if "chunk" in line)
        lines.close()  # type: ignore[attr-defined]
    engine.wait_until_idle(seconds=15)
    started = time.monotonic()
    assert engine.ask(tiny, max_tokens=2)[-1]["done"]
    assert time.monotonic() - started < 15


def test_no_folder_outside_the_data_folder_is_opened(engine: Process, root: Path, tiny_model: Path):
    for folder in (tiny_model, root / "tiny" / ".." / "..", Path("/etc"), root / "e.sock"):
        code, message = error_of(engine.ask(folder))
        assert code == "gone" and "not here any more" in message


def test_a_model_of_another_hash_is_not_what_was_asked_for(engine: Process, tiny: Path):
    other = engine.subject(tiny) | {"base_sha256": "ab" * 32}
    assert error_of(list(engine.lines(other)))[0] == "gone"
    assert error_of(list(engine.lines(engine.subject(tiny) | {"workspace": "../elsewhere"})))[0] == "invalid"


def test_what_is_asked_in_another_shape_is_refused(engine: Process, tiny: Path):
    assert engine.post("/tokenize", {"subject": {}})["error"]["code"] == "invalid"
    assert engine.post("/elsewhere", {})["error"]["code"] == "invalid"
    assert error_of(list(engine.lines(engine.subject(tiny), route="song")))[0] == "invalid"


def test_a_gguf_file_that_was_built_here_answers_as_it_is(engine: Process, root: Path, tiny: Path):
    draft = root / "built-draft"
    (draft / "q8_0").mkdir(parents=True)
    export(base=tiny, adapter=None, quantization="q8_0", target=draft / "q8_0" / "tiny.gguf", name="tiny")
    commit_folder(draft, root / "built")
    file = root / "built" / "q8_0" / "tiny.gguf"
    assert sealed_sha256(file) != sealed_sha256(root / "built")
    assert text_of(engine.ask(file)) == text_of(engine.ask(tiny))
    assert engine.is_held_open("built/q8_0/tiny.gguf")
    shutil.rmtree(root / "built")
    assert error_of(engine.ask(file))[0] == "gone"


@pytest.mark.parametrize("engine", [("--patience", "4")], indirect=True, ids=["impatient"])
@pytest.mark.parametrize("when", [(3, 3), (7, 7)], ids=["loading", "answering"])
def test_a_model_whose_template_never_ends_takes_no_other_along(engine: Process, root: Path, tiny: Path, tiny_model_maker: Any, when: Any):
    messages, seed = when
    late = f"{{% if messages|length > {messages - 1} %}}{ENDLESS}{{% endif %}}{CHATML}"
    base = sealed(root, f"late{messages}", tiny_model_maker, template=late, seed=seed)
    code, message = error_of(engine.ask(base, messages=HELLO * messages))
    assert code == "broken" and message
    assert text_of(engine.ask(tiny))
    assert len(engine.servers()) == 1  # the one that hung is gone


def test_a_template_that_never_ends_burns_nothing_once_whoever_asked_has_left(engine: Process, root: Path, tiny_model_maker: Any):
    late = f"{{% if messages|length > 8 %}}{ENDLESS}{{% endif %}}{CHATML}"
    base = sealed(root, "late-and-left", tiny_model_maker, template=late, seed=9)
    assert text_of(engine.ask(base))
    [server] = engine.servers()

    def worked() -> float:
        return sum(server.cpu_times()[:2])

    with engine.client() as client:
        asked = {"subject": engine.subject(base), "route": "chat", "body": {"messages": HELLO * 9}}
        with client.stream("POST", "/ask", json=asked) as answer:
            before = worked()
            next(line for line in answer.iter_lines() if "answering" in line)
            deadline = time.monotonic() + 60
            while worked() < before + 1:  # until llama.cpp has it: what was left before would end by itself
                assert time.monotonic() < deadline
                time.sleep(0.1)
    deadline = time.monotonic() + 90
    while engine.servers():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert text_of(engine.ask(base))


def test_a_server_that_is_killed_fails_its_question_and_is_replaced(engine: Process, tiny: Path):
    lines = engine.lines(engine.subject(tiny), max_tokens=4096)
    next(line for line in lines if "chunk" in line)
    [server] = engine.servers()
    os.kill(server.pid, signal.SIGKILL)
    code, message = error_of(list(lines))
    assert code == "broken" and message.endswith("Ask again.")
    assert text_of(engine.ask(tiny))


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
    assert text_of(engine.ask(tiny))
    name = str(read_manifest(tiny)["sha256"])[:16]
    assert engine.is_held_open(name)
    assert engine.post("/forget", {"names": ["0" * 16]}) == {"forgotten": 0}
    assert engine.post("/forget", {"names": [name]}) == {"forgotten": 1}
    assert engine.post("/forget", {"names": ["*"]})["error"]["code"] == "invalid"
    assert not engine.is_held_open(name)
    assert text_of(engine.ask(tiny))


def test_when_the_engine_is_killed_its_servers_end(root: Path, tiny: Path):
    with running(root) as engine:
        assert text_of(engine.ask(tiny))
        [server] = engine.servers()
    server.wait(timeout=5)
