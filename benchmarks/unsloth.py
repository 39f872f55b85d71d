"""LoRA (Unsloth) beside Unsloth's own trainer and beside LoRA (PEFT), on a GPU: speed, memory, and the same loss, in one go.

    python benchmarks/unsloth.py --model FOLDER --rows FILE [--steps 60] [--quantization 4bit] [--on-cpu]

FILE holds rows of instruction, input and output (alpaca's). Each trains in a process of its own, one after another: the studio's
plugins as a worker does, Unsloth's SFTTrainer as Unsloth documents it. All read the same rows in the same order, eight at a time, cut
at 512 tokens, without padding, with the same fused AdamW, learning rate and adapter.

Printed for each: real tokens per second between the ends of two steps (their median), the most memory that torch reserved, and
losses. Then ratios to Unsloth's own trainer, each with its target. `--on-cpu` takes a processor instead, by Unsloth's switch for tests:
slow, without its kernels, and only to see that this file runs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # in this file's own folder, `import unsloth` would find this file

from studio.training import HostFacts  # noqa: E402
from studio.training.testing import Case, write_order  # noqa: E402
from studio.worker.host import host_facts, training_environment  # noqa: E402
from training_plugins.unsloth_lora import ON_CPU  # noqa: E402

SEED, BATCH, LENGTH, RANK, ALPHA, RATE = 42, 8, 512, 16, 32.0, 2e-4
WARM_UP = 10
"""Steps that are not counted: kernels are compiled and tuned in them."""
TARGETS = {"speed": (0.97, "at least"), "memory": (1.03, "at most")}
LOSS = 1.0
"""Per cent by which the mean of the last ten losses may differ."""
THEIRS = "unsloth's trainer"


@dataclass(frozen=True)
class Trained:
    """What one trainer did."""

    speed: float
    """Tokens per second."""
    memory: int
    """Bytes."""
    losses: list[float]

    @property
    def last(self) -> float:
        return statistics.mean(self.losses[-10:])

    def line(self, name: str) -> str:
        return f"{name:18} {self.speed:8.0f} tokens/s  {self.memory / 1e6:8.0f} MB  loss {self.losses[0]:.4f} … {self.last:.4f}"


@dataclass(frozen=True)
class HereCase(Case):
    """A case for this very machine."""

    on_cpu: bool = False

    @property
    def host(self) -> HostFacts:
        return host_facts(with_gpus=not self.on_cpu)


def chat(row: dict[str, str]) -> dict[str, Any]:
    question = row["instruction"] + (f"\n{row['input']}" if row["input"] else "")
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}]}


def config(steps: int, quantization: str) -> dict[str, Any]:
    return {
        "max_steps": steps,
        "batch_size": BATCH,
        "max_length": LENGTH,
        "rank": RANK,
        "alpha": ALPHA,
        "learning_rate": RATE,
        "scheduler": "linear",
        "warmup": 0.0,
        "weight_decay": 0.0,
        "seed": SEED,
        "quantization": quantization,
        "gradient_checkpointing": "on",
        "evaluate_every": steps,
        "save_every": 10 * steps,
    }


def train_ours(plugin: str, case: HereCase) -> Trained:
    """One of the studio's plugins, in a worker process."""
    order = write_order(HereCase(**vars(case) | {"plugin": plugin}), name=plugin, config={})
    run([sys.executable, "-m", "studio.worker", order], folder=order.parent, on_cpu=case.on_cpu)
    events = [json.loads(line) for line in (order.parent / "events.jsonl").read_bytes().splitlines()]
    steps = [event for event in events if event["type"] == "metric" and "loss" in event]
    ends = [(datetime.fromisoformat(event["at"]).timestamp(), event["tokens"]) for event in steps]
    return trained(ends, memory=max(event["memory"] for event in steps), losses=[event["loss"] for event in steps])


def train_theirs(case: HereCase) -> Trained:
    """Unsloth's own trainer, in a process of this file."""
    folder = case.folder / "theirs"
    folder.mkdir()
    file = folder / "case.json"
    file.write_text(json.dumps({"model": str(case.base), "rows": case.rows, "config": case.config, "on_cpu": case.on_cpu}))
    run([sys.executable, Path(__file__), "--child", file], folder=folder, on_cpu=case.on_cpu)
    result = json.loads((folder / "result.json").read_text())
    return trained(result["ends"], memory=result["memory"], losses=result["losses"])


def run(command: list[Any], *, folder: Path, on_cpu: bool) -> None:
    print(f"{folder.name} trains", flush=True)
    env = os.environ | training_environment() | {"PYTHONPATH": str(ROOT)} | ({ON_CPU: "1"} if on_cpu else {})
    with (folder / "output.txt").open("wb") as output:
        done = subprocess.run(list(map(str, command)), cwd=folder, env=env, stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        said = (folder / "output.txt").read_text(errors="replace").partition("\nnanobind: ")[0]  # what triton says of every exit
        raise SystemExit(f"{folder.name} failed:\n{said[-3000:]}")


def trained(ends: list[Any], *, memory: int, losses: list[float]) -> Trained:
    """`ends` holds when each step ended, in seconds, and the tokens read until then."""
    counted = ends[min(WARM_UP, len(ends) // 2) :]
    speeds = [(tokens - before) / (end - start) for (start, before), (end, tokens) in pairwise(counted)]
    return Trained(speed=statistics.median(speeds), memory=memory, losses=losses)


def child(file: Path) -> None:
    """Trains with Unsloth's SFTTrainer, told everything: what it leaves to itself differs from TRL's and from release to release."""
    case = json.loads(file.read_text())
    settings, on_cpu = case["config"], case["on_cpu"]
    from studio.ml import unsloth

    unsloth.start(file.parent, on_cpu=on_cpu)
    os.environ["UNSLOTH_RETURN_LOGITS"] = "0"  # its trainer is at its best without them
    if on_cpu:
        patch_trainer_without_gpu()
    import torch
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from studio.ml.device import peak_memory
    from studio.ml.loading import Arithmetic
    from studio.ml.tokens import load_tokenizer

    base = Path(case["model"])
    arithmetic = Arithmetic(device=torch.device("cpu" if on_cpu else "cuda"), bf16=not on_cpu)
    tokenizer = load_tokenizer(base)
    rows = tokens_in_order(case["rows"], tokenizer, settings)
    lengths = [len(row["input_ids"]) for row in rows]
    model = unsloth.load_model(
        base,
        arithmetic=arithmetic,
        max_length=LENGTH,
        quantization=settings["quantization"],
        checkpointing=True,
        seed=SEED,
    )
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = unsloth.family(arithmetic.device).get_peft_model(
        model,
        **unsloth.adapter_arguments(
            device=arithmetic.device,
            targets=targets,
            rank=RANK,
            alpha=ALPHA,
            dropout=0.0,
            rslora=False,
            checkpointing=True,
            seed=SEED,
            work=file.parent,
        ),
    )

    class InOrder(SFTTrainer):
        def _get_train_sampler(self, dataset: Any = None) -> SequentialSampler:
            return SequentialSampler(self.train_dataset if dataset is None else dataset)

    class Watch(TrainerCallback):
        def __init__(self) -> None:
            self.ends: list[tuple[float, int]] = []
            self.losses: list[float] = []

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
            if "loss" in logs:  # to know it the trainer has waited for the device
                self.losses.append(float(logs["loss"]))
                self.ends.append((time.time(), sum(lengths[: state.global_step * BATCH])))

    watch = Watch()
    trainer = InOrder(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows),
        callbacks=[watch],
        args=SFTConfig(
            output_dir=str(file.parent / "out"),
            max_steps=settings["max_steps"],
            per_device_train_batch_size=BATCH,
            gradient_accumulation_steps=1,
            learning_rate=RATE,
            lr_scheduler_type="linear",
            warmup_steps=0,
            weight_decay=0.0,
            max_grad_norm=1.0,
            optim="adamw_torch_fused",
            bf16=arithmetic.bf16,
            fp16=False,
            use_cpu=on_cpu,
            max_length=LENGTH,
            packing=False,
            padding_free=True,
            dataset_num_proc=1,
            logging_steps=1,
            save_strategy="no",
            eval_strategy="no",
            report_to=[],
            seed=SEED,
            disable_tqdm=True,
        ),
    )
    trainer.train()
    result = {"ends": watch.ends, "losses": watch.losses, "memory": peak_memory(arithmetic.device)}
    (file.parent / "result.json").write_text(json.dumps(result))


def tokens_in_order(rows: list[dict[str, Any]], tokenizer: Any, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The training rows as tokens and labels, in the order in which the studio's loop reads them."""
    from studio.ml.batches import epoch_batches
    from studio.ml.tokens import encode_rows

    encoded = [
        {"input_ids": row.ids, "labels": [token if learnt else -100 for token, learnt in zip(row.ids, row.supervised, strict=True)]}
        for row in encode_rows(tokenizer, rows, max_length=settings["max_length"])
    ]
    training = [row for number, row in enumerate(encoded) if number % 10]  # every tenth is for validation
    lengths = [len(row["input_ids"]) for row in training]
    batches = epoch_batches(lengths, batch_size=BATCH, seed=settings["seed"], epoch=0, layout="flattened")
    return [training[number] for batch in batches for number in batch]


def patch_trainer_without_gpu() -> None:
    """On a CPU Unsloth leaves TRL as it is; told to change it all the same, its trainer runs there, which TRL's own does not."""
    from unsloth.models.rl import PatchFastRL
    from unsloth.trainer import _patch_trl_trainer

    del os.environ["UNSLOTH_ALLOW_CPU"]
    PatchFastRL()
    _patch_trl_trainer()


def verdicts(ours: Trained, theirs: Trained) -> list[tuple[bool, str]]:
    """(reached, sentence) for every target."""
    found = []
    for figure, (bound, side) in TARGETS.items():
        ratio = getattr(ours, figure) / getattr(theirs, figure)
        reached = ratio >= bound if side == "at least" else ratio <= bound
        found.append((reached, f"{figure}: {ratio:.3f} × that of Unsloth's trainer ({side} {bound:g})"))
    off = 100 * (ours.last / theirs.last - 1)
    return [*found, (abs(off) <= LOSS, f"loss: {off:+.2f} % of that of Unsloth's trainer (within {LOSS:g} %)")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a base model")
    parser.add_argument("--rows", type=Path, help="JSON: [{instruction, input, output}, ...]")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--quantization", choices=["none", "4bit", "8bit"], default="none")
    parser.add_argument("--on-cpu", action="store_true")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options.child)
    if not (options.model and options.rows):
        parser.error("--model and --rows are needed")
    measure(options)


def measure(options: argparse.Namespace) -> None:
    from studio.ml.modelfacts import read_model_facts

    count = options.steps * BATCH * 10 // 9 + 10
    rows = [chat(row) for row in json.loads(options.rows.read_text())[:count]]
    if len(rows) < count:
        raise SystemExit(f"{count} rows are needed, {len(rows)} are there.")
    base = options.model.resolve()
    with tempfile.TemporaryDirectory(prefix="studio-unsloth-") as temp:
        case = HereCase(
            plugin="",
            folder=Path(temp),
            base=base,
            model=read_model_facts(base),
            rows=rows,
            config=config(options.steps, options.quantization),
            on_cpu=options.on_cpu,
        )
        found = {
            "LoRA (Unsloth)": train_ours("unsloth_lora", case),
            THEIRS: train_theirs(case),
            "LoRA (PEFT)": train_ours("peft_lora", case),
        }
    for name, each in found.items():
        print(each.line(name))
    reached = True
    for passed, sentence in verdicts(found["LoRA (Unsloth)"], found[THEIRS]):
        reached &= passed
        print(f"{'PASS' if passed else 'FAIL'}  {sentence}")
    sys.exit(0 if reached else 1)


if __name__ == "__main__":
    main()
