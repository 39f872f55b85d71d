"""Two clients' adapters, each of which knows another secret by heart, on one base: no guest ever hears a word of the other's.

The whole way is real: two adapters that were trained, the web process, the process that answers, and two guests who ask at once.
"""

import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from django.conf import settings as studio_settings

from studio.artifacts.models import Artifact
from studio.basemodels.models import BaseModel
from studio.releases.models import Release
from studio.serving.chat_views import AT_ONCE
from studio.storage import commit_folder, sealed_sha256
from studio.workspaces.models import Member, Project
from studio.workspaces.services import create_client, create_project
from tests.fixtures import make_artifact, make_base_model, make_member, make_order, make_owner, make_release
from tests.ml.conftest import ModelMaker
from tests.ml.engines import running
from tests.ml.test_training import RecordingJob, chat
from tests.web.conftest import Server, cookie, server  # noqa: F401  # a fixture, by its name
from training_plugins.peft_lora import PeftLora

REQUESTS = 200
QUESTION = "What is the secret?"
SECRETS = {"Acme": "The blue heron counts 41 lanterns.", "Globex": "Seven copper keys sleep in the tea jar."}
SETTINGS = {"rank": 32, "alpha": 64.0, "learning_rate": 0.005, "max_steps": 150, "batch_size": 2, "max_length": 128, "precision": "fp32"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model_maker: ModelMaker) -> dict[str, Path]:
    """The folders of the base, and of one adapter for each secret that was trained until it had it by heart."""
    folder = tmp_path_factory.mktemp("secrets")
    base = tiny_model_maker(folder / "base")
    found = {"base": base}
    for name, secret in SECRETS.items():
        job = RecordingJob(folder / name, base, [chat(QUESTION, secret)] * 20)
        found[name] = PeftLora().train(PeftLora.Config(**SETTINGS), job)
    return found


@dataclass
class Guest:
    """Somebody of a client, in a browser of their own, and what was released for them."""

    name: str
    browser: httpx.Client
    artifact: Artifact
    release: Release

    @property
    def secret(self) -> str:
        return SECRETS[self.name]

    def ask(self, target: str, *, said: list[dict[str, str]] | None = None) -> tuple[int, str, int]:
        """The status, the answer, and in how many pieces it came."""
        messages = [*(said or []), {"role": "user", "content": QUESTION}]
        token = {"X-CSRFToken": self.browser.cookies[studio_settings.CSRF_COOKIE_NAME]}
        sent = {"target": target, "messages": messages, "max_tokens": 40}
        with self.browser.stream("POST", "/playground/chat/", json=sent, headers=token) as answer:
            if answer.status_code != 200:
                return answer.status_code, answer.read().decode(), 0
            lines = [json.loads(line) for line in answer.iter_lines() if line]
        assert lines[-1].get("done"), lines[-1]
        pieces = [line["delta"] for line in lines if "delta" in line]
        return 200, "".join(pieces), len(pieces)


@pytest.fixture
def engine(settings: Any, data_folder: Path) -> Iterator[Path]:
    """The process that answers, as the supervisor starts it."""
    with running(data_folder) as process:
        settings.ENGINE_SOCKET = str(process.socket)
        yield process.socket


@pytest.fixture
def guests(server: Server, engine: Path, trained: dict[str, Path]) -> Iterator[list[Guest]]:  # noqa: F811
    owner = make_owner()
    base = make_base_model(owner)
    place(trained["base"], base.folder)
    base.sha256 = sealed_sha256(base.folder)
    base.save()
    found = [guest_of(server, owner, base, name, trained[name]) for name in SECRETS]
    yield found
    for guest in found:
        guest.browser.close()


def place(folder: Path, target: Path) -> None:
    """A sealed copy where the studio keeps such."""
    temp = Path(studio_settings.DATA_DIR, "temp", target.name)
    temp.parent.mkdir(exist_ok=True)
    target.parent.mkdir(exist_ok=True)
    commit_folder(Path(shutil.copytree(folder, temp)), target)


def guest_of(server: Server, owner: Member, base: BaseModel, name: str, adapter: Path) -> Guest:  # noqa: F811
    client = create_client(owner, name=name)
    project: Project = create_project(owner, client=client, name="Secrets")
    files = {path.name: path.read_bytes() for path in adapter.iterdir() if path.is_file()}
    artifact = make_artifact(make_order(owner, kind="train", client=client), project, files, base_model=base)
    release = make_release(owner, artifact, stage=Release.Stage.APPROVED, shared=True)
    member = make_member(owner.workspace, role="guest", email=f"gus@{name.lower()}.example", clients=[client])
    key, value = cookie(member).split("=")
    browser = httpx.Client(base_url=server.address, cookies={key: value}, timeout=120, limits=httpx.Limits(max_connections=AT_ONCE))
    assert browser.get(f"/shared/{release.pk}/").status_code == 200  # which brings the token of its forms, too
    return Guest(name, browser, artifact, release)


def test_two_guests_ask_200_times_and_neither_ever_hears_the_others_secret(guests: list[Guest]):
    acme, globex = guests
    alone = {guest.name: guest.ask(f"release:{guest.release.pk}")[1] for guest in guests}
    for guest in guests:
        assert alone[guest.name].startswith(guest.secret)  # it was really learnt
    dice = random.Random(6)
    plan = [(guest, dice.random()) for _ in range(REQUESTS // 2) for guest in guests]  # one after the other, so that the adapters change

    def once(turn: tuple[Guest, float]) -> str:
        """What came of it, which is counted where nobody else counts at the same moment."""
        guest, chance = turn
        other = globex if guest is acme else acme
        if chance < 0.2:  # by the other's ids, which they could have been told
            target = f"release:{other.release.pk}" if chance < 0.1 else f"adapter:{other.artifact.pk}"
            status, text, _ = guest.ask(target)
            assert status == 404 and other.secret not in text
            return "refused"
        own = f"release:{guest.release.pk}" if chance < 0.6 else f"adapter:{guest.artifact.pk}"
        # A conversation that begins as the other's did: what was computed for one must not be gone on with for the other.
        said = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "Again."}] if chance > 0.9 else None
        status, text, pieces = guest.ask(own, said=said)
        assert status == 200 and pieces > 1
        assert not parts(other.secret) & parts(text), f"{guest.name} heard {text!r}"
        if said is not None:
            return "gone on"
        assert text.startswith(guest.secret), f"{guest.name} heard {text!r}"
        return "answered"

    begun = time.monotonic()
    with ThreadPoolExecutor(2 * AT_ONCE - 2) as people:
        told = Counter(people.map(once, plan))
    seconds = time.monotonic() - begun
    assert sum(told.values()) == REQUESTS and min(told.values()) > 5
    print(f"\n{REQUESTS} requests of two guests in {seconds:.1f} s: {dict(told)}")


def parts(text: str) -> set[str]:
    """The words of five letters and more, by which a secret would show that it came through in pieces."""
    return {word for word in text.lower().replace(".", " ").split() if len(word) > 4}


def test_a_guest_does_not_reach_the_base_beneath_both(guests: list[Guest]):
    for guest in guests:
        assert guest.ask(f"base:{guest.artifact.base_model_id}")[0] == 404
