"""A process that the kernel ended because memory ran out is told so; one that was ended for another reason is not."""

import os
import signal
from functools import partial
from pathlib import Path

import pytest

from studio.orders import supervising
from studio.orders.outofmemory import FAR_FROM_FULL, MemoryWatch, share_in_use
from tests.fixtures import work_off

KILLED = -signal.SIGKILL
MIB = 1 << 20


@pytest.fixture
def group(tmp_path: Path) -> Path:
    """The kernel's files of a control group that may take 100 MiB."""
    folder = tmp_path / "cgroup"
    folder.mkdir()
    (folder / "memory.max").write_text(f"{100 * MIB}\n")
    (folder / "memory.events").write_text("low 0\noom 7\noom_kill 2\noom_group_kill 0\n")
    use(folder, 10)
    return folder


def use(group: Path, mebibytes: int, *, files: int = 5) -> None:
    """That much memory is in use, and besides it so much of what was read from files."""
    (group / "memory.current").write_text(f"{(mebibytes + files) * MIB}\n")
    (group / "memory.stat").write_text(f"anon {mebibytes * MIB}\ninactive_file {files * MIB}\nactive_file 0\n")


@pytest.fixture
def vmstat(tmp_path: Path) -> Path:
    file = tmp_path / "vmstat"
    file.write_text("nr_free_pages 12\noom_kill 0\n")
    return file


@pytest.fixture
def watch(group: Path, vmstat: Path) -> MemoryWatch:
    return MemoryWatch(cgroup=group, vmstat=vmstat)


def test_a_kill_that_the_kernel_counts_in_its_group_is_out_of_memory(watch, group):
    watch.look()
    (group / "memory.events").write_text("low 0\noom 8\noom_kill 3\noom_group_kill 0\n")
    assert watch.ended_it(KILLED)
    assert not watch.ended_it(-signal.SIGTERM) and not watch.ended_it(0)


def test_the_older_kind_of_groups_counts_as_well(watch, group):
    (group / "memory").mkdir()
    (group / "memory" / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    assert watch.ended_it(KILLED)


def test_memory_that_was_full_a_moment_before_is_out_of_memory(watch, group):
    use(group, 97, files=0)
    watch.look()
    use(group, 1)
    assert watch.ended_it(KILLED)


def test_a_kill_while_memory_was_far_from_full_is_somebody_elses(watch):
    watch.look()
    assert not watch.ended_it(KILLED)


def test_what_the_machine_ended_elsewhere_counts_only_where_memory_was_not_far_from_full(watch, group, vmstat):
    watch.look()
    vmstat.write_text("nr_free_pages 12\noom_kill 1\n")
    assert watch.ended_it(KILLED) == (watch.fullest >= FAR_FROM_FULL)
    use(group, 80)
    later = MemoryWatch(cgroup=group, vmstat=vmstat)
    later.look()
    assert not later.ended_it(KILLED)
    vmstat.write_text("nr_free_pages 12\noom_kill 2\n")
    assert later.ended_it(KILLED)


def test_what_was_read_from_files_does_not_fill_the_memory(group):
    before = share_in_use(group)
    use(group, 10, files=85)
    assert share_in_use(group) == pytest.approx(before, abs=0.02)
    use(group, 60, files=35)
    assert share_in_use(group) >= 0.6


@pytest.mark.django_db(transaction=True)
def test_a_run_that_the_kernel_ended_says_so_with_its_step(strange, start, group, vmstat, monkeypatch):
    monkeypatch.setattr(supervising, "MemoryWatch", partial(MemoryWatch, cgroup=group, vmstat=vmstat))
    events = group / "memory.events"
    lines = [
        "job.metric(step=3, total=9, loss=1.0)",
        f"open({os.fspath(events)!r}, 'w').write('oom_kill 3')",
        "import os; os.kill(os.getpid(), 9)",
    ]
    strange("large", *lines)
    order = work_off(start("large"))
    assert (order.status, order.result) == ("failed", {"code": "out_of_memory", "step": 3})
    assert order.error.startswith("The worker ran out of memory, so the system ended the process.")
