"""LoRA (Unsloth) without a GPU: by the switch for tests it goes the same way on the processor, in an environment that has Unsloth."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from studio.ml import unsloth
from studio.ml.modelfacts import read_model_facts
from studio.training import HostFacts
from studio.training.asking import host_issues_of
from studio.training.facts import Gpu
from studio.training.testing import Case, write_order
from tests.ml.conftest import ModelMaker
from tests.ml.unsloth_env import ROOT, python_with_unsloth
from training_plugins.unsloth_lora import ON_CPU, UnslothLora

CONFIG = {"max_steps": 12, "evaluate_every": 6, "batch_size": 4, "max_length": 64, "rank": 4, "alpha": 8.0, "learning_rate": 5e-3}
CONFORMANCE = """
import sys
from pathlib import Path
from studio.training.testing import check_plugin
from training_plugins.unsloth_lora import UnslothLora
check_plugin(UnslothLora, base=Path(sys.argv[1]), config={"rank": 4, "alpha": 8.0})
"""
WATCHER = """
import os, sys
log = os.open(os.environ["WATCHED"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
def watch(event, args):
    if event == "open" and isinstance(args[0], (str, bytes)) and args[2] & WRITES:
        os.write(log, f"wrote {os.path.abspath(os.fsdecode(args[0]))}\\n".encode())
    elif event == "os.mkdir":
        os.write(log, f"wrote {os.path.abspath(os.fsdecode(args[0]))}\\n".encode())
    elif event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        os.write(log, f"network {event} {args[1:]}\\n".encode())
    elif event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
        os.write(log, f"program {args[0]} {args[1:2]}\\n".encode())
sys.addaudithook(watch)
"""


@dataclass(frozen=True)
class Trained:
    """What a run left."""

    events: list[dict[str, Any]]
    attempt: Path
    result: Path
    watched: list[str]

    def losses(self, name: str = "loss") -> list[float]:
        return [event[name] for event in self.events if event["type"] == "metric" and name in event]


@pytest.fixture(scope="module")
def python() -> Path:
    return python_with_unsloth()


@pytest.fixture(scope="module")
def conformance(python: Path, tiny_model: Path) -> "Iterator[subprocess.Popen[str]]":
    """The suite takes a minute: it begins with the first test, and is looked at by the last."""
    command = [str(python), "-c", CONFORMANCE, str(tiny_model)]
    with subprocess.Popen(command, env=environment(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        yield process
        process.kill()


@pytest.fixture(scope="module")
def base(tiny_model_maker: ModelMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shaped as SmolLM2: three times as many heads as groups, one table for the first and the last layer."""
    return tiny_model_maker(tmp_path_factory.mktemp("like-smollm2"), hidden=96, layers=3, heads=6, kv_heads=2, intermediate=256)


@pytest.fixture(scope="module")
def theirs(python: Path, base: Path, conformance: object, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train("unsloth_lora", python, base, tmp_path_factory.mktemp("unsloth"))


@pytest.fixture(scope="module")
def plain(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train("peft_lora", Path(sys.executable), base, tmp_path_factory.mktemp("plain"))


def environment() -> dict[str, str]:
    """As the supervisor starts a worker, with the switch for tests."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "TMPDIR", "LANG")}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", ON_CPU: "1"}


def train(plugin: str, python: Path, base: Path, folder: Path) -> Trained:
    """A run in a worker process whose writing, calls and children are watched."""
    case = Case(plugin=plugin, folder=folder, base=base, model=read_model_facts(base), config=CONFIG)
    order = write_order(case, name="run", config={})
    (folder / "watch").mkdir()
    (folder / "watch" / "sitecustomize.py").write_text(WATCHER)
    env = environment() | {"PYTHONPATH": f"{folder / 'watch'}:{ROOT}", "WATCHED": str(folder / "watched.txt"), "HOME": str(folder / "home")}
    done = subprocess.run(
        [str(python), "-m", "studio.worker", str(order)], env=env, cwd=order.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    events = [json.loads(line) for line in (order.parent / "events.jsonl").read_bytes().splitlines()]
    return Trained(events, order.parent, folder / "run-result", (folder / "watched.txt").read_text().splitlines())


def test_it_learns_what_plain_peft_learns(theirs: Trained, plain: Trained) -> None:
    losses = theirs.losses()
    assert len(losses) == CONFIG["max_steps"] and losses[-1] < 0.9 * losses[0]
    assert losses == pytest.approx(plain.losses(), rel=1e-4)
    assert theirs.losses("validation_loss") == pytest.approx(plain.losses("validation_loss"), rel=1e-4)


def test_what_it_leaves_is_an_ordinary_adapter_of_peft(theirs: Trained, plain: Trained, base: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), theirs.result)
    learnt = [float(parameter.norm()) for name, parameter in adapted.named_parameters() if "lora_B" in name]
    assert len(learnt) == 3 * 7 and min(learnt) > 0
    ours, others = (load_file(result / "adapter_model.safetensors") for result in (theirs.result, plain.result))
    assert ours.keys() == others.keys()
    settings = [json.loads((result / "adapter_config.json").read_text()) for result in (theirs.result, plain.result)]
    assert {"unsloth", "unsloth_fixed", "auto_mapping"}.isdisjoint(settings[0])
    assert settings[0].keys() == settings[1].keys()


def test_its_lineage_names_the_unsloth_that_trained_it(theirs: Trained) -> None:
    assert json.loads((theirs.result / "lineage.json").read_text())["packages"].keys() >= {"unsloth", "bitsandbytes", "peft", "torch"}


def test_it_writes_nowhere_but_into_its_own_folders(theirs: Trained) -> None:
    written = {Path(line.removeprefix("wrote ")) for line in theirs.watched if line.startswith("wrote ")}
    assert any("compiled" in path.parts for path in written), "Unsloth compiled nothing, so this proves nothing"
    places = (theirs.attempt, theirs.result.parent, Path("/dev"), Path("/proc/self"))
    assert [path for path in written if not any(path == place or place in path.parents for place in places)] == []
    assert not (theirs.result.parent / "home").exists()


def test_it_speaks_to_nobody_and_installs_nothing(theirs: Trained) -> None:
    assert [line for line in theirs.watched if line.startswith("network ")] == []
    programs = {line.split()[1] for line in theirs.watched if line.startswith("program ")}
    assert {Path(program).name for program in programs} <= {"ldconfig", "uname"}  # which libraries and which processor there are


def test_unsloth_is_told_everything_that_it_can_be_told(python: Path) -> None:
    """Its own choices change between releases, and some load another model than the one named."""
    left = {  # only read where fast_inference, several devices or a callback are wanted
        "from_pretrained": {
            "device_map_planner_kwargs",
            "gpu_memory_utilization",
            "float8_kv_cache",
            "max_lora_rank",
            "disable_log_stats",
            "on_model_resolved",
        },
        "get_peft_model": {"model", "max_seq_length"},  # the second is not read any more
    }
    device = torch.device("cuda")
    told = {
        "from_pretrained": unsloth.load_arguments(
            Path("base"), device=device, dtype=torch.bfloat16, max_length=8, quantization="none", checkpointing=False, seed=1
        ),
        "get_peft_model": unsloth.adapter_arguments(
            device=device,
            targets=["q_proj"],
            rank=4,
            alpha=8.0,
            dropout=0.0,
            rslora=False,
            checkpointing=False,
            seed=1,
            work=Path("work"),
        ),
    }
    classes = {"from_pretrained": ("loader.py", "FastLanguageModel"), "get_peft_model": ("llama.py", "FastLlamaModel")}
    for method, (file, name) in classes.items():
        known = parameters(folder_of_unsloth(python) / "models" / file, name, method)
        assert known - told[method].keys() == left[method]


def folder_of_unsloth(python: Path) -> Path:
    code = "import importlib.util; print(importlib.util.find_spec('unsloth').submodule_search_locations[0])"
    return Path(subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip())


def parameters(file: Path, class_name: str, method: str) -> set[str]:
    """The names that a static method takes, read from its source: to import it takes ten seconds and a GPU."""
    (found,) = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef) and node.name == class_name]
    (function,) = [node for node in found.body if isinstance(node, ast.FunctionDef) and node.name == method]
    return {argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)}


def test_it_does_not_begin_where_transformers_came_first(tmp_path: Path) -> None:
    import transformers  # noqa: F401

    with pytest.raises(RuntimeError, match="transformers"):
        unsloth.start(tmp_path, on_cpu=True)


def test_a_machine_without_a_gpu_is_refused_and_offered_plain_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ON_CPU, raising=False)
    host = HostFacts(name="here", cpus=2, memory=8 << 30)
    (issue,) = host_issues_of(UnslothLora(), host)
    assert (issue.level, issue.instead) == ("error", "peft_lora")
    assert "GPU" in issue.message
    assert host_issues_of(UnslothLora(), host.model_copy(update={"gpus": [Gpu(name="NVIDIA L4", memory=24 << 30)]})) == []


def test_it_passes_the_conformance_suite(conformance: "subprocess.Popen[str]") -> None:
    said, _ = conformance.communicate()
    assert conformance.returncode == 0, said[-3000:]
