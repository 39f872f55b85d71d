"""A model writes rows, and a person accepts, edits or rejects each before any of them comes into the dataset."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from django.test import Client as Browser
from django.urls import reverse

from studio.audit.models import AuditRecord
from studio.datasets import rows, synthesizing
from studio.datasets.models import Connection, Synthesis, SyntheticRow
from studio.datasets.synthesis import Wish, begin
from studio.errors import UserError
from studio.outside import checked_address
from studio.workspaces.secrets import opened, sealed
from tests.fixtures import World, work_off

State = SyntheticRow.State


class Talking(ThreadingHTTPServer):
    """Speaks as OpenAI's chat completions do; what it says is given by the test."""

    def __init__(self, say: Callable[[list[dict[str, str]]], str | tuple[int, Any]]):
        super().__init__(("127.0.0.1", 0), Answers)
        self.say, self.keys, self.bodies = say, list[str](), list[dict[str, Any]]()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: Talking

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.keys.append(self.headers.get("Authorization", ""))
        self.server.bodies.append(body | {"path": self.path})
        said = self.server.say(body["messages"])
        status, answer = said if isinstance(said, tuple) else (200, {"choices": [{"message": {"content": said}}]})
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def talking() -> Iterator[Callable[..., Talking]]:
    started: list[Talking] = []

    def start(say: Callable[[list[dict[str, str]]], Any]) -> Talking:
        server = Talking(say)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def numbered() -> Callable[[list[dict[str, str]]], str]:
    """A new question each time, and an answer to it."""
    asked = iter(range(10_000))

    def say(messages: list[dict[str, str]]) -> str:
        if "Write one new question" in messages[-1]["content"]:
            return f'1. "How do I return parcel {next(asked)} {"abcdefghij"[next(asked) % 10] * 5}?"'
        return f"<think>hm</think> Like this: {messages[-1]['content']}"

    return say


@pytest.fixture
def order_of(talking: Callable[..., Talking], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[dict[str, Any], Talking]]:
    """What a worker is told, and the endpoint that it asks."""

    def made(say: Callable[[list[dict[str, str]]], Any], **changes: Any) -> tuple[dict[str, Any], Talking]:
        server = talking(say)
        seeds = [
            {"messages": [{"role": "user", "content": f"Where is {word}?"}, {"role": "assistant", "content": "Here."}]} for word in "abcd"
        ]
        told = {"shape": "chat", "seeds": seeds, "target": 3, "writer_name": "Writer", "url": f"http://{server.address}/v1", "model": "big"}
        return told | {"private": ["127.0.0.1"]} | changes, server

    return made


def rows_in(job: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (job.out / "rows.jsonl").read_text().splitlines()]


def test_rows_are_written_by_an_endpoint_after_seeds(order_of, job, monkeypatch):
    monkeypatch.setenv("ADAPTER_STUDIO_ENDPOINT_KEY", "sk-mine")
    told, server = order_of(numbered(), instruction="Only returns.")
    facts = synthesizing.run(told, job)
    found = rows_in(job)
    assert (facts["made"], len(found)) == (3, 3)
    assert found[0]["messages"][0]["content"].startswith("How do I return parcel 0")
    assert found[0]["messages"][1]["content"] == f"Like this: {found[0]['messages'][0]['content']}"
    assert set(server.keys) == {"Bearer sk-mine"}
    assert "Only returns." in server.bodies[0]["messages"][0]["content"]
    assert server.bodies[0]["path"] == "/v1/chat/completions"
    assert [message["role"] for message in server.bodies[1]["messages"]][:3] == ["system", "user", "assistant"]


def test_what_repeats_a_seed_or_itself_is_left_out(order_of, job):
    told, _ = order_of(lambda messages: "Where is a?" if "Write one new" in messages[-1]["content"] else "Here.")
    with pytest.raises(UserError, match=r"The model wrote nothing that can be used\. 9 repeated what was there"):
        synthesizing.run(told, job)


def test_rows_that_cannot_be_used_are_counted_and_left_out(order_of, job):
    said = iter(["", "", "What now?", "So.", *("" for _ in range(100))])
    told, _ = order_of(lambda _: next(said), target=2)
    facts = synthesizing.run(told, job)
    assert (facts["made"], facts["asked"]) == (1, 6)
    assert facts["unusable"] == 5


def test_a_stop_keeps_what_was_written(order_of, job):
    told, _ = order_of(numbered(), target=50)
    counted = iter(range(1000))
    job.stopping = lambda: next(counted) >= 2
    assert synthesizing.run(told, job)["made"] == 2


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((401, {"error": {"message": "Invalid key"}}), r"does not answer \(401\): Invalid key"),
        ((200, b"x" * (2 << 20)), "larger than 1 MB"),
        ((200, {"choices": []}), "holds no message"),
        ((302, {"error": "moved"}), r"does not answer \(302\): moved"),
    ],
)
def test_an_endpoint_that_does_not_speak_so_ends_it_with_a_sentence(order_of, job, answer, said):
    told, _ = order_of(lambda _: answer)
    with pytest.raises(UserError, match=said):
        synthesizing.run(told, job)


def test_a_busy_endpoint_is_asked_again(order_of, job, monkeypatch):
    monkeypatch.setattr("studio.datasets.endpoints.time.sleep", lambda _: None)
    say, busy = numbered(), iter([True, True])
    told, _ = order_of(lambda messages: (429, {"error": {"message": "slow down"}}) if next(busy, False) else say(messages))
    assert synthesizing.run(told, job)["made"] == 3


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://127.0.0.1:9/v1", "not a public address"),
        ("https://169.254.169.254/v1", "not a public address"),
        ("https://[::1]/v1", "not a public address"),
        ("https://10.1.2.3/", "not a public address"),
        ("ftp://example.com", "begins with https://"),
        ("https://user:secret@example.com", "without a password"),
        ("https://nowhere.invalid/v1", "was not found"),
        ("https://1.1.1.1:99999/v1", "port of the address"),
        ("http://1.1.1.1/v1", "in clear"),
    ],
)
def test_addresses_that_only_the_server_could_reach_are_refused(address, said):
    with pytest.raises(UserError, match=said):
        checked_address(address, private=["127.0.0.1:8080"])
    assert checked_address("http://127.0.0.1:8080/v1/", private=["127.0.0.1:8080"]) == "http://127.0.0.1:8080/v1"


def test_a_key_is_stored_encrypted_and_read_with_the_same_secret_only(settings):
    stored = sealed("sk-mine")
    assert "sk-mine" not in stored and opened(stored) == "sk-mine"
    settings.SECRET_KEY = "another"
    with pytest.raises(UserError, match="SECRET_KEY has changed"):
        opened(stored)


# ── From the page ──


@pytest.fixture
def endpoint(acme: World, talking: Callable[..., Talking], settings: Any) -> Connection:
    server = talking(numbered())
    settings.PRIVATE_HOSTS = [server.address]
    return Connection.objects.create(
        workspace=acme.owner.workspace,
        kind="openai",
        name="Big model",
        settings={"url": f"http://{server.address}/v1", "model": "big"},
        secret=sealed("sk-mine"),
    )


@pytest.fixture
def ana(acme: World) -> Browser:
    browser = Browser()
    browser.force_login(acme.owner.user)
    return browser


@pytest.fixture
def written(acme: World, ana: Browser, endpoint: Connection) -> Synthesis:
    """Four rows that wait."""
    form = {"writer": f"connection:{endpoint.pk}", "target": "4", "instruction": "Returns"}
    answer = ana.post(reverse("datasets:synthesis_new", args=[acme.version.pk]), form)
    made = Synthesis.objects.get()
    assert answer.headers["Location"] == reverse("datasets:synthesis", args=[made.pk])
    work_off(made.order)
    return made


@pytest.mark.django_db(transaction=True)
def test_each_row_is_decided_and_only_what_was_accepted_comes_into_the_dataset(acme, ana, written):
    page = ana.get(reverse("datasets:synthesis", args=[written.pk])).content.decode()
    assert "How do I return parcel" in page and "sk-mine" not in page
    decide, edit = (reverse(f"datasets:synthesis_{name}", args=[written.pk]) for name in ("decide", "edit"))
    assert ana.post(decide, {"row": 1, "do": "accept"}).headers["Location"].endswith("?row=2")
    ana.post(decide, {"row": 2, "do": "reject"})
    typed = {"messages-0-role": "user", "messages-0-content": "Mine?", "messages-1-role": "assistant", "messages-1-content": "Yes."}
    refused = ana.post(edit, {"row": 3, "do": "save"} | typed | {"messages-1-content": " "})
    assert refused.status_code == 422 and "nothing to learn" in refused.content.decode()
    ana.post(edit, {"row": 3, "do": "save"} | typed)
    assert list(written.rows.values_list("state", "edited")) == [
        ("accepted", False),
        ("rejected", False),
        ("accepted", True),
        ("waiting", False),
    ]
    before = acme.version.facts["rows"]
    ana.post(reverse("datasets:synthesis_save", args=[written.pk]), {"note": "more returns"})
    made = acme.version.dataset.newest
    work_off(made.order)
    made.refresh_from_db()
    assert (made.facts["rows"], made.note) == (before + 2, "more returns")
    texts = [row["messages"][0]["content"] for row in rows.read(made.rows_path)]
    assert "Mine?" in texts and texts.count("Mine?") == 1
    assert list(written.rows.values_list("state", flat=True)) == ["saved", "rejected", "saved", "waiting"]
    assert AuditRecord.objects.filter(verb="synthesis.decide").count() == 2


@pytest.mark.django_db(transaction=True)
def test_a_decision_is_taken_back_and_all_that_wait_are_decided_at_once(ana, written):
    decide = reverse("datasets:synthesis_decide", args=[written.pk])
    ana.post(decide, {"row": 1, "do": "reject"})
    assert ana.post(decide, {"row": 1, "do": "wait"}).headers["Location"].endswith("?row=1")
    ana.post(decide, {"all": "on", "do": "accept"})
    assert set(written.rows.values_list("state", flat=True)) == {State.ACCEPTED}


@pytest.mark.django_db(transaction=True)
def test_the_key_stands_in_no_file_of_the_order(written, settings):
    files = [path.read_bytes() for path in Path(settings.DATA_DIR).rglob("*") if path.is_file()]
    assert not any(b"sk-mine" in content for content in files)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"target": "0"}, "target"),
        ({"target": "1.5"}, "target"),
        ({"temperature": "nan"}, "temperature"),
        ({"seeds": "0", "instruction": " "}, "instruction"),
        ({"writer": "base:nothing"}, "writer"),
        ({"starred": "on"}, "starred"),
    ],
)
def test_a_wish_that_cannot_be_is_refused_beside_its_field(acme, ana, endpoint, changed, field):
    form = {"writer": f"connection:{endpoint.pk}", "instruction": "Returns"} | changed
    answer = ana.post(reverse("datasets:synthesis_new", args=[acme.version.pk]), form)
    assert answer.status_code == 422 and field in answer.context["error"].fields


@pytest.mark.django_db(transaction=True)
def test_models_of_another_client_cannot_be_chosen(acme, ana, rival):
    for key in (f"base:{rival.base.pk}", f"artifact:{rival.artifact.pk}"):
        with pytest.raises(UserError):
            begin(acme.owner, acme.version, Wish(writer=key, instruction="x"))


# ── From the API ──


@pytest.mark.django_db(transaction=True)
def test_the_api_asks_decides_and_saves(acme, endpoint):
    path = f"dataset-versions/{acme.version.pk}"
    writers = {writer["key"]: writer["group"] for writer in acme.api.get(f"{path}/writers").json()["items"]}
    assert writers[f"connection:{endpoint.pk}"] == "Endpoints"
    asked = acme.api.post(f"{path}/syntheses", {"writer": f"connection:{endpoint.pk}", "target": 2})
    assert asked.status_code == 202, asked.content
    made = f"syntheses/{asked.json()['id']}"
    work_off(Synthesis.objects.get().order)
    assert acme.api.get(made).json()["rows"] == {"waiting": 2, "accepted": 0, "rejected": 0, "saved": 0}
    assert acme.api.patch(f"{made}/rows", body={"number": 1, "state": "accepted"}).json()["state"] == "accepted"
    bad = acme.api.patch(f"{made}/rows", body={"number": 2, "row": {"messages": []}})
    assert (bad.status_code, list(bad.json()["error"]["fields"])) == (422, ["messages-0"])
    saved = acme.api.post(f"{made}/save", {"note": "from a script"})
    assert saved.status_code == 202 and saved.json()["number"] == 2
    assert acme.api.post(f"{made}/save", {}).json()["error"]["message"] == "No row is accepted. Accept some first."
