"""What runs take, against what the form said beforehand: one process for each of a set of configurations.

    python benchmarks/memory.py --model FOLDER [--steps 2] [--only TEXT]

FOLDER is SmolLM2-135M; the other base models are random ones, made on the spot with its tokenizer. Each configuration runs through
its plugin in a process of its own, on made-up rows of mixed or of equal length. Measured is the highest resident memory of
the process (VmHWM), with Python and torch in it, as a worker's memory is used up by it. The estimate is asked as the form asks it:
with the facts of the model's headers and the rows' lengths, before anything is loaded.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from studio.training import DatasetFacts, Job  # noqa: E402
from studio.training.facts import HostFacts, ModelFacts, TokenFacts  # noqa: E402
from studio.training.registry import find  # noqa: E402
from studio.worker.host import host_facts, training_environment  # noqa: E402

MEDIAN, WORST = 5.0, 12.0
"""Per cent: how far off the estimates may be."""
WORDS = ("order", "shop", "letter", "garden", "window", "summer", "answer", "river", "paper", "number", "morning", "kitchen", "music")
ROWS = 64


@dataclass(frozen=True)
class Shape:
    """A random model: what is not given is as in SmolLM2."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int = 49152
    tied: bool = True


MODELS = {
    "wide": Shape(hidden=1024, intermediate=3072, layers=6, heads=16, kv_heads=4),
    "deep": Shape(hidden=384, intermediate=1024, layers=40, heads=6, kv_heads=6),
    "wordy": Shape(hidden=512, intermediate=1536, layers=12, heads=8, kv_heads=2, vocabulary=128_000, tied=False),
}


@dataclass(frozen=True)
class Case:
    name: str
    plugin: Literal["peft_lora", "full_finetune"]
    config: dict[str, Any] = field(default_factory=dict)
    model: str = "smollm2"
    lengths: Literal["mixed", "equal"] = "equal"
    shape: Literal["chat", "preference"] = "chat"


ON, OFF = {"gradient_checkpointing": "on"}, {"gradient_checkpointing": "off"}
BF16, FP32 = {"precision": "bf16"}, {"precision": "fp32"}
CASES = (
    Case("LoRA, bf16, 8 × mixed", "peft_lora", BF16 | OFF | {"batch_size": 8, "max_length": 512}, lengths="mixed"),
    Case("LoRA, bf16, 4 × 512", "peft_lora", BF16 | OFF | {"batch_size": 4, "max_length": 512}),
    Case("LoRA, bf16, 2 × 1024, 2 added up", "peft_lora", BF16 | OFF | {"batch_size": 2, "max_length": 1024, "gradient_accumulation": 2}),
    Case("full, mixed, 4 × 256", "full_finetune", BF16 | OFF | {"batch_size": 4, "max_length": 256}),
    Case("full, bf16, 4 × 256", "full_finetune", OFF | {"weights": "bf16", "batch_size": 4, "max_length": 256}),
    Case("LoRA, bf16, checkpointing, 4 × 512", "peft_lora", BF16 | ON | {"batch_size": 4, "max_length": 512}),
    Case("full, mixed, checkpointing, 4 × 512", "full_finetune", BF16 | ON | {"batch_size": 4, "max_length": 512}),
    Case("LoRA, fp32, 4 × 256", "peft_lora", FP32 | OFF | {"batch_size": 4, "max_length": 256}),
    Case("full, fp32, 2 × 256", "full_finetune", FP32 | OFF | {"batch_size": 2, "max_length": 256}),
    Case("LoRA, bf16, wide, 4 × 512", "peft_lora", BF16 | OFF | {"batch_size": 4, "max_length": 512}, model="wide"),
    Case("LoRA, bf16, wordy, 4 × 256", "peft_lora", BF16 | OFF | {"batch_size": 4, "max_length": 256}, model="wordy"),
    Case("full, mixed, deep, 4 × 256", "full_finetune", BF16 | OFF | {"batch_size": 4, "max_length": 256}, model="deep"),
    Case("full, mixed, wordy, 4 × 256", "full_finetune", BF16 | OFF | {"batch_size": 4, "max_length": 256}, model="wordy"),
    Case("DoRA, bf16, 4 × 256", "peft_lora", BF16 | OFF | {"batch_size": 4, "max_length": 256, "variant": "dora"}),
    Case("LoRA, bf16, rank 128, 4 × 256", "peft_lora", BF16 | OFF | {"batch_size": 4, "max_length": 256, "rank": 128}),
    Case(
        "full, mixed, 4 × 256, 2 added up", "full_finetune", BF16 | OFF | {"batch_size": 4, "max_length": 256, "gradient_accumulation": 2}
    ),
    Case("full, bf16, checkpointing, 2 × 1024", "full_finetune", ON | {"weights": "bf16", "batch_size": 2, "max_length": 1024}),
    Case("LoRA, bf16, dropout, 4 × 256", "peft_lora", BF16 | OFF | {"batch_size": 4, "max_length": 256, "dropout": 0.1}),
    Case("LoRA, bf16, q and v, 4 × 512", "peft_lora", BF16 | OFF | {"batch_size": 4, "max_length": 512, "targets": ["q_proj", "v_proj"]}),
    Case(
        "full, mixed, upper half, 4 × 256",
        "full_finetune",
        BF16 | OFF | {"batch_size": 4, "max_length": 256, "freeze_embeddings": True, "freeze_layers": 15},
    ),
    Case("LoRA, bf16, DPO, 4 × 128", "peft_lora", BF16 | OFF | {"batch_size": 4, "max_length": 128}, shape="preference"),
    Case("full, mixed, 8 × mixed", "full_finetune", BF16 | OFF | {"batch_size": 8, "max_length": 512}, lengths="mixed"),
)


class SilentJob(Job):
    """Hands over the rows and keeps silent."""

    def __init__(self, folder: Path, *, base: Path, model: ModelFacts, data: DatasetFacts, host: HostFacts, rows: list[dict[str, Any]]):
        self.base, self.model, self.data, self.host, self.prompts, self._rows = base, model, data, host, [], rows
        self.work, self.out, self.checkpoints = folder / "work", folder / "out", folder / "checkpoints"
        self.work.mkdir(parents=True)
        self.out.mkdir()

    def rows(self, split: Literal["train", "validation"]) -> Iterator[dict[str, Any]]:
        yield from self._rows if split == "train" else self._rows[: self.data.validation]

    def stopping(self) -> bool:
        return False

    def phase(self, name: Any, text: str = "") -> None: ...
    def progress(self, done: float, total: float, unit: str = "") -> None: ...
    def metric(self, *, step: int, total: int, **values: float) -> None: ...
    def sample(self, *, step: int, prompt: str, answer: str) -> None: ...
    def checkpoint(self, *, step: int, folder: Path) -> None: ...
    def note(self, text: str, *, level: Literal["info", "warning"] = "info") -> None: ...


def made_up(case: Case) -> list[dict[str, Any]]:
    """Rows of about 30 to 700 tokens where lengths are mixed, else all longer than they may be, so that they are cut to one length."""
    source = random.Random(0)
    most = case.config["max_length"]

    def said(tokens: float) -> str:
        return " ".join(source.choice(WORDS) for _ in range(round(tokens)))

    rows = []
    for _ in range(ROWS):
        tokens = min(700.0, 30 + source.lognormvariate(4.6, 0.8)) if case.lengths == "mixed" else most * 1.1
        question = [{"role": "user", "content": said(tokens * 0.25)}]
        if case.shape == "preference":
            better, worse = ([{"role": "assistant", "content": said(tokens * 0.85)}] for _ in range(2))
            rows.append({"prompt": question, "chosen": better, "rejected": worse})
        else:
            rows.append({"messages": [*question, {"role": "assistant", "content": said(tokens * 0.85)}]})
    return rows


def token_facts(rows: list[dict[str, Any]], base: Path, folder: Path) -> TokenFacts:
    import pyarrow
    import pyarrow.parquet

    from studio.ml.tokenstats import measure

    path = folder / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"split": ["train"] * len(rows), "row": [json.dumps(row) for row in rows]}), path)
    return TokenFacts.model_validate(measure(path, base))


def random_model(shape: Shape, *, like: Path, folder: Path) -> Path:
    """A random Llama of this shape with the tokenizer of `like`."""
    import shutil

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=shape.tied,
    )
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    for path in like.iterdir():
        if "token" in path.name or "template" in path.name or path.name in ("vocab.json", "merges.txt"):
            shutil.copy(path, folder)
    return folder


def run(case: Case, base: Path, *, steps: int) -> dict[str, Any]:
    """In a process of its own: what was foreseen, and what it came to."""
    from studio.ml.modelfacts import read_model_facts

    plugin = find(case.plugin)
    with tempfile.TemporaryDirectory(prefix="memory_") as name:
        folder = Path(name)
        rows = made_up(case)
        data = DatasetFacts(name="made up", shape=case.shape, rows=ROWS, train=ROWS, validation=4, tokens=token_facts(rows, base, folder))
        job = SilentJob(folder, base=base, model=read_model_facts(base, case.model), data=data, host=host_facts(with_gpus=False), rows=rows)
        config = plugin.Config(**case.config, max_steps=steps, evaluate_every=steps)
        estimate = plugin.estimate(config, job.model, job.data, job.host)
        started = time.perf_counter()
        plugin.train(config, job)
        return {"estimate": estimate.model_dump(), "measured": highest_resident(), "seconds": time.perf_counter() - started}


def highest_resident() -> int:
    """Bytes of this process at its peak, as the kernel counted them."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10


def in_a_process(case: Case, base: Path, *, steps: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--model", str(base), "--steps", str(steps), "--case", case.name]
    done = subprocess.run(command, env={**os.environ, **training_environment()}, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of SmolLM2-135M")
    parser.add_argument("--steps", type=int, default=2, help="the first has no optimizer state yet")
    parser.add_argument("--only", default="", help="configurations whose name has this in it")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        case = next(case for case in CASES if case.name == options.case)
        print(json.dumps(run(case, options.model, steps=options.steps)))
        return
    errors = []
    print("| configuration | foreseen | measured | error | parts in MB (weights, adapter, gradients, optimizer, activations, logits) |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="models_") as folder:
        models = {"smollm2": options.model}
        for case in (case for case in CASES if options.only in case.name):
            if case.model not in models:
                models[case.model] = random_model(MODELS[case.model], like=options.model, folder=Path(folder, case.model))
            found = in_a_process(case, models[case.model], steps=options.steps)
            memory, measured = found["estimate"]["memory"], found["measured"]
            names = ("weights", "adapter", "gradients", "optimizer", "activations", "logits", "overhead")
            foreseen = sum(memory[name] for name in names)
            errors.append(100 * (foreseen / measured - 1))
            parts = ", ".join(f"{memory[name] / 1e6:.0f}" for name in names[:-1])
            print(f"| {case.name} | {foreseen / 1e6:,.0f} MB | {measured / 1e6:,.0f} MB | {errors[-1]:+.1f} % | {parts} |", flush=True)
    off = [abs(error) for error in errors]
    print(f"\nmedian {statistics.median(off):.1f} % (at most {MEDIAN:.0f}), worst {max(off):.1f} % (at most {WORST:.0f})")


if __name__ == "__main__":
    main()
