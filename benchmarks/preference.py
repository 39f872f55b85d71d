"""The studio's preference losses beside TRL's, on the same pairs in the same order: the loss of every step, processor time and memory.

    python benchmarks/preference.py --model FOLDER --rows FILE --venvs FOLDER [--kinds dpo,simpo] [--steps 8]

FILE holds pairs in any spelling that the studio reads. TRL runs in the venv that benchmarks/training.py makes. Two losses are left out,
for TRL reads another thing there: its KTO is fed single answers with a thumb up or down, and its ORPO learns the question as well as
the better answer, where the paper's formula (and ours) is of the answer alone. Both are held against their formulas in tests.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from training import ALPHA, OURS, PEERS, RANK, SEED, Bench, environment  # noqa: E402

BATCH, LENGTH, RATE = 4, 256, 1e-4
SCRIPTS = {OURS: "studio_run.py", "trl": "trl_preference.py"}
APART = 1.0
"""Per cent by which the mean loss of the steps may differ."""


def pairs(file: Path, model: Path, *, count: int) -> list[dict[str, Any]]:
    """The first `count` pairs whose both answers end within LENGTH tokens, so that nobody cuts any."""
    from studio.datasets.shapes import Converter, detect
    from studio.ml.tokens import both_answers, encode_rows, load_tokenizer

    rows = json.loads(file.read_text())
    converter, tokenizer = Converter(detect(rows[:20])), load_tokenizer(model)

    def fitting() -> Iterator[dict[str, Any]]:
        for row in map(converter.row, rows):
            if not any(encoded.cut for encoded in encode_rows(tokenizer, both_answers(row), max_length=LENGTH)):
                yield row

    found = [row for row, _ in zip(fitting(), range(count), strict=False)]
    if len(found) < count:
        raise SystemExit(f"{count} short pairs are needed, {len(found)} are there.")
    return found


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    from studio.ml.batches import epoch_batches

    batches = epoch_batches([1] * len(rows), batch_size=BATCH, seed=SEED, epoch=0, layout="flattened")
    return [rows[number] for batch in batches for number in batch]


def train(bench: Bench, name: str, kind: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    folder = bench.work / f"{kind}-{name}"
    folder.mkdir()
    (folder / "pairs.json").write_text(json.dumps(in_order(rows)))
    (folder / "chats.json").write_text(json.dumps(rows))
    schedule = {"epochs": 1.0, "warmup": 0.0, "scheduler": "linear", "evaluate_every": bench.steps, "save_every": 10 * bench.steps}
    common = {"learning_rate": RATE, "batch_size": BATCH, "max_length": LENGTH, "seed": SEED}
    case = {
        **common,
        "kind": kind,
        "model": str(bench.model),
        "steps": bench.steps,
        "rank": RANK,
        "alpha": ALPHA,
        "plugin": "peft_lora",
        "shape": "preference",
        "config": common | schedule | {"rank": RANK, "alpha": ALPHA, "preference": kind, "precision": "fp32"},
        "pairs": str(folder / "pairs.json"),
        "chats": str(folder / "chats.json"),
        "out": str(folder / "out"),
        "result": str(folder / "result.json"),
    }
    (folder / "case.json").write_text(json.dumps(case))
    with (folder / "log.txt").open("wb") as log:
        command = [bench.python(name), PEERS / SCRIPTS[name], folder / "case.json"]
        done = subprocess.run(command, cwd=folder, env=environment(), stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{(folder / 'log.txt').read_text(errors='replace')[-3000:]}")
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of SmolLM2-135M-Instruct")
    parser.add_argument("--rows", type=Path, required=True, help="JSON: pairs of answers")
    parser.add_argument("--venvs", type=Path, default=Path("venvs"), help="where TRL is installed, or will be")
    parser.add_argument("--kinds", default="dpo,simpo")
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    reached = True
    with tempfile.TemporaryDirectory(prefix="studio-preference-") as temp:
        bench = Bench(options.model.resolve(), options.venvs.resolve(), Path(temp), options.steps)
        rows = pairs(options.rows, bench.model, count=options.steps * BATCH)
        for kind in options.kinds.split(","):
            results = {name: train(bench, name, kind, rows) for name in SCRIPTS}
            for name, result in results.items():
                seconds = sum(step["cpu"] for step in result["steps"][1:]) / max(1, len(result["steps"]) - 1)
                losses = " ".join(f"{loss:.4f}" for loss in result["losses"][: options.steps])
                print(f"{kind:6} {name:7} {seconds:6.1f} CPU-s a step  {result['peak'] / 1e6:6.0f} MB  {losses}", flush=True)
            means = {name: sum(result["losses"][: options.steps]) / options.steps for name, result in results.items()}
            off = 100 * (means[OURS] / means["trl"] - 1)
            reached &= abs(off) <= APART
            print(f"{'PASS' if abs(off) <= APART else 'FAIL'}  {kind}: mean loss {off:+.2f} % of trl's (within {APART:g} %)", flush=True)
    sys.exit(0 if reached else 1)


if __name__ == "__main__":
    main()
