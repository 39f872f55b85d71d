"""Training and serving on one machine: neither takes memory from the other, nor waits for it, without its being said."""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from studio.orders import room
from studio.orders.models import Event, Order, Slot
from studio.orders.room import Need, make_room
from studio.orders.services import request_stop
from studio.runs.services import create_run
from studio.serving import asking
from studio.serving.subjects import Subject, subject_of
from studio.storage import commit_folder
from tests.fixtures import World, make_run, work_off
from tests.ml.conftest import make_tiny_model
from tests.serving.engine_process import engine_process
from tests.serving.test_models_in_memory import said, with_files
from tests.serving.vllm_machine import gpu_machine

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.torch]
MORE_THAN_THERE_IS = 1 << 50


@pytest.fixture
def start(acme: World, slot: Slot) -> Callable[..., Order]:
    """Places a run that is expected to take so many bytes."""

    def placed(memory: int = MORE_THAN_THERE_IS) -> Order:
        config = {"max_steps": 2, "seconds_per_step": 0.0}
        told = {"project": acme.project, "name": "A run", "plugin_name": "rehearsal", "config": config}
        run = create_run(acme.owner, **told, base=acme.base, version=acme.version)
        assert run.estimate
        run.estimate["memory"]["high"] = memory
        run.save(update_fields=["estimate"])
        return run.order

    return placed


@pytest.fixture
def engine(settings: Any, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """llama.cpp, in the machine's memory."""
    settings.ENGINE_SOCKET = str(tmp_path_factory.mktemp("s") / "e.sock")
    with engine_process(tmp_path, Path(settings.ENGINE_SOCKET), "--engine", "llamacpp"):
        yield


@pytest.fixture
def tiny(acme: World, engine: None) -> Subject:
    """A small model that has answered, and stays in memory; it takes seconds for a long answer."""
    made = make_tiny_model(acme.base.folder.parent / "draft", hidden=512, layers=8, intermediate=1024)
    acme.base.sha256 = str(commit_folder(made, acme.base.folder)["sha256"])
    acme.base.save(update_fields=["sha256"])
    assert "done" in said(subject_of(acme.base))[-1]
    return subject_of(acme.base)


def in_memory() -> list[dict[str, Any]]:
    told = asyncio.run(asking.state())
    assert told is not None
    models: list[dict[str, Any]] = told["models"]
    return models


def notes_of(order: Order) -> list[str]:
    return [event.body["text"] for event in Event.objects.filter(order=order, type="note")]


def test_models_leave_memory_for_a_run_and_the_run_says_so(tiny, start):
    order = work_off(start())
    assert order.status == Order.Status.SUCCEEDED
    (note,) = notes_of(order)
    assert note.startswith("Memory was short, so models of the playground and the endpoint left it: ")
    assert in_memory() == []
    assert "done" in said(tiny)[-1]  # it comes back when it is asked


def test_where_there_is_memory_enough_models_stay_and_nothing_is_said(tiny, start):
    order = work_off(start(memory=1))
    assert notes_of(order) == []
    assert len(in_memory()) == 1


def test_where_no_model_is_in_memory_a_run_has_nothing_to_say(engine, start):
    order = work_off(start())
    assert order.status == Order.Status.SUCCEEDED
    assert notes_of(order) == []


def test_where_nobody_answers_a_run_starts_all_the_same(settings, tmp_path, start):
    settings.ENGINE_SOCKET = str(tmp_path / "nobody.sock")
    assert work_off(start()).status == Order.Status.SUCCEEDED


def while_it_answers(subject: Subject, do: Callable[[], Any], *, tokens: int) -> tuple[Any, list[dict[str, Any]]]:
    """What `do` returns, begun while somebody reads an answer, and that answer's lines."""
    with ThreadPoolExecutor(1) as somebody:
        answer = somebody.submit(said, subject, max_tokens=tokens, temperature=1.0, logit_bias={"0": -100, "2": -100})
        while not any(model["running"] for model in in_memory()):
            assert not answer.done()
        return do(), answer.result()


def test_a_run_waits_for_answers_to_end_and_says_so(tiny, start):
    order = start()
    done, lines = while_it_answers(tiny, lambda: work_off(order), tokens=400)
    assert done.status == Order.Status.SUCCEEDED
    assert lines[-1]["done"]["completion_tokens"] > 100  # nobody's answer is cut for a run
    first, *_, last = notes_of(order)
    assert first.startswith("It waits, for a minute at most: ")
    assert "left it" in last


def test_a_run_that_has_waited_long_enough_goes_on_and_says_so(tiny, start, monkeypatch):
    monkeypatch.setattr(room, "LONGEST", 0.0)
    order = start()
    done, _ = while_it_answers(tiny, lambda: work_off(order), tokens=400)
    assert done.status == Order.Status.SUCCEEDED
    (note,) = [event for event in Event.objects.filter(order=order, type="note") if event.body["level"] == "warning"]
    assert note.body["text"].startswith("Models that are answering stayed in memory: ")


def test_a_run_that_is_stopped_while_it_waits_ends_at_once(tiny, start):
    order = start()

    def stop_soon() -> Order:
        with ThreadPoolExecutor(1) as worker:
            working = worker.submit(work_off, order)
            while not notes_of(order):
                time.sleep(0.02)
            request_stop(Order.objects.get(pk=order.pk))
            return working.result()

    done, _ = while_it_answers(tiny, stop_soon, tokens=400)
    assert done.status == Order.Status.STOPPED


# The GPU's memory


@pytest.fixture
def gpu(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("machine")
    for name, value in gpu_machine(folder).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return folder / "gpu"


@pytest.fixture
def vllm(settings: Any, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, gpu: Path) -> Iterator[None]:
    settings.ENGINE_SOCKET = str(tmp_path_factory.mktemp("s") / "e.sock")
    with engine_process(tmp_path, Path(settings.ENGINE_SOCKET), "--engine", "vllm"):
        yield


def test_a_run_on_a_gpu_is_given_the_memory_of_the_models_there(acme, slot, vllm, start):
    slot.facts = slot.facts | {"gpus": [{"name": "Some GPU", "memory": 16 << 30}]}
    slot.save()
    assert "done" in said(subject_of(with_files(acme.base, "a" * 64)))[-1]
    order = start(memory=14 << 30)
    assert work_off(order).status == Order.Status.SUCCEEDED
    assert notes_of(order) == ["Memory was short, so models of the playground and the endpoint left it: 3.2 GB."]
    assert in_memory() == []


def test_a_run_on_another_gpu_leaves_models_where_they_are(acme, gpu, vllm, monkeypatch):
    assert "done" in said(subject_of(with_files(acme.base, "a" * 64)))[-1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    told: list[str] = []
    make_room(Need(MORE_THAN_THERE_IS, on_gpu=True), say=lambda text, level: told.append(text), go_on=lambda: True)
    assert told == []
    assert len(in_memory()) == 1


def test_a_run_in_the_machines_memory_leaves_models_on_the_gpu_alone(acme, vllm):
    assert "done" in said(subject_of(with_files(acme.base, "a" * 64)))[-1]
    told: list[str] = []
    make_room(Need(MORE_THAN_THERE_IS), say=lambda text, level: told.append(text), go_on=lambda: True)
    assert told == []
    assert len(in_memory()) == 1


def test_a_model_that_does_not_fit_beside_a_run_says_that_one_trains(acme, gpu, vllm):
    (gpu / "run").write_text(str(15 << 30))
    subject = subject_of(with_files(acme.base, "a" * 64))
    alone = said(subject)[-1]["error"]
    assert alone["code"] == "no_memory"
    assert "A run is training" not in alone["message"]
    make_run(acme.owner, acme.project, acme.base, acme.version, status=Order.Status.RUNNING)
    beside = said(subject)[-1]["error"]
    assert beside["code"] == "no_memory"
    assert beside["message"].endswith("A run is training on this machine now: ask again when it has ended, or pause it.")
