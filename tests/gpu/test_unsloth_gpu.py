"""LoRA and QLoRA through Unsloth's kernels on a GPU, beside plain PEFT: the same losses; memory and speed are printed."""

import json
import math
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from studio.ml.modelfacts import read_model_facts
from studio.training import HostFacts
from studio.training.testing import Case, write_order
from studio.worker.host import training_environment

ROOT = Path(__file__).resolve().parents[2]
STEPS = 40
CONFIG: dict[str, Any] = {
    "max_steps": STEPS,
    "batch_size": 8,
    "max_length": 512,
    "learning_rate": 2e-4,
    "warmup": 0.1,
    "evaluate_every": STEPS,
    "save_every": STEPS,
    "gradient_checkpointing": "off",
}
CASES = {
    "PEFT": ("peft_lora", {}),
    "Unsloth": ("unsloth_lora", {}),
    "Unsloth, saving memory": ("unsloth_lora", {"gradient_checkpointing": "on"}),
    "PEFT, 4 bits": ("peft_lora", {"quantization": "4bit"}),
    "Unsloth, 4 bits": ("unsloth_lora", {"quantization": "4bit"}),
}
BF16 = 0.02
"""By which losses may differ where only rounding does."""
DRIFT = 0.1
"""The same after forty steps, when the losses are small and every rounding has had its consequences."""


@dataclass(frozen=True)
class Run:
    """What a run in a worker process reported and left."""

    events: list[dict[str, Any]]
    result: Path

    @property
    def steps(self) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == "metric" and "loss" in event]

    @property
    def losses(self) -> list[float]:
        return [step["loss"] for step in self.steps]

    @property
    def last(self) -> float:
        return statistics.mean(self.losses[-5:])

    @property
    def notes(self) -> list[str]:
        return [event["text"] for event in self.events if event["type"] == "note"]

    def line(self, name: str) -> str:
        speed = statistics.median(step["tokens_per_second"] for step in self.steps[STEPS // 4 :])
        memory = max(step["memory"] for step in self.steps)
        return f"{name:24} {memory / 1e6:8.0f} MB  {speed:9.0f} tokens/s  loss {self.losses[0]:.4f} … {self.last:.4f}"


@dataclass(frozen=True)
class GpuCase(Case):
    machine: HostFacts | None = None

    @property
    def host(self) -> HostFacts:
        assert self.machine is not None
        return self.machine


def rows(count: int) -> list[dict[str, Any]]:
    """Conversations of different lengths in which there is something to learn: sums, and the numbers up to them."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"What is {n} and {n + 3}, and which numbers come before it?"},
                {"role": "assistant", "content": f"It is {2 * n + 3}. Before it come {', '.join(map(str, range(n % 60)))}."},
            ]
        }
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def runs(gpu: HostFacts, smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Every case once. What each took is printed: run pytest with -s to see it."""
    found = {}
    print()
    for name, (plugin, more) in CASES.items():
        folder = tmp_path_factory.mktemp("gpu")
        case = GpuCase(plugin=plugin, folder=folder, base=smollm2, model=read_model_facts(smollm2), rows=rows(400), machine=gpu)
        order = write_order(case, name="run", config=CONFIG | more)
        env = os.environ | training_environment() | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-m", "studio.worker", str(order)], env=env, cwd=order.parent, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{name}: {done.stderr[-3000:]}"
        events = [json.loads(line) for line in (order.parent / "events.jsonl").read_bytes().splitlines()]
        found[name] = Run(events, folder / "run-result")
        print(found[name].line(name), flush=True)
    return found


@pytest.mark.parametrize("name", ["Unsloth", "Unsloth, saving memory"])
def test_unsloth_learns_what_plain_peft_learns(runs: dict[str, Run], name: str) -> None:
    ours, plain = runs[name], runs["PEFT"]
    assert len(ours.losses) == STEPS and ours.last < 0.8 * ours.losses[0]
    assert ours.losses[0] == pytest.approx(plain.losses[0], rel=BF16)
    assert ours.last == pytest.approx(plain.last, rel=DRIFT)


def test_qlora_learns_what_plain_qlora_learns(runs: dict[str, Run]) -> None:
    ours, plain = runs["Unsloth, 4 bits"], runs["PEFT, 4 bits"]
    assert ours.last < 0.8 * ours.losses[0]
    assert ours.losses[0] == pytest.approx(plain.losses[0], rel=BF16)
    assert ours.last == pytest.approx(plain.last, rel=DRIFT)
    assert ours.losses != runs["Unsloth"].losses, "the base model was not quantized"


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("Unsloth")])
def test_unsloth_reads_rows_laid_end_to_end(runs: dict[str, Run], name: str) -> None:
    assert not [note for note in runs[name].notes if "padded" in note]
    assert all(step["padding"] == 0.0 and math.isfinite(step["grad_norm"]) for step in runs[name].steps)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("Unsloth")])
def test_what_unsloth_leaves_is_an_ordinary_adapter(runs: dict[str, Run], smollm2: Path, name: str) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(smollm2), runs[name].result)
    learnt = [float(parameter.norm()) for parameter_name, parameter in adapted.named_parameters() if "lora_B" in parameter_name]
    assert len(learnt) == 30 * 7 and min(learnt) > 0
