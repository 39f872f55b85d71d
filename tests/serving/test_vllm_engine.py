"""vLLM as an engine, against a stand-in that speaks its HTTP and starts as it does: adapters, memory, caches of each workspace, errors."""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest

from studio.errors import UserError
from studio.serving.engines.choosing import Choosing
from studio.serving.engines.contract import Subject, Took
from studio.serving.engines.vllm import VLLM, Way
from tests.serving import vllm_standin
from tests.serving.vllm_elsewhere import MAY_LOAD, elsewhere
from tests.serving.vllm_machine import adapter_folder, base_folder, gpu_machine

__all__ = ["elsewhere"]  # a fixture
HELLO = {"messages": [{"role": "user", "content": "one two three four five six seven eight nine"}], "max_tokens": 4}


def subject(base: Path, adapter: Path | None = None, *, workspace: str = "north") -> Subject:
    """As the studio names them: each folder's hash by its name."""
    return Subject(workspace, base, sha(base.name), adapter, sha(adapter.name) if adapter else "")


def sha(name: str) -> str:
    return (name.encode().hex() * 64)[:64]


@pytest.fixture
def nvidia(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A GPU of 16 GiB, and `vllm`, as far as this process and those that it starts can tell."""
    for name, value in gpu_machine(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path / "gpu"


LORA = ("--enable-lora", "--max-lora-rank", "16", "--enable-prompt-tokens-details", "--max-model-len", "64")


def with_engine(way: Way, work: Callable[[VLLM], Coroutine[Any, Any, Any]]) -> Any:
    async def run() -> Any:
        engine = VLLM(way)
        try:
            return await work(engine)
        finally:
            await engine.close()

    return asyncio.run(run())


async def asked(engine: Any, who: Subject, body: dict[str, Any] = HELLO, *, route: Any = "chat") -> tuple[str, Took, list[str]]:
    took, states, said = Took(), list[str](), ""
    async for chunk in engine.ask(who, route, body, state=states.append, took=took):
        for choice in chunk["choices"]:
            said += choice["text"] if "text" in choice else choice["delta"].get("content") or ""
    return said, took, states


def refusal_of(way: Way, who: Subject, body: dict[str, Any] = HELLO, *, route: Any = "chat") -> UserError:
    with pytest.raises(UserError) as problem:
        with_engine(way, lambda engine: asked(engine, who, body, route=route))
    return problem.value


# Servers that run elsewhere


def test_a_server_elsewhere_answers_for_the_base_that_it_was_started_with(tmp_path, elsewhere):
    base = base_folder(tmp_path, "base")
    way = Way(urls=(elsewhere(base, *LORA).url,), command="")
    said, took, _ = with_engine(way, lambda engine: asked(engine, subject(base)))
    assert said == f"{base} 1 2 3"
    assert (took.prompt_tokens, took.completion_tokens) == (10, 4)
    assert 0 < took.first < took.first + took.seconds


def test_a_server_elsewhere_is_also_found_by_a_name_that_begins_with_the_hash(tmp_path, elsewhere):
    base, other = base_folder(tmp_path, "base"), base_folder(tmp_path, "other")
    way = Way(urls=(elsewhere(other, *LORA, "--served-model-name", sha("base")[:16]).url,), command="")
    said, _, _ = with_engine(way, lambda engine: asked(engine, subject(base)))
    assert said.startswith(sha("base")[:16])


def test_a_model_that_no_server_has_is_not_answered_by_another(tmp_path, elsewhere):
    base, other = base_folder(tmp_path, "base"), base_folder(tmp_path, "other")
    way = Way(urls=(elsewhere(other, *LORA).url,), command="")
    assert refusal_of(way, subject(base)).code == "unsupported"


def test_two_hundred_questions_at_once_are_answered_by_the_adapter_that_each_was_for(tmp_path, elsewhere):
    base, one, two = base_folder(tmp_path, "base"), adapter_folder(tmp_path, "one"), adapter_folder(tmp_path, "two")
    server = elsewhere(base, *LORA, environment=MAY_LOAD | {"VLLM_STANDIN_PAUSE": "0.001"})
    subjects = [subject(base), subject(base, one), subject(base, two), subject(base, one, workspace="south")]

    async def ask_all(engine: VLLM) -> list[tuple[str, Took, list[str]]]:
        return await asyncio.gather(*(asked(engine, subjects[number % 4]) for number in range(200)))

    answers = with_engine(Way(urls=(server.url,), command=""), ask_all)
    names = [str(base), f"adapter.north.{sha('one')}", f"adapter.north.{sha('two')}", f"adapter.south.{sha('one')}"]
    assert [said.split()[0] for said, _, _ in answers] == [names[number % 4] for number in range(200)]
    assert sorted(server.names()) == sorted(names)  # each was put on once


def test_what_one_workspace_asked_is_never_found_in_memory_by_another(tmp_path, elsewhere):
    base, adapter = base_folder(tmp_path, "base"), adapter_folder(tmp_path, "adapter")
    way = Way(urls=(elsewhere(base, *LORA).url,), command="")

    async def cached(engine: VLLM) -> list[int]:
        north, south = subject(base), subject(base, workspace="south")
        turns = [north, north, south, south, subject(base, adapter), subject(base, adapter), subject(base, adapter, workspace="south")]
        return [(await asked(engine, who))[1].cached_tokens for who in turns]

    assert with_engine(way, cached) == [0, 8, 0, 8, 0, 8, 0]


def test_an_adapter_that_a_server_knows_from_before_is_asked_by_its_name(tmp_path, elsewhere):
    base, adapter = base_folder(tmp_path, "base"), adapter_folder(tmp_path, "adapter")
    way = Way(urls=(elsewhere(base, *LORA).url,), command="")
    with_engine(way, lambda engine: asked(engine, subject(base, adapter)))
    said, _, _ = with_engine(way, lambda engine: asked(engine, subject(base, adapter)))
    assert said.startswith("adapter.north.")


def test_a_server_that_was_started_anew_is_given_its_adapters_again(tmp_path, elsewhere):
    base, adapter = base_folder(tmp_path, "base"), adapter_folder(tmp_path, "adapter")
    server = elsewhere(base, *LORA)

    async def ask_twice(engine: VLLM) -> str:
        await asked(engine, subject(base, adapter))
        httpx.post(f"{server.url}/v1/unload_lora_adapter", json={"lora_name": f"adapter.north.{sha('adapter')}"}, trust_env=False)
        return (await asked(engine, subject(base, adapter)))[0]

    assert with_engine(Way(urls=(server.url,), command=""), ask_twice).startswith("adapter.north.")


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ("not DoRA", {"use_dora": True}),
        ("tables or layers of its own", {"modules_to_save": ["lm_head"]}),
        ("tables or layers of its own", {"tensors": ("base_model.model.lm_head.lora_A.weight", "base_model.model.lm_head.lora_B.weight")}),
        ("ranks and scales by layer", {"rank_pattern": {"q_proj": 4}}),
        ("ranks and scales by layer", {"alpha_pattern": {"q_proj": 4}}),
        ("greater than max_lora_rank", {"r": 32}),
    ],
)
def test_what_vllm_cannot_put_on_is_refused_before_it_answers_wrongly(tmp_path, elsewhere, words, given):
    base, adapter = base_folder(tmp_path, "base"), adapter_folder(tmp_path, "adapter", **given)
    problem = refusal_of(Way(urls=(elsewhere(base, *LORA).url,), command=""), subject(base, adapter))
    assert problem.code == "unsupported"
    assert words in problem.message


def test_a_server_that_may_load_no_adapters_is_refused_with_what_to_set(tmp_path, elsewhere):
    base, adapter = base_folder(tmp_path, "base"), adapter_folder(tmp_path, "adapter")
    problem = refusal_of(Way(urls=(elsewhere(base, *LORA, environment={}).url,), command=""), subject(base, adapter))
    assert problem.code == "unsupported"
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True" in problem.message


@pytest.mark.parametrize(
    ("code", "route", "body"),
    [
        ("too_long", "chat", HELLO | {"max_tokens": 60}),
        ("invalid", "chat", HELLO | {"temperature": 9}),
        ("unsupported", "chat", HELLO | {"tools": [{"type": "function", "function": {"name": "look"}}]}),
        ("unsupported", "embedding", {"input": "Hello"}),
    ],
)
def test_what_vllm_refuses_is_told_as_what_people_can_mend(tmp_path, elsewhere, code, route, body):
    base = base_folder(tmp_path, "base")
    problem = refusal_of(Way(urls=(elsewhere(base, *LORA).url,), command=""), subject(base), body, route=route)
    assert problem.code == code
    if code == "invalid":
        assert problem.fields == {"temperature": "temperature must be in [0, 2]"}


def test_a_server_with_a_key_is_asked_with_it(tmp_path, elsewhere):
    base = base_folder(tmp_path, "base")
    server = elsewhere(base, *LORA, "--api-key", "secret")
    assert with_engine(Way(urls=(server.url,), key="secret", command=""), lambda engine: asked(engine, subject(base)))[0]
    assert "sets it as STUDIO_VLLM_KEY" in refusal_of(Way(urls=(server.url,), command=""), subject(base)).message


def test_whoever_leaves_frees_vllm_at_once(tmp_path, elsewhere):
    base = base_folder(tmp_path, "base")
    server = elsewhere(base, *LORA)

    async def leave(engine: VLLM) -> None:
        answer = engine.ask(subject(base), "chat", HELLO | {"max_tokens": 50}, state=lambda _: None, took=Took())
        await anext(answer)
        assert server.figures()["running"] == 1
        assert engine.metrics()["models"][0]["running"] == 1
        await answer.aclose()
        began = time.monotonic()
        while server.figures()["running"]:
            assert time.monotonic() - began < 15
            await asyncio.sleep(0.02)
        assert server.figures()["aborted"] == 1
        assert engine.metrics()["models"][0]["running"] == 0

    with_engine(Way(urls=(server.url,), command=""), leave)


def test_a_server_that_dies_half_way_is_told(tmp_path, elsewhere):
    base = base_folder(tmp_path, "base")
    server = elsewhere(base, *LORA)

    async def break_off(engine: VLLM) -> None:
        answer = engine.ask(subject(base), "chat", HELLO | {"max_tokens": 50}, state=lambda _: None, took=Took())
        await anext(answer)
        server.process.kill()
        async for _ in answer:
            pass

    with pytest.raises(UserError, match="Ask again") as problem:
        with_engine(Way(urls=(server.url,), command=""), break_off)
    assert problem.value.code == "broken"


def test_what_is_erased_is_taken_off_once_its_answer_has_ended(tmp_path, elsewhere):
    base, adapter, other = base_folder(tmp_path, "base"), adapter_folder(tmp_path, "adapter"), adapter_folder(tmp_path, "other")
    server = elsewhere(base, *LORA)

    async def erase(engine: VLLM) -> str:
        await asked(engine, subject(base, other))
        running = asyncio.create_task(asked(engine, subject(base, adapter), HELLO | {"max_tokens": 20}))
        while len(server.names()) < 3 or not server.figures()["running"]:
            await asyncio.sleep(0.01)
        assert await engine.drop([sha("adapter")[:16]]) == 1
        assert len(server.names()) == 3
        said = (await running)[0]
        while len(server.names()) == 3:
            await asyncio.sleep(0.05)
        return said

    said = with_engine(Way(urls=(server.url,), command=""), erase)
    assert said.endswith(" 19")
    assert server.names() == [str(base), f"adapter.north.{sha('other')}"]


def test_an_adapter_that_is_erased_while_it_is_put_on_is_taken_off(tmp_path, elsewhere):
    base, adapter = base_folder(tmp_path, "base"), adapter_folder(tmp_path, "adapter")
    server = elsewhere(base, *LORA)

    async def erase(engine: VLLM) -> None:
        await asked(engine, subject(base))
        (known,) = engine.servers.values()
        asking = asyncio.create_task(engine.load(subject(base, adapter), lambda _: None))
        while not known.loading:
            await asyncio.sleep(0)
        assert await engine.drop([sha("adapter")[:16]]) == 1
        await asyncio.gather(asking, *engine.ending)
        assert not known.adapters

    with_engine(Way(urls=(server.url,), command=""), erase)
    assert server.names() == [str(base)]


def test_what_a_server_knows_from_before_is_erased_too(tmp_path, elsewhere):
    base, adapter = base_folder(tmp_path, "base"), adapter_folder(tmp_path, "adapter")
    server = elsewhere(base, *LORA)
    way = Way(urls=(server.url,), command="")
    with_engine(way, lambda engine: asked(engine, subject(base, adapter)))
    assert with_engine(way, lambda engine: engine.drop([sha("adapter")[:16]])) == 1
    assert server.names() == [str(base)]


def test_tokens_are_counted_as_the_model_does(tmp_path, elsewhere):
    base = base_folder(tmp_path, "base")
    way = Way(urls=(elsewhere(base, *LORA).url,), command="")
    assert len(with_engine(way, lambda engine: engine.tokenize(subject(base), text="one two three"))) == 3
    assert len(with_engine(way, lambda engine: engine.tokenize(subject(base), messages=HELLO["messages"]))) == 10


# Servers that the studio starts


def test_a_server_is_started_for_a_base_and_says_what_it_waits_for(tmp_path, nvidia):
    base, adapter = base_folder(tmp_path, "base"), adapter_folder(tmp_path, "adapter")

    async def ask_once(engine: VLLM) -> tuple[str, list[str], dict[str, Any]]:
        said, _, states = await asked(engine, subject(base, adapter))
        return said, states, engine.metrics()

    said, states, metrics = with_engine(Way(), ask_once)
    assert said.startswith(f"adapter.north.{sha('adapter')}")
    assert states == ["loading the model", "putting the adapter on"]
    (model,) = metrics["models"]
    assert model["adapters"] == [sha("adapter")]
    assert model["cold"] > 0
    assert 3 << 30 < metrics["used"] < metrics["budget"] < vllm_standin.TOTAL
    assert not [file for file in nvidia.iterdir() if (Path("/proc") / file.name).exists()]  # it was ended with the engine


def test_two_workspaces_never_share_a_server(tmp_path, nvidia):
    base = base_folder(tmp_path, "base")

    async def ask_both(engine: VLLM) -> set[str]:
        return {(await asked(engine, subject(base, workspace=name)))[0].split()[0] for name in ("north", "south")}

    assert len(with_engine(Way(), ask_both)) == 2


def test_many_who_ask_at_once_wait_for_one_start(tmp_path, nvidia, monkeypatch):
    monkeypatch.setenv("VLLM_STANDIN_START", "0.5")
    base = base_folder(tmp_path, "base")

    async def ask_all(engine: VLLM) -> int:
        answers = await asyncio.gather(*(asked(engine, subject(base)) for _ in range(8)))
        assert all(took.waited > 0.5 for _, took, _ in answers)
        return len(engine.servers)

    assert with_engine(Way(), ask_all) == 1


def test_a_conversation_has_as_many_tokens_as_are_set(tmp_path, nvidia):
    base = base_folder(tmp_path, "base", max_position_embeddings=2048)

    async def ask_long(engine: VLLM) -> str:
        try:
            return (await asked(engine, subject(base), HELLO | {"max_tokens": 600}))[0]
        except UserError as problem:
            return problem.code

    assert with_engine(Way(context=512), ask_long) == "too_long"
    assert with_engine(Way(), ask_long).endswith(" 599")


def test_room_is_made_for_conversations_as_long_as_are_set(tmp_path, nvidia):
    heads = {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096}
    base = base_folder(tmp_path, "base", max_position_embeddings=1 << 20, **heads)

    async def used(engine: VLLM) -> int:
        await asked(engine, subject(base))
        return int(engine.metrics()["used"])

    usual, long = with_engine(Way(), used), with_engine(Way(context=8192 + 16384), used)
    assert long - usual == 16384 * (32 * 8 * 128 * 2 * 2)  # keys and values of 16 bits: 128 KiB of each token
    assert refusal_of(Way(context=1 << 20), subject(base)).code == "unsupported"


def test_the_base_unused_longest_leaves_for_another(tmp_path, nvidia):
    bases = [base_folder(tmp_path, name, size=3 << 30) for name in ("a", "b", "c")]  # 6.6 of 14.4 GiB each

    async def ask_in_turn(engine: VLLM) -> list[str]:
        for base in (bases[0], bases[1], bases[0], bases[2]):
            await asked(engine, subject(base))
        return sorted(model["base_sha256"] for model in engine.metrics()["models"])

    assert with_engine(Way(), ask_in_turn) == sorted([sha("a"), sha("c")])


def test_a_base_that_answers_is_not_ended_for_another(tmp_path, nvidia, monkeypatch):
    monkeypatch.setenv("VLLM_STANDIN_PAUSE", "0.05")
    large, other = base_folder(tmp_path, "large", size=8 << 30), base_folder(tmp_path, "other", size=8 << 30)

    async def ask_both(engine: VLLM) -> UserError:
        answer = engine.ask(subject(large), "chat", HELLO | {"max_tokens": 40}, state=lambda _: None, took=Took())
        await anext(answer)
        with pytest.raises(UserError) as problem:
            await asked(engine, subject(other))
        assert len([chunk async for chunk in answer]) == 40
        return problem.value

    problem = with_engine(Way(), ask_both)
    assert (problem.code, problem.message) == ("no_memory", "Other models are answering and hold the GPU's memory. Ask again in a moment.")


def test_memory_that_a_run_holds_is_said_so_and_ends_nothing(tmp_path, nvidia):
    small, large = base_folder(tmp_path, "small"), base_folder(tmp_path, "large", size=6 << 30)

    async def ask_both(engine: VLLM) -> UserError:
        await asked(engine, subject(small))
        (nvidia / "run").write_text(str(10 << 30))
        with pytest.raises(UserError) as problem:
            await asked(engine, subject(large))
        assert [model["base_sha256"] for model in engine.metrics()["models"]] == [sha("small")]
        return problem.value

    problem = with_engine(Way(), ask_both)
    assert problem.code == "no_memory"
    assert problem.message.startswith("The GPU's memory is taken: 10.2 GB are needed and ")
    assert problem.message.endswith("such as a training run. Ask again when it has ended.")


def test_room_is_made_by_ending_what_is_idle(tmp_path, nvidia):
    base, other = base_folder(tmp_path, "base"), base_folder(tmp_path, "other")

    async def make_room(engine: VLLM) -> None:
        for each in (base, other):
            await asked(engine, subject(each))
        used = engine.metrics()["used"]
        assert await engine.make_room(1, on_gpu=True) == used // 2
        assert [model["base_sha256"] for model in engine.metrics()["models"]] == [sha("other")]
        assert await engine.make_room(used, on_gpu=True) == used // 2
        assert await engine.make_room(1, on_gpu=True) == 0
        assert (await asked(engine, subject(base)))[0]  # it is started again when it is asked

    with_engine(Way(), make_room)


def test_a_model_that_is_larger_than_the_gpu_is_left_to_the_other_engine(tmp_path, nvidia):
    assert refusal_of(Way(), subject(base_folder(tmp_path, "large", size=16 << 30))).code == "unsupported"


def test_a_kind_of_model_that_vllm_does_not_know_is_tried_once(tmp_path, nvidia):
    started, counting = tmp_path / "started", tmp_path / "counting"
    counting.write_text(f'#!/bin/sh\necho started >> {started}\nexec vllm "$@"\n')
    counting.chmod(0o700)
    base = base_folder(tmp_path, "strange", architectures=["Strange"])

    async def ask_twice(engine: VLLM) -> None:
        for _ in range(2):
            with pytest.raises(UserError, match="does not know this kind of model") as problem:
                await asked(engine, subject(base))
            assert problem.value.code == "unsupported"

    with_engine(Way(command=str(counting)), ask_twice)
    assert started.read_text() == "started\n"


def test_a_base_that_is_erased_while_it_is_loaded_is_not_in_memory_afterwards(tmp_path, nvidia, monkeypatch):
    monkeypatch.setenv("VLLM_STANDIN_START", "60")
    base = base_folder(tmp_path, "base")

    async def erase(engine: VLLM) -> None:
        asking = asyncio.create_task(asked(engine, subject(base)))
        while not list(nvidia.iterdir()):  # it holds the GPU's memory
            await asyncio.sleep(0.02)
        assert await engine.drop([sha("base")[:16]]) == 1
        with pytest.raises(UserError, match="not here any more") as problem:
            await asking
        assert problem.value.code == "gone"
        assert not engine.servers and not engine.starting
        assert not [file for file in nvidia.iterdir() if (Path("/proc") / file.name).exists()]

    with_engine(Way(), erase)


def test_a_server_that_dies_is_started_again_when_it_is_asked(tmp_path, nvidia):
    base = base_folder(tmp_path, "base")

    async def ask_around_a_crash(engine: VLLM) -> str:
        await asked(engine, subject(base))
        (server,) = engine.servers.values()
        assert server.process
        server.process.child.kill()
        server.process.child.wait()
        return (await asked(engine, subject(base)))[0]

    assert with_engine(Way(), ask_around_a_crash)


def test_a_server_dies_with_the_process_that_started_it(tmp_path, nvidia):
    base = base_folder(tmp_path, "base")
    script = f"""
import asyncio
from pathlib import Path
from studio.serving.engines.contract import Subject
from studio.serving.engines.vllm import VLLM, Way

async def main():
    engine = VLLM(Way())
    await engine.load(Subject("north", Path({str(base)!r}), {sha("base")!r}), lambda _: None)
    print(next(iter(engine.servers.values())).process.child.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


# Two engines as one


class Other:
    """Another engine, which can do everything."""

    name = "other"

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def load(self, who: Subject, state: Any) -> None:
        self.asked.append("load")

    async def ask(self, who: Subject, route: Any, body: dict[str, Any], *, state: Any, took: Took) -> Any:
        self.asked.append(route)
        yield {"choices": [{"delta": {"content": "other"}}]}

    async def tokenize(self, who: Subject, *, text: str = "", messages: Any = None) -> list[int]:
        return [1]

    async def drop(self, names: list[str]) -> int:
        return 5

    async def make_room(self, wanted: int, *, on_gpu: bool = False) -> int:
        return 0 if on_gpu else 7

    def metrics(self) -> dict[str, Any]:
        counts = {"answers": 0, "prompt_tokens": 0, "completion_tokens": 0}
        return {"engine": self.name, "on_gpu": False, "budget": 1, "used": 1, "models": []} | counts


def test_what_vllm_cannot_answer_is_answered_by_the_other_engine(tmp_path, elsewhere):
    base, plain, dora = base_folder(tmp_path, "base"), adapter_folder(tmp_path, "plain"), adapter_folder(tmp_path, "dora", use_dora=True)
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    way = Way(urls=(elsewhere(base, *LORA).url,), command="")

    async def ask_each(engine: VLLM) -> list[str]:
        both = Choosing(engine, Other())
        subjects = [subject(base), subject(base, plain), subject(base, dora), subject(file), subject(base_folder(tmp_path, "another"))]
        return [(await asked(both, who))[0].split()[0] for who in subjects]

    assert with_engine(way, ask_each) == [str(base), f"adapter.north.{sha('plain')}", "other", "other", "other"]


def test_a_lack_of_memory_is_told_and_not_handed_on(tmp_path, nvidia):
    base, other = base_folder(tmp_path, "base"), Other()
    (nvidia / "run").write_text(str(15 << 30))
    with pytest.raises(UserError) as problem:
        with_engine(Way(), lambda engine: asked(Choosing(engine, other), subject(base)))
    assert problem.value.code == "no_memory"
    assert other.asked == []


def test_both_engines_let_go_and_are_told_of_as_one(tmp_path, nvidia):
    base = base_folder(tmp_path, "base")

    async def look(engine: VLLM) -> None:
        both = Choosing(engine, Other())
        await asked(both, subject(base))
        assert [found["engine"] for found in both.metrics()["engines"]] == ["vLLM", "other"]
        assert both.metrics()["answers"] == 1
        assert await both.make_room(1) == 7
        assert len(engine.servers) == 1
        assert await both.make_room(1, on_gpu=True) > 7
        assert await both.drop([sha("base")[:16]]) == 5

    with_engine(Way(), look)
