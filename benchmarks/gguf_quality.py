"""What each quantization costs and loses: size, seconds, KL to the merged model, equal greedy answers, speed in llama.cpp.

    python benchmarks/gguf_quality.py --base DIR [--adapter DIR | --random lora|rslora|dora] [--types f16,bf16,q8_0,q4_k_m]

Without --adapter the base is measured as it is; --random makes a rank-16 adapter with random weights for the occasion.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from studio.ml.gguf.exporting import export
from studio.ml.gguf.recipes import RECIPES
from studio.ml.gguf.verifying import verify
from studio.training.job import Job, Phase

COLUMNS = ("type", "MB", "seconds", "CPU s", "mean KL", "max KL", "perplexity", "greedy", "undecided", "tokens/s", "passed")


class SilentJob(Job):
    """A job without anybody to report to; warnings go to standard error."""

    def __init__(self, work: Path):
        self.work = work

    def rows(self, split: Literal["train", "validation"]) -> Iterator[dict[str, Any]]:
        return iter(())

    def stopping(self) -> bool:
        return False

    def phase(self, name: Phase, text: str = "") -> None: ...

    def progress(self, done: float, total: float, unit: str = "") -> None: ...

    def metric(self, *, step: int, total: int, **values: float) -> None: ...

    def sample(self, *, step: int, prompt: str, answer: str) -> None: ...

    def checkpoint(self, *, step: int, folder: Path) -> None: ...

    def note(self, text: str, *, level: Literal["info", "warning"] = "info") -> None:
        sys.stderr.write(f"{text}\n")


def random_adapter(base: Path, folder: Path, *, kind: str) -> Path:
    """Rank 16 on every linear layer, with B about as large as a short training makes it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True, use_safetensors=True)
    settings = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", use_rslora=kind == "rslora", use_dora=kind == "dora")
    adapted = get_peft_model(model, settings)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.002)
    adapted.save_pretrained(str(folder))
    return folder


def measured(*, base: Path, adapter: Path | None, quantization: str, folder: Path) -> tuple[str, ...]:
    path = folder / f"{quantization}.gguf"
    wall, cpu = time.perf_counter(), _cpu()
    made = export(base=base, adapter=adapter, quantization=quantization, target=path, name="benchmark", threads=2)
    wall, cpu = time.perf_counter() - wall, _cpu() - cpu
    found = verify(gguf=path, base=base, adapter=adapter, quantization=quantization, rows=[], job=SilentJob(folder))
    path.unlink()
    if not found["loads"]:
        return (quantization, f"{int(str(made['size'])) / 1e6:.1f}", f"{wall:.2f}", f"{cpu:.2f}", *["-"] * 6, found["reasons"][0])
    return (
        quantization,
        f"{int(str(made['size'])) / 1e6:.1f}",
        f"{wall:.2f}",
        f"{cpu:.2f}",
        f"{found['mean_kl']:.2e}",
        f"{found['max_kl']:.2e}",
        f"{found['perplexity']:.2f} ({found['perplexity_reference']:.2f})",
        f"{found['greedy_equal']}/{found['greedy_prompts']}",
        str(found["greedy_undecided"]),
        f"{found['tokens_per_second']:.0f}",
        "yes" if found["passed"] else " ".join(found["reasons"]),
    )


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description="Size, time and loss of each quantization")
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--random", choices=["lora", "rslora", "dora"])
    parser.add_argument("--types", default=",".join(RECIPES))
    options = parser.parse_args()
    sys.stdout.write(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n")
    with tempfile.TemporaryDirectory(prefix="gguf-") as name:
        folder = Path(name)
        adapter = random_adapter(options.base, folder / "adapter", kind=options.random) if options.random else options.adapter
        for quantization in options.types.split(","):
            row = measured(base=options.base, adapter=adapter, quantization=quantization, folder=folder)
            sys.stdout.write(f"| {' | '.join(row)} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
