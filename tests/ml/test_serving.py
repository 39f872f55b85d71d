"""Many adapters on one base at once: never a word of the wrong one, no answer cut, no slot lost, nothing shared between workspaces."""

import asyncio
import fcntl
import json
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from studio.serving.engines import llamacpp
from studio.serving.engines.contract import Subject
from studio.serving.engines.llamacpp import LlamaCpp
from studio.storage import commit_folder, sealed_sha256
from tests.ml.conftest import ModelMaker
from tests.ml.engines import Process, running, sealed, text_of
from tests.ml.test_training import RecordingJob, chat
from training_plugins.peft_lora import PeftLora

QUESTION = "What is the secret?"
ASKED = [{"role": "user", "content": QUESTION}]
SECRETS = {"heron": "The blue heron counts 41 lanterns.", "keys": "Seven copper keys sleep in the tea jar."}
SETTINGS = {"rank": 32, "alpha": 64.0, "learning_rate": 0.005, "max_steps": 150, "batch_size": 2, "max_length": 128, "precision": "fp32"}
SLOTS = 4


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, tiny_model_maker: ModelMaker) -> Path:
    """A base, an adapter for each secret that has it by heart, and a few more that are those under other names."""
    root = tmp_path_factory.mktemp("serving")
    base = sealed(root, "base", tiny_model_maker)
    for name, secret in SECRETS.items():
        made = PeftLora().train(PeftLora.Config(**SETTINGS), RecordingJob(root / f"{name}-job", base, [chat(QUESTION, secret)] * 20))
        commit_folder(Path(shutil.copytree(made, root / f"{name}-draft")), root / name)
    for number in range(4):
        commit_folder(another(root / "heron", root / f"heron{number}-draft", number), root / f"heron{number}")
    return root


def another(adapter: Path, target: Path, number: int) -> Path:
    """The same adapter with another hash."""
    shutil.copytree(adapter, target, ignore=shutil.ignore_patterns("manifest.json"))
    settings = json.loads((target / "adapter_config.json").read_text())
    (target / "adapter_config.json").write_text(json.dumps(settings, indent=number + 1))
    return target


@pytest.fixture
def engine(root: Path, request: pytest.FixtureRequest) -> Iterator[Process]:
    shutil.rmtree(root / "cache", ignore_errors=True)
    with running(root, *getattr(request, "param", ())) as process:
        yield process


def test_two_hundred_requests_to_two_adapters_and_the_base_are_never_answered_by_the_wrong_one(engine: Process, root: Path):
    base = root / "base"
    alone = text_of(engine.ask(base, messages=ASKED, max_tokens=40))
    assert not any(secret in alone for secret in SECRETS.values())
    for name, secret in SECRETS.items():
        assert text_of(engine.ask(base, root / name, messages=ASKED, max_tokens=40)).startswith(secret)  # it was really learnt
    dice = random.Random(7)
    plan = [(name, dice.random()) for _ in range(67) for name in (*SECRETS, "")][:200]

    def once(turn: tuple[str, float]) -> str:
        name, chance = turn
        adapter, right = (root / name, SECRETS[name]) if name else (None, alone)
        if chance < 0.2:  # as text to go on with, in the words of the template
            prompt = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
            text = text_of(engine.ask(base, adapter, route="completion", prompt=prompt, max_tokens=40, temperature=0))
        else:
            text = text_of(engine.ask(base, adapter, messages=ASKED, max_tokens=40))
        assert text.startswith(right), f"{name or 'the base'} said {text!r}"
        assert not any(secret in text for other, secret in SECRETS.items() if other != name)
        return name

    with ThreadPoolExecutor(12) as people:
        told = Counter(people.map(once, plan))
    assert sum(told.values()) == 200 and min(told.values()) > 60
    assert len(engine.servers()) == 1


def test_of_fifty_streams_half_vanish_and_the_others_are_whole(engine: Process, root: Path):
    base, right = root / "base", SECRETS["heron"]
    text_of(engine.ask(base, root / "heron", messages=ASKED, max_tokens=40))
    text_of(engine.ask(base, root / "keys", messages=ASKED, max_tokens=40))
    before = engine.state()["used"]

    def stay(number: int) -> bool:
        name = ("heron", "keys")[number % 2]
        return text_of(engine.ask(base, root / name, messages=ASKED, max_tokens=40)).startswith(SECRETS[name])

    def vanish(number: int) -> bool:
        """While it waits, or while it is answered; what it asks for would take long."""
        lines = engine.lines(
            engine.subject(base, root / ("heron", "keys")[number % 2]), messages=ASKED, max_tokens=400, min_p=0, ignore_eos=True
        )
        wanted = "chunk" if number % 4 < 2 else "state"
        next(line for line in lines if wanted in line)
        time.sleep(number / 100)
        lines.close()  # type: ignore[attr-defined]
        return True

    with ThreadPoolExecutor(50) as people:
        staying = [people.submit(stay, number) for number in range(25)]
        vanishing = [people.submit(vanish, number) for number in range(25)]
        assert all(each.result() for each in vanishing)
        assert all(each.result() for each in staying)
    engine.wait_until_idle(seconds=15)
    assert right in text_of(engine.ask(base, root / "heron", messages=ASKED, max_tokens=40))
    assert engine.state()["used"] < before + (8 << 20)


def test_a_slot_is_free_within_two_seconds_of_leaving_whatever_was_being_done(engine: Process, root: Path):
    """While the prompt is read, while the answer is written, and while others are before one."""
    base = root / "base"
    text_of(engine.ask(base, max_tokens=2))
    prompt = [{"role": "user", "content": "Where is my order? " * 35}]
    for wanted in ("state", "chunk"):
        streams = [engine.lines(engine.subject(base), messages=prompt, max_tokens=400, ignore_eos=True) for _ in range(SLOTS)]
        for stream in streams:
            next(line for line in stream if wanted in line)
        waiting = engine.lines(engine.subject(base), messages=prompt, max_tokens=400)
        next(waiting)
        before = computed(engine)
        for stream in (*streams, waiting):
            stream.close()  # type: ignore[attr-defined]
        engine.wait_until_idle(seconds=15)
        assert text_of(engine.ask(base, max_tokens=1)) is not None
        assert computed(engine) - before < 2  # as a clock that stands still while others have the processors


def computed(engine: Process) -> float:
    """Seconds that the engine and its servers have had a processor."""
    whole = psutil.Process(engine.process.pid)
    return float(sum(times.user + times.system for times in (each.cpu_times() for each in (whole, *whole.children()))))


def test_an_adapter_is_added_while_answers_run_and_none_of_them_is_cut(engine: Process, root: Path):
    base = root / "base"
    text_of(engine.ask(base, root / "heron", messages=ASKED, max_tokens=40))
    [old] = engine.servers()
    streams = [engine.lines(engine.subject(base, root / "heron"), messages=ASKED, max_tokens=300, ignore_eos=True) for _ in range(2)]
    first = [next(line for line in stream if "chunk" in line) for stream in streams]
    assert text_of(engine.ask(base, root / "keys", messages=ASKED, max_tokens=40)).startswith(SECRETS["keys"])
    for stream, begun in zip(streams, first, strict=True):
        assert text_of([begun, *stream]).startswith(SECRETS["heron"])
    old.wait(timeout=5)  # it ended with its last answer
    assert len(engine.servers()) == 1


@pytest.mark.parametrize("engine", [("--adapters", "2")], indirect=True, ids=["two"])
def test_of_too_many_adapters_the_one_not_asked_for_longest_leaves(engine: Process, root: Path):
    base = root / "base"
    for name in ("heron0", "keys", "heron0", "heron1"):
        text_of(engine.ask(base, root / name, messages=ASKED, max_tokens=4))
    [model] = engine.state()["models"]
    wanted = [engine.subject(base, root / name)["adapter_sha256"] for name in ("heron0", "heron1")]
    assert model["adapters"] == wanted
    assert text_of(engine.ask(base, root / "keys", messages=ASKED, max_tokens=40)).startswith(SECRETS["keys"])


def test_more_adapters_than_fit_are_all_answered_by_themselves(root: Path):
    with running(root, "--adapters", "2") as engine, ThreadPoolExecutor(8) as people:
        names = [*SECRETS, "heron0", "heron1"] * 4
        told = people.map(lambda name: text_of(engine.ask(root / "base", root / name, messages=ASKED, max_tokens=40)), names)
        for name, text in zip(names, told, strict=True):
            assert text.startswith(SECRETS[name.rstrip("01")])


def test_an_adapter_that_cannot_be_loaded_keeps_no_other_from_answering(engine: Process, root: Path):
    base = root / "base"
    text_of(engine.ask(base, root / "heron0", messages=ASKED, max_tokens=2))
    served = next(path for path in (root / "cache" / "serving" / "1").glob("*.lora.gguf"))
    broken = engine.subject(base, root / "heron2")["adapter_sha256"][:16]
    (served.parent / f"{served.name[:16]}-{broken}{served.name[33:]}").write_bytes(served.read_bytes()[:2000])

    def ask(name: str) -> list[dict[str, Any]]:
        return engine.ask(base, root / name, messages=ASKED, max_tokens=40)

    with ThreadPoolExecutor(4) as people:
        told = dict(zip(("heron2", "keys", "heron1", "heron3"), people.map(ask, ("heron2", "keys", "heron1", "heron3")), strict=True))
    assert told["heron2"][-1]["error"]["code"] == "broken"
    for name in ("keys", "heron1", "heron3"):
        assert text_of(told[name]).startswith(SECRETS[name.rstrip("0123")])


def test_an_adapter_whose_file_is_gone_keeps_no_other_from_being_added(engine: Process, root: Path):
    base = root / "base"
    text_of(engine.ask(base, root / "heron0", messages=ASKED, max_tokens=2))
    [served] = (root / "cache" / "serving" / "1").glob("*.lora.gguf")
    served.unlink()
    for name in ("keys", "heron0"):
        assert text_of(engine.ask(base, root / name, messages=ASKED, max_tokens=40)).startswith(SECRETS[name.rstrip("0")])


def test_what_answers_is_not_the_oldest_file_in_the_cache(engine: Process, root: Path):
    for turn in range(2):
        text_of(engine.ask(root / "base", root / "heron", messages=ASKED, max_tokens=2))
        for file in (root / "cache" / "serving" / "1").glob("*.gguf"):
            assert turn == 0 or file.stat().st_atime > 1_000_000
            os.utime(file, (1_000_000, file.stat().st_mtime))


@asynccontextmanager
async def llama(root: Path) -> AsyncIterator[LlamaCpp]:
    """The engine in this process."""
    shutil.rmtree(root / "cache", ignore_errors=True)
    engine = LlamaCpp(root / "cache" / "serving", sockets=root)
    try:
        yield engine
    finally:
        engine.watching.cancel()
        ended = [home.server.process for home in engine.homes.values() if home.server] + [await engine.stable.take()]
        for process in ended:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def subject_of(root: Path, name: str) -> Subject:
    return Subject("1", root / "base", sealed_sha256(root / "base"), root / name, sealed_sha256(root / name))


def test_what_is_erased_while_a_server_loads_it_is_not_in_memory_afterwards(root: Path):
    async def work() -> None:
        async with llama(root) as engine:
            erased = subject_of(root, "keys")
            await engine.load(subject_of(root, "heron"), lambda _: None)
            [home] = engine.homes.values()
            asking = asyncio.create_task(engine.load(erased, lambda _: None))
            while not home.swapping:
                await asyncio.sleep(0.001)
            asking.cancel()  # whoever asked has left; the server is started all the same
            assert await engine.drop([erased.adapter_sha256[:16]]) == 1
            assert home.swapping is None and home.ready is None
            await engine.load(subject_of(root, "heron"), lambda _: None)
            assert home.ready and len(home.ready.load.adapters) == 1

    asyncio.run(work())


def test_an_idle_server_that_was_started_for_other_cores_than_are_free_is_replaced(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(llamacpp, "WATCH", 0.5)
    monkeypatch.setattr(llamacpp, "MISFITS", 2)

    async def work() -> None:
        async with llama(root) as engine:
            engine.cores.count = 64  # none of which others can have taken
            await asyncio.sleep(1)
            await engine.load(subject_of(root, "heron"), lambda _: None)
            [home] = engine.homes.values()
            assert (first := home.ready) and first.load.threads > 32
            engine.cores.count = 1
            deadline = time.monotonic() + 60
            while not home.ready or home.ready.load.threads > 1:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
            assert first.ended and home.ready.load.adapters == first.load.adapters
            assert [model["threads"] for model in engine.metrics()["models"]] == [1]

    asyncio.run(work())


def test_many_who_wait_for_files_to_be_made_hold_no_thread_each_and_are_told_again(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(llamacpp, "TELL_EVERY", 0.1)

    async def work() -> None:
        async with llama(root) as engine:
            heron, keys, told = subject_of(root, "heron"), subject_of(root, "keys"), list[str]()
            made = (await engine.files(heron, told.append)).adapter
            assert made
            made.unlink()
            with made.with_suffix(".lock").open("w") as held:
                fcntl.flock(held, fcntl.LOCK_EX)  # as another process does that makes the file
                asking = [asyncio.create_task(engine.files(each, told.append)) for each in [heron, keys] * 20]
                while "preparing the model, 1 s so far" not in told:
                    assert not any(task.done() for task in asking)
                    await asyncio.sleep(0.1)
                assert await asyncio.wait_for(asyncio.to_thread(lambda: 7), 10) == 7
                assert not any(task.done() for task in asking)
            assert len(set(await asyncio.gather(*asking))) == 2 and not engine.preparing

    asyncio.run(work())


def test_workspaces_share_neither_files_nor_a_server(engine: Process, root: Path):
    for workspace in ("1", "2"):
        text_of(engine.ask(root / "base", root / "heron", workspace=workspace, messages=ASKED, max_tokens=2))
    first, second = engine.servers()
    maps = [Path(f"/proc/{server.pid}/maps").read_text() for server in (first, second)]
    assert sum("cache/serving/1/" in told for told in maps) == sum("cache/serving/2/" in told for told in maps) == 1
    assert [model["workspace"] for model in engine.state()["models"]] == ["1", "2"]
    again = engine.ask(root / "base", root / "heron", workspace="2", messages=[{"role": "user", "content": "Another"}], max_tokens=2)
    assert again[-1]["done"]["prompt_tokens"] > again[-1]["done"]["cached_tokens"]


def test_what_does_not_fit_the_budget_is_refused_in_words(root: Path):
    with running(root, "--memory", str(20 << 20)) as engine:
        error = engine.ask(root / "base")[-1]["error"]
    assert error["code"] == "no_memory" and "STUDIO_SERVING_MEMORY" in error["message"]


def test_a_conversation_has_as_many_tokens_as_are_set(root: Path):
    long = [{"role": "user", "content": "word " * 150}]
    with running(root, "--context", "256") as engine:
        error = engine.ask(root / "base", messages=long)[-1]["error"]
    assert error["code"] == "too_long" and "and 256 fit" in error["message"]
    with running(root) as engine:  # as many as the model was made for
        assert engine.ask(root / "base", messages=long, max_tokens=2)[-1]["done"]["completion_tokens"]


def test_an_idle_base_makes_room_for_another_and_a_busy_one_does_not(root: Path, tiny_model_maker: ModelMaker):
    other = root / "other" if (root / "other").exists() else sealed(root, "other", tiny_model_maker, seed=5)
    with running(root, "--memory", str(120 << 20)) as engine:  # one of them takes 65 MB and more
        text_of(engine.ask(root / "base", max_tokens=2))
        with ThreadPoolExecutor(SLOTS + 1) as pool:
            busy = [pool.submit(engine.ask, root / "base", max_tokens=400, ignore_eos=True) for _ in range(SLOTS + 1)]
            while not engine.state()["models"][0]["waiting"]:
                time.sleep(0.01)
            error = engine.ask(other)[-1]["error"]
        assert error["code"] == "no_memory" and "Ask again in a moment." in error["message"]
        assert all(text_of(answer.result()) for answer in busy)
        assert text_of(engine.ask(other, max_tokens=4))
        [model] = engine.state()["models"]
        assert model["base_sha256"] == engine.subject(other)["base_sha256"]
        assert engine.post("/make_room", {"bytes": 1})["freed"] > 1 << 20
        assert engine.state()["models"] == [] and not engine.servers()


def test_where_two_servers_do_not_fit_at_once_an_adapter_is_added_all_the_same(root: Path):
    with running(root, "--memory", str(75 << 20)) as engine:
        for name in SECRETS:
            assert text_of(engine.ask(root / "base", root / name, messages=ASKED, max_tokens=40)).startswith(SECRETS[name])


def test_the_estimate_of_memory_holds_against_what_is_taken(engine: Process, root: Path):
    from studio.ml.gguf.footprint import footprint

    text_of(engine.ask(root / "base", messages=[{"role": "user", "content": "Where is my order? " * 35}], max_tokens=100))
    [file] = (root / "cache" / "serving" / "1").glob("*.q8_0.gguf")
    estimated = footprint(file).bytes(tokens=4 * 512, batch=256)
    assert 0.5 * estimated < engine.state()["used"] < 1.1 * estimated
