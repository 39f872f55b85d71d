"""What the advisor forecasts for short runs of each method, against what they took: one process for each of ten configurations.

    python benchmarks/advisor.py --model FOLDER [--only TEXT]

FOLDER is SmolLM2-135M. The forecasts are the advisor's own, asked as its page asks it: base, rows, worker, method, and what an arm of a
comparison fixes beside that (max length, batch, steps). Memory is the highest resident memory of the process (VmHWM), time is that of the
plugin's whole training: loading, steps, evaluations, writing. QLoRA takes part where bitsandbytes is installed; where it is not, LoRA and
DoRA take its places. Wants a quiet machine; takes about six minutes on two cores.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from memory import ROWS, SilentJob, highest_resident, made_up, token_facts  # noqa: E402
from memory import Case as Rows  # noqa: E402

from studio.training import DatasetFacts  # noqa: E402
from studio.training.advisor import Way, on_host  # noqa: E402
from studio.training.facts import HostFacts  # noqa: E402
from studio.training.registry import find  # noqa: E402
from studio.worker.host import host_facts, training_environment  # noqa: E402

WANTED = 9
"""Of ten configurations, those whose memory and time are both to lie within the forecast."""
LORA, FULL = "peft_lora", "full_finetune"
QLORA, DORA = {"quantization": "4bit"}, {"variant": "dora"}


@dataclass(frozen=True)
class Arm:
    name: str
    plugin: str
    length: int
    batch: int
    steps: int
    settings: dict[str, Any]

    @property
    def way(self) -> Way:
        budget = {"max_length": self.length, "batch_size": self.batch, "max_steps": self.steps, "evaluate_every": self.steps}
        plain = {"quantization": "none", "variant": "lora"} if self.plugin == LORA else {}
        return Way(self.name, self.name, self.plugin, plain | self.settings | budget)


ARMS = (
    Arm("LoRA, 1 × 128", LORA, 128, 1, 24, {}),
    Arm("LoRA, 8 × 128", LORA, 128, 8, 8, {}),
    Arm("LoRA, 4 × 512, rank 64", LORA, 512, 4, 4, {"rank": 64, "alpha": 128.0}),
    Arm("LoRA, 2 × 1024", LORA, 1024, 2, 4, {}),
    Arm("full, 1 × 128", FULL, 128, 1, 16, {}),
    Arm("full, 8 × 128", FULL, 128, 8, 6, {}),
    Arm("full, 4 × 512", FULL, 512, 4, 4, {}),
    Arm("full, bf16, 1 × 1024", FULL, 1024, 1, 6, {"weights": "bf16"}),
)
FOUR_BITS = (Arm("QLoRA, 4 × 128", LORA, 128, 4, 8, QLORA), Arm("QLoRA, 2 × 512", LORA, 512, 2, 6, QLORA))
INSTEAD = (Arm("DoRA, 4 × 128", LORA, 128, 4, 8, DORA), Arm("LoRA, 8 × 512", LORA, 512, 8, 3, {}))


def arms(host: HostFacts) -> tuple[Arm, ...]:
    return ARMS + (FOUR_BITS if "bitsandbytes" in host.packages else INSTEAD)


def run(arm: Arm, base: Path, host: HostFacts) -> dict[str, Any]:
    """In a process of its own: what was forecast, and what it came to."""
    from studio.ml.modelfacts import read_model_facts

    plugin, model = find(arm.plugin), read_model_facts(base, "SmolLM2")
    with tempfile.TemporaryDirectory(prefix="advisor_") as name:
        folder = Path(name)
        rows = made_up(
            Rows(arm.name, LORA, {"max_length": arm.length, "batch_size": arm.batch}, lengths="mixed" if arm.length < 512 else "equal")
        )
        tokens = token_facts(rows, base, folder)
        data = DatasetFacts(name="made up", shape="chat", rows=ROWS, train=ROWS, validation=4, tokens=tokens)
        fit = on_host(arm.way, plugin, model, data, host, prices={}, corrected=lambda plugin, worker, estimate: estimate)
        if fit.verdict != "fits" or fit.estimate is None:
            raise SystemExit(f"{arm.name}: {fit.verdict}. {fit.why}")
        job = SilentJob(folder, base=base, model=model, data=data, host=host, rows=rows)
        began = time.perf_counter()
        plugin.train(plugin.Config(**fit.settings), job)
        return {"estimate": fit.estimate.model_dump(), "memory": highest_resident(), "seconds": time.perf_counter() - began}


def in_a_process(arm: Arm, base: Path, host: HostFacts) -> dict[str, Any]:
    command = [sys.executable, __file__, "--model", str(base), "--arm", arm.name, "--host", host.model_dump_json()]
    done = subprocess.run(command, env={**os.environ, **training_environment()}, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of SmolLM2-135M")
    parser.add_argument("--only", default="", help="configurations whose name has this in it")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--host", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        host = HostFacts.model_validate_json(options.host)
        print(json.dumps(run(next(arm for arm in arms(host) if arm.name == options.arm), options.model, host)))
        return
    host = host_facts(with_gpus=False)
    print(f"{host.cpus} cores, {host.gflops:.0f} GFLOP/s\n")
    print("| configuration | memory forecast | measured | ratio | time forecast | measured | ratio | within |")
    print("|---|---|---|---|---|---|---|---|")
    within = tried = 0
    for arm in (arm for arm in arms(host) if options.only in arm.name):
        found = in_a_process(arm, options.model, host)
        memory, seconds = found["estimate"]["memory"], found["estimate"]["seconds"]
        fits = memory["low"] <= found["memory"] <= memory["high"], seconds["low"] <= found["seconds"] <= seconds["high"]
        tried, within = tried + 1, within + all(fits)
        parts = sum(memory[name] for name in ("weights", "adapter", "gradients", "optimizer", "activations", "logits", "overhead"))
        middle = (seconds["low"] * seconds["high"]) ** 0.5
        named = " and ".join(name for name, fit in zip(("memory", "time"), fits, strict=True) if fit) or "neither"
        print(
            f"| {arm.name} | {memory['low'] / 1e6:,.0f} – {memory['high'] / 1e6:,.0f} MB | {found['memory'] / 1e6:,.0f} MB"
            f" | {found['memory'] / parts:.2f} | {seconds['low']:.0f} – {seconds['high']:.0f} s | {found['seconds']:.0f} s"
            f" | {found['seconds'] / middle:.2f} | {named} |",
            flush=True,
        )
    print(f"\n{within} of {tried} within both ranges (at least {WANTED} of 10)")


if __name__ == "__main__":
    main()
