"""Reading a file of chat rows beside the field's readers, and opening a page of a very large version: ratios, in one go.

    python benchmarks/datasets.py import [--rows N] [--venvs FOLDER]
    python benchmarks/datasets.py page [--rows N]
    python benchmarks/datasets.py near [--rows N] [--venvs FOLDER]

`import` writes a JSONL file of N chats (two or three messages, about 600 bytes, some with escapes, accents or an e-mail address) and
reads it with polars' `read_ndjson`, with `datasets.load_dataset("json")` into a cold cache, and as the studio does, each in a process
of its own, `--tries` times in turn; the best time counts. Polars and datasets only parse. The studio recognises the shape, judges every
line, and drafts canonical rows with their hashes (reading); it looks at all rows (looking: findings, near-duplicates, languages); then it
splits and packs them (packing). Printed for each: seconds by the clock and of the processor, and the peak of resident memory; then the
ratios, each with its target. Where others use the machine, too, processor time is the steadier figure.

`page` imports such a file and opens the page of 50 rows after number 900,000 (or nine tenths of N): all rows, those with a finding, and
those that hold a text; the first time in a fresh process, and the median of five more.

`near` looks for near-duplicates among N texts (30 to 120 words; every tenth repeats an earlier one with up to an eighth of its words
changed): on a slice beside datasketch's MinHashLSH, with the same pairs of words, threshold and number of permutations, then on all.
Recall is told of the planted pairs that share at least 0.8, precision counts a row as right that shares at least 0.7.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import venv
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PEERS = Path(__file__).resolve().parent / "peers"
OURS = "studio"
SLICE = 20_000
"""Texts that datasketch is given."""
PACKAGES = {"polars": ["polars==2.1.0"], "datasets": ["datasets==5.2.0"], "datasketch": ["datasketch==2.0.0"]}
SCRIPTS = {"polars": "read_polars.py", "datasets": "read_datasets.py", OURS: "studio_import.py"}
NEAR = {"datasketch": "near_datasketch.py", "near": "near_studio.py"}
SPEED, MEMORY, OPENS = 0.5, 400e6, 0.2
"""The studio's share of polars' speed, its bytes of memory, and the seconds that a page may take."""
SYLLABLES = ["ka", "to", "mi", "re", "son", "ling", "der", "ver", "ta", "pro", "con", "in", "ex", "tion", "ment", "ful", "ly", "the", "and"]
SPECIAL = ["naïve", "Größe", "“quoted”", "日本語", "C:\\path", "a\nb", '"x"', "€5", "emoji 😀", "ana@example.org"]


@dataclass
class Read:
    """What one reader took."""

    wall: float
    cpu: float
    peak: float
    phases: dict[str, float]
    """Seconds by the clock of the studio's looking at its rows, and of the processor."""

    def line(self, name: str) -> str:
        phases = "".join(f"  {phase} {seconds:.2f} s" for phase, seconds in self.phases.items())
        return f"{name:9} {self.wall:7.2f} s  {self.cpu:7.2f} s of the processor  {self.peak / 1e6:6.0f} MB{phases}"


def write_chats(path: Path, number: int) -> None:
    dice = random.Random(7)
    words = ["".join(dice.choices(SYLLABLES, k=dice.randint(1, 3))) for _ in range(20_000)]
    with path.open("wb") as file:
        for row in range(number):
            answer = dice.choices(words, k=dice.randint(30, 90))
            if dice.random() < 0.1:
                answer[dice.randrange(len(answer))] = dice.choice(SPECIAL)
            messages = [
                {"role": "user", "content": " ".join(dice.choices(words, k=dice.randint(8, 30))) + "?"},
                {"role": "assistant", "content": " ".join(answer) + "."},
            ]
            if row % 3 == 0:
                messages.insert(0, {"role": "system", "content": "You are a helpful agent of a shop."})
            file.write(json.dumps({"messages": messages}, ensure_ascii=row % 50 == 0).encode() + b"\n")


def python(name: str, venvs: Path) -> Path:
    """The interpreter of a peer's venv, which is made where it is missing; our own for ours."""
    if name in (OURS, "near"):
        return Path(sys.executable)
    folder = venvs / name
    if not (folder / "bin" / "python").exists():
        print(f"Installing {name} into {folder}", flush=True)
        venv.create(folder, with_pip=True)
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "-q", *PACKAGES[name]], check=True)
    return folder / "bin" / "python"


def measured(name: str, venvs: Path, *arguments: Any) -> dict[str, Any]:
    """What a script of `peers` printed last."""
    command = [python(name, venvs), PEERS / (SCRIPTS | NEAR)[name], *arguments]
    done = subprocess.run(
        [str(part) for part in command], env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare_import(options: argparse.Namespace, work: Path) -> bool:
    file = work / "chats.jsonl"
    write_chats(file, options.rows)
    print(f"{options.rows:,} chats, {file.stat().st_size / 1e6:.0f} MB", flush=True)
    best: dict[str, Read] = {}
    for attempt in range(options.tries):
        for name in options.only.split(","):
            folder = work / f"{name}-{attempt}"
            folder.mkdir()
            read = Read(**measured(name, options.venvs, file, folder))
            print(read.line(name), flush=True)
            if name not in best or read.wall < best[name].wall:
                best[name] = read
    ours = best[OURS]
    reading, written = ours.phases["reading"], ours.phases["reading"] + ours.phases["packing"]
    found = [(ours.peak < MEMORY, f"peak memory: {ours.peak / 1e6:.0f} MB (below {MEMORY / 1e6:.0f})")]
    if "polars" in best:
        polars = best["polars"]
        found.append(
            (polars.wall / reading >= SPEED, f"rows read and judged: {polars.wall / reading:.2f} × polars' speed (at least {SPEED:g})")
        )
        print(f"\nby processor time: {polars.cpu / ours.phases['reading, of the processor']:.2f} × polars' speed")
        print(f"with splitting and packing: {polars.wall / written:.2f}, with all rows looked at: {polars.wall / ours.wall:.2f}")
    if "datasets" in best:
        print(f"rows read and judged: {best['datasets'].wall / reading:.2f} × datasets' speed, which only parses")
    return told(found)


def compare_pages(options: argparse.Namespace, work: Path) -> bool:
    file, folder = work / "chats.jsonl", work / "import"
    write_chats(file, options.rows)
    folder.mkdir()
    measured(OURS, options.venvs, file, folder)
    found = []
    for name, filters in {
        "all rows": {},
        "rows with personal data": {"flags": "personal"},
        "rows that hold “ling”": {"query": "ling"},
    }.items():
        after = min(900_000, options.rows * 9 // 10)
        command = [sys.executable, PEERS / "studio_page.py", folder / "out" / "rows.parquet", str(after), json.dumps(filters)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        first, *more = json.loads(done.stdout.splitlines()[-1])
        reached = first < OPENS
        found.append(
            (reached, f"{name} after {after:,}: first {first * 1000:.0f} ms, then {statistics.median(more) * 1000:.0f} ms (below 200)")
        )
    return told(found)


def told(found: list[tuple[bool, str]]) -> bool:
    for passed, sentence in found:
        print(f"{'PASS' if passed else 'FAIL'}  {sentence}")
    return all(passed for passed, _ in found)


def write_near(path: Path, number: int) -> dict[int, tuple[int, float]]:
    """Writes texts, every tenth of which repeats an earlier one with some words changed. Returns its row -> (that row, what both share)."""
    dice = random.Random(11)
    words = ["".join(dice.choices(SYLLABLES, k=dice.randint(1, 3))) for _ in range(20_000)]
    kept: deque[tuple[int, list[str]]] = deque(maxlen=1000)
    planted: dict[int, tuple[int, float]] = {}
    with path.open("w") as file:
        for row in range(number):
            if row % 10 == 9:
                of, original = dice.choice(kept)
                text = list(original)
                for _ in range(dice.randint(1, max(1, len(text) // 8))):
                    text[dice.randrange(len(text))] = dice.choice(words)
                planted[row] = of, alike(original, text)
            else:
                text = dice.choices(words, k=dice.randint(30, 120))
                kept.append((row, text))
            file.write(json.dumps({"text": " ".join(text)}) + "\n")
    return planted


def alike(one: list[str], other: list[str]) -> float:
    """The share of the pairs of neighbouring words that two texts have in common (Jaccard)."""
    first, second = (set(zip(text, [*text[1:], ""], strict=True)) for text in (one, other))
    return len(first & second) / len(first | second)


def compare_near(options: argparse.Namespace, work: Path) -> bool:
    found = []
    read: dict[str, Read] = {}
    for name, number in (("datasketch", min(options.rows, SLICE)), ("near", min(options.rows, SLICE)), ("near", options.rows)):
        folder = Path(tempfile.mkdtemp(dir=work))
        planted = write_near(folder / "texts.jsonl", number)
        read[name] = here = Read(**measured(name, options.venvs, folder / "texts.jsonl", folder))
        groups = {int(row): of for row, of in json.loads((folder / "found.json").read_text()).items()}
        due = [row for row, (_, share) in planted.items() if share >= 0.8]
        met = sum(row in groups or planted[row][0] in groups for row in due) / max(1, len(due))
        right = sum(row in planted and planted[row][1] >= 0.7 for row in groups) / max(1, len(groups))
        print(f"{number:,} texts  {here.line(name)}  recall {met:.3f}  precision {right:.3f}", flush=True)
        if name == "near":
            found.append((met >= 0.95 and right >= 0.95, f"of {number:,}: recall {met:.3f}, precision {right:.3f} (both at least 0.95)"))
            if number == min(options.rows, SLICE) and len(found) == 1:
                slower = read["datasketch"]
                print(f"{slower.wall / here.wall:.1f} × datasketch's speed, {slower.cpu / here.cpu:.1f} × by processor time")
    found.append((read["near"].peak < MEMORY, f"peak memory: {read['near'].peak / 1e6:.0f} MB (below {MEMORY / 1e6:.0f})"))
    return told(found)


PARTS: dict[str, Callable[[argparse.Namespace, Path], bool]] = {"import": compare_import, "page": compare_pages, "near": compare_near}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--tries", type=int, default=2)
    parser.add_argument("--venvs", type=Path, default=Path("venvs"), help="where the peers are installed, or will be")
    parser.add_argument("--only", default=",".join(SCRIPTS), help="which readers, by name: polars,datasets,studio")
    options = parser.parse_args()
    options.venvs = options.venvs.resolve()
    with tempfile.TemporaryDirectory(prefix="studio-datasets-") as temp:
        sys.exit(0 if PARTS[options.part](options, Path(temp)) else 1)


if __name__ == "__main__":
    main()
