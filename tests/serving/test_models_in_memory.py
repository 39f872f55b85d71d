"""What is in memory to answer with: each member reads names of their own and bytes of the rest; what runs is the real process."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from django.test import Client as Browser

from studio.basemodels.models import BaseModel
from studio.serving import asking
from studio.serving.subjects import Subject, subject_of
from studio.workspaces.models import Client, Project
from tests.fixtures import World, make_artifact, make_member, make_order
from tests.serving.engine_process import engine_process
from tests.serving.vllm_elsewhere import elsewhere
from tests.serving.vllm_machine import adapter_folder, base_folder, gpu_machine

pytestmark = pytest.mark.django_db(transaction=True)
VLLM = ("--engine", "vllm")
__all__ = ["elsewhere"]  # a fixture


@pytest.fixture
def gpu(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return gpu_machine(tmp_path_factory.mktemp("machine"))


@pytest.fixture
def engine(settings: Any, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, gpu: dict[str, str]) -> Iterator[None]:
    """vLLM on a GPU, on the socket where the studio asks."""
    settings.ENGINE_SOCKET = str(tmp_path_factory.mktemp("s") / "e.sock")
    with engine_process(tmp_path, Path(settings.ENGINE_SOCKET), *VLLM, environment=gpu | {"VLLM_STANDIN_PAUSE": "0.1"}):
        yield


def with_files(base: BaseModel, sha256: str, **config: Any) -> BaseModel:
    """A folder that vLLM's stand-in takes for a model."""
    base.folder.parent.mkdir(exist_ok=True)
    base_folder(base.folder.parent, base.folder.name, **config)
    base.sha256 = sha256
    base.save(update_fields=["sha256"])
    return base


def adapter_of(world: World, base: BaseModel, name: str, *, project: Project | None = None) -> Any:
    project = project or world.project
    folder = adapter_folder(base.folder.parent, name, r=8, lora_alpha=len(name))
    files = {file.name: file.read_bytes() for file in folder.iterdir()} | {"README.md": name.encode()}
    order = make_order(world.owner, kind="train", client=project.client)
    return make_artifact(order, project, files, name=name, base_model=base)


def said(subject: Subject, **body: Any) -> list[dict[str, Any]]:
    async def lines() -> list[dict[str, Any]]:
        asked = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3} | body
        return [line async for line in asking.ask(subject, "chat", asked)]

    return asyncio.run(lines())


def page(member: Any, browser: Browser) -> str:
    browser.force_login(member.user)
    return " ".join(browser.get("/playground/memory/").content.decode().split())


def test_a_member_reads_which_models_answer_and_what_they_take(acme, engine, client):
    base = with_files(acme.base, "a" * 64)
    adapter = adapter_of(acme, base, "Support replies")
    assert "done" in said(subject_of(adapter))[-1]
    seen = page(acme.owner, client)
    assert "On the GPU" in seen
    assert "Tiny" in seen
    assert "Support replies" in seen
    assert "3.2 GB in memory" in seen
    assert "of 15 GB that models may take" in seen
    assert "idle for" in seen


def test_what_a_member_may_not_see_is_bytes_alone(acme, rival, engine, client):
    for world, letter in ((acme, "a"), (rival, "b")):
        base = with_files(world.base, letter * 64)
        assert "done" in said(subject_of(adapter_of(world, base, f"Adapter of {letter}")))[-1]
    seen = page(acme.owner, client)
    assert "Adapter of a" in seen
    assert "Adapter of b" not in seen
    assert "Others: models of other workspaces" in seen
    told = acme.api.get("/api/v1/serving").json()
    (found,) = told["engines"]
    assert [model["base_model"] for model in found["models"]] == [str(acme.base.pk)]
    assert 3 << 30 < found["others"] < 4 << 30


def test_a_member_of_one_client_reads_no_other_clients_adapters(acme, engine, client):
    base = with_files(acme.base, "a" * 64)
    other = Client.objects.create(workspace=acme.owner.workspace, name="Globex", slug="globex")
    project = Project.objects.create(client=other, name="Secret", slug="secret")
    for adapter in (adapter_of(acme, base, "Mine"), adapter_of(acme, base, "Theirs", project=project)):
        assert "done" in said(subject_of(adapter))[-1]
    narrowed = make_member(acme.owner.workspace, role="member", email="bob@example.com", clients=[acme.client])
    seen = page(narrowed, client)
    assert "Mine" in seen
    assert "Theirs" not in seen
    assert "1 of other clients" in seen


def test_a_guest_reads_nothing_of_it(acme, client):
    guest = make_member(acme.owner.workspace, role="guest", email="eve@example.com", clients=[acme.client])
    client.force_login(guest.user)
    assert client.get("/playground/memory/").status_code == 404


def test_answers_under_way_are_counted(acme, engine, client):
    subject = subject_of(with_files(acme.base, "a" * 64))
    with ThreadPoolExecutor(1) as somebody:
        answer = somebody.submit(said, subject, max_tokens=50)
        while not (models := acme.api.get("/api/v1/serving").json()["engines"][0]["models"]) or not models[0]["running"]:
            assert not answer.done()
        assert "1 answering" in page(acme.owner, client)
    assert models[0]["running"] == 1
    assert models[0]["cold_start"] > 0


def test_before_anybody_asks_the_page_says_what_to_do(acme, engine, client):
    seen = page(acme.owner, client)
    assert "None of your models is in memory" in seen
    assert "Open the playground" in seen


def test_where_nobody_answers_the_page_says_so(acme, settings, tmp_path, client):
    settings.ENGINE_SOCKET = str(tmp_path / "nobody.sock")
    assert "The process that answers is not running." in page(acme.owner, client)
    assert acme.api.get("/api/v1/serving").json() == {"running": False, "engines": []}


def test_a_model_on_a_server_elsewhere_is_told_without_a_size(acme, settings, tmp_path, tmp_path_factory, client, elsewhere):
    base = with_files(acme.base, "a" * 64)
    settings.ENGINE_SOCKET = str(tmp_path_factory.mktemp("s") / "e.sock")
    server = elsewhere(base.folder, "--served-model-name", "a" * 16)
    with engine_process(tmp_path, Path(settings.ENGINE_SOCKET), *VLLM, "--vllm-command=", f"--vllm-url={server.url}"):
        assert "done" in said(subject_of(base))[-1]
        seen = page(acme.owner, client)
    assert "On servers elsewhere" in seen
    assert '<span class="muted">elsewhere</span>' in seen
