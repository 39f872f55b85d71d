"""How much of a full fine-tuning an adapter keeps that is taken out of it, at each rank: the kept share, the size and the seconds.

    python benchmarks/extraction.py --model FOLDER --rows FILE [--trained FOLDER] [--steps 60] [--ranks 4,8,16,32,64,128,0]

FOLDER is a base model such as SmolLM2-135M-Instruct; FILE holds rows in any spelling that the studio reads. Every fifth is held out.
Without --trained the model is first trained on the others, with every weight; --trained names a model that was, on the very same rows.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from studio.ml import extracting  # noqa: E402
from studio.ml.modelfacts import read_model_facts  # noqa: E402
from studio.training import DatasetFacts, Job  # noqa: E402
from studio.training.registry import find  # noqa: E402
from studio.worker.host import host_facts  # noqa: E402

LENGTH, RATE, BATCH, HELD_OUT = 256, 5e-5, 4, 5


class Told(Job):
    """Says what it does, and hands over the rows."""

    def __init__(self, folder: Path, base: Path, rows: list[dict[str, Any]]):
        self.base, self.model = base, read_model_facts(base, base.name)
        self._rows = rows
        validation = len(rows[::HELD_OUT])
        counts = {"rows": len(rows), "train": len(rows) - validation, "validation": validation}
        self.data = DatasetFacts(name="rows", shape="chat", **counts)
        self.host = host_facts(with_gpus=False)
        self.prompts = []
        self.out, self.work, self.checkpoints = folder / "out", folder / "work", folder / "checkpoints"
        for made in (self.out, self.work):
            made.mkdir(parents=True)

    def rows(self, split: Literal["train", "validation"]) -> Iterator[dict[str, Any]]:
        for number, row in enumerate(self._rows):
            if (number % HELD_OUT == 0) == (split == "validation"):
                yield row

    def phase(self, name: Any, text: str = "") -> None:
        sys.stderr.write(f"{time.strftime('%H:%M:%S')} {name}: {text}\n")

    def metric(self, *, step: int, total: int, **values: float) -> None:
        if "loss" in values:
            sys.stderr.write(f"step {step} of {total}: {values['loss']:.3f}\n")

    def note(self, text: str, *, level: Literal["info", "warning"] = "info") -> None:
        sys.stderr.write(f"{level}: {text}\n")

    def stopping(self) -> bool:
        return False

    def progress(self, done: float, total: float, unit: str = "") -> None: ...
    def sample(self, *, step: int, prompt: str, answer: str) -> None: ...
    def checkpoint(self, *, step: int, folder: Path) -> None: ...


def read(file: Path, *, count: int) -> list[dict[str, Any]]:
    from studio.datasets.shapes import Converter, detect

    text = file.read_text()
    rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines() if line.strip()]
    converter = Converter(detect(rows[:20]))
    return [converter.row(row) for row in rows[:count]]


def stored(rows: list[dict[str, Any]], path: Path) -> Path:
    """As a version keeps them."""
    import pyarrow
    import pyarrow.parquet

    splits = ["train" if number % HELD_OUT else "validation" for number in range(len(rows))]
    hashes = pyarrow.array(range(len(rows)), pyarrow.uint64())
    texts = [json.dumps(row) for row in rows]
    pyarrow.parquet.write_table(pyarrow.table({"split": splits, "hash": hashes, "row": texts}), path)
    return path


def trained(work: Path, base: Path, rows: list[dict[str, Any]], *, steps: int) -> Path:
    plugin = find("full_finetune")
    settings = {"max_steps": steps, "batch_size": BATCH, "max_length": LENGTH, "learning_rate": RATE, "evaluate_every": steps}
    job = Told(work / "full", base, rows)
    plugin.train(plugin.Config(**settings), job)
    return job.out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--trained", type=Path)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--ranks", default="4,8,16,32,64,128,0")
    parser.add_argument("--tables", action="store_true", help="keep changed tables of words whole")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work, rows = Path(folder), read(told.rows, count=told.count)
        model = told.trained or trained(work, told.model, rows, steps=told.steps)
        payload = {
            "name": "The model",
            "base": str(told.model),
            "source": str(model),
            "model": read_model_facts(told.model, told.model.name).model_dump(),
            "ranks": [int(rank) for rank in told.ranks.split(",")],
            "tables": told.tables,
            "rows": str(stored(rows, work / "rows.parquet")),
            "state": str(work / "state"),
        }
        started = time.monotonic()
        facts = extracting.run(payload, Told(work / "extraction", told.model, rows))
        show(facts, seconds=time.monotonic() - started)


def show(facts: dict[str, Any], *, seconds: float) -> None:
    lines = [
        f"{facts['rows']} held-out rows: base {facts['base_loss']:.4f}, full {facts['full_loss']:.4f}; {seconds:.0f} s in all",
        "outside of linear layers: " + ", ".join(f"{each['part']} {each['share']:.2%}" for each in facts["rest"]),
        "| rank | kept | 95 % | change held | size | of the model |",
        "|---|---|---|---|---|---|",
    ]
    for each in facts["ranks"]:
        kept = f"{each['kept']:.1%}" if each["kept"] is not None else each["why"]
        interval = f"{each['low']:.1%} to {each['high']:.1%}" if each["low"] is not None else ""
        size = f"{each['size'] / 1e6:.1f} MB | {each['size'] / facts['source_size']:.1%}"
        lines.append(f"| {each['rank'] or 'full'} | {kept} | {interval} | {each['energy']:.1%} | {size} |")
    sys.stdout.write("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
