"""A build that is killed, stopped or run out of disk goes on from what it had finished, and gives the same bytes in the end."""

import errno
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from studio.errors import UserError
from studio.ml.gguf import exporting, journal, unfinished
from studio.ml.gguf.exporting import Target, export_all
from studio.training.job import Stopped
from tests.ml.conftest import ModelMaker

TYPES = ("f16", "q8_0", "q4_k_m")
PIECE = 1 << 13
"""Small items, so that a small model has hundreds of them."""

CHILD = """
import os, signal, sys, time
from pathlib import Path
from studio.ml.gguf import exporting, journal, unfinished
from studio.ml.gguf.exporting import Target, export_all

exporting.PIECE, unfinished.EVERY_BYTES = int(sys.argv[1]), 1
base, state, out = map(Path, sys.argv[2:5])
targets = [Target(kind, out / f"{kind}.gguf") for kind in sys.argv[5:]]

def progress(done, total):
    if done > total // 2:
        time.sleep(0.05)  # the disk gets the time to make safe what is written
        fingerprint = (state / "journal").read_text().split()[0]
        if len(journal.done(state / "journal", fingerprint=fingerprint)) > 60:
            os.kill(os.getpid(), signal.SIGKILL)

export_all(base=base, adapter=None, targets=targets, name="tiny", state=state, progress=progress)
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_model_maker: ModelMaker) -> Path:
    return tiny_model_maker(tmp_path_factory.mktemp("wide"), hidden=256, intermediate=512, layers=2, tied=False)


@pytest.fixture(autouse=True)
def small_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "PIECE", PIECE)
    monkeypatch.setattr(unfinished, "EVERY_BYTES", 1)


class Seen:
    """What an export said of its progress, and when it is to be stopped."""

    def __init__(self, *, stop_after: int = 10**9):
        self.steps: list[tuple[int, int]] = []
        self.stop_after = stop_after

    def __call__(self, done: int, total: int) -> None:
        self.steps.append((done, total))

    def stopping(self) -> bool:
        return len(self.steps) >= self.stop_after


def build(base: Path, out: Path, *, state: Path | None, seen: Seen | None = None, name: str = "tiny", **more: Any) -> dict[str, str]:
    """The files' hashes, by type."""
    seen = seen or Seen()
    targets = [Target(kind, out / f"{kind}.gguf") for kind in TYPES]
    export_all(base=base, adapter=None, targets=targets, name=name, state=state, progress=seen, stopping=seen.stopping, **more)
    assert seen.steps[-1][0] == seen.steps[-1][1]
    assert sorted(path.name for path in out.iterdir()) == sorted(target.path.name for target in targets)
    return {target.quantization: hashlib.sha256(target.path.read_bytes()).hexdigest() for target in targets}


def stopped_halfway(base: Path, state: Path, *, after: int = 60) -> None:
    with pytest.raises(Stopped):
        build(base, state.parent / "never", state=state, seen=Seen(stop_after=after))
    assert list((state.parent / "never").iterdir()) == []


def test_a_killed_build_goes_on_and_gives_the_same_bytes(base: Path, tmp_path: Path) -> None:
    whole = Seen()
    expected = build(base, tmp_path / "whole", state=None, seen=whole)
    state, out = tmp_path / "state", tmp_path / "out"
    child = subprocess.run([sys.executable, "-c", CHILD, str(PIECE), base, state, out, *TYPES], check=False)
    assert child.returncode == -signal.SIGKILL
    assert list(out.iterdir()) == []

    seen = Seen()
    assert build(base, tmp_path / "second", state=state, seen=seen) == expected
    assert 0 < len(seen.steps) < len(whole.steps) * 0.8
    assert seen.steps[0][0] > seen.steps[0][1] // 5  # where it began


def test_a_stopped_build_keeps_all_that_was_done(base: Path, tmp_path: Path) -> None:
    expected = build(base, tmp_path / "whole", state=None)
    stopped_halfway(base, tmp_path / "state", after=60)
    seen = Seen()
    assert build(base, tmp_path / "out", state=tmp_path / "state", seen=seen) == expected
    first, second = seen.steps[0][0], seen.steps[1][0]
    assert first >= 59 * (second - first)  # sixty items, all that were finished


def test_a_finished_build_is_there_at_once_for_whoever_died_while_checking_it(base: Path, tmp_path: Path) -> None:
    expected = build(base, tmp_path / "first", state=tmp_path / "state")
    seen = Seen()
    assert build(base, tmp_path / "second", state=tmp_path / "state", seen=seen) == expected
    assert len(seen.steps) == 1


def test_another_build_in_the_same_folder_starts_anew(base: Path, tmp_path: Path) -> None:
    stopped_halfway(base, tmp_path / "state")
    seen = Seen()
    expected = build(base, tmp_path / "whole", state=None, name="other")
    assert build(base, tmp_path / "out", state=tmp_path / "state", seen=seen, name="other") == expected
    assert seen.steps[0][0] < seen.steps[0][1] // 100


def test_weights_that_changed_meanwhile_start_it_anew(tiny_model_maker: ModelMaker, tmp_path: Path) -> None:
    base = tiny_model_maker(tmp_path / "base", hidden=256, intermediate=512, layers=2, tied=False)
    stopped_halfway(base, tmp_path / "state")
    os.utime(base / "model.safetensors", (1, 1))
    seen = Seen()
    build(base, tmp_path / "out", state=tmp_path / "state", seen=seen)
    assert seen.steps[0][0] < seen.steps[0][1] // 100


@pytest.mark.parametrize("damage", ["cut", "changed", "zeros", "beginning", "missing part", "short part"])
def test_what_the_disk_lost_is_done_again(base: Path, tmp_path: Path, damage: str) -> None:
    expected = build(base, tmp_path / "whole", state=None)
    stopped_halfway(base, tmp_path / "state")
    record, part = tmp_path / "state" / "journal", tmp_path / "state" / "0.part"
    raw = record.read_bytes()
    if damage == "cut":
        record.write_bytes(raw[:-5])
    elif damage == "changed":
        record.write_bytes(raw + b"\n0-100000 00000000\n0-100000")
    elif damage == "zeros":
        record.write_bytes(raw[:-40] + bytes(40))
    elif damage == "beginning":
        record.write_bytes(b"x" + raw[10:])
    elif damage == "missing part":
        part.unlink()
    else:
        part.write_bytes(part.read_bytes()[:-1])
    assert build(base, tmp_path / "out", state=tmp_path / "state") == expected


def test_a_full_disk_is_said_in_words_and_costs_nothing_that_was_done(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = build(base, tmp_path / "whole", state=None)
    write, calls = os.pwrite, iter(range(10**6))

    def full(*arguments: Any) -> int:
        if next(calls) > 150:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*arguments)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(UserError, match="disk is full") as caught:
        build(base, tmp_path / "never", state=tmp_path / "state")
    assert caught.value.code == "disk_full"
    monkeypatch.setattr(os, "pwrite", write)
    seen = Seen()
    assert build(base, tmp_path / "out", state=tmp_path / "state", seen=seen) == expected
    assert seen.steps[0][0] > 0


def test_two_processes_do_not_write_the_same_files(base: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    with (state / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Stopped):
            export_all(
                base=base, adapter=None, targets=[Target("f16", tmp_path / "f16.gguf")], name="x", state=state, stopping=lambda: True
            )
    assert not (tmp_path / "f16.gguf").exists()


def test_a_file_moves_where_it_cannot_have_two_names(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = build(base, tmp_path / "whole", state=None)
    for number in (errno.EPERM, errno.EXDEV):  # a file system without hard links, and another disk

        def refuse(*_: object, number: int = number) -> None:
            raise OSError(number, "no")

        monkeypatch.setattr(os, "link", refuse)
        assert build(base, tmp_path / str(number), state=tmp_path / f"state-{number}") == expected


def test_a_journal_counts_whole_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    assert journal.done(path, fingerprint="one") is None
    journal.begin(path, fingerprint="one")
    assert journal.done(path, fingerprint="one") == set()
    journal.record(path, [3, 1, 2, 9])
    whole = path.read_bytes()
    for cut in range(1, len("9-9 12345678")):
        path.write_bytes(whole[:-cut])
        journal.record(path, [7])
        assert journal.done(path, fingerprint="one") in ({1, 2, 3, 9, 7}, {7})
    assert journal.done(path, fingerprint="other") is None
