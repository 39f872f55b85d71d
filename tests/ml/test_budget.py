"""Builds on one machine share its memory: never more than the limit at once, in the order of arrival, and a dead one's share is free."""

import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from studio.errors import UserError
from studio.ml.gguf import budget, needs
from studio.ml.gguf.budget import reserved
from studio.training.job import Stopped
from studio.worker.host import memory_size
from tests.jobs import ListeningJob

GB = 10**9
SPAWN = multiprocessing.get_context("spawn")


def hold(folder: Path, name: str, need: int) -> None:
    """A build of nothing, which ends once there is a file `go`: writes down when it begins and ends, as lines "time name bytes"."""
    log = os.open(folder / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    with reserved(need, job=ListeningJob(folder / name), limit=8 * GB, folder=folder / "ledger"):
        os.write(log, f"{time.monotonic()} {name} {need}\n".encode())
        until((folder / "go").exists)
        time.sleep(0.1)
        os.write(log, f"{time.monotonic()} {name} {-need}\n".encode())


def log(folder: Path) -> list[tuple[str, int]]:
    """(name, bytes taken or given back), in the order of time."""
    lines = [line.split() for line in (folder / "log").read_text().splitlines()] if (folder / "log").exists() else []
    return [(name, int(need)) for _, name, need in sorted(lines, key=lambda line: float(line[0]))]


def tickets(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "ledger").iterdir()) if (folder / "ledger").exists() else []


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@contextmanager
def builds(folder: Path, **needs: int) -> Iterator[list[multiprocessing.process.BaseProcess]]:
    """One process for each of `needs`, in this order; all stand in the ledger."""
    with ExitStack() as ending:
        processes = [SPAWN.Process(target=hold, args=(folder, name, need)) for name, need in needs.items()]
        for number, process in enumerate(processes, 1):
            process.start()
            ending.callback(process.join)
            ending.callback(process.kill)
            until(lambda number=number: len(tickets(folder)) == number)
        yield processes


def ended(processes: list[multiprocessing.process.BaseProcess]) -> list[int | None]:
    for process in processes:
        process.join(timeout=30)
    return [process.exitcode for process in processes]


def test_four_builds_at_once_never_take_more_than_the_limit(tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    processes = [SPAWN.Process(target=hold, args=(tmp_path, f"b{number}", need * GB)) for number, need in enumerate((3, 5, 4, 3))]
    for process in processes:
        process.start()
    assert ended(processes) == [0] * 4
    taken, most = 0, 0
    for _, need in log(tmp_path):
        taken += need
        most = max(most, taken)
    assert taken == 0 and 5 * GB <= most <= 8 * GB
    assert tickets(tmp_path) == []


def test_builds_that_fit_work_at_the_same_time(tmp_path: Path) -> None:
    with builds(tmp_path, one=3 * GB, two=5 * GB) as processes:
        until(lambda: log(tmp_path) == [("one", 3 * GB), ("two", 5 * GB)])
        (tmp_path / "go").touch()
        assert ended(processes) == [0, 0]


def test_a_small_build_does_not_overtake_a_large_one(tmp_path: Path) -> None:
    with builds(tmp_path, first=5 * GB, large=7 * GB, small=GB) as processes:
        (tmp_path / "go").touch()
        assert ended(processes) == [0, 0, 0]
    assert [name for name, need in log(tmp_path) if need > 0] == ["first", "large", "small"]


def test_a_build_that_is_killed_frees_its_share(tmp_path: Path) -> None:
    with builds(tmp_path, holds=8 * GB, waits=8 * GB, last=2 * GB) as (holds, waits, last):
        until(lambda: log(tmp_path))
        for process in (waits, holds):
            assert process.pid
            os.kill(process.pid, signal.SIGKILL)
        (tmp_path / "go").touch()
        assert ended([holds, waits, last]) == [-signal.SIGKILL, -signal.SIGKILL, 0]
    assert [name for name, _ in log(tmp_path)] == ["holds", "last", "last"]
    assert tickets(tmp_path) == []


def test_what_needs_more_than_the_limit_runs_alone(tmp_path: Path) -> None:
    with builds(tmp_path, first=GB, huge=20 * GB, after=GB) as processes:
        (tmp_path / "go").touch()
        assert ended(processes) == [0, 0, 0]
    assert log(tmp_path) == [("first", GB), ("first", -GB), ("huge", 20 * GB), ("huge", -20 * GB), ("after", GB), ("after", -GB)]


def test_a_build_that_waits_says_what_for_and_heeds_a_stop(tmp_path: Path) -> None:
    first, second = ListeningJob(tmp_path / "first"), ListeningJob(tmp_path / "second", stop_after=2)
    ledger = tmp_path / "ledger"
    with reserved(6 * GB, job=first, limit=8 * GB, folder=ledger):
        with pytest.raises(Stopped), reserved(3 * GB, job=second, limit=8 * GB, folder=ledger):
            pytest.fail("it got what is not there")
        assert len(list(ledger.iterdir())) == 1
    assert first.phases == [] and second.phases == ["preparing"]
    assert second.texts == ["Waiting for memory: 3.0 GB are needed, and other builds hold 6.0 of 8.0 GB"]
    assert list(ledger.iterdir()) == []


def test_one_that_waits_behind_others_says_that_they_came_before(tmp_path: Path) -> None:
    ledger, jobs = tmp_path / "ledger", [ListeningJob(tmp_path / name) for name in ("first", "second")]

    def wait() -> None:
        with reserved(4 * GB, job=jobs[1], limit=8 * GB, folder=ledger):
            pass

    third = ListeningJob(tmp_path / "third", stop_after=0)
    with reserved(6 * GB, job=jobs[0], limit=8 * GB, folder=ledger):
        waits = threading.Thread(target=wait)
        waits.start()
        until(lambda: jobs[1].texts)
        with pytest.raises(Stopped), reserved(GB, job=third, limit=8 * GB, folder=ledger):
            pytest.fail("it overtook")
    waits.join()
    assert third.texts == ["Waiting for memory: 1.0 GB are needed, and other builds hold 6.0 of 8.0 GB; 1 came before"]


def test_a_ledger_that_others_may_write_into_is_refused(tmp_path: Path) -> None:
    job = ListeningJob(tmp_path / "job")
    open_to_all, link, real = tmp_path / "open", tmp_path / "link", tmp_path / "real"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    real.mkdir(mode=0o700)
    link.symlink_to(real)
    for folder in (open_to_all, link):
        with pytest.raises(UserError, match="Remove it"), reserved(1, job=job, limit=1, folder=folder):
            pytest.fail("it was used")


def test_the_limit_is_half_of_the_memory_unless_it_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(budget.LIMIT, raising=False)
    assert budget.limit() == memory_size() // 2
    monkeypatch.setenv(budget.LIMIT, "0")
    assert budget.limit() == memory_size() // 2
    monkeypatch.setenv(budget.LIMIT, str(3 * GB))
    monkeypatch.setenv(budget.LEDGER, str(tmp_path))
    assert budget.limit() == 3 * GB and budget.ledger() == tmp_path


def test_what_an_earlier_attempt_has_written_need_not_be_free_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed, state = 100 << 20, tmp_path / "state"
    (state / "files").mkdir(parents=True)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed + needs.FREE_DISK - (1 << 20)))
    with pytest.raises(UserError, match=r"need 0\.1 GB of disk"):
        needs.refuse_full_disk(tmp_path, needed, state=state)
    (state / "files" / "0.part").write_bytes(bytes(2 << 20))
    needs.refuse_full_disk(tmp_path, needed, state=state)


def test_a_model_that_is_larger_than_the_limit_gets_what_there_is(tiny_model: Path) -> None:
    small, large = needs.memory_for_checking(tiny_model, largest=0), needs.memory_for_checking(tiny_model, largest=10 * GB)
    assert needs.PROCESS + needs.SPARE < small < needs.PROCESS + needs.SPARE + (1 << 20)
    assert large == needs.PROCESS + needs.LLAMACPP + 20 * GB
    assert needs.memory_for_reference(small) == small - needs.PROCESS
    assert needs.memory_for_reference(1) == 0
