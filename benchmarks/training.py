"""The studio's training beside TRL's and LLaMA-Factory's, as they come: speed, memory, and the same loss, in one go.

    python benchmarks/training.py --model FOLDER --rows FILE --venvs FOLDER [--method lora|full|all] [--only NAME,NAME] [--steps 25]

FILE holds rows of instruction, input and output (alpaca's). Each trainer runs in a process of its own, one after another, and the
peers in venvs of their own, which are made with pip where `--venvs` does not hold them yet. All read the same rows in the same
order (the studio's own for the seed), eight at a time, cut at 512 tokens, in one epoch with a linearly falling learning rate.

Printed for each: real tokens (no pads) per second in the steps that were least disturbed, processor time per real token, peak
resident memory, the loss of every tenth step, and the held-out loss of what was saved, computed by one judge in fp32. Then the
ratios, each with its target. Processor time is the figure to compare on a machine that others use, too.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PEERS = Path(__file__).resolve().parent / "peers"
sys.path.insert(0, str(ROOT))

from studio.worker.host import training_environment  # noqa: E402

SEED, BATCH, LENGTH, RANK, ALPHA, HELD = 42, 8, 512, 16, 32, 64
RATES = {"lora": 2e-4, "full": 2e-5}
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
"""What SmolLM2's own chat template says first, which LLaMA-Factory's template of that name says otherwise."""
WARM_UP = 2
"""Steps that are not counted: they also make buffers and compiled products."""
OURS = "studio"
PLUGINS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("peft_lora", {"rank": RANK, "alpha": ALPHA}),
    "full": ("full_finetune", {"weights": "bf16"}),
}
PACKAGES = {
    "trl": ["trl==1.16.0", "transformers==5.17.0", "peft==0.21.2", "torch"],
    "llamafactory": ["llamafactory==0.9.5", "torch"],
}
SCRIPTS = {OURS: "studio_run.py", "trl": "trl_sft.py", "llamafactory": "llamafactory_sft.py"}
LOSS, HELD_LOSS = 1.0, 0.5
"""Per cent by which a training loss, and the held-out loss, may differ from TRL's."""


@dataclass(frozen=True)
class Target:
    """What the studio's figure over a peer's must reach."""

    peer: str
    figure: str
    bound: float
    at_most: bool = False


TARGETS = {
    "lora": [
        Target("trl", "speed", 4.0),
        Target("trl", "thrift", 4.0),
        Target("llamafactory", "speed", 3.0),
        Target("llamafactory", "thrift", 3.0),
        Target("trl", "peak", 0.6, at_most=True),
    ],
    "full": [Target("trl", "speed", 3.5), Target("trl", "thrift", 3.5)],
}
MOST_FULL_MEMORY = 4.5e9


@dataclass
class Trained:
    """What one trainer did."""

    speed: float
    """Real tokens per second of wall time, in the third of the steps that others disturbed least."""
    others: float
    """Processors that others kept busy in those steps."""
    thrift: float
    """Real tokens per second of processor time, over all counted steps."""
    peak: float
    """Bytes."""
    tokens: int
    slots: int
    losses: list[float]
    held: float = 0.0

    def line(self, name: str) -> str:
        tenth = ", ".join(f"{self.losses[step - 1]:.4f}" for step in range(10, len(self.losses) + 1, 10))
        return (
            f"{name:13} {self.speed:6.0f} tokens/s (others {self.others:.1f} cores)  {1000 / self.thrift:6.2f} CPU-ms/token  "
            f"{self.peak / 1e6:6.0f} MB  {self.tokens} tokens in {self.slots} slots  loss {tenth}  held out {self.held:.4f}"
        )


@dataclass
class Bench:
    """One go: the rows, and where everything lies."""

    model: Path
    venvs: Path
    work: Path
    steps: int
    trained: dict[str, dict[str, Trained]] = field(default_factory=dict)

    def write_rows(self, file: Path) -> None:
        """Training rows in the order that the studio reads them, as each trainer wants them, and held-out rows as tokens."""
        from studio.ml.batches import epoch_batches
        from studio.ml.tokens import encode_rows, load_tokenizer

        count = self.steps * BATCH
        rows = json.loads(file.read_text())[: count + HELD]
        if len(rows) < count + HELD:
            raise SystemExit(f"{count + HELD} rows are needed, {len(rows)} are there.")
        chats = [chat(row) for row in rows]
        encoded = [
            {"input_ids": row.ids, "labels": [token if learnt else -100 for token, learnt in zip(row.ids, row.supervised, strict=True)]}
            for row in encode_rows(load_tokenizer(self.model), chats, max_length=LENGTH)
        ]
        lengths = [len(row["input_ids"]) for row in encoded[:count]]
        batches = epoch_batches(lengths, batch_size=BATCH, seed=SEED, epoch=0, layout="flattened")
        order = [number for batch in batches for number in batch]
        self._write("chats.json", chats[:count])
        self._write("tokens.json", [encoded[number] for number in order])
        self._write("rows.json", [{**rows[number], "system": SYSTEM} for number in order])
        self._write("held.json", encoded[count:])

    def _write(self, name: str, content: Any) -> Path:
        file = self.work / name
        file.write_text(json.dumps(content))
        return file

    def python(self, name: str) -> Path:
        """The interpreter of a peer's venv, which is made where it is missing; our own for ours."""
        if name == OURS:
            return Path(sys.executable)
        folder = self.venvs / name
        python = folder / "bin" / "python"
        if not python.exists():
            print(f"Installing {name} into {folder}", flush=True)
            venv.create(folder, with_pip=True)
            packages = [*PACKAGES[name], *([str(self._no_audio())] if name == "llamafactory" else [])]
            subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
        return python

    def _no_audio(self) -> Path:
        """An empty package in torchaudio's place: LLaMA-Factory imports it always, and a build for the CPU's torch may not be had."""
        folder = self.work / "torchaudio-source"
        (folder / "torchaudio").mkdir(parents=True)
        (folder / "torchaudio" / "__init__.py").touch()
        (folder / "pyproject.toml").write_text(
            '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
            '[project]\nname = "torchaudio"\nversion = "2.13.0"\n[tool.setuptools]\npackages = ["torchaudio"]\n'
        )
        return folder

    def train(self, name: str, method: str) -> Trained:
        folder = self.work / f"{method}-{name}"
        folder.mkdir()
        plugin, more = PLUGINS[method]
        rate = RATES[method]
        common = {"learning_rate": rate, "batch_size": BATCH, "max_length": LENGTH, "seed": SEED}
        schedule = {"epochs": 1.0, "warmup": 0.0, "scheduler": "linear", "evaluate_every": self.steps, "save_every": 10 * self.steps}
        case = {
            **common,
            "method": method,
            "model": str(self.model),
            "steps": self.steps,
            "rank": RANK,
            "alpha": ALPHA,
            "plugin": plugin,
            "config": common | schedule | more,
            "out": str(folder / "out"),
            "result": str(folder / "result.json"),
            **{kind: str(self.work / f"{kind}.json") for kind in ("tokens", "rows", "chats")},
        }
        (folder / "case.json").write_text(json.dumps(case))
        print(f"{method}: {name} trains {self.steps} steps", flush=True)
        with (folder / "log.txt").open("wb") as log:
            command = [self.python(name), PEERS / SCRIPTS[name], folder / "case.json"]
            done = subprocess.run(command, cwd=folder, env=environment(), stdout=log, stderr=subprocess.STDOUT, check=False)
        if done.returncode:
            raise SystemExit(f"{name} failed:\n{(folder / 'log.txt').read_text(errors='replace')[-3000:]}")
        trained = summary(json.loads((folder / "result.json").read_text()))
        trained.held = self.judged(folder / "out")
        print(trained.line(name), flush=True)
        self.trained.setdefault(method, {})[name] = trained
        return trained

    def judged(self, folder: Path) -> float:
        command = [sys.executable, PEERS / "judge.py", self.model, folder, self.work / "held.json"]
        done = subprocess.run(command, env=environment(), capture_output=True, check=False, text=True)
        if done.returncode:
            raise SystemExit(f"What was saved cannot be judged:\n{done.stderr[-3000:]}")
        return float(done.stdout.split()[-1])


def chat(row: dict[str, str]) -> dict[str, Any]:
    question = row["instruction"] + (f"\n{row['input']}" if row["input"] else "")
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}]}


def environment() -> dict[str, str]:
    """The studio's own variables for all, so that nobody is slowed down by threads that spin, and no hub is asked."""
    return os.environ | training_environment() | {"HF_HUB_OFFLINE": "1"}


def summary(result: dict[str, Any]) -> Trained:
    steps = result["steps"][WARM_UP:]
    calm = sorted(steps, key=lambda step: step["others"])[: max(3, len(steps) // 3)]
    return Trained(
        speed=total(calm, "tokens") / total(calm, "wall"),
        others=statistics.mean(step["others"] for step in calm),
        thrift=total(steps, "tokens") / total(steps, "cpu"),
        peak=result["peak"],
        tokens=int(total(result["steps"], "tokens")),
        slots=int(total(result["steps"], "slots")),
        losses=result["losses"],
    )


def total(steps: list[dict[str, float]], name: str) -> float:
    return sum(step[name] for step in steps)


def verdicts(method: str, trained: dict[str, Trained]) -> list[tuple[bool, str]]:
    """(reached, sentence) for every target whose trainers ran."""
    if OURS not in trained:
        return []
    ours = trained[OURS]
    found = []
    for target in TARGETS[method]:
        if target.peer in trained:
            ratio = getattr(ours, target.figure) / getattr(trained[target.peer], target.figure)
            names = {"speed": "tokens per second", "thrift": "tokens per processor second", "peak": "peak memory"}
            reached = ratio <= target.bound if target.at_most else ratio >= target.bound
            side = "at most" if target.at_most else "at least"
            found.append((reached, f"{names[target.figure]}: {ratio:.2f} × {target.peer}'s ({side} {target.bound:g})"))
    if method == "full":
        found.append((ours.peak < MOST_FULL_MEMORY, f"peak memory: {ours.peak / 1e9:.2f} GB (below {MOST_FULL_MEMORY / 1e9:g})"))
    return [*found, *same_loss(ours, trained["trl"])] if "trl" in trained else found


def same_loss(ours: Trained, trl: Trained) -> list[tuple[bool, str]]:
    found = []
    for step in range(10, len(ours.losses) + 1, 10):
        off = 100 * (ours.losses[step - 1] / trl.losses[step - 1] - 1)
        found.append((abs(off) <= LOSS, f"loss at step {step}: {off:+.2f} % of trl's (within {LOSS:g} %)"))
    off = 100 * (ours.held / trl.held - 1)
    return [*found, (abs(off) <= HELD_LOSS, f"held-out loss: {off:+.2f} % of trl's (within {HELD_LOSS:g} %)")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of SmolLM2-135M-Instruct")
    parser.add_argument("--rows", type=Path, required=True, help="JSON: [{instruction, input, output}, ...]")
    parser.add_argument("--venvs", type=Path, default=Path("venvs"), help="where the peers are installed, or will be")
    parser.add_argument("--method", choices=["lora", "full", "all"], default="lora")
    parser.add_argument("--only", default=",".join(SCRIPTS), help="which trainers, by name: studio,trl,llamafactory")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--json", type=Path, help="also writes every step's figures there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="studio-training-") as temp:
        bench = Bench(options.model.resolve(), options.venvs.resolve(), Path(temp), options.steps)
        bench.write_rows(options.rows)
        for method in ["lora", "full"] if options.method == "all" else [options.method]:
            for name in options.only.split(","):
                bench.train(name, method)
    reached = True
    for method, trained in bench.trained.items():
        print(f"\n{method}")
        for name, each in trained.items():
            print(each.line(name))
        for passed, sentence in verdicts(method, trained):
            reached &= passed
            print(f"{'PASS' if passed else 'FAIL'}  {sentence}")
    if options.json:
        options.json.write_text(json.dumps(bench.trained, default=vars))
    sys.exit(0 if reached else 1)


if __name__ == "__main__":
    main()
