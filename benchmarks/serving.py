"""Eight adapters on one base against one merged model alone: throughput, memory, adding an adapter; and against llama.cpp's own order.

    python benchmarks/serving.py --model FOLDER [--callers 32,8] [--seconds 120]

FOLDER is a base model, such as SmolLM2-135M-Instruct. The engine is the process that the studio runs, asked through its socket; the
adapters have random weights. What is compared is asked at the same time by as many callers each, without a pause, and computes by turns
of two seconds: the others' processes are stopped meanwhile. So a machine that is slower for a while is so for all of them alike.
"""

import argparse
import asyncio
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from safetensors import safe_open
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from studio.ml.gguf.exporting import export
from studio.ml.gguf.footprint import footprint
from studio.serving.engines.contract import Took
from studio.serving.engines.llamacpp import batch_of
from studio.serving.engines.servers import Load, Stable
from studio.serving.engines.wire import chunks_of
from studio.storage import commit_folder, sealed_sha256

ADAPTERS = 8
MORE = 3
"""Adapters that are added while others answer."""
RANK = 16
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TOPICS = ("parcels", "invoices", "trains", "bread", "gardens", "bicycles", "rain", "lamps")
WINDOW = 2.0
"""Seconds that one of those compared computes while the others are stopped."""
Ask = Callable[[int, dict[str, Any]], Awaitable[dict[str, float]]]
"""The number of a caller and what is asked -> tokens, and seconds to the first token and in all."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--callers", default="32,8")
    parser.add_argument("--seconds", type=float, default=120, help="That each of those compared computes.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="studio-serving-") as folder:
        asyncio.run(measure(Path(folder), options))


async def measure(root: Path, options: argparse.Namespace) -> None:
    base, merged, adapters = prepare(root, options.model)
    print(f"load of the machine before: {psutil.getloadavg()[0]:.1f} on {psutil.cpu_count()} cores")
    with Engine(root) as engine:
        await ask_all(engine.asking([subject(base)]), callers=4, each=1)
        alone = await engine.bytes_of(base)
        await ask_all(engine.asking([subject(merged)]), callers=4, each=1)
        for adapter in adapters[:ADAPTERS]:
            await engine.ask(subject(base, adapter), question(0, random.Random(0), tokens=1))
        eight = engine.asking([subject(base, adapter) for adapter in adapters[:ADAPTERS]])
        await ask_all(eight, callers=8, each=1)
        held, files = await engine.bytes_of(base), sum(path.stat().st_size for path in root.glob("cache/serving/1/*.lora.gguf"))
        print(f"memory: base {mb(alone)}, with {ADAPTERS} adapters {mb(held)}, their files {mb(files)}")
        print(f"    with adapters / (base + files) {held / (alone + files):.3f} (at most 1.10)")
        threads = {"merged": await engine.threads_of(merged), "eight": await engine.threads_of(base)}
        print("threads:", ", ".join(f"{name} {count}" for name, count in threads.items()), f"plain {threads['eight']}")
        async with llama(root, adapters[:ADAPTERS], threads=threads["eight"]) as (plain, process):
            ways = {
                "merged": (engine.asking([subject(merged)]), engine.server_of(merged)),
                "eight": (eight, engine.server_of(next(root.glob("cache/serving/1/*.q8_0.gguf")))),
                "plain": (plain, psutil.Process(process.pid)),
            }
            for callers in map(int, options.callers.split(",")):
                found = await by_turns(ways, callers, options.seconds)
                for unit in ("second", "CPU second"):
                    print(f"{callers} callers, tokens per {unit}:", ", ".join(f"{name} {found[name, unit]:.1f}" for name in ways))
                    print(f"    eight / merged {found['eight', unit] / found['merged', unit]:.3f} (at least 0.80 at 32)")
                    print(f"    eight / llama.cpp's own order {found['eight', unit] / found['plain', unit]:.2f}")
    with Engine(root) as engine:  # another one: to the first, llama.cpp's own order was somebody else who takes cores
        eight = engine.asking([subject(base, adapter) for adapter in adapters[:ADAPTERS]])
        await ask_all(eight, callers=8, each=1)
        await adding(engine, base, adapters, eight)


async def by_turns(ways: dict[str, tuple[Ask, psutil.Process]], callers: int, seconds: float) -> dict[tuple[str, str], float]:
    """Tokens per second, and per second of all processors, which is steadier where others work beside.

    Answers count where they end: what was begun before the first turn makes up for what has not ended after the last.
    """
    tokens, walls, cpus = (dict.fromkeys(ways, 0.0) for _ in range(3))
    processes = {name: process for name, (_, process) in ways.items()}

    async def caller(name: str, number: int) -> None:
        dice = random.Random(number)
        while True:
            told = await ways[name][0](number, question(number, dice))
            tokens[name] += told["tokens"]

    asking = [asyncio.create_task(caller(name, number)) for name in ways for number in range(callers)]
    try:
        for turn in range(-len(ways) * 5, len(ways) * max(1, int(seconds / WINDOW))):
            name = list(ways)[turn % len(ways)]
            for other, process in processes.items():
                if other == name:
                    process.resume()
                else:
                    process.suspend()
            cpu, began = seconds_of(processes[name]), time.monotonic()
            await asyncio.sleep(WINDOW)
            for task in asking:
                if task.done():  # they go on until they are ended, so it failed
                    task.result()
            if turn < 0:  # prompts are read for the first time
                tokens[name] = 0
            else:
                walls[name] += time.monotonic() - began
                cpus[name] += seconds_of(processes[name]) - cpu
    finally:
        for process in processes.values():
            process.resume()
        for task in asking:
            task.cancel()
        await asyncio.wait(asking)
    return {(name, "second"): tokens[name] / walls[name] for name in ways} | {
        (name, "CPU second"): tokens[name] / cpus[name] for name in ways
    }


def seconds_of(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def cpu_of(process: Any) -> float:
    """Of a process and all that it started."""
    whole = psutil.Process(process.pid)
    ended = whole.cpu_times()
    return (
        ended.children_user
        + ended.children_system
        + sum(times.user + times.system for times in (each.cpu_times() for each in (whole, *whole.children(recursive=True))))
    )


async def adding(engine: "Engine", base: Path, adapters: list[Path], eight: Ask) -> None:
    """Four callers ask without a pause; then adapters are added meanwhile, one after another."""
    ended, latencies, adding_now = asyncio.Event(), list[tuple[bool, float]](), False

    async def caller(number: int) -> None:
        dice = random.Random(number)
        while not ended.is_set():
            before = adding_now
            done = await eight(number, question(number, dice, tokens=24))
            latencies.append((before or adding_now, done["seconds"]))

    callers = [asyncio.create_task(caller(number)) for number in range(4)]
    took = []
    for adapter in adapters[ADAPTERS:]:
        await asyncio.sleep(12)
        adding_now = True
        told = await engine.ask(subject(base, adapter), question(0, random.Random(1), tokens=1))
        took.append(told["loaded"])
        adding_now = False
    ended.set()
    await asyncio.gather(*callers)
    normal, meanwhile = ([seconds for during, seconds in latencies if during == wanted] for wanted in (False, True))
    quiet = []
    for number in range(3):
        adapter, cpu = make_adapter(base, base.parent, f"quiet{number}", seed=100 + number), cpu_of(engine.process)
        told = await engine.ask(subject(base, adapter), question(0, random.Random(1), tokens=1))
        quiet.append((told["loaded"], cpu_of(engine.process) - cpu))
    alone, computed = (statistics.median(each) for each in zip(*quiet, strict=True))
    print(f"to add an adapter: {alone:.2f} s while nobody asks (below 1), of which {computed:.2f} s computing with the first token")
    print(f"    {statistics.median(took):.2f} s while 4 callers ask")
    print(
        f"p95 of {len(meanwhile)} answers while one is added {p95(meanwhile):.2f} s, of {len(normal)} others {p95(normal):.2f} s: "
        f"{p95(meanwhile) / p95(normal):.2f} (at most 2)"
    )


async def ask_all(ask: Ask, *, callers: int, each: int) -> list[dict[str, float]]:
    async def caller(number: int) -> list[dict[str, float]]:
        dice = random.Random(number)
        return [await ask(number, question(number, dice)) for _ in range(each)]

    return [done for told in await asyncio.gather(*(caller(number) for number in range(callers))) for done in told]


def question(number: int, dice: random.Random, *, tokens: int | None = None) -> dict[str, Any]:
    """No two begin alike, and answers are of several lengths."""
    text = f"Question {dice.randrange(10_000)} of caller {number}: what should I know about {dice.choice(TOPICS)}?"
    return {
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens or dice.choice((16, 24, 32, 40)),
        "temperature": 0,
        "ignore_eos": True,
    }


class Engine:
    """The process that answers."""

    def __init__(self, root: Path):
        self.root, self.socket = root, root / "e.sock"
        command = [sys.executable, "-m", "studio.serving.engine", "--engine", "llamacpp", "--socket", str(self.socket), "--root", str(root)]
        self.process = subprocess.Popen(command, cwd=Path(__file__).resolve().parent.parent)
        self.client = httpx.AsyncClient(transport=transport(self.socket), timeout=600, base_url="http://engine")

    def __enter__(self) -> "Engine":
        while not self.socket.exists():
            time.sleep(0.05)
        return self

    def __exit__(self, *problem: object) -> None:
        self.process.kill()
        self.process.wait()
        self.socket.unlink(missing_ok=True)

    def asking(self, subjects: list[dict[str, str]]) -> Ask:
        async def ask(number: int, body: dict[str, Any]) -> dict[str, float]:
            return await self.ask(subjects[number % len(subjects)], body)

        return ask

    async def ask(self, subject: dict[str, str], body: dict[str, Any]) -> dict[str, float]:
        began, loaded = time.monotonic(), 0.0
        async with self.client.stream("POST", "/ask", json={"subject": subject, "route": "chat", "body": body}) as answer:
            async for text in answer.aiter_lines():
                line = json.loads(text)
                if line.get("state") in ("waiting for a turn", "answering"):
                    loaded = loaded or time.monotonic() - began
        if "error" in line:
            raise SystemExit(line["error"]["message"])
        done = line["done"]
        return {"tokens": done["completion_tokens"], "first": done["first"], "seconds": time.monotonic() - began, "loaded": loaded}

    def server_of(self, model: Path) -> psutil.Process:
        """The process that has a file in memory."""
        for each in psutil.Process(self.process.pid).children(recursive=True):
            if any(part.path == str(model) for part in each.memory_maps()):
                return each
        raise SystemExit(f"{model} is not in memory")

    async def bytes_of(self, base: Path) -> int:
        return int((await self.model(base))["bytes"])

    async def threads_of(self, base: Path) -> int:
        return int((await self.model(base))["threads"])

    async def model(self, base: Path) -> dict[str, Any]:
        models: list[dict[str, Any]] = (await self.client.get("/state")).json()["models"]
        [found] = [model for model in models if model["base_sha256"] == sealed_sha256(base)]
        return found


@asynccontextmanager
async def llama(root: Path, adapters: list[Path], *, threads: int) -> AsyncIterator[tuple[Ask, Any]]:
    """One llama.cpp server with all adapters, and the engine's threads and batch, that everybody asks at once: it keeps its own order."""
    cache = root / "cache" / "serving" / "1"
    [model] = cache.glob("*.q8_0.gguf")
    files = [next(cache.glob(f"*-{sealed_sha256(adapter)[:16]}*.lora.gguf")) for adapter in adapters]
    (root / "plain").mkdir()
    batch = batch_of(footprint(model).parameters, threads)
    server = await Stable(root / "plain", patience=600).start(Load(str(model), tuple(map(str, files)), batch=batch, threads=threads))

    async def ask(number: int, body: dict[str, Any]) -> dict[str, float]:
        began, took = time.monotonic(), Took()
        asked = body | {"stream": True, "stream_options": {"include_usage": True}, "lora": server.lora(str(files[number % len(files)]))}
        async for _ in chunks_of(server.client, "/v1/chat/completions", asked, took):
            pass
        return {"tokens": took.completion_tokens, "first": 0.0, "seconds": time.monotonic() - began, "loaded": 0.0}

    try:
        yield ask, server.process
    finally:
        server.end()


def prepare(root: Path, model: Path) -> tuple[Path, Path, list[Path]]:
    """The base, one adapter merged into it as a GGUF file, and adapters with random weights."""
    commit_folder(Path(shutil.copytree(model, root / "base-draft")), root / "base")
    base = root / "base"
    adapters = [make_adapter(base, root, f"adapter{number}", seed=number) for number in range(ADAPTERS + MORE)]
    (root / "merged-draft").mkdir()
    export(base=base, adapter=adapters[0], quantization="q8_0", target=root / "merged-draft" / "merged.gguf", name="merged")
    commit_folder(root / "merged-draft", root / "merged")
    return base, root / "merged" / "merged.gguf", adapters


def make_adapter(base: Path, root: Path, name: str, *, seed: int) -> Path:
    """Rank 16 on every linear layer, with B about as large as a short training makes it."""
    dice, draft, weights = np.random.default_rng(seed), root / f"{name}-draft", {}
    draft.mkdir()
    with safe_open(base / "model.safetensors", framework="np") as file:
        for key in file.keys():  # noqa: SIM118
            if key.split(".")[-2] in LINEAR:
                rows, columns = file.get_slice(key).get_shape()
                stem = f"base_model.model.{key.removesuffix('.weight')}"
                weights[f"{stem}.lora_A.weight"] = dice.standard_normal((RANK, columns), dtype=np.float32) / columns**0.5
                weights[f"{stem}.lora_B.weight"] = dice.standard_normal((rows, RANK), dtype=np.float32) * 0.002
    save_file(weights, draft / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": list(LINEAR), "task_type": "CAUSAL_LM"}
    (draft / "adapter_config.json").write_text(json.dumps(settings))
    commit_folder(draft, root / name)
    return root / name


def subject(base: Path, adapter: Path | None = None) -> dict[str, str]:
    found = {"workspace": "1", "base": str(base), "base_sha256": sealed_sha256(base)}
    return found | ({"adapter": str(adapter), "adapter_sha256": sealed_sha256(adapter)} if adapter else {})


def p95(values: list[float]) -> float:
    return sorted(values)[int(0.95 * (len(values) - 1))] if values else float("nan")


def mb(size: int) -> str:
    return f"{size / 1e6:.0f} MB"


def transport(socket: Path) -> httpx.AsyncHTTPTransport:
    return httpx.AsyncHTTPTransport(uds=str(socket), limits=httpx.Limits(max_connections=None))


if __name__ == "__main__":
    main()
