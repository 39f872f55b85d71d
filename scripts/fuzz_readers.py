"""Damages valid files of every format for as long as it is given, and keeps each that a reader did not answer as it should.

Each format is tried in a process of its own with limits on memory and time, so that the death of one is found, too. Damaged files that
were answered in a new way are damaged further. Exit code 1 where something was found; the files then lie in build/nightly.
"""

import argparse
import hashlib
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn

from studio.datasets.readers import Refusal, open_file
from studio.errors import UserError
from tests.datasets.hostile import VALID, answer, can_be_damaged_inside, damaged, damaged_inside

FOUND = Path("build/nightly")
MEMORY = 2 << 30
PATIENCE = 20
"""Seconds after which one small file is taken for a hang."""
POOL = 2000
"""Files that were answered in a new way and are damaged further."""
MOST_FOUND = 5
"""Files of one format after which it is left."""


class Hangs(BaseException):
    """No Exception: a reader must not take it for something that a file did."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="for all formats together (default 600)")
    parser.add_argument("--seed", type=int, default=None, help="to do the same again")
    parser.add_argument("--only", choices=list(VALID), help="one format alone; with --inside, what its process does")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if asked.seed is None else asked.seed
    if asked.inside:
        return fuzz(asked.only, seconds=asked.seconds, chance=random.Random(seed), folder=asked.inside)
    kinds = [asked.only] if asked.only else list(VALID)
    print(f"Seed {seed}, {len(kinds)} formats, {asked.seconds:.0f} seconds.", flush=True)
    failed = [kind for kind in kinds if not supervise(kind, seconds=asked.seconds / len(kinds), seed=seed)]
    print(f"Found something in: {', '.join(failed)}. See {FOUND}." if failed else "Nothing found.")
    return 1 if failed else 0


def supervise(kind: str, *, seconds: float, seed: int) -> bool:
    """Fuzzes one format in a process; True where nothing was found."""
    folder = FOUND / re.sub(r"\W+", "-", kind.lower())
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "work").mkdir(parents=True)
    how = ["--only", kind, "--inside", str(folder), "--seed", str(seed), "--seconds", str(seconds)]
    command = [sys.executable, "-m", "scripts.fuzz_readers", *how]
    ended = subprocess.run(command, check=False, preexec_fn=limit)
    if ended.returncode < 0:
        name = signal.Signals(-ended.returncode).name
        keep(folder, (folder / "upload").read_bytes(), f"the process died of {name}")
    found = sorted(folder.glob("found-*"))
    (folder / "upload").unlink(missing_ok=True)
    if not found:
        shutil.rmtree(folder)
    return not found and ended.returncode == 0


def limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def fuzz(kind: str, *, seconds: float, chance: random.Random, folder: Path) -> int:
    """Damages one valid file over and over. What is at hand stands in `folder`/upload, for whoever finds this process dead."""
    name, content = VALID[kind]
    pool, answers = [content], {signature(folder, name, content)}
    upload, until, done, found, slowest = folder / "upload", time.monotonic() + seconds, 0, 0, 0.0
    signal.signal(signal.SIGALRM, hang)
    while time.monotonic() < until and found < MOST_FOUND:
        origin = chance.choice(pool)
        hurt = damaged_inside if chance.random() < 0.5 and origin is content and can_be_damaged_inside(content) else damaged
        piece = hurt(origin, chance)
        upload.write_bytes(piece)
        began = time.monotonic()
        signal.alarm(PATIENCE)
        try:
            answer(upload, name, encoding=chance.choice(("", "utf-8", "cp1252")), work=folder / "work")
        except BaseException as error:
            signal.alarm(0)
            if isinstance(error, KeyboardInterrupt):
                raise
            found += 1
            keep(folder, piece, "".join(traceback.format_exception(error)[-4:]))
        signal.alarm(0)
        done, slowest = done + 1, max(slowest, time.monotonic() - began)
        if len(pool) < POOL and len(piece) < 100_000 and (told := signature(folder, name, piece)) not in answers:
            answers.add(told)
            pool.append(piece)
    print(f"{kind:22} {done:9,} files, {len(answers):5,} kinds of answer, slowest {slowest:.2f} s, found {found}", flush=True)
    return 1 if found else 0


def signature(folder: Path, name: str, content: bytes) -> str:
    """How a file was answered, without the numbers and texts in it."""
    path = folder / "upload"
    path.write_bytes(content)
    told = set()
    try:
        reading = open_file(path, filename=name, work=folder / "work")
        told.add(reading.format)
        for number, outcome in enumerate(reading.lines):
            told.add(outcome.reason if isinstance(outcome, Refusal) else f"{type(outcome).__name__} {len(outcome.columns)}")
            if number == 50:
                break
        told.update(reading.notices)
    except UserError as refused:
        told.add(refused.message)
    except (Exception, Hangs):  # found by `answer` already
        pass
    return " ".join(sorted({re.sub(r'\d+|".*?"|0x\w+|: .*', "#", text)[:60] for text in told}))


def keep(folder: Path, content: bytes, why: str) -> None:
    name = f"found-{hashlib.sha256(content).hexdigest()[:12]}"
    (folder / name).write_bytes(content)
    print(f"── {folder / name}: {why}", flush=True)


def hang(*_: object) -> NoReturn:
    raise Hangs(f"not answered after {PATIENCE} seconds")


if __name__ == "__main__":
    sys.exit(main())
